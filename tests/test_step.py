"""One step of the package against the float64 oracle: losses to 2e-6 relative in fp32, weights bit for bit given scalar
and z.

What the two share is z, mask bits and rounding bits, taken from pysmezo._core by address (I6) and tested on their own
against a Philox in Python. lr and eps here are powers of two: exact in every format, so that no rounding of a parameter
blurs a comparison.
"""

import fnmatch
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import tiny_llama

from pysmezo import LargestMask, MeZO, RandomMask, Runtime, SparseMeZO
from pysmezo import _core as core

SEED, EPS, LR = 20240229, 2.0**-7, 2.0**-9
CONFIG = tiny_llama.config()
SHAPE = oracle.Config.of(CONFIG)
LOSS_TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Name -> (folder, weights as stored)."""
    root = tmp_path_factory.mktemp("bases")
    plain = tiny_llama.random_weights(CONFIG)
    tied_config = tiny_llama.config(tied=True)
    tied, short = tiny_llama.random_weights(tied_config, 1), tiny_llama.to_bf16(plain)
    return {
        "fp32": (tiny_llama.save(root / "fp32", CONFIG, plain), plain),
        "tied": (tiny_llama.save(root / "tied", tied_config, tied), tied),
        "bf16": (tiny_llama.save(root / "bf16", CONFIG, short, "BF16"), short),
    }


def a_batch(seed=0, rows=4, columns=12, some_labels=False):
    """A right-padded batch as users give it, and the same for the oracle."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, CONFIG["vocab_size"], (rows, columns))
    mask = (np.arange(columns) < rng.integers(4, columns + 1, (rows, 1))).astype(np.int64)
    mask[0] = 1
    labels = np.where(mask == 1, ids, -100)
    if some_labels:
        labels[:, 1:3] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}, oracle.Batch.padded(ids, mask, labels)


def open_run(folder, tmp_path, method, name="run", **options):
    options = {"lr": LR, "eps": EPS, "seed": SEED, "dtype": "fp32", "values": "fp32", "threads": 2} | options
    return Runtime.from_pretrained(folder, method=method, run_dir=tmp_path / name, **options)


def z_of(run, noise, step):
    ids = run.tensor_ids()

    def z(name, query):
        shape = WEIGHT_SHAPES[name]
        return core.noise(noise, SEED, step, query, ids[name], 0, int(np.prod(shape))).reshape(shape)

    return z


WEIGHT_SHAPES = {n: w.shape for n, w in tiny_llama.random_weights(CONFIG).items()}


def rounding_of(run, step, bits):
    ids = run.tensor_ids()

    def rounding(name):
        shape = WEIGHT_SHAPES[name]
        return core.random_bits("rounding", SEED, step, 0, ids[name], 0, int(np.prod(shape)), bits).reshape(shape)

    return rounding


def mask_of(method, run, base):
    """The selection rule of a method, from the base's weights (thresholds) and the run's mask bits."""
    ids = run.tensor_ids()
    sparsity = getattr(method, "sparsity", 0.0)
    if isinstance(method, SparseMeZO):
        h = {n: oracle.threshold(w, sparsity) for n, w in base.items()}
        return lambda n, w: np.abs(w) <= h[n]
    if isinstance(method, LargestMask):
        h = {n: np.sort(np.abs(w).ravel())[-max(1, round((1 - sparsity) * w.size))] for n, w in base.items()}
        return lambda n, w: np.abs(w) >= h[n]
    if isinstance(method, RandomMask):

        def random_mask(n, w):
            keep = round(65536 * float((np.abs(base[n]) <= oracle.threshold(base[n], sparsity)).mean()))
            return core.random_bits("mask", SEED, 0, 0, ids[n], 0, w.size, 16).reshape(w.shape) < keep

        return random_mask
    return lambda n, w: np.ones(w.shape, bool)


def trained_of(method, weights):
    pattern = {"all": "*"}.get(method.trains, method.trains)
    return tiny_llama.linear_names(weights) if pattern == "linear" else sorted(fnmatch.filter(weights, pattern))


def current(run, names):
    return {n: np.asarray(run.weights(n)).reshape(WEIGHT_SHAPES[n]) for n in names}


def assert_same_bits(got, want):
    for n in want:
        a, b = oracle.fp32_bits(got[n]), oracle.fp32_bits(want[n])
        assert np.array_equal(a, b), f"{n}: {(a != b).sum()} of {a.size} weights differ"


