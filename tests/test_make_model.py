"""bench make-model: random models of the named shapes, read through safetensors and bitsandbytes."""

import json
import os
import struct

import numpy as np
import pytest
from quick import quickly

pytest.importorskip("pysmezo._core")

from pysmezo import shapes
from pysmezo.cli import main


def read(folder) -> dict:
    """All tensors of a folder by name."""
    from safetensors.torch import load_file

    return {k: v for name in os.listdir(folder) if name.endswith("s") for k, v in load_file(folder / name).items()}


def make_model(out, dtype, *more):
    return main(
        ["bench", "make-model", "--shape", "smollm2-135m", "--layers", "1", "--dtype", dtype, "--out", str(out), *more]
    )


@pytest.mark.parametrize("dtype", quickly(("bf16",), ["bf16", "nf4", "nf4-dq"]))
def test_make_model(tmp_path, capsys, dtype):
    torch = pytest.importorskip("torch")
    F = pytest.importorskip("bitsandbytes").functional
    assert make_model(tmp_path / "m", dtype, "--json", "--threads", "1") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = read(tmp_path / "m")
    assert report["bytes_out"] == sum(t.numel() * t.element_size() for t in found.values())
    shape = shapes.shape_of("smollm2-135m", 1)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["num_hidden_layers"] == 1 and ("quantization_config" in config) == (dtype != "bf16")
    for name, size in shapes.tensors(shape):
        t = found[name]
        if dtype != "bf16" and "_proj" in name:
            parts = {k[len(name) + 1 :]: v for k, v in found.items() if k.startswith(name + ".")}
            t = F.dequantize_4bit(t, F.QuantState.from_dict(parts, torch.device("cpu")))
        assert list(t.shape) == size and t.dtype == torch.bfloat16
        if len(size) == 1:
            assert (t == 1).all()
            continue
        x = t.double().numpy()
        assert abs(x.std() - 0.02) < 0.001 and abs(x.mean()) < 3e-4, (name, x.std(), x.mean())
        assert len(np.unique(x[:, 0])) > 30 and not np.array_equal(x[0], x[1])
    assert make_model(tmp_path / "m", dtype) == 2
    assert make_model(tmp_path / "again", dtype, "--threads", "3") == 0
    assert make_model(tmp_path / "other", dtype, "--seed", "1") == 0
    again, other = read(tmp_path / "again"), read(tmp_path / "other")
    assert all(torch.equal(found[k], again[k]) for k in found)
    changed = [k for k in found if found[k].ndim == 2 and not torch.equal(found[k], other[k])]
    assert len(changed) >= 8


def test_activations_stay_finite(tmp_path):
    from pysmezo import MeZO, Runtime

    assert make_model(tmp_path / "m", "bf16") == 0
    with Runtime.from_pretrained(tmp_path / "m", method=MeZO(), lr=1e-6, eps=1e-3) as run:
        ids = np.arange(40).reshape(2, 20) * 1000
        logits = run.logits({"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids})
    # RMS norm makes the last hidden state one of size 1: logits of 0.02 sqrt(hidden).
    assert np.isfinite(logits).all() and 0.3 < logits.std() / (0.02 * 576**0.5) < 3, logits.std()


def test_make_model_refuses(tmp_path, capsys):
    for wrong in (["--shape", "gpt-9"], ["--dtype", "int3"], ["--layers", "0"], ["--seed", "-1"]):
        flags = {"--shape": "llama-1b", "--dtype": "nf4", "--layers": "1"} | {wrong[0]: wrong[1]}
        argv = [part for pair in flags.items() for part in pair]
        assert main(["bench", "make-model", *argv, "--out", str(tmp_path / "m")]) == 2
        assert "expected" in capsys.readouterr().err
    assert main(["bench"]) == 2
    assert os.listdir(tmp_path) == []


def test_shapes_are_the_published_sizes():
    """Parameters of the models the shapes are named after (SmolLM2-135M and the Llama paper's table 2, TinyLlama)."""
    for name, billions in {
        "smollm2-135m": 0.1345,
        "llama-1b": 1.100,
        "llama-7b": 6.738,
        "llama-13b": 13.016,
        "llama-30b": 32.529,
    }.items():
        n = sum(int(np.prod(size)) for _, size in shapes.tensors(shapes.SHAPES[name]))
        assert round(n / 1e9, 3 if billions > 1 else 4) == billions, (name, n)


def test_header_is_plain_safetensors(tmp_path):
    """The header's length is a multiple of 8 and __metadata__ says "pt", which transformers asks for."""
    assert make_model(tmp_path / "m", "nf4") == 0
    with open(tmp_path / "m" / "model.safetensors", "rb") as f:
        (n,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(n))
    assert n % 8 == 0 and header["__metadata__"] == {"format": "pt"}
