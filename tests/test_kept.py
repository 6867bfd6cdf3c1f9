"""quantize --keep: originals of an index set beside quantized weights, and runs that start from them."""

import json
import os
import shutil

import numpy as np
import pytest
import tiny_llama
from quick import quickly
from test_quantized_run import CONFIG, FORMATS, LEAST_RING, batch, dequantized, tight, transformers_logits
from test_streaming import bits, records

from pysmezo import ArgumentError, FormatError, IoError, MeZO, Runtime, Sensitive, _core
from pysmezo.cli import main

KEPT = "kept.safetensors"
START = {"lr": 2.0**-8, "eps": 2.0**-7, "seed": 5, "threads": 2}


def save_index(path, lists):
    from safetensors.numpy import save_file

    save_file({n: np.ascontiguousarray(at) for n, at in lists.items()}, path)
    return str(path)


def lists_of(weights, fraction=0.03, seed=0):
    """Sorted elements of three weights in four, the first and the last among them, I32 and I64 in turn."""
    rng, out = np.random.default_rng(seed), {}
    for i, name in enumerate(tiny_llama.linear_names(weights)):
        n = weights[name].size
        some = rng.choice(n, int(n * fraction), replace=False)
        if i % 4 != 3:
            out[name] = np.unique(np.append(some, [0, n - 1])).astype((np.int32, np.int64)[i % 2])
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """source folder, its fp32 weights, index file, its lists, {format: folder with kept originals}, plain nf4 folder."""
    root = tmp_path_factory.mktemp("kept")
    weights = {n: w * 0.3 if w.ndim == 2 else w for n, w in tiny_llama.random_weights(CONFIG).items()}
    weights = tiny_llama.to_bf16(weights)
    source = tiny_llama.save(root / "bf16", CONFIG, weights, "BF16")
    lists = lists_of(weights)
    index = save_index(root / "index.safetensors", lists)
    folders = {}
    for name in ("nf4", "nf4-32-double", "int8"):
        _core.quantize_folder(str(source), str(root / name), keep=index, **FORMATS[name])
        folders[name] = root / name
    _core.quantize_folder(str(source), str(root / "plain"), "nf4")
    return source, weights, index, lists, folders, root / "plain"


def stored(path):
    """Tensors and metadata of one file, through safetensors."""
    from safetensors import safe_open

    with safe_open(path, "np") as f:
        return {k: f.get_tensor(k) for k in f.keys()}, f.metadata()  # noqa: SIM118


def fingerprint(folder, method=MeZO(trains="*.0.mlp.up_proj.weight")):  # noqa: B008
    with Runtime.from_pretrained(folder, method=method, lr=1.0, eps=1.0) as run:
        return json.loads(run._engine.header_json)["base_fingerprint"]


def copied(folder, to):
    shutil.copytree(folder, to)
    return to


# ---- the file


@pytest.mark.parametrize("name", ["nf4", "nf4-32-double", "int8"])
def test_the_file_holds_the_originals(made, name):
    source, weights, _, lists, folders, _ = made
    tensors, _ = stored(folders[name] / KEPT)
    assert set(tensors) == set(lists) | {n + ".elements" for n in lists}
    for n, at in lists.items():
        assert tensors[n].dtype == np.float32 and np.array_equal(tensors[n], weights[n].reshape(-1)[at])
        assert tensors[n + ".elements"].dtype == at.dtype and np.array_equal(tensors[n + ".elements"], at)


def test_it_says_whose_it_is(made):
    """Index file, source and quantized weights by the names that runs give them; the weights are those of a folder without it."""
    source, _, index, lists, folders, plain = made
    metadata = stored(folders["nf4"] / KEPT)[1]
    with Runtime.from_pretrained(source, method=Sensitive(index=index), lr=1.0, eps=1.0) as run:
        header = json.loads(run._engine.header_json)
    assert metadata["source_fingerprint"] == header["base_fingerprint"]
    assert metadata["index_hash"] == header["method"]["index_hash"]
    assert metadata["base_fingerprint"] == fingerprint(plain) != fingerprint(folders["nf4"])
    for n in os.listdir(plain):
        assert (plain / n).read_bytes() == (folders["nf4"] / n).read_bytes(), n
    assert set(os.listdir(folders["nf4"])) == set(os.listdir(plain)) | {KEPT}


