"""Runs on a quantized base: logits against transformers, and the same bits wherever the weights lie."""

import hashlib
import json

import numpy as np
import pytest
import tiny_llama
from quick import quickly
from test_streaming import bits, records, smallest_budget

from pysmezo import IoError, MeZO, Runtime, Sensitive, SparseMeZO, _core, planning

# Tied as SmolLM2 is; columns that no block of 64 divides, and rows that are cut at odd numbers.
# Enough layers that a budget which opens the model does not hold them all.
CONFIG = tiny_llama.config(hidden=96, layers=9, heads=6, kv_heads=2, inner=1210, vocab=1200, tied=True)
LEAST_RING = 3 * (512 * CONFIG["hidden_size"] * 2 + 2 * 4096)  # three blocks of the head
FORMATS = {
    "nf4": {"dtype": "nf4"},
    "nf4-32-double": {"dtype": "nf4", "blocksize": 32, "double_quant": True},
    "nf4-4096": {"dtype": "nf4", "blocksize": 4096},
    "int8": {"dtype": "int8"},
    "bf16": None,
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """{format: folder}, all of the same bf16 weights."""
    root = tmp_path_factory.mktemp("quantized")
    weights = {n: w * 0.3 if w.ndim == 2 else w for n, w in tiny_llama.random_weights(CONFIG).items()}
    out = {"bf16": tiny_llama.save(root / "bf16", CONFIG, tiny_llama.to_bf16(weights), "BF16")}
    for name, options in FORMATS.items():
        if options:
            _core.quantize_folder(str(out["bf16"]), str(root / name), **options)
            out[name] = root / name
    return out


def batch(seed, rows=4, columns=14):
    ids = np.random.default_rng(seed).integers(3, 1200, (rows, columns))
    return {"input_ids": ids, "labels": ids}


def tight(base, ring_bytes, method, **options):
    """Options with the smallest budget in which the model opens, takes a step on `batch` and gives a text's logits."""
    p = planning.planner(base, method, memory_budget="64MiB", ring_bytes=ring_bytes, **options)
    least = smallest_budget(p, batch(0), 2 * method.queries)
    least = max(least, smallest_budget(p, batch(99, rows=1), 1, want_logits=True))
    return options | {"memory_budget": least, "ring_bytes": ring_bytes}


PLACES = {
    "least ring": {"ring_bytes": LEAST_RING},
    "nothing read ahead": {"ring_bytes": LEAST_RING + 4096, "n_readers": 0},
    "one thread": {"ring_bytes": LEAST_RING + 3 * 4096, "n_readers": 1, "threads": 1},
    "other cuts": {"ring_bytes": LEAST_RING + 11 * 4096, "threads": 3},
    "all stays": {"memory_budget": "200MiB"},
}


def dequantized(folder):
    """fp32 weights by name, quantized ones through bitsandbytes."""
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes").functional
    from safetensors.torch import load_file

    found, out = load_file(folder / "model.safetensors"), {}
    states = {n.split(".quant_state.")[0] for n in found if ".quant_state." in n}
    for name, value in found.items():
        if name in states:
            parts = {k[len(name) + 1 :]: v for k, v in found.items() if k.startswith(name + ".")}
            state = functional.QuantState.from_dict(parts, torch.device("cpu"))
            # As one row: of a matrix whose columns are no multiple of the block, bitsandbytes 0.50.2's CPU kernel
            # does not give back what its own quantizer was given.
            state.dtype, shape = torch.float32, state.shape
            state.shape = torch.Size([shape.numel()])
            out[name] = functional.dequantize_4bit(value, state).reshape(shape)
        elif value.dtype == torch.int8:
            scales = found[name.removesuffix("weight") + "SCB"]
            out[name] = torch.ops.bitsandbytes.int8_vectorwise_dequant.default(value, scales)
        elif name.endswith("weight") and not any(name.startswith(s + ".") for s in states):
            out[name] = value.float()
    return out


def transformers_logits(weights, ids):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(**{k: v for k, v in CONFIG.items() if k != "architectures"})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected
    model.tie_weights()
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


@pytest.mark.parametrize("name", quickly(("nf4",), FORMATS))
def test_logits_equal_transformers_on_dequantized_weights(bases, name):
    ids = batch(3)["input_ids"]
    want = transformers_logits(dequantized(bases[name]), ids)[:, :-1].reshape(-1, CONFIG["vocab_size"])
    common = {"method": MeZO(trains="model.norm.weight"), "lr": 1.0, "eps": 1.0, "dtype": "fp32"}
    with Runtime.from_pretrained(bases[name], **common) as run:
        got = run.logits(batch(3))
    assert got.shape == want.shape and np.abs(want).max() > 1
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
    for place, options in PLACES.items():
        options = {"memory_budget": "64MiB"} | options
        with Runtime.from_pretrained(bases[name], **common, **options) as run:
            assert np.array_equal(run.logits(batch(3)), got), place


def run_of(base, folder, method, n_steps=4, **options):
    options = {"lr": 2.0**-8, "eps": 2.0**-7, "seed": 5, "threads": 2} | options
    with Runtime.from_pretrained(base, method=method, run_dir=folder, **options) as run:
        results = [run.train_step(batch(s)) for s in range(run.step, n_steps)]
        assert not any(r.skipped for r in results)
        logits = run.logits(batch(99, rows=1))
        run.save_delta(folder / "x.delta.safetensors")
    return hashlib.sha256(logits.tobytes()).hexdigest()


METHODS = {
    "sensitive": Sensitive(fraction=0.05),
    "sparse-mezo": SparseMeZO(sparsity=0.5),
    "only gates": MeZO(trains="*gate_proj.weight"),
}


QUICK = {("bf16", "only gates")}
PAIRS = [
    pytest.param(f, m, marks=() if (f, m) in QUICK else pytest.mark.slow, id=f"{f}, {m}")
    for f in FORMATS
    for m in METHODS
]


@pytest.mark.parametrize("name,method", PAIRS)
def test_training_gives_the_same_bits_wherever_the_base_lies(bases, tmp_path, name, method):
    logits = run_of(bases[name], tmp_path / "resident", METHODS[method])
    for place, options in PLACES.items():
        folder = tmp_path / place.replace(" ", "-")
        if "ring_bytes" in options:
            # Three working copies of the least unit: rows of whole blocks, more than a block of the head.
            options = options | {"ring_bytes": options["ring_bytes"] * (4 if method == "sparse-mezo" else 1)}
            options = tight(bases[name], method=METHODS[method], **options)
        assert run_of(bases[name], folder, METHODS[method], **options) == logits, place
        assert bits(folder) == bits(tmp_path / "resident"), place


def place_in_file(folder, name):
    """First byte of a tensor in its file and the byte after its last."""
    with open(folder / "model.safetensors", "rb") as f:
        n = int.from_bytes(f.read(8), "little")
        begin, end = json.loads(f.read(n))[name]["data_offsets"]
    return 8 + n + begin, 8 + n + end


@pytest.mark.parametrize("method", ["sensitive", "only gates"])
@pytest.mark.parametrize("name", ["bf16", "nf4"])
def test_a_step_tried_again_after_a_failed_read_applies_no_record_twice(bases, tmp_path, name, method):
    """A read fails half way through a matrix whose first rows have had the last step's record."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for f in bases[name].iterdir():
        (copy / f.name).write_bytes(f.read_bytes())
    whole = (copy / "model.safetensors").read_bytes()
    tensor = "model.layers.2.mlp.up_proj.weight"  # the last ones stay
    begin, end = place_in_file(copy, tensor)
    options = tight(bases[name], LEAST_RING, METHODS[method], n_readers=0, threads=1) | {
        "lr": 2.0**-8,
        "eps": 2.0**-7,
        "seed": 5,
    }
    with Runtime.from_pretrained(copy, method=METHODS[method], run_dir=tmp_path / "r", **options) as run:
        run.train_step(batch(0))
        for cut in ((begin + end) // 2, end - 100):
            with open(copy / "model.safetensors", "r+b") as f:
                f.truncate(cut)
            with pytest.raises(IoError, match="truncated"):
                run.train_step(batch(1))
            with open(copy / "model.safetensors", "r+b") as f:
                f.write(whole)
        run.train_step(batch(1))
        run.train_step(batch(2))
        run.save_delta(tmp_path / "r" / "x.delta.safetensors")
    run_of(bases[name], tmp_path / "s", METHODS[method], n_steps=3)
    assert records(tmp_path / "r") == records(tmp_path / "s")
    assert bits(tmp_path / "r") == bits(tmp_path / "s")
