"""Every direction that the package makes has E||Z||^2 = n of what trains and gives the gradient on the average, over the
law of its factors: Monte Carlo on its own arrays, within three standard errors. G is the gradient, H orthogonal to it.
"""

import numpy as np
import pytest
import tiny_llama
from test_step import CONFIG, WEIGHT_SHAPES

from pysmezo import LOZO, LeZO, Runtime, SubZero, TeZO
from pysmezo import _core as core

RANK = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_llama.save(tmp_path_factory.mktemp("base") / "m", CONFIG, tiny_llama.random_weights(CONFIG))


def linear_shapes(run):
    return {n: (i, WEIGHT_SHAPES[n]) for n, i in run.tensor_ids().items() if "_proj" in n}


def product(run, tensor_id, shape, step, query):
    a, v = run._engine.factors(tensor_id, step, query)
    return a.astype(np.float64).reshape(shape[0], -1) @ v.astype(np.float64).reshape(-1, shape[1])


def dense(noise):
    def make(base):
        for step in range(1, 600):
            z = core.noise(noise, 5, step, step % 3, 7, 0, 24 * 16).astype(np.float64)
            yield z.reshape(24, 16)

    return make


def of_steps(method):
    """Factors that are drawn anew at every step."""

    def make(base):
        with Runtime.from_pretrained(base, method=method, seed=11) as run:
            for tensor_id, shape in linear_shapes(run).values():
                for step in range(1, 60):
                    for query in range(2):
                        yield product(run, tensor_id, shape, step, query)

    return make


def of_seeds(method):
    """Factors of the run: one direction of each tensor of many runs."""

    def make(base):
        for seed in range(150):
            with Runtime.from_pretrained(base, method=method, seed=seed) as run:
                for tensor_id, shape in linear_shapes(run).values():
                    yield product(run, tensor_id, shape, 1 + seed % 5, 0)

    return make


DIRECTIONS = {
    "gaussian": dense("gaussian"),
    "gaussian8": dense("gaussian8"),
    "rademacher": dense("rademacher"),
    "lozo": of_steps(LOZO(rank=RANK, refresh=1)),
    "lozo, rademacher": of_steps(LOZO(rank=RANK, refresh=1, noise="rademacher")),
    "subzero": of_steps(SubZero(rank=RANK, refresh=1)),
    "tezo": of_seeds(TeZO(rank=RANK)),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_norm_and_mean_estimate(base, name):
    rng = np.random.default_rng(3)
    gradients: dict = {}
    norm, along, across = [], [], []
    for z in DIRECTIONS[name](base):
        if z.shape not in gradients:
            g, h = rng.standard_normal((2, *z.shape))
            g /= np.linalg.norm(g)
            h -= (g * h).sum() * g
            gradients[z.shape] = g, h / np.linalg.norm(h)
        g, h = gradients[z.shape]
        norm.append((z * z).sum() / z.size)
        along.append((g * z).sum() ** 2)
        across.append((g * z).sum() * (h * z).sum())
    for values, want in ((norm, 1.0), (along, 1.0), (across, 0.0)):
        mean, error = np.mean(values), np.std(values) / np.sqrt(len(values))
        # Rademacher noise has no other norm; gaussian8's variance is 1 to a few units in its eighth digit.
        assert abs(mean - want) <= 3 * error + 1e-6, (name, mean, error)


def test_orthonormal_factors_are(base):
    with Runtime.from_pretrained(base, method=SubZero(rank=RANK, refresh=2), seed=1) as run:
        for tensor_id, shape in linear_shapes(run).values():
            _, v = run._engine.factors(tensor_id, 3, 0)
            v = v.astype(np.float64).reshape(RANK, -1)
            assert v.shape[1] == shape[1]
            np.testing.assert_allclose(v @ v.T, np.eye(RANK), atol=2**-7)


def test_layers_rest_by_turns(base):
    """Each layer takes part in its share of the steps, and their number is the same at every step."""
    with Runtime.from_pretrained(base, method=LeZO(drop=0.5), seed=2) as run:
        rests = np.array([run._engine.resting(step) for step in range(1, 401)])
    n_layers = CONFIG["num_hidden_layers"]
    assert (rests.sum(axis=1) == int(0.5 * n_layers + 0.5)).all()
    share, error = rests.mean(axis=0), 0.5 / np.sqrt(400)
    assert (np.abs(share - int(0.5 * n_layers + 0.5) / n_layers) <= 3 * error).all()
