"""The sensitivity calibration against whole-model autograd by transformers; its index files; what it refuses."""

import errno
import json
import os
import sys

import numpy as np
import pytest
import tiny_llama
import tiny_task
from quick import measures_memory, quickly

import pysmezo
from pysmezo import ArgumentError, BudgetError, FormatError, IoError, Runtime, Sensitive, _core, index_file
from pysmezo.cli import main
from pysmezo.top_elements import PIECE, TopElements, TopK, top_of_rows

FRACTION = 0.02


# ---- the largest of many scores


def ranked(scores, k):
    """Indices of the k largest, ties to the lower index."""
    return np.sort(np.lexsort((np.arange(len(scores)), -scores))[:k])


@pytest.mark.parametrize("n, k, values", [(1000, 1, 50), (1000, 37, 5), (1000, 1000, 9), (3 * PIECE + 7, 1000, 4000)])
def test_top_k_is_exact_and_settles_ties(n, k, values):
    scores = np.random.default_rng(n + k).integers(0, values, n).astype(np.float32)
    bounds = sorted({0, n, n // 3, n // 2, n - n // 5})
    pieces = list(zip(bounds, bounds[1:], strict=False))
    for order in (pieces, pieces[::-1]):
        top = TopK(k)
        for a, b in order:
            top.add(scores[a:b], a)
        keys, least = top.found()
        assert np.array_equal(keys, ranked(scores, k)) and least == scores[keys].min()


def test_per_global_tensor_and_row():
    rng = np.random.default_rng(0)
    shapes = {"a": (40, 30), "b": (7, 200), "c": (90, 11)}
    scores = {n: rng.integers(0, 300, s).astype(np.float32) * (n != "b") for n, s in shapes.items()}
    sizes = {n: s.size for n, s in scores.items()}

    def found(per):
        top = TopElements(per, FRACTION, sizes)
        for name in reversed(scores):
            top.add(name, scores[name])
        return top.lists()

    together = np.concatenate([s.ravel() for s in scores.values()])
    chosen = ranked(together, round(len(together) * FRACTION))
    assert "b" not in found("global")  # all zero
    assert np.array_equal(np.concatenate([found("global")["a"], found("global")["c"] + 40 * 30 + 7 * 200]), chosen)
    for name, own in found("tensor").items():
        assert np.array_equal(own, ranked(scores[name].ravel(), round(scores[name].size * FRACTION)))
    for name, own in found("row").items():
        k = max(1, round(scores[name].shape[1] * FRACTION))
        rows = [ranked(row, k) + i * len(row) for i, row in enumerate(scores[name])]
        assert np.array_equal(own, np.concatenate(rows))


def test_rows_in_pieces():
    scores = np.random.default_rng(1).integers(0, 9, (9, PIECE // 4)).astype(np.float32)
    want = np.concatenate([ranked(row, 3) + i * len(row) for i, row in enumerate(scores)])
    assert np.array_equal(top_of_rows(scores, 3), want)


# ---- the file


def test_file_is_what_safetensors_reads_and_the_same_each_time(tmp_path):
    from safetensors import safe_open

    lists = {"b": np.arange(3), "a": np.arange(5), "wide": np.array([1, 1 << 33])}
    sizes = {"a": 10, "b": 10, "wide": 1 << 34}
    path = tmp_path / "i.safetensors"
    assert index_file.write(path, lists, sizes, {"x": "y"}) == path.stat().st_size
    with safe_open(path, "np") as f:
        assert f.metadata() == {"format": "smezo-index", "format_version": "1", "x": "y"}
        for name, own in lists.items():
            assert np.array_equal(f.get_tensor(name), own)
            assert f.get_tensor(name).dtype == (np.int64 if name == "wide" else np.int32)
    assert _core.read_safetensors(str(path))["n_tensors"] == 3
    before = path.read_bytes()
    index_file.write(path, dict(reversed(lists.items())), sizes, {"x": "y"})
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "i.safetensors"
    path.write_bytes(b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(IoError, match=r"\[index file\] cannot write .*needed \d+ more bytes"):
        index_file.write(path, {"a": np.arange(3)}, {"a": 3}, {})
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [path.name]


# ---- against whole-model autograd

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_model import VARIANTS, VOCABULARY, make, read

from pysmezo.sensitivity import sensitivity

LENGTH = 40
IDS = np.random.default_rng(3).integers(0, VOCABULARY, (4, LENGTH))


def whole_model(model, ids) -> tuple[dict, list[float]]:
    """F of every linear weight of the blocks by name, fp32, and the losses."""
    names = [n for n, p in model.named_parameters() if n.endswith("_proj.weight")]
    sums, losses = {n: 0.0 for n in names}, []
    parameters = dict(model.named_parameters())
    for row in ids:
        model.zero_grad()
        loss = model(torch.tensor(row[None]), labels=torch.tensor(row[None])).loss
        loss.backward()
        losses.append(loss.item())
        for n in names:
            sums[n] = sums[n] + parameters[n].grad.square()
    return {n: (s / len(ids)).detach().numpy() for n, s in sums.items()}, losses


def calibrated(folder, ids=IDS, **options) -> tuple[dict, dict]:
    """(F by name, the result)"""
    scores = {}
    found = sensitivity(folder, ids, threads=1, scores=lambda name, f: scores.update({name: f.copy()}), **options)
    return scores, found


def lists_of(path) -> dict:
    from safetensors.numpy import load_file

    return load_file(path)


def same_scores(got, want):
    assert set(got) == set(want)
    for name, f in want.items():
        assert got[name].shape == f.shape and got[name].dtype == np.float32
        # A small one is a difference of large numbers: what counts is how far it is from those that are chosen.
        assert np.all(np.abs(got[name] - f) <= 1e-4 * np.maximum(f, 0.05 * f.max())), name


def same_set(lists, want, k):
    """lists are the k largest of all, but for elements within 1e-5 of the threshold."""
    names = sorted(want)
    together = np.concatenate([want[n].ravel() for n in names])
    ours = np.concatenate([lists.get(n, np.empty(0, np.int64)) + f for n, f in zip(names, first(want), strict=True)])
    least = np.sort(together)[-k]
    differs = np.setxor1d(ours, ranked(together, k))
    assert len(ours) == k and np.all(np.abs(together[differs] - least) <= 1e-5 * least), len(differs)


def first(want) -> list[int]:
    return np.cumsum([0, *(want[n].size for n in sorted(want))])[:-1].tolist()


@pytest.mark.parametrize("name", quickly(("sliding_window",), VARIANTS))
def test_every_family(name, tmp_path):
    model = make(tmp_path / "m", VARIANTS[name])
    model = read(tmp_path / "m", torch.float32)  # dynamic rope remembers
    want, losses = whole_model(model, IDS)
    got, found = calibrated(tmp_path / "m", out=tmp_path / "i.safetensors", fraction=FRACTION)
    same_scores(got, want)
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    k = round(sum(f.size for f in want.values()) * FRACTION)
    assert found["n_elements"] == k
    same_set(lists_of(tmp_path / "i.safetensors"), want, k)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A bf16 folder with a tokenizer, its F by name."""
    folder = tmp_path_factory.mktemp("sensitivity") / "bf16"
    c = tiny_llama.config(vocab=320, layers=3)
    weights = {n: w * 0.5 if w.ndim == 2 else w for n, w in tiny_llama.random_weights(c).items()}
    tiny_llama.save(folder, c, tiny_llama.to_bf16(weights), "BF16")
    tiny_task.write_tokenizer(folder, bos=True)
    return folder


@pytest.fixture(scope="module")
def text(tiny):
    return tiny_task.write_jsonl(tiny.parent / "text.jsonl", tiny_task.rows(60))


@pytest.fixture(scope="module")
def scores(tiny):
    return calibrated(tiny, IDS)[0]


@pytest.mark.slow
def test_bf16_in_tiles_of_the_head_from_a_file(tiny, scores, tmp_path, monkeypatch):
    """Where activations lie and how the head is cut changes next to nothing."""
    from pysmezo import block_halves

    want, _ = whole_model(read(tiny, torch.float32), IDS)
    same_scores(scores, want)
    monkeypatch.setattr(block_halves, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(block_halves, "TILE_BYTES", 0)  # 256 rows of 320
    got, found = calibrated(tiny, IDS, out=tmp_path / "i.safetensors")
    assert not found["activations_in_memory"] and os.listdir(tmp_path) == ["i.safetensors"]
    same_scores(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["nf4", "int8"])
def test_quantized(tiny, tmp_path, format):
    from test_quantized_run import dequantized

    _core.quantize_folder(str(tiny), str(tmp_path / "q"), format)
    model = read(tiny, torch.float32)
    model.load_state_dict(dequantized(tmp_path / "q"), strict=False)
    want, _ = whole_model(model, IDS)
    same_scores(calibrated(tmp_path / "q", IDS)[0], want)


def test_shards_and_fp16(tiny, scores, tmp_path):
    read(tiny, torch.float32).save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    got, _ = calibrated(tmp_path / "shards")
    assert all(np.array_equal(got[n], scores[n]) for n in scores)
    read(tiny, torch.float32).to(torch.float16).save_pretrained(tmp_path / "half")
    same_scores(calibrated(tmp_path / "half")[0], whole_model(read(tmp_path / "half", torch.float32), IDS)[0])


def test_embedding_and_head_stored_quantized(tiny, scores, tmp_path):
    """Rows of what is not stored as plain numbers come through the core."""
    from pysmezo import base_rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_rows, "STORED", {})
        got, _ = calibrated(tiny)
    assert all(np.array_equal(got[n], scores[n]) for n in scores)


@pytest.mark.parametrize("per", ["global", "tensor", "row"])
def test_per(tiny, scores, per, tmp_path):
    found = sensitivity(tiny, IDS, FRACTION, tmp_path / "i.safetensors", per=per, threads=1)
    top = TopElements(per, FRACTION, {n: scores[n].size for n in sorted(scores)})
    for name, f in scores.items():
        top.add(name, f)
    lists, written = top.lists(), lists_of(tmp_path / "i.safetensors")
    assert found["n_elements"] == sum(map(len, lists.values())) and set(lists) == set(written)
    assert all(np.array_equal(written[n], lists[n]) for n in lists)
    if per == "row":
        assert all(len(lists[n]) == f.shape[0] * max(1, round(f.shape[1] * FRACTION)) for n, f in scores.items())


def test_trains_a_pattern(tiny, scores, tmp_path):
    got, found = calibrated(tiny, trains="*.1.mlp.*", fraction=0.01)
    assert set(got) == {n for n in scores if ".1.mlp." in n}
    assert all(np.array_equal(got[n], scores[n]) for n in got)
    assert found["n_candidates"] == sum(f.size for f in got.values())
    with pytest.raises(ArgumentError, match="matches no linear weight"):
        calibrated(tiny, trains="model.norm.weight")


def test_torch_is_left_as_it_was(tiny):
    before = torch.get_num_threads(), torch.is_grad_enabled()
    with torch.inference_mode():
        calibrated(tiny, IDS[:1])
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == before


# ---- text


def test_windows_of_the_stream(tiny, tmp_path):
    from tokenizers import Tokenizer

    from pysmezo.tokenizer_client import TokenizerClient

    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    texts = [r["text"] for r in tiny_task.rows(30)]
    joined = sum((tokenizer.encode(t).ids for t in texts), [])
    assert joined[0] == 0  # each begins with the tokenizer's own <s>
    windows = [joined[i : i + 16] for i in range(0, len(joined) - 15, 16)]
    rows = tiny_task.write_jsonl(tmp_path / "a.jsonl", tiny_task.rows(30))
    client = TokenizerClient(tiny, max_length=16)
    try:
        everything = client.sequences(texts, len(windows), 16, 7)
        assert everything.tolist() == windows
        assert client.sequences(rows, len(windows), 16, 0).tolist() == windows
        some = client.sequences(texts, 4, 16, 7).tolist()
        places = [windows.index(s) for s in some]
        assert places == sorted(places) and len(set(places)) == 4
        assert client.sequences(texts, 4, 16, 7).tolist() == some != client.sequences(texts, 4, 16, 8).tolist()
        (tmp_path / "a.txt").write_text("\n".join(texts))
        plain = tokenizer.encode("\n".join(texts)).ids
        assert client.sequences(tmp_path / "a.txt", 1, len(plain), 0)[0].tolist() == plain
    finally:
        client.close()


# ---- the verb


def refused(capsys, *arguments, code=2) -> str:
    assert main(["sensitivity", *map(str, arguments)]) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: [") and not any("Traceback" in line for line in lines)
    return lines[-1]


def test_verb_then_training_then_quantizing(tiny, text, tmp_path, capsys):
    out = tmp_path / "i.safetensors"
    arguments = ["--model", tiny, "--data", text, "--out", out, "--sequences", 4, "--length", 32, "--threads", 1]
    assert main(["sensitivity", *map(str, arguments), "--fraction", "0.01", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out.splitlines()[-1])
    assert "4 sequences of 32 tokens" in printed.err and "elements of" in printed.out
    n = sum(map(len, lists_of(out).values()))
    assert found["n_elements"] == n == round(found["n_candidates"] * 0.01) and found["per"] == "global"
    metadata = _core.read_safetensors(str(out))["metadata"]
    assert metadata["base_fingerprint"] == found["base_fingerprint"] and metadata["fraction"] == "0.01"
    assert metadata["data_hash"] == found["data_hash"] and metadata["n_sequences"] == "4"
    assert main(["inspect", str(tmp_path / "i.safetensors")]) == 0
    assert "index set" in capsys.readouterr().out
    method = Sensitive(index=str(out))
    with Runtime.from_pretrained(tiny, method=method, lr=1e-2, eps=1e-3, threads=1) as run:
        header = json.loads(run._engine.header_json)
        assert header["base_fingerprint"] == found["base_fingerprint"] and run.diagnostics()["n_trained"] == n
        assert not run.train_step({"input_ids": IDS, "labels": IDS}).skipped
    assert (
        main(["quantize", "--model", str(tiny), "--dtype", "nf4", "--keep", str(out), "--out", str(tmp_path / "q")])
        == 0
    )
    assert _core.read_kept(str(tmp_path / "q" / "kept.safetensors"))["n_elements"] == n
    again = tmp_path / "again"
    sensitivity(tiny, text, 0.01, again, sequences=4, length=32, threads=1)
    assert again.read_bytes() == out.read_bytes()


def test_refusals(tiny, text, tmp_path, capsys, monkeypatch):
    good = {"--model": tiny, "--data": text, "--out": tmp_path / "i", "--sequences": 2, "--length": 16, "--threads": 1}

    def line(code=2, **changes):
        flags = good | {"--" + k.replace("_", "-"): v for k, v in changes.items()}
        return refused(capsys, *(x for flag in flags.items() for x in flag), code=code)

    for fraction in (0, -1, 0.6, "nan"):
        assert "fraction" in line(fraction=fraction) and "at most 0.5" in line(fraction=fraction)
    assert "a number" in line(fraction="many")
    assert "expected one of global, tensor, row" in line(per="layer")
    assert "--length '1'" in line(length=1)
    assert "expected 2 to 256, the model's own limit" in line(length=257)
    assert "expected at least 48000 for 3000 sequences of 16; give more text" in line(sequences=3000)
    assert "matches no linear weight" in line(trains="lm_head.*")
    assert "config.json" in line(model=tmp_path)
    assert "is no file" in line(data=tmp_path / "none.txt")
    (tmp_path / "x.md").write_text("text")
    assert ".txt, or in .jsonl" in line(data=tmp_path / "x.md")
    (tmp_path / "x.jsonl").write_text('{"words": "a"}\n')
    assert "has no column 'text'" in line(data=tmp_path / "x.jsonl")
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\xff")
    assert "not UTF-8" in line(data=tmp_path / "x.txt")
    assert "is a folder" in line(out=tmp_path)
    assert "[index file]" in line(out=tmp_path / "none" / "i")
    assert "expected at least" in line(memory_budget="1MiB", code=3)
    assert sorted(os.listdir(tmp_path)) == ["x.jsonl", "x.md", "x.txt"]
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("_torch_calibration", "_torch_layer"):
        monkeypatch.delitem(sys.modules, f"pysmezo.{name}", raising=False)
        monkeypatch.delattr(pysmezo, name, raising=False)
    assert "pip install 'pysmezo[torch]'" in line()


def test_refused_ids_and_models(tiny, tmp_path):
    for bad in ([[1, 2], [3]], [[1]], [], np.ones((2, 3)), np.zeros((0, 4), int)):
        with pytest.raises(ArgumentError, match=r"\[sensitivity\]"):
            sensitivity(tiny, bad)
    for bad in ([[1, 320]], [[-1, 3]], [[1] * 257]):
        with pytest.raises(ArgumentError, match="token id|the model's own limit"):
            sensitivity(tiny, bad)
    c = tiny_llama.config(vocab=320)
    weights = tiny_llama.random_weights(c)
    weights["model.layers.0.mlp.up_proj.weight"][3, 3] = np.nan
    with pytest.raises(FormatError, match="loss nan of sequence 0"):
        sensitivity(tiny_llama.save(tmp_path / "nan", c, weights), IDS)


# ---- memory


@pytest.mark.slow
@measures_memory
def test_memory_stays_below_what_was_predicted(tmp_path):
    """Of a model whose halves are larger than everything else, in a process of its own."""
    import subprocess

    from pysmezo import children

    c = tiny_llama.config(hidden=768, layers=4, heads=12, kv_heads=12, inner=4096, vocab=512)
    tiny_llama.save(tmp_path / "m", c, tiny_llama.random_weights(c))
    code = (
        "import sys, numpy as np\n"
        "import pysmezo._torch_calibration\n"
        "from pysmezo.sensitivity import sensitivity\n"
        "ids = np.random.default_rng(0).integers(0, 512, (3, 64))\n"
        "r = sensitivity(sys.argv[1], ids, memory_budget='250MiB', threads=1)\n"
        "assert not {'transformers', 'tokenizers', 'pysmezo._encode'} & set(sys.modules)\n"
        "print(r['predicted_peak_bytes'], r['peak_bytes'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m")], env=children.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    predicted, peak = map(int, done.stdout.split())
    half = 4 * 3 * 768 * 4096
    assert 2 * half < peak <= predicted <= 250 << 20
    with pytest.raises(BudgetError, match="expected at least"):
        sensitivity(tmp_path / "m", IDS, memory_budget="64MiB")
