"""What a run is for others: the model of any step from base and journal, a run that goes another way, a merged model
in transformers, an adapter in PEFT.
"""

import json

import numpy as np
import pytest
import tiny_llama
from quick import quickly
from safetensors.numpy import load_file, save_file

from pysmezo import (
    ArgumentError,
    FormatError,
    LargestMask,
    MeZO,
    RandomMask,
    Runtime,
    Sensitive,
    SparseMeZO,
    _core,
    cli,
)

CONFIG = tiny_llama.config(layers=2, inner=240) | {"vocab_size": 600}
OPEN = {"lr": 2.0**-8, "eps": 2.0**-7, "threads": 2}
STEPS, AT = 6, 4
METHODS = {
    "mezo, everything, decay": MeZO(trains="all", weight_decay=0.5),
    "sparse-mezo, two queries": SparseMeZO(sparsity=0.4, queries=2, noise="gaussian"),
    "largest-mask": LargestMask(sparsity=0.6),
    "random-mask": RandomMask(sparsity=0.5, noise="rademacher"),
    "sensitive": Sensitive(fraction=0.05),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """{format: folder}, all of the same bf16 weights."""
    root = tmp_path_factory.mktemp("bases")
    weights = tiny_llama.to_bf16({n: w * 0.5 for n, w in tiny_llama.random_weights(CONFIG).items()})
    out = {"bf16": tiny_llama.save(root / "bf16", CONFIG, weights, "BF16")}
    out["nf4"] = root / "nf4"
    _core.quantize_folder(str(out["bf16"]), str(out["nf4"]), dtype="nf4")
    return out


def batch(seed, rows=4, columns=14):
    ids = np.random.default_rng(seed).integers(3, 600, (rows, columns))
    return {"input_ids": ids, "labels": ids}


def trained(base, folder, method, **options):
    """A run of STEPS steps with its delta at step AT and at the end, and the logits then."""
    with Runtime.from_pretrained(base, method=method, run_dir=folder / "run", seed=5, **OPEN, **options) as run:
        for s in range(STEPS):
            if s == AT:
                run.save_delta(folder / "at")
            run.train_step(batch(s))
        run.save_delta(folder / "end")
        return run.logits(batch(99))


def verb(*arguments):
    return cli.main([str(a) for a in arguments])


# ---- replay and fork


@pytest.mark.parametrize("budget", [None, "40MiB"])
@pytest.mark.parametrize("name", quickly(("sparse-mezo, two queries",), METHODS))
def test_any_step_is_rebuilt_from_base_and_journal(bases, tmp_path, name, budget):
    trained(bases["bf16"], tmp_path, METHODS[name])
    for to, wanted in ((AT, "at"), (None, "end")):
        with Runtime.from_journal(bases["bf16"], tmp_path / "run/journal.smz", to, memory_budget=budget) as run:
            assert run.method == METHODS[name] and run.step == (to or STEPS)
            run.save_delta(tmp_path / "again")
            with pytest.raises(ArgumentError, match="fork"):
                run.train_step(batch(0))
        assert (tmp_path / "again").read_bytes() == (tmp_path / wanted).read_bytes()


def test_replay_is_a_verb(bases, tmp_path, capsys):
    trained(bases["bf16"], tmp_path, SparseMeZO())
    before = (tmp_path / "run/journal.smz").read_bytes()
    to = ["--to", AT, "--out", tmp_path / "again"]
    assert verb("replay", "--model", bases["bf16"], "--journal", tmp_path / "run", *to, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == AT
    assert (tmp_path / "again").read_bytes() == (tmp_path / "at").read_bytes()
    assert (tmp_path / "run/journal.smz").read_bytes() == before
    assert verb("replay", "--model", bases["bf16"], "--journal", tmp_path / "run", *to) == 2
    assert "already there" in capsys.readouterr().err
    for step, words in ((STEPS + 1, "expected one of the 6"), (-1, "--to"), ("x", "--to")):
        out = ["--to", step, "--out", tmp_path / "none"]
        assert verb("replay", "--model", bases["bf16"], "--journal", tmp_path / "run", *out) == 2
        assert words in capsys.readouterr().err and not (tmp_path / "none").exists()
    assert verb("replay", "--model", bases["nf4"], "--journal", tmp_path / "run", "--out", tmp_path / "none") == 2
    assert "model fingerprint" in capsys.readouterr().err


def test_a_replayed_run_needs_what_it_was_made_with(bases, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    index = tmp_path / "index.safetensors"
    save_file({name: np.array([3, 17, 900], np.int32)}, index)
    trained(bases["bf16"], tmp_path, Sensitive(index=str(index)))
    journal = tmp_path / "run/journal.smz"
    with Runtime.from_journal(bases["bf16"], journal, index=index) as run:
        run.save_delta(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "end").read_bytes()
    with pytest.raises(ArgumentError, match="index file of hash"):
        Runtime.from_journal(bases["bf16"], journal)
    save_file({name: np.array([3, 17, 901], np.int32)}, index)
    with pytest.raises(ArgumentError, match="index file's hash"):
        Runtime.from_journal(bases["bf16"], journal, index=index)
    # A run that began with a delta.
    other = tmp_path / "other"
    other.mkdir()
    first = SparseMeZO(sparsity=0.5)
    trained(bases["bf16"], other, first)
    with Runtime.from_pretrained(bases["bf16"], delta=other / "at", run_dir=tmp_path / "second", **OPEN) as run:
        run.train_step(batch(0))
        run.save_delta(tmp_path / "second.delta")
    with Runtime.from_journal(bases["bf16"], tmp_path / "second/journal.smz", delta=other / "at") as run:
        run.save_delta(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "second.delta").read_bytes()
    with pytest.raises(ArgumentError, match="starting delta"):
        Runtime.from_journal(bases["bf16"], tmp_path / "second/journal.smz")


@pytest.mark.parametrize("method", [SparseMeZO(sparsity=0.4), MeZO()])
def test_generations_beside_a_journal_are_used_but_not_needed(bases, tmp_path, method):
    streamed = {"memory_budget": "40MiB", "stream_trained": True, "generation_every": 2}
    trained(bases["bf16"], tmp_path, method, **streamed)
    assert list((tmp_path / "run/generations").iterdir())
    (tmp_path / "alone.smz").write_bytes((tmp_path / "run/journal.smz").read_bytes())
    for journal in ("run/journal.smz", "alone.smz"):
        for to, wanted in ((AT, "at"), (STEPS, "end")):
            for budget in (None, "40MiB"):
                with Runtime.from_journal(bases["bf16"], tmp_path / journal, to, memory_budget=budget) as run:
                    run.save_delta(tmp_path / "again")
                assert (tmp_path / "again").read_bytes() == (tmp_path / wanted).read_bytes()


def test_a_fork_goes_on_from_an_earlier_step(bases, tmp_path, capsys):
    trained(bases["bf16"], tmp_path, SparseMeZO())
    assert verb("fork", "--run-dir", tmp_path / "run", "--at", AT, "--out", tmp_path / "same") == 0
    with Runtime.from_pretrained(bases["bf16"], method=SparseMeZO(), run_dir=tmp_path / "same", seed=5, **OPEN) as run:
        assert run.step == AT
        for s in range(AT, STEPS):
            run.train_step(batch(s))
        run.save_delta(tmp_path / "same.delta")
    assert (tmp_path / "same.delta").read_bytes() == (tmp_path / "end").read_bytes()
    assert (tmp_path / "same/journal.smz").read_bytes() == (tmp_path / "run/journal.smz").read_bytes()
    capsys.readouterr()
    for at, words in ((0, "--at"), (STEPS + 1, "1 to 6")):
        assert verb("fork", "--run-dir", tmp_path / "run", "--at", at, "--out", tmp_path / "none") == 2
        assert words in capsys.readouterr().err and not (tmp_path / "none").exists()
    assert verb("fork", "--run-dir", tmp_path, "--at", 1, "--out", tmp_path / "none") == 2
    assert "holds no journal" in capsys.readouterr().err


def test_skipped_steps_are_replayed_as_such(bases, tmp_path):
    with Runtime.from_pretrained(bases["bf16"], method=MeZO(), run_dir=tmp_path / "run", **OPEN) as run:
        run.train_step(batch(0))
        assert run.train_step(batch(1), objective=lambda *_: float("nan")).skipped
        run.save_delta(tmp_path / "two")
        run.train_step(batch(2))
    with Runtime.from_journal(bases["bf16"], tmp_path / "run/journal.smz", 2) as run:
        assert run.step == 2
        run.save_delta(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "two").read_bytes()


# ---- merge


def theirs(folder, ids):
    """Logits of transformers that predict each label of `batch`, in fp32 arithmetic."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        out = model(torch.tensor(ids)).logits.numpy()
    return out[:, :-1].reshape(-1, out.shape[-1])


def hi(values):
    """The bf16 half of 24-bit values (I10), as fp32."""
    u = (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 8).astype(np.uint64)
    return (((u + 0x80) >> 8).astype(np.uint32) << 16).view(np.float32)


def halves(folder):
    """The tensors of a merged bf16 folder, as fp32."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    out = {}
    for name, t in json.loads(raw[8 : 8 + n]).items():
        if name != "__metadata__":
            assert t["dtype"] == "BF16"
            a, b = (8 + n + x for x in t["data_offsets"])
            bits = np.frombuffer(raw[a:b], np.uint16).astype(np.uint32) << 16
            out[name] = bits.view(np.float32).reshape(t["shape"])
    return out


@pytest.mark.parametrize("budget", quickly(("40MiB",), (None, "40MiB")))
@pytest.mark.parametrize("name", quickly(("mezo, everything, decay",), METHODS))
def test_a_merged_model_is_the_trained_one(bases, tmp_path, name, budget):
    wanted = trained(bases["bf16"], tmp_path, METHODS[name], dtype="fp32")
    at = {"delta": tmp_path / "end", "dtype": "fp32", "memory_budget": budget}
    if budget and "random" in name:
        at.pop("memory_budget")  # a random mask's values need copies of whole weights
    with Runtime.from_pretrained(bases["bf16"], **at) as run:
        run.merge(tmp_path / "fp32", "fp32")
        run.merge(tmp_path / "bf16")
        ours = {n: run.weights(n) for n in run.tensor_ids()}
        with pytest.raises(ArgumentError, match="already there"):
            run.merge(tmp_path / "bf16")
        with pytest.raises(ArgumentError, match="fp32"):
            run.merge(tmp_path / "nf4", "nf4")
    exact, half = load_file(tmp_path / "fp32/model.safetensors"), halves(tmp_path / "bf16")
    assert exact.keys() == half.keys() == ours.keys()
    assert any(not np.array_equal(exact[n], half[n]) for n in ours)
    for n, w in ours.items():
        assert np.array_equal(exact[n], w), n
        assert np.array_equal(half[n], hi(w)) or name == "sensitive", n
    # In transformers, without pysmezo: the 2x rule is about bf16; in fp32 only the order of sums differs.
    assert np.abs(theirs(tmp_path / "fp32", batch(99)["input_ids"]) - wanted).max() < 2e-4 * np.abs(wanted).max()


def test_a_merged_quantized_model_is_not_quantized(bases, tmp_path, capsys):
    wanted = trained(bases["nf4"], tmp_path, Sensitive(fraction=0.05), dtype="fp32")
    (bases["nf4"] / "tokenizer.json").write_text("{}")
    arguments = ["--model", bases["nf4"], "--delta", tmp_path / "end"]
    assert verb("merge", *arguments, "--out", tmp_path / "out", "--dtype", "fp32", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["bytes_out"] > 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert "quantization_config" not in config and config["torch_dtype"] == "float32"
    assert (tmp_path / "out/tokenizer.json").read_text() == "{}"
    (bases["nf4"] / "tokenizer.json").unlink()
    assert np.abs(theirs(tmp_path / "out", batch(99)["input_ids"]) - wanted).max() < 2e-4 * np.abs(wanted).max()
    # It is a base like any other.
    with Runtime.from_pretrained(tmp_path / "out", method=MeZO(), dtype="fp32", **OPEN) as run:
        assert np.abs(run.logits(batch(99)) - wanted).max() < 2e-5 * np.abs(wanted).max()
    assert verb("merge", *arguments, "--out", tmp_path / "out") == 2
    assert verb("merge", *arguments, "--out", tmp_path / "x", "--dtype", "nf4") == 2
    assert "expected bf16 or fp32" in capsys.readouterr().err
    assert verb("merge", "--model", bases["bf16"], "--delta", tmp_path / "end", "--out", tmp_path / "x") == 2
    assert not (tmp_path / "x").exists()


# ---- export


@pytest.mark.parametrize("format", quickly(("nf4",), ("bf16", "nf4")))
def test_an_adapter_in_peft_is_the_trained_model(bases, tmp_path, format):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    method = Sensitive(fraction=0.05) if format == "nf4" else SparseMeZO(sparsity=0.9)
    wanted = trained(bases[format], tmp_path, method, dtype="fp32")
    with Runtime.from_pretrained(bases[format], delta=tmp_path / "end", dtype="fp32") as run:
        found = run.export_peft(tmp_path / "adapter")
        plain = run.logits(batch(99))
    assert np.array_equal(plain, wanted)
    # The base in fp32, as stock transformers opens it; a quantized one without bitsandbytes: its merged self.
    base = bases[format]
    if format == "nf4":
        with Runtime.from_pretrained(base, method=MeZO(), **OPEN) as run:
            run.merge(tmp_path / "plain", "fp32")
        base = tmp_path / "plain"
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "adapter")
    with torch.no_grad():
        out = model(torch.tensor(batch(99)["input_ids"])).logits.numpy()
    got = out[:, :-1].reshape(-1, out.shape[-1])
    assert np.abs(got - wanted).max() < 2e-4 * np.abs(wanted).max()
    with model.disable_adapter(), torch.no_grad():
        before = model(torch.tensor(batch(99)["input_ids"])).logits.numpy()[:, :-1].reshape(got.shape)
    assert np.abs(before - wanted).max() > 20 * np.abs(got - wanted).max()
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert sum(np.count_nonzero(t) for n, t in tensors.items() if n.endswith("weight")) == found["n_values"]


@pytest.mark.parametrize(
    ("method", "words"),
    [(MeZO(), "room for"), (MeZO(trains="*norm*"), "linear layers only"), (MeZO(trains="*embed*"), "linear layers")],
)
def test_what_an_adapter_cannot_hold_is_refused(bases, tmp_path, method, words):
    trained(bases["bf16"], tmp_path, method)
    with Runtime.from_pretrained(bases["bf16"], delta=tmp_path / "end") as run:
        with pytest.raises(ArgumentError, match=words) as e:
            run.export_peft(tmp_path / "adapter")
        assert "merge" in str(e.value) and not list(tmp_path.glob("adapter*"))
    with (
        Runtime.from_pretrained(bases["bf16"], method=MeZO()) as run,
        pytest.raises(ArgumentError, match="nothing differs"),
    ):
        run.export_peft(tmp_path / "adapter")


def test_export_is_a_verb(bases, tmp_path, capsys):
    trained(bases["bf16"], tmp_path, SparseMeZO(sparsity=0.7))
    arguments = ["export", "--model", bases["bf16"], "--delta", tmp_path / "end", "--out", tmp_path / "adapter"]
    assert verb(*arguments) == 2
    assert "expected --peft" in capsys.readouterr().err
    assert verb(*arguments, "--peft", "--json") == 0
    out = capsys.readouterr().out
    assert "12 bytes a value" in out
    assert json.loads(out.splitlines()[-1])["modules"] == 14
    assert verb("inspect", tmp_path / "adapter", "--json") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["kind"] == "PEFT adapter" and found["files"]["adapter_model.safetensors"]["n_tensors"] == 28
    with pytest.raises(FormatError):
        Runtime.from_pretrained(bases["bf16"], delta=tmp_path / "adapter/adapter_model.safetensors")