@pytest.mark.parametrize("format", ["nf4", "int8"])
def test_originals_at_the_edges_of_pieces(tmp_path, format):
    """Weights that are quantized in pieces which end within rows, and everything around the ends kept."""
    c = tiny_llama.config(hidden=504, inner=1501, layers=1, vocab=32)
    weights = tiny_llama.random_weights(c)
    source = tiny_llama.save(tmp_path / "base", c, weights)
    lists = {}
    for name in tiny_llama.linear_names(weights):
        n = weights[name].size
        edges = np.arange(0, n + 1, 1 << 18)[:, None] + np.arange(-3, 3)
        lists[name] = np.unique(np.concatenate([np.arange(0, n, 501), edges.reshape(-1).clip(0, n - 1)])).astype(
            np.int32
        )
    _core.quantize_folder(
        str(source), str(tmp_path / "q"), format, keep=save_index(tmp_path / "i.safetensors", lists), threads=3
    )
    tensors, _ = stored(tmp_path / "q" / KEPT)
    for n, at in lists.items():
        assert np.array_equal(tensors[n], weights[n].reshape(-1)[at]), n


def test_what_is_not_quantized_needs_no_keeping(made, tmp_path):
    source, weights, *_ = made
    lists = {n: np.arange(3, dtype=np.int32) for n in ("model.embed_tokens.weight", "model.norm.weight")}
    linear = tiny_llama.linear_names(weights)[0]
    index = save_index(tmp_path / "i.safetensors", lists | {linear: np.arange(7, dtype=np.int32)})
    found = _core.quantize_folder(str(source), str(tmp_path / "q"), "nf4", keep=index)
    tensors, _ = stored(tmp_path / "q" / KEPT)
    assert set(tensors) == {linear, linear + ".elements"} and found["n_originals"] == 7


def test_verb_and_inspect(made, tmp_path, capsys):
    source, weights, index, lists, *_ = made
    n = sum(map(len, lists.values()))
    assert (
        main(
            [
                "quantize",
                "--model",
                str(source),
                "--dtype",
                "nf4",
                "--keep",
                index,
                "--out",
                str(tmp_path / "q"),
                "--json",
            ]
        )
        == 0
    )
    captured = capsys.readouterr().out.splitlines()
    found = json.loads(captured[-1])
    assert found["n_originals"] == n and f"originals of {n} elements" in captured[0]
    sizes = [t.nbytes for name in ("model.safetensors", KEPT) for t in stored_raw(tmp_path / "q" / name)]
    assert found["bytes_out"] == sum(sizes)
    for path, part in ((tmp_path / "q", "kept_originals"), (tmp_path / "q" / KEPT, None)):
        assert main(["inspect", str(path), "--json"]) == 0
        lines = capsys.readouterr().out.splitlines()
        said = json.loads(lines[-1])
        said = said[part] if part else said
        assert said["kind"] == "kept originals" and said["n_elements"] == n and said["n_tensors"] == len(lists)
        assert said["source_fingerprint"] == fingerprint(source)
        assert any("source_fingerprint" in line for line in lines[:-1])


def stored_raw(path):
    from safetensors.torch import load_file

    return load_file(path).values()


# ---- runs


def started(folder, method, **options):
    return Runtime.from_pretrained(folder, method=method, **(START | options))


@pytest.mark.parametrize("name", quickly(("nf4",), ["nf4", "nf4-32-double", "int8"]))
@pytest.mark.slow
def test_runs_start_from_the_originals(made, name):
    """Weights: the original on the set, bitsandbytes' dequantised elsewhere. Logits: transformers with such weights."""
    torch = pytest.importorskip("torch")
    _, weights, index, lists, folders, _ = made
    want = {n: w.clone() for n, w in dequantized(folders[name]).items()}
    plain = transformers_logits(want, batch(3)["input_ids"])[:, :-1].reshape(-1, CONFIG["vocab_size"])
    for n, at in lists.items():
        assert not np.array_equal(want[n].numpy().reshape(-1)[at], weights[n].reshape(-1)[at])
        want[n].view(-1)[torch.from_numpy(at.astype(np.int64))] = torch.from_numpy(weights[n].reshape(-1)[at])
    patched = transformers_logits(want, batch(3)["input_ids"])[:, :-1].reshape(-1, CONFIG["vocab_size"])
    with started(folders[name], Sensitive(index=index), dtype="fp32") as run:
        for n in run.tensor_ids():
            assert np.array_equal(run.weights(n), want[n].numpy()), n
        assert run.notes == []
        got = run.logits(batch(3))
        loss = run.evaluate([batch(3)]).loss
    most = np.abs(patched).max()
    assert np.abs(got - patched).max() <= 1e-4 * most < np.abs(got - plain).max()
    labels = batch(3)["input_ids"][:, 1:].reshape(-1)
    wide = patched.astype(np.float64)
    nll = np.log(np.exp(wide).sum(-1)) - wide[np.arange(len(labels)), labels]
    assert abs(loss - nll.mean()) <= 1e-4 * nll.mean()