def check_steps(folder, base, tmp_path, method, n_steps=2, values="fp32", losses=True, **options):
    """Runs n steps; every step's losses, scalars and weights against the oracle started from the package's own weights
    before it."""
    bits = {"fp32": 0, "bf16+8": 8, "bf16": 16}[values]
    trained = trained_of(method, base)
    with open_run(folder, tmp_path, method, values=values, **options) as run:
        # Thresholds are of the values that train, which 24 bits may have rounded.
        mask = mask_of(method, run, base | current(run, trained))
        for i in range(n_steps):
            batch, same = a_batch(i)
            before = current(run, trained)
            probe = run.probe(batch)
            result = run.train_step(batch)
            assert np.array_equal(np.float32(probe.scalars), np.float32(result.scalars))
            want = oracle.step(
                base | before,
                SHAPE,
                same,
                trained,
                z_of(run, method.noise, result.step),
                mask,
                EPS,
                LR,
                method.queries,
                method.weight_decay,
                values,
                rounding_of(run, result.step, bits) if bits else None,
                options.get("reduction", "example"),
                scalars=result.scalars,
            )
            if losses:
                assert np.asarray(probe.losses) == pytest.approx(want.losses, rel=LOSS_TOLERANCE)
                # g inherits the losses' error over 2 eps; the test says something only if g is well above that.
                error = LOSS_TOLERANCE * np.abs(want.reduced).max() / EPS
                assert np.abs(np.float64(result.scalars) - want.scalars).max() <= error
                assert np.abs(want.scalars).max() > 20 * error
            assert result.loss == pytest.approx(want.reduced.mean(), rel=LOSS_TOLERANCE if losses else 0.05)
            after = current(run, trained)
            assert_same_bits(after, {n: want.weights[n] for n in trained})
            assert any((after[n] != before[n]).any() for n in trained)


METHODS = [
    MeZO(),
    MeZO(noise="gaussian"),
    MeZO(noise="rademacher"),
    MeZO(trains="all"),
    MeZO(queries=3),
    MeZO(weight_decay=0.125),
    MeZO(trains="all", weight_decay=0.125),
    SparseMeZO(sparsity=0.75),
    SparseMeZO(sparsity=0.5, noise="gaussian", queries=2, weight_decay=0.25),
    LargestMask(sparsity=0.75),
    RandomMask(sparsity=0.75),
]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_step_equals_the_oracle(folders, tmp_path, method):
    check_steps(*folders["fp32"], tmp_path, method)


def test_step_equals_the_oracle_reduction_token(folders, tmp_path):
    check_steps(*folders["fp32"], tmp_path, MeZO(), reduction="token")


@pytest.mark.parametrize("values", ["bf16+8", "bf16"])
@pytest.mark.parametrize("method", [MeZO(), SparseMeZO(sparsity=0.75, queries=2, weight_decay=0.25)], ids=repr)
def test_stochastic_rounding_of_stored_values_equals_the_oracle(folders, tmp_path, method, values):
    # A bf16 base: what trains starts as the very values of the file. Operands are then bf16, so the losses are not
    # compared here.
    check_steps(*folders["bf16"], tmp_path, method, n_steps=3, values=values, losses=False, dtype="auto")


def test_operands_use_all_24_bits(folders, tmp_path):
    # I10: after steps the tails are in use; fp32 losses must see them.
    check_steps(*folders["fp32"], tmp_path, MeZO(), n_steps=3, values="bf16+8")


PROMPTS = [[3, 7, 9, 20], [11, 2, 5], [90, 4, 4, 8, 31, 6]]


def choice(options, answers=(1, 0, 1)):
    """A choice between token sequences after PROMPTS, as users give it, and for the oracle every option as a whole
    sequence."""
    given = SimpleNamespace(
        prompts=[np.array(p, np.int32) for p in PROMPTS], options=options, labels=np.array(answers, np.int32)
    )
    if all(len(o) == 1 for o in options):
        labels = [oracle.Label(i, len(p) - 1, -1, i) for i, p in enumerate(PROMPTS)]
        return given, oracle.Batch(PROMPTS, labels, len(PROMPTS), "candidates", tuple(o[0] for o in options), answers)
    sequences, labels = [], []
    for i, p in enumerate(PROMPTS):
        for o, option in enumerate(options):
            labels += [oracle.Label(len(sequences), len(p) - 1 + j, t, i, o) for j, t in enumerate(option)]
            sequences.append(p + option)
    return given, oracle.Batch(sequences, labels, len(PROMPTS), "sequences", (), answers)


