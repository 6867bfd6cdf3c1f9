"""One test of the name of each invariant at the head of csrc/engine/engine.h that this code keeps, on tiny models."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_llama
from quick import quickly

from pysmezo import ArgumentError, MeZO, RandomMask, Runtime, SparseMeZO, _core

CONFIG = tiny_llama.config()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    weights = tiny_llama.to_bf16(tiny_llama.random_weights(CONFIG))
    return tiny_llama.save(root / "bf16", CONFIG, weights, "BF16")


@pytest.fixture(scope="module")
def tied_base(tmp_path_factory):
    c = tiny_llama.config(tied=True)
    return tiny_llama.save(tmp_path_factory.mktemp("tied") / "m", c, tiny_llama.random_weights(c, 3))


def batch(seed, rows=4, columns=14):
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, 128, (rows, columns))
    mask = (np.arange(columns) < rng.integers(3, columns + 1, (rows, 1))).astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask, "labels": np.where(mask == 1, ids, -100)}


def open_run(base, run_dir=None, method=None, **options):
    options = {"lr": 2.0**-8, "eps": 2.0**-7, "seed": 5, "threads": 2} | options
    return Runtime.from_pretrained(base, method=method or SparseMeZO(sparsity=0.5), run_dir=run_dir, **options)


def train(run, first, last):
    return [run.train_step(batch(s)) for s in range(first, last + 1)]


def digest(run):
    h = hashlib.sha256()
    for name in run.tensor_ids():
        h.update(run.weights(name).tobytes())
    return h.hexdigest()


def file_hash(path):
    return hashlib.sha256(open(path, "rb").read()).hexdigest()


def test_i1_weights_are_base_plus_records(base, tmp_path):
    """A run opened again has the trained weights, rebuilt from base and journal alone."""
    with open_run(base, tmp_path / "r") as run:
        train(run, 1, 7)
        trained = digest(run)
    assert sorted(p.name for p in (tmp_path / "r").iterdir() if p.suffix == ".smz") == ["journal.smz"]
    with open_run(base, tmp_path / "r") as run:
        assert run.step == 7
        assert digest(run) == trained
    with open_run(base) as untouched:
        assert digest(untouched) != trained


def test_i2_record_is_in_the_journal_when_the_step_returns(base, tmp_path):
    before = file_hash(base / "model.safetensors")
    with open_run(base, tmp_path / "r") as run:
        for step in range(1, 4):
            r = run.train_step(batch(step))
            records = _core.read_journal(str(tmp_path / "r" / "journal.smz"))["records"]
            assert [x["step"] for x in records] == list(range(1, step + 1))
            assert tuple(records[-1]["scalars"]) == r.scalars
        run.save_delta(tmp_path / "d.safetensors")
    state = _core.read_state(str(tmp_path / "d.safetensors"), "delta")
    assert state["watermark"] == 3
    assert file_hash(base / "model.safetensors") == before


def test_i3_applied_later_gives_the_same_bits(base):
    """Weights caught up at every step, and weights that met all their records at once."""
    with open_run(base) as eager, open_run(base) as lazy:
        for s in range(1, 6):
            r = eager.train_step(batch(s), lr_scale=1 / s)
            eager.flush()
            if not lazy.started:
                lazy.resolve_auto([batch(1)])
            lazy._engine.commit(r.lr, r.loss, r.loss_plus, r.loss_minus, list(r.scalars))
        assert digest(eager) == digest(lazy)


def test_i4_evaluation_sees_the_journals_tail(base, tmp_path):
    with open_run(base, tmp_path / "r") as run:
        train(run, 1, 3)
        seen = run.logits(batch(9))  # nothing flushed before
        run.flush()
        assert np.array_equal(seen, run.logits(batch(9)))
        run.save_delta(tmp_path / "d.safetensors")
    with open_run(base, delta=tmp_path / "d.safetensors") as other:
        assert np.array_equal(seen, other.logits(batch(9)))


def test_i5_a_probe_changes_nothing(base):
    with open_run(base) as run:
        train(run, 1, 2)
        run.flush()
        before = digest(run)
        first = run.probe(batch(3))
        assert digest(run) == before
        second = run.probe(batch(3))
        assert np.array_equal(first.losses, second.losses)


def test_i6_random_bits_are_addressed(base):
    """The order of questions does not matter, nor whether others were asked before."""
    with open_run(base) as run, open_run(base) as other:
        run.resolve_auto([batch(1)])
        other.resolve_auto([batch(1)])
        for s in range(5):
            other._engine.probe(other._pack(batch(s))[1], [(3, 1, 0.01), (3, -1, 0.01)], 77)
        assert np.array_equal(run.probe(batch(1)).losses, other.probe(batch(1)).losses)
        ids = run.tensor_ids()
        assert list(ids) == sorted(ids, key=str.encode)


def test_i7_tied_tensors_have_one_id(tied_base):
    with open_run(tied_base, method=MeZO(trains="all"), dtype="fp32", values="fp32") as run:
        assert "lm_head.weight" not in run.tensor_ids()
        id_ = run.tensor_ids()["model.embed_tokens.weight"]
        before = run.weights("model.embed_tokens.weight").ravel()
        r = run.train_step(batch(1))
        after = run.weights("model.embed_tokens.weight").ravel()
        z = _core.noise("gaussian8", 5, 1, 0, id_, 0, before.size).astype(np.float64)
        c = np.float64(np.float32(np.float64(np.float32(r.lr)) * np.float64(np.float32(r.scalars[0]))))
        assert np.allclose(after, before - c * z, rtol=0, atol=1e-7)


def test_i10_trained_values_keep_24_bits(base):
    """An update of a thousandth of a bf16 step is not lost: the mean over many weights moves by lr * g * z."""
    name = "model.layers.0.mlp.gate_proj.weight"
    with open_run(base, method=MeZO(), lr=2.0**-20, values="bf16+8") as run:
        before = run.weights(name).astype(np.float64)
        r = run.train_step(batch(1))
        after = run.weights(name).astype(np.float64)
        bits = after.astype(np.float32).view(np.uint32)
        assert not (bits & 0xFF).any()
        z = (
            _core.noise("gaussian8", 5, 1, 0, run.tensor_ids()[name], 0, before.size)
            .astype(np.float64)
            .reshape(before.shape)
        )
        moved = (after - before).ravel() @ z.ravel() / (z.ravel() @ z.ravel())
        assert moved == pytest.approx(-r.lr * r.scalars[0], rel=0.2)


def test_i11_a_non_finite_loss_is_a_recorded_skip(base, tmp_path):
    with open_run(base, tmp_path / "r") as run:
        train(run, 1, 1)
        before = digest(run)
        r = run.train_step(batch(2), objective=lambda logits, labels, example: float("nan"))
        assert r.skipped and r.step == 2
        assert digest(run) == before
        train(run, 3, 3)
        after = digest(run)
    kinds = [x["kind"] for x in _core.read_journal(str(tmp_path / "r" / "journal.smz"))["records"]]
    assert kinds == ["step", "skipped", "step"]
    with open_run(base, tmp_path / "r") as run:
        assert digest(run) == after


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_i12_an_examples_loss_does_not_depend_on_its_neighbours(base, dtype):
    whole = batch(1, rows=7, columns=23)
    with open_run(base, dtype=dtype, threads=1) as one, open_run(base, dtype=dtype, threads=3) as three:
        one.resolve_auto([whole])
        three.resolve_auto([whole])
        together = one.probe(whole).losses
        assert np.array_equal(together, three.probe(whole).losses)
        for i in range(7):
            alone = one.probe({k: v[i : i + 1] for k, v in whole.items()}).losses
            assert np.array_equal(alone[:, 0], together[:, i])
        order = [3, 6, 0, 2]
        some = one.probe({k: v[order] for k, v in whole.items()}).losses
        assert np.array_equal(some, together[:, order])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "method", [SparseMeZO(sparsity=0.5), MeZO(trains="all", noise="rademacher"), RandomMask(sparsity=0.5)]
)
def test_determinism_journals_and_deltas_are_identical_for_every_thread_count(base, tmp_path, threads, method):
    out = []
    for n in (2, threads):
        with open_run(base, tmp_path / f"r{n}", method, threads=n) as run:
            train(run, 1, 50)
            run.save_delta(tmp_path / f"d{n}.safetensors")
        journal = _core.read_journal(str(tmp_path / f"r{n}" / "journal.smz"))
        records = [
            {k: v for k, v in r.items() if k != "chain"} for r in journal["records"]
        ]  # the chain begins with the file's salt
        state = _core.read_state(str(tmp_path / f"d{n}.safetensors"), "delta")
        state.pop("journal_tail")
        header = json.loads(journal["header_json"])
        out.append((header, records, state, digest_of_delta(base, tmp_path / f"d{n}.safetensors", method)))
    assert out[0] == out[1]


def digest_of_delta(base, path, method):
    with open_run(base, method=method, delta=path) as run:
        return digest(run)


def child_isas():
    return _core.supported_isas()


@pytest.mark.parametrize("noise", quickly(("gaussian8",), ["gaussian", "gaussian8", "rademacher"]))
def test_replay_is_bit_exact_on_every_instruction_set(base, tmp_path, noise):
    """Losses may differ between sets; noise, masks and updates may not: the journal of one rebuilds the same weights on all."""
    method = SparseMeZO(sparsity=0.5, noise=noise, queries=2, weight_decay=0.1)
    with open_run(base, tmp_path / "r", method) as run:
        train(run, 1, 6)
    program = (
        "import sys; sys.path.insert(0, sys.argv[3]); import test_invariants as t; from pysmezo import SparseMeZO;"
        f"print(t.digest(t.open_run(sys.argv[1], sys.argv[2], SparseMeZO(sparsity=0.5, noise='{noise}', queries=2, weight_decay=0.1))))"
    )
    digests = {}
    for isa in child_isas():
        shutil.copytree(tmp_path / "r", tmp_path / isa)
        done = subprocess.run(
            [sys.executable, "-c", program, base, tmp_path / isa, os.path.dirname(__file__)],
            env={**os.environ, "SMEZO_ISA": isa}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        digests[isa] = done.stdout.strip()
    assert len(digests) >= 1 and len(set(digests.values())) == 1, digests


KILLED = """
import sys; sys.path.insert(0, sys.argv[3])
import test_invariants as t
run = t.open_run(sys.argv[1], sys.argv[2])
for s in range(run.step + 1, 51):
    run.train_step(t.batch(s))
    print(s, flush=True)