def run_of(folder, out, method, n_steps=4, **options):
    with started(folder, method, run_dir=out, **options) as run:
        for s in range(run.step, n_steps):
            assert not run.train_step(batch(s)).skipped
        run.save_delta(out / "x.delta.safetensors")
        return run.logits(batch(99, rows=1))


@pytest.mark.parametrize("name", quickly(("nf4",), ["nf4", "int8"]))
def test_the_same_bits_streamed_resumed_and_from_a_delta(made, tmp_path, name):
    _, _, index, _, folders, plain = made
    method = Sensitive(index=index)
    logits = run_of(folders[name], tmp_path / "resident", method)
    places = {
        "least": tight(folders[name], LEAST_RING, method, n_readers=0),
        "cuts": tight(folders[name], LEAST_RING + 11 * 4096, method, threads=3),
        "all": {"memory_budget": "200MiB"},
    }
    for place, options in places.items():
        assert np.array_equal(run_of(folders[name], tmp_path / place, method, **options), logits), place
        assert bits(tmp_path / place) == bits(tmp_path / "resident"), place
    run_of(folders[name], tmp_path / "again", method, n_steps=2)
    run_of(folders[name], tmp_path / "again", method, n_steps=4, **places["least"])
    assert bits(tmp_path / "again") == bits(tmp_path / "resident")
    delta = tmp_path / "resident" / "x.delta.safetensors"
    for options in ({}, places["least"]):
        with started(folders[name], method, delta=delta, **options) as run:
            assert np.array_equal(run.logits(batch(99, rows=1)), logits)
    if name == "nf4":
        assert not np.array_equal(run_of(plain, tmp_path / "plain", method), logits)


def test_a_journal_is_refused_without_the_file(made, tmp_path):
    _, _, index, _, folders, plain = made
    method = Sensitive(index=index)
    run_of(folders["nf4"], tmp_path / "r", method, n_steps=1)
    run_of(plain, tmp_path / "s", method, n_steps=1)
    for run_dir, folder in ((tmp_path / "r", plain), (tmp_path / "s", folders["nf4"])):
        with pytest.raises(ArgumentError, match="model fingerprint"):
            started(folder, method, run_dir=run_dir)
    with pytest.raises(FormatError, match="was trained on base"):
        started(plain, method, delta=tmp_path / "r" / "x.delta.safetensors")
    assert len(records(tmp_path / "r")) == 1


@pytest.mark.slow
def test_every_kept_element_of_any_set_starts_from_its_original(made, tmp_path):
    _, weights, index, lists, folders, _ = made
    decoded = {n: w.numpy().reshape(-1) for n, w in dequantized(folders["nf4"]).items()}
    some = {n: at[::3] for n, at in lists.items() if "mlp" in n}
    more = {n: np.union1d(at[::2], np.arange(5, weights[n].size, 37)).astype(np.int32) for n, at in some.items()}
    sets = {"some": some, "more": more}
    for name, chosen in sets.items():
        method = Sensitive(index=save_index(tmp_path / f"{name}.safetensors", chosen))
        with started(folders["nf4"], method) as run:
            notes = run.notes
            for n in lists:
                want, at = decoded[n].copy(), np.intersect1d(chosen.get(n, []), lists[n]).astype(np.int64)
                want[at] = weights[n].reshape(-1)[at]
                assert np.array_equal(run.weights(n).reshape(-1), want), n
        n_all = sum(map(len, chosen.values()))
        n_kept = sum(len(np.intersect1d(at, lists[n])) for n, at in chosen.items())
        assert (n_kept == n_all) == (name == "some")
        assert notes == [] if name == "some" else f"{n_kept} of {n_all} elements" in notes[0]
    with started(folders["nf4"], Sensitive(fraction=0.01)) as run:
        found = {n: run.weights(n).reshape(-1) for n in decoded}
        assert len(run.notes) == 1 and "elements of the index set start from the originals" in run.notes[0]
    for n in lists:
        changed = np.flatnonzero(found[n] != decoded[n])
        assert np.isin(changed, lists[n]).all() and np.array_equal(found[n][changed], weights[n].reshape(-1)[changed])
    assert sum((found[n] != decoded[n]).sum() for n in lists) > 10
    # What does not train on an index set is as quantized.
    with started(folders["nf4"], MeZO(), values="fp32") as run:
        assert all(np.array_equal(run.weights(n).reshape(-1), w) for n, w in decoded.items())


