"""Deltas and generations belong to what made them: the elements, the journal and the mathematics they were trained with."""

import json
import shutil

import numpy as np
import pytest
from quick import quickly
from test_streaming import batch, run_of, save_base

from pysmezo import ArgumentError, FormatError, LargestMask, MeZO, RandomMask, Runtime, Sensitive, SparseMeZO


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("bases"))


def saved(base, folder, method, **options) -> dict:
    """Steps, and their delta in folder/delta; the weights it stands for."""
    with Runtime.from_pretrained(base, method=method, lr=2.0**-8, eps=2.0**-7, **options) as run:
        for s in range(2):
            run.train_step(batch(s))
        run.save_delta(folder / "delta")
        return {n: run.weights(n) for n in run.tensor_ids()}


def index_file(path, seed: int) -> str:
    """40 elements each of two block matrices; of the other matrices none."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1)]
    save_file({n: np.sort(rng.choice(2000, 40, replace=False)).astype(np.int32) for n in names}, path)
    return str(path)


METHODS = {
    "mezo": MeZO(),
    "sparse-mezo": SparseMeZO(sparsity=0.4),
    "largest-mask": LargestMask(sparsity=0.6),
    "random-mask": RandomMask(sparsity=0.5),
    "sensitive": Sensitive(fraction=0.05),
}


@pytest.mark.parametrize("name", quickly(("sparse-mezo", "sensitive"), METHODS))
@pytest.mark.parametrize("values", ["auto", "fp32"])
def test_a_delta_brings_what_opening_it_needs(base, tmp_path, name, values):
    wanted = saved(base, tmp_path, METHODS[name], seed=7, values=values)
    with Runtime.from_pretrained(base, delta=tmp_path / "delta") as run:
        assert run.method == METHODS[name]
        for n, value in wanted.items():
            assert np.array_equal(run.weights(n), value), n


@pytest.mark.parametrize(
    ("method", "other", "seed", "words"),
    [
        (METHODS["random-mask"], METHODS["random-mask"], 8, "seed 8.*drawn with 7"),
        (METHODS["sensitive"], METHODS["sensitive"], 8, "seed 8.*drawn with 7"),
        (METHODS["sensitive"], Sensitive(fraction=0.0500001), 7, "fraction"),
        (METHODS["sparse-mezo"], SparseMeZO(sparsity=0.41), 7, "sparsity 0.41, it has 0.4"),
        (METHODS["sparse-mezo"], LargestMask(sparsity=0.4), 7, "method largest-mask.*sparse-mezo"),
    ],
)
def test_values_of_other_elements_are_refused(base, tmp_path, method, other, seed, words):
    saved(base, tmp_path, method, seed=7)
    with pytest.raises(ArgumentError, match=words):
        Runtime.from_pretrained(base, method=other, seed=seed, delta=tmp_path / "delta")


def test_a_masked_run_from_a_dense_delta_saves_all_of_it(base, tmp_path):
    with Runtime.from_pretrained(base, method=MeZO(), lr=0.01, eps=0.01) as run:
        run.train_step(batch(0))
        run.save_delta(tmp_path / "dense")
    with Runtime.from_pretrained(base, method=SparseMeZO(), delta=tmp_path / "dense", lr=0.01, eps=0.01) as run:
        run.train_step(batch(1))
        run.save_delta(tmp_path / "both")
        trained = {n: run.weights(n).copy() for n in run.tensor_ids()}
    with Runtime.from_pretrained(base, delta=tmp_path / "both") as run:
        assert all(np.array_equal(run.weights(n), w) for n, w in trained.items())


def test_the_method_asked_for_stays(base, tmp_path):
    saved(base, tmp_path, MeZO())
    with Runtime.from_pretrained(base, method=SparseMeZO(), delta=tmp_path / "delta") as run:
        assert run.method == SparseMeZO()


def test_a_delta_of_another_index_file_is_refused(base, tmp_path):
    a, b = (Sensitive(index=index_file(tmp_path / f"{i}.safetensors", i)) for i in (1, 2))
    wanted = saved(base, tmp_path, a)
    with Runtime.from_pretrained(base, method=a, delta=tmp_path / "delta") as run:
        assert all(np.array_equal(run.weights(n), value) for n, value in wanted.items())
    for method in (b, None):
        with pytest.raises(ArgumentError, match="index set was read from a file of hash"):
            Runtime.from_pretrained(base, method=method, delta=tmp_path / "delta")


def test_an_index_file_without_some_tensors_has_generations(base, tmp_path):
    method = Sensitive(index=index_file(tmp_path / "i.safetensors", 1))
    with Runtime.from_pretrained(base, method=method, lr=0.5, eps=2.0**-7, run_dir=tmp_path / "r") as run:
        run.train_step(batch(0))
        run._engine.save_generation()
        run.train_step(batch(1))
        wanted = {n: run.weights(n) for n in run.tensor_ids()}
    with Runtime.from_pretrained(base, method=method, run_dir=tmp_path / "r") as run:
        assert all(np.array_equal(run.weights(n), value) for n, value in wanted.items())


def test_a_support_of_almost_nothing_is_saved(base, tmp_path):
    """Some pieces of a matrix, and of streamed state, have no selected element at all."""
    method = RandomMask(sparsity=0.9999)
    wanted = saved(base, tmp_path, method, seed=3)
    with Runtime.from_pretrained(base, delta=tmp_path / "delta") as run:
        assert all(np.array_equal(run.weights(n), value) for n, value in wanted.items())
    streamed = {"memory_budget": "32MiB", "stream_trained": True, "generation_every": 1}
    for folder, options in (("whole", {}), ("streamed", streamed)):
        run_of(base, tmp_path / folder, method, **options)
    whole, other = ((tmp_path / f / "x.delta.safetensors").read_bytes() for f in ("whole", "streamed"))
    assert whole[8 + int.from_bytes(whole[:8], "little") :] == other[8 + int.from_bytes(other[:8], "little") :]


@pytest.fixture
def run_with_a_generation(base, tmp_path):
    with Runtime.from_pretrained(base, method=MeZO(), lr=1e-3, eps=1e-2, run_dir=tmp_path / "r") as run:
        for s in range(3):
            run.train_step(batch(s))
        run._engine.save_generation()
        run.train_step(batch(3))
    return tmp_path / "r"


def test_a_generation_of_another_journal_is_refused(base, tmp_path, run_with_a_generation):
    folder = run_with_a_generation
    with Runtime.from_pretrained(base, method=MeZO(), lr=1e-3, eps=1e-2, run_dir=tmp_path / "other") as run:
        for s in range(5):
            run.train_step(batch(s))
    shutil.copy(tmp_path / "other" / "journal.smz", folder / "journal.smz")
    with pytest.raises(FormatError, match=r"\[generation\].*step 3 of another journal"):
        Runtime.from_pretrained(base, method=MeZO(), run_dir=folder)
    (folder / "journal.smz").unlink()
    with pytest.raises(ArgumentError, match="generations of a run but no journal"):
        Runtime.from_pretrained(base, method=MeZO(), run_dir=folder)


def test_what_a_kill_leaves_among_generations_is_removed(base, run_with_a_generation):
    left = run_with_a_generation / "generations" / "generation-0000000004.safetensors.tmp-1-2"
    marks = [p.name for p in left.parent.iterdir()]
    left.write_bytes(b"half")
    with Runtime.from_pretrained(base, method=MeZO(), run_dir=run_with_a_generation) as run:
        assert run.step == 4
    assert [p.name for p in left.parent.iterdir()] == marks


def test_config_that_changes_the_mathematics_is_another_model(base, tmp_path):
    """The fingerprint is of the weights; rope_theta is not in them."""
    saved(base, tmp_path, MeZO())
    run_of(base, tmp_path / "r", MeZO())
    copy = shutil.copytree(base, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text()) | {"rope_theta": 500.0}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArgumentError, match="rope_theta of config.json 500"):
        Runtime.from_pretrained(copy, method=MeZO(), run_dir=tmp_path / "r", seed=5)
    with pytest.raises(FormatError, match="another rope_theta"):
        Runtime.from_pretrained(copy, delta=tmp_path / "delta")


def test_a_closed_run_takes_no_step(base, tmp_path):
    with Runtime.from_pretrained(base, method=MeZO(), lr=1e-3, eps=1e-2, run_dir=tmp_path / "r") as run:
        run.train_step(batch(0))
    for call in (lambda: run.train_step(batch(1)), run.flush, lambda: run.save_delta(tmp_path / "x")):
        with pytest.raises(ArgumentError, match=r"\[run\] closed"):
            call()
    assert run.step == 1


# ---- several deltas in use


def two(base, folder, method, **options):
    """{name: weights} of the base and of two runs, whose deltas are folder/a and folder/b."""
    out = {}
    with Runtime.from_pretrained(base, method=method, **options) as run:
        out[""] = {n: run.weights(n) for n in run.tensor_ids()}
    for i, name in enumerate("ab"):
        with Runtime.from_pretrained(base, method=method, lr=2.0**-8, eps=2.0**-7, seed=7, **options) as run:
            for s in range(2):
                run.train_step(batch(10 * i + s))
            run.save_delta(folder / name)
            out[name] = {n: run.weights(n) for n in run.tensor_ids()}
    return out


def same(run, wanted) -> bool:
    return all(np.array_equal(run.weights(n), w) for n, w in wanted.items())


@pytest.mark.parametrize("name", quickly(("sparse-mezo", "sensitive"), METHODS))
def test_deltas_are_switched_and_added(base, tmp_path, name):
    there = two(base, tmp_path, METHODS[name])
    assert any(not np.array_equal(there["a"][n], there["b"][n]) for n in there["a"])
    with Runtime.from_pretrained(base, method=METHODS[name], seed=7, lr=1e-3, eps=1e-3) as run:
        for key in "ab":
            run.load_delta(key, tmp_path / key)
        for weights, wanted in (
            ({"a": 1}, "a"),
            ({"b": 1.0}, "b"),
            ({"a": 0, "b": 1}, "b"),
            ({}, ""),
            ({"a": 0.0}, ""),
        ):
            run.use(weights)
            assert same(run, there[wanted])
        run.use({"a": 0.5, "b": -2.0})
        for n in there[""]:
            wide = {k: v[n].astype(np.float64) for k, v in there.items()}
            mixed = wide[""] + 0.5 * (wide["a"] - wide[""]) - 2 * (wide["b"] - wide[""])
            # Half a unit of the 16th bit: trained values have 24 bits (I10), index sets more.
            assert np.all(np.abs(run.weights(n) - mixed) <= 2.0**-16 * np.abs(mixed) + 1e-12), n
        with pytest.raises(ArgumentError, match="deltas in use"):
            run.train_step(batch(0))
        run.use({})
        run.train_step(batch(0))
        with pytest.raises(ArgumentError, match="a run that trains"):
            run.use({"a": 1.0})


def test_deltas_that_cannot_be_used_are_refused(base, tmp_path):
    two(base, tmp_path, METHODS["random-mask"])
    saved(base, tmp_path, MeZO(trains="all"))
    with Runtime.from_pretrained(base, method=MeZO(), seed=7) as run:
        before = run.weights("lm_head.weight")
        run.load_delta("all", tmp_path / "delta")
        run.load_delta("a", tmp_path / "a")
        for weights, words in (
            ({"x": 1.0}, "load_delta named: all, a"),
            ({"a": float("nan")}, "finite"),
            ({"a": "1"}, "finite"),
            ({"all": 1.0}, "does not train"),
            ({"a": 1.0}, "method mezo"),
        ):
            with pytest.raises(ArgumentError, match=words):
                run.use(weights)
        assert np.array_equal(run.weights("lm_head.weight"), before)
        with pytest.raises(FormatError):
            run.load_delta("b", base / "model.safetensors")
    with Runtime.from_pretrained(base, method=MeZO(), run_dir=tmp_path / "r", lr=1e-3, eps=1e-3) as run:
        with pytest.raises(ArgumentError, match="a run that trains"):
            run.use({})


def test_a_delta_of_fewer_tensors_opens_wherever_what_trains_lies(base, tmp_path):
    wanted = saved(base, tmp_path, SparseMeZO(sparsity=0.4, trains="*.mlp.*"))
    streamed = {"memory_budget": "32MiB", "stream_trained": True, "run_dir": tmp_path / "r"}
    for options in ({}, streamed):
        with Runtime.from_pretrained(base, method=SparseMeZO(sparsity=0.4), delta=tmp_path / "delta", **options) as run:
            assert all(np.array_equal(run.weights(n), value) for n, value in wanted.items())