"""


def test_resume_after_stop_and_after_kill_is_bit_identical(base, tmp_path):
    with open_run(base, tmp_path / "whole") as run:
        train(run, 1, 50)
        wanted = digest(run)
    with open_run(base, tmp_path / "stopped") as run:
        train(run, 1, 17)
    with open_run(base, tmp_path / "stopped") as run:
        train(run, 18, 50)
        assert digest(run) == wanted
    # Killed three times, once mid-step, then finished here.
    for after in (5, 11, 30):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, base, tmp_path / "killed", os.path.dirname(__file__)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for line in child.stdout:
            if int(line) >= after:
                break
        time.sleep(0.003 * after)
        child.send_signal(signal.SIGKILL)
        child.wait()
    with open_run(base, tmp_path / "killed") as run:
        assert run.step >= 30
        train(run, run.step + 1, 50)
        assert digest(run) == wanted


def test_resume_from_a_generation_is_the_same_model(base, tmp_path):
    with open_run(base, tmp_path / "r") as run:
        train(run, 1, 4)
        run._engine.save_generation()
        train(run, 5, 7)
        wanted = digest(run)
    with open_run(base, tmp_path / "r") as run:
        assert digest(run) == wanted


def test_bad_runs_are_refused(base, tied_base, tmp_path):
    with open_run(base, tmp_path / "r") as run:
        train(run, 1, 2)
        with pytest.raises(ArgumentError, match="in use by process"):
            open_run(base, tmp_path / "r")
    for change, message in (
        ({"seed": 6}, "seed 6, the run has 5"),
        ({"values": "fp32"}, "values fp32"),
        ({"method": SparseMeZO(sparsity=0.25)}, "sparsity"),
    ):
        with pytest.raises(ArgumentError, match=message):
            open_run(base, tmp_path / "r", **change)
    with pytest.raises(ArgumentError, match="fingerprint"):
        open_run(tied_base, tmp_path / "r")
    for bad, message in (
        ({"eps": 0}, "eps"),
        ({"lr": -1.0}, "lr"),
        ({"dtype": "fp8"}, "dtype"),
        ({"operand": "round"}, "operand"),
    ):
        with pytest.raises(ArgumentError, match=message):
            open_run(base, **bad)
    with open_run(base, tmp_path / "r") as run:  # nothing was lost on the way
        assert run.step == 2