# ---- refusals


def test_indices_that_do_not_fit_leave_nothing(made, tmp_path, capsys):
    source, weights, *_ = made
    name = tiny_llama.linear_names(weights)[0]
    n = weights[name].size

    def refused(error, part, lists, path=None):
        index = path or save_index(tmp_path / "bad.safetensors", lists)
        with pytest.raises(error, match=part):
            _core.quantize_folder(str(source), str(tmp_path / "q"), "nf4", keep=str(index))
        assert not any(x.startswith("q") for x in os.listdir(tmp_path))

    def ints(*values):
        return np.array(values, np.int32)

    refused(FormatError, r"\[index set\].*'model.layers.99.x.weight'", {"model.layers.99.x.weight": ints(1)})
    refused(ArgumentError, f"element {n} after 3", {name: ints(3, n)})
    refused(ArgumentError, "element -1", {name: ints(-1, 4)})
    refused(ArgumentError, "element 4 after 4", {name: ints(4, 4)})
    refused(ArgumentError, "element 9999999", {"model.embed_tokens.weight": ints(9999999)})
    refused(FormatError, "is F32, expected I32 or I64", {name: np.ones(3, np.float32)})
    refused(IoError, "none.safetensors", None, tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors here")
    refused(FormatError, "safetensors", None, tmp_path / "text.safetensors")
    command = ["quantize", "--model", str(source), "--dtype", "nf4", "--out", str(tmp_path / "q"), "--keep"]
    assert main([*command, str(tmp_path / "none.safetensors")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()[-1:]) == 1


def test_a_kept_file_that_is_damaged_or_anothers_is_refused(made, tmp_path):
    source, weights, index, lists, folders, plain = made
    method = Sensitive(index=index)
    folder = copied(folders["nf4"], tmp_path / "copy")
    whole = (folder / KEPT).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")

    def refused(error, part, content, at=folder):
        (at / KEPT).write_bytes(content)
        for options in ({}, {"memory_budget": "64MiB"}):
            with pytest.raises(error, match=part):
                started(at, method, **options)

    for where in (header + 5, len(whole) - 9, (header + len(whole)) // 2):
        refused(FormatError, "kept originals.*damaged", whole[:where] + bytes([whole[where] ^ 4]) + whole[where + 1 :])
    refused(IoError, "kept.safetensors' is truncated", whole[:-100])
    refused(FormatError, "safetensors", whole[:5])
    wrong = whole.replace(b"smezo-kept", b"smezo-nope")
    refused(FormatError, "'format' is smezo-nope, expected smezo-kept", wrong)
    missing = whole.replace(b'"index_hash"', b'"index_mash"')
    refused(FormatError, "'index_hash' is missing", missing)
    refused(FormatError, "kept originals.*elements", whole.replace(b'.elements"', b'.elefants"', 1))
    # Of other weights of the same shapes; of a model that is not quantized.
    other = tiny_llama.save(tmp_path / "other", CONFIG, {n: w * 2 for n, w in weights.items()}, "BF16")
    _core.quantize_folder(str(other), str(tmp_path / "others"), "nf4", keep=index)
    refused(FormatError, "belongs to weights of fingerprint", (tmp_path / "others" / KEPT).read_bytes())
    refused(FormatError, "which is BF16 in the model beside it", whole, copied(source, tmp_path / "source"))
    refused(FormatError, "belongs to weights of fingerprint", (folders["int8"] / KEPT).read_bytes())
    (folder / KEPT).write_bytes(whole)
    started(folder, method).close()
    assert main(["inspect", str(folder)]) == 0
    (folder / KEPT).write_bytes(whole[:-9] + b"!" + whole[-8:])
    assert main(["inspect", str(folder)]) == 2