@pytest.mark.parametrize("options", [[[17], [40]], [[17, 30], [40, 12, 77]]], ids=["candidates", "sequences"])
def test_choice_losses_equal_the_oracle(folders, tmp_path, options):
    """The package reads a prompt once for all its options; the oracle runs every option from the start."""
    folder, base = folders["fp32"]
    method = SparseMeZO(sparsity=0.75)
    given, same = choice(options)
    with open_run(folder, tmp_path, method) as run:
        probe, result = run.probe(given), run.train_step(given)
        z, mask = z_of(run, method.noise, result.step), mask_of(method, run, base)
        want = oracle.step(base, SHAPE, same, trained_of(method, base), z, mask, EPS, LR)
    # The error is of the scores, which are of order 1; a right answer's small loss, about exp(-difference), has it
    # whole.
    assert np.asarray(probe.losses) == pytest.approx(want.losses, rel=LOSS_TOLERANCE, abs=LOSS_TOLERANCE)


def test_tied_head_has_one_direction(folders, tmp_path):
    folder, base = folders["tied"]
    method = MeZO(trains="all")
    with open_run(folder, tmp_path, method) as run:
        assert "lm_head.weight" not in run.tensor_ids()
        batch, same = a_batch()
        probe, result = run.probe(batch), run.train_step(batch)
        shape = oracle.Config.of(tiny_llama.config(tied=True))
        z, mask = z_of(run, method.noise, result.step), mask_of(method, run, base)
        want = oracle.step(base, shape, same, sorted(base), z, mask, EPS, LR, scalars=result.scalars)
        assert np.asarray(probe.losses) == pytest.approx(want.losses, rel=LOSS_TOLERANCE)
        assert_same_bits(current(run, sorted(base)), want.weights)


def test_tensor_ids_are_ranks_of_names(folders, tmp_path):
    folder, base = folders["fp32"]
    with open_run(folder, tmp_path, MeZO()) as run:
        assert run.tensor_ids() == {n: i for i, n in enumerate(sorted(base, key=str.encode))}


def test_records_applied_late_give_the_same_weights(folders, tmp_path):
    """Five steps without looking at the weights between, so that records are pending and applied inside later visits
    (I3)."""
    folder, base = folders["fp32"]
    method = SparseMeZO(sparsity=0.75, weight_decay=0.25)
    names = trained_of(method, base)
    with open_run(folder, tmp_path, method) as run:
        mask, weights = mask_of(method, run, base), base
        results = [run.train_step(a_batch(i)[0]) for i in range(5)]
        for r in results:
            z = z_of(run, method.noise, r.step)
            weights = weights | {
                n: oracle.update(weights[n], [z(n, 0)], mask(n, weights[n]), r.scalars, LR, method.weight_decay)
                for n in names
            }
        assert_same_bits(current(run, names), {n: weights[n] for n in names})


def test_sparsity_0_is_mezo_bit_for_bit(folders, tmp_path):
    folder, base = folders["fp32"]
    names = trained_of(MeZO(), base)
    ended = []
    for i, method in enumerate((MeZO(queries=2), SparseMeZO(sparsity=0.0, queries=2))):
        with open_run(folder, tmp_path, method, f"run{i}") as run:
            scalars = [run.train_step(a_batch(k)[0]).scalars for k in range(4)]
            ended.append((scalars, current(run, names)))
    assert ended[0][0] == ended[1][0]
    assert_same_bits(ended[0][1], ended[1][1])


def test_probe_changes_nothing(folders, tmp_path):
    """I5: a probe, repeated, gives the same numbers and leaves the weights; a run without it goes the same way."""
    folder, base = folders["fp32"]
    method = SparseMeZO(sparsity=0.75)
    names = trained_of(method, base)
    batch, _ = a_batch()
    with open_run(folder, tmp_path, method, "probed") as run:
        first, second = run.probe(batch), run.probe(batch)
        assert np.array_equal(first.losses, second.losses)
        assert_same_bits(current(run, names), {n: base[n] for n in names})
        probed = run.train_step(batch).scalars, current(run, names)
    with open_run(folder, tmp_path, method, "plain") as run:
        plain = run.train_step(batch).scalars, current(run, names)
    assert probed[0] == plain[0]
    assert_same_bits(probed[1], plain[1])


def test_labels_that_are_not_given_do_not_count(folders, tmp_path):
    folder, base = folders["fp32"]
    with open_run(folder, tmp_path, MeZO()) as run:
        batch, same = a_batch(3, some_labels=True)
        probe, result = run.probe(batch), run.train_step(batch)
        z, mask = z_of(run, "gaussian8", result.step), mask_of(MeZO(), run, base)
        want = oracle.step(base, SHAPE, same, trained_of(MeZO(), base), z, mask, EPS, LR)
        assert np.asarray(probe.losses) == pytest.approx(want.losses, rel=LOSS_TOLERANCE)
