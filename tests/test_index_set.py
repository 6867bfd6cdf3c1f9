"""What trains on an index set: its elements and no other, from a fraction, a file or a delta."""

import numpy as np
import oracle
import pytest
from test_streaming import CONFIG, batch, run_of, save_base

from pysmezo import ArgumentError, Runtime, Sensitive
from pysmezo import _core as core


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("bases"))


@pytest.mark.parametrize("operand", ["nearest", "dither", "split"])
@pytest.mark.parametrize("queries", [1, 2])
def test_index_set_learns_its_elements_only(base, tmp_path, operand, queries):
    """After steps, weights differ from the base on the set and nowhere else."""
    method = Sensitive(fraction=0.05, queries=queries)
    with Runtime.from_pretrained(base, method=method, lr=0.5, eps=2.0**-7, seed=5, operand=operand) as run:
        names = [n for n in run.tensor_ids() if n.endswith("_proj.weight")]
        before = {n: run.weights(n).copy() for n in run.tensor_ids()}
        results = [run.train_step(batch(s)) for s in range(2)]
        assert not any(r.skipped for r in results)
        changed = {n: np.flatnonzero(run.weights(n) != before[n]) for n in run.tensor_ids()}
        assert run.diagnostics()["n_trained"] == sum(max(1, round(before[n].size * 0.05)) for n in names)
        for n, at in changed.items():
            wanted = max(1, int(before[n].size * 0.05 + 0.5)) if n in names else 0
            assert wanted * 0.9 <= len(at) <= wanted, n
            runs = (np.arange(wanted + 1) * before[n].size) // max(wanted, 1)  # one element in each run
            assert len(np.unique(np.searchsorted(runs, at, side="right"))) == len(at)


def test_index_file(base, tmp_path):
    from safetensors.numpy import save_file

    name = "model.layers.1.mlp.up_proj.weight"
    rng = np.random.default_rng(0)
    listed = np.sort(rng.choice(CONFIG["intermediate_size"] * CONFIG["hidden_size"], 40, replace=False)).astype(
        np.int32
    )
    save_file({name: listed}, tmp_path / "index.safetensors")
    method = Sensitive(index=str(tmp_path / "index.safetensors"))
    with Runtime.from_pretrained(base, method=method, lr=0.5, eps=2.0**-7, run_dir=tmp_path / "r") as run:
        before = run.weights(name).copy()
        result = run.train_step(batch(0))
        after = run.weights(name)
        z = core.noise(method.noise, 0, 1, 0, run.tensor_ids()[name], 0, before.size).reshape(before.shape)
    assert set(np.flatnonzero(after != before)) == set(listed)
    mask = np.isin(np.arange(before.size), listed).reshape(before.shape)
    want = oracle.update(before, [z], mask, result.scalars, result.lr)
    assert np.array_equal(oracle.fp32_bits(after), oracle.fp32_bits(want))
    with Runtime.from_pretrained(base, method=method, run_dir=tmp_path / "r") as run:
        assert np.array_equal(run.weights(name), after)
    save_file({name: listed[::-1].copy()}, tmp_path / "bad.safetensors")
    with pytest.raises(ArgumentError, match=r"\[index set\].*element"):
        Runtime.from_pretrained(base, method=Sensitive(index=str(tmp_path / "bad.safetensors")))
    save_file({"model.norm.weight": listed[:1]}, tmp_path / "other.safetensors")
    with pytest.raises(Exception, match=r"\[index set\].*model.norm.weight"):
        Runtime.from_pretrained(base, method=Sensitive(index=str(tmp_path / "other.safetensors")))


def test_delta_of_an_index_set_loads(base, tmp_path):
    method = Sensitive(fraction=0.05)
    run_of(base, tmp_path / "r", method)
    with Runtime.from_pretrained(base, method=method, seed=5, delta=tmp_path / "r" / "x.delta.safetensors") as run:
        with Runtime.from_pretrained(
            base, method=method, run_dir=tmp_path / "r", seed=5, lr=2.0**-8, eps=2.0**-7
        ) as same:
            for n in run.tensor_ids():
                assert np.array_equal(run.weights(n), same.weights(n))
