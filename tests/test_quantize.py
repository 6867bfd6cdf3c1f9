"""pysmezo quantize: folders read back through bitsandbytes' QuantState and through transformers, refusals, memory."""

import json
import os

import numpy as np
import pytest
import tiny_llama

core = pytest.importorskip("pysmezo._core")
torch = pytest.importorskip("torch")

from pysmezo.cli import main
from pysmezo.errors import ArgumentError, FormatError, IoError

ops = torch.ops.bitsandbytes


@pytest.fixture(scope="module", autouse=True)
def bitsandbytes():
    """Its import takes four seconds: for the process that runs these tests, not for all that collect them."""
    global bnb, F
    bnb = pytest.importorskip("bitsandbytes")
    F = bnb.functional


def bits(x) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


def read(folder) -> dict:
    """All tensors of a folder by name, through safetensors."""
    from safetensors.torch import load_file

    out = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            out |= load_file(os.path.join(folder, name))
    return out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """{dtype: (folder, fp32 weights)}: columns that no block divides, a file beside, and a file that is not to be copied."""
    base, out = tmp_path_factory.mktemp("tiny"), {}
    c = tiny_llama.config(hidden=48, inner=130, heads=4, kv_heads=2, vocab=96)
    values = tiny_llama.to_bf16(tiny_llama.random_weights(c))
    for dtype in ("F32", "BF16"):
        folder = tiny_llama.save(base / dtype, c, values, dtype)
        (folder / "tokenizer.json").write_text('{"a": 1}')
        (folder / "pytorch_model.bin").write_bytes(b"weights")
        out[dtype] = folder, values
    return out


def quantize(folder, out, dtype="nf4", **more):
    return core.quantize_folder(str(folder), str(out), dtype, **more)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("block,double", [(64, False), (64, True), (32, True), (4096, False)])
def test_nf4_folder(tiny, tmp_path, dtype, block, double):
    folder, values = tiny[dtype]
    quantize(folder, tmp_path / "q", blocksize=block, double_quant=double, threads=3)
    found, stored = read(tmp_path / "q"), torch.float32 if dtype == "F32" else torch.bfloat16
    linear = tiny_llama.linear_names(values)
    for name, value in values.items():
        t = torch.from_numpy(value).to(stored)
        if name not in linear:
            assert found[name].dtype == stored and torch.equal(found[name], t), name
            continue
        parts = {k[len(name) + 1 :]: v for k, v in found.items() if k.startswith(name + ".")}
        state = F.QuantState.from_dict(dict(parts), torch.device("cpu"))
        codes, want = F.quantize_4bit(t, blocksize=block, compress_statistics=double, quant_type="nf4")
        assert state.dtype == stored and tuple(state.shape) == t.shape and state.blocksize == block
        assert torch.equal(found[name], codes) and torch.equal(state.code, want.code)
        if double:
            # Same offset, same codes; torch's own mean may differ in its last bits.
            offset = np.float32(state.offset.item())
            assert abs(offset - np.float32(want.offset.item())) <= 2 * np.spacing(offset)
            plain = F.quantize_4bit(t, blocksize=block, quant_type="nf4")[1].absmax
            q, inner = F.quantize_blockwise(plain - state.offset, blocksize=256)
            assert torch.equal(state.absmax, q) and torch.equal(state.state2.absmax, inner.absmax)
            assert torch.equal(state.state2.code, want.state2.code) and state.state2.blocksize == want.state2.blocksize
        else:
            assert torch.equal(state.absmax, want.absmax)
        names = {k.split(".")[0] if "quant_state" not in k else k for k in parts}
        assert names == set(want.as_dict(packed=True))
        ours, theirs = (
            json.loads(bytes(d["quant_state.bitsandbytes__nf4"].tolist())) for d in (parts, want.as_dict(packed=True))
        )
        for d in (ours, theirs):
            d.pop("nested_offset", None)
        assert list(ours.items()) == list(theirs.items())
    assert set(os.listdir(tmp_path / "q")) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert (tmp_path / "q" / "tokenizer.json").read_text() == '{"a": 1}'


def test_int8_folder(tiny, tmp_path):
    folder, values = tiny["BF16"]
    quantize(folder, tmp_path / "q", "int8")
    found = read(tmp_path / "q")
    for name in tiny_llama.linear_names(values):
        codes, absmax, _ = ops.int8_vectorwise_quant.default(torch.from_numpy(values[name]), 0.0)
        layer = name.removesuffix("weight")
        assert torch.equal(found.pop(name), codes) and torch.equal(found.pop(layer + "SCB"), absmax)
        layout = found.pop(layer + "weight_format")
        assert layout.dtype == torch.uint8 and layout.shape == () and layout.item() == 0
    assert set(found) == set(values) - set(tiny_llama.linear_names(values))


@pytest.mark.parametrize("stored", ["F32", "BF16"])
def test_weights_of_many_pieces(tmp_path, stored):
    """More elements than one thread takes at a time, the last piece and the last block short."""
    c = tiny_llama.config(hidden=504, inner=1501, layers=1, vocab=32)
    values = tiny_llama.to_bf16(tiny_llama.random_weights(c))
    folder = tiny_llama.save(tmp_path / "base", c, values, stored)
    quantize(folder, tmp_path / "nf4", blocksize=4096, threads=2)
    quantize(folder, tmp_path / "int8", "int8", threads=2)
    nf4, int8 = read(tmp_path / "nf4"), read(tmp_path / "int8")
    for name in tiny_llama.linear_names(values):
        t = torch.from_numpy(values[name])
        codes, absmax = ops.quantize_4bit.default(t, 4096, "nf4", torch.uint8)
        assert torch.equal(nf4[name], codes) and torch.equal(nf4[name + ".absmax"], absmax)
        codes, absmax, _ = ops.int8_vectorwise_quant.default(t, 0.0)
        assert torch.equal(int8[name], codes) and torch.equal(int8[name.replace("weight", "SCB")], absmax)


@pytest.mark.parametrize("dtype", ["nf4", "int8"])
def test_quantization_config_is_transformers(tiny, tmp_path, dtype):
    transformers = pytest.importorskip("transformers")
    quantize(tiny["F32"][0], tmp_path / "q", dtype, double_quant=dtype == "nf4")
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    kwargs = {"load_in_8bit": True}
    if dtype == "nf4":
        kwargs = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    want = json.loads(json.dumps(transformers.BitsAndBytesConfig(**kwargs).to_dict()))
    assert config.pop("quantization_config") == want
    assert config == json.loads((tiny["F32"][0] / "config.json").read_text())


def test_threads_and_shards_change_nothing(tiny, tmp_path):
    folder, _ = tiny["BF16"]
    one = quantize(folder, tmp_path / "one", threads=1, double_quant=True)
    many = quantize(folder, tmp_path / "many", threads=5, double_quant=True, shard_bytes=20000)
    assert one == many and one["n_quantized"] == 14
    a, b = read(tmp_path / "one"), read(tmp_path / "many")
    assert all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == b.keys() and index["metadata"]["total_size"] == one["bytes_out"]
    for name, shard in index["weight_map"].items():
        # A weight and its scales are in one shard.
        assert shard == index["weight_map"][name.split(".weight.")[0] + ".weight" if ".weight." in name else name]
    # A sharded base gives the same again.
    plain = core.quantize_folder
    (tmp_path / "sharded").mkdir()
    split(folder, tmp_path / "sharded")
    plain(str(tmp_path / "sharded"), str(tmp_path / "again"), "nf4", double_quant=True)
    c = read(tmp_path / "again")
    assert all(torch.equal(a[k], c[k]) for k in a) and a.keys() == c.keys()


def split(folder, to):
    """A single-file folder as two shards and an index."""
    from safetensors.torch import save_file

    found = read(folder)
    names = sorted(found)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-{i:05d}-of-00002.safetensors"
        save_file({n: found[n] for n in part}, to / shard)
        weight_map |= dict.fromkeys(part, shard)
    (to / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (to / "config.json").write_text((folder / "config.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("dtype,double", [("nf4", False), ("nf4", True), ("int8", False)])
def test_transformers_loads_it(tmp_path, dtype, double):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    c = tiny_llama.config(hidden=64, inner=192, vocab=96)
    values = tiny_llama.random_weights(c)
    folder = tiny_llama.save(tmp_path / "base", c, values)
    quantize(folder, tmp_path / "q", dtype, double_quant=double)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype=torch.float32).eval()
    kind = bnb.nn.Linear4bit if dtype == "nf4" else bnb.nn.Linear8bitLt
    modules = dict(model.named_modules())
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name in tiny_llama.linear_names(values):
        module, value = modules[name.removesuffix(".weight")], torch.from_numpy(values[name])
        assert isinstance(module, kind)
        if dtype == "nf4":
            theirs = F.dequantize_4bit(module.weight.data, module.weight.quant_state)
            codes, absmax = core.nf4_encode(value.numpy(), 64)
            mine = core.nf4_decode(codes, absmax, 64)
            if double:
                codes8, nested, offset = core.nested_encode(absmax)
                mine = core.nf4_decode_nested(codes, codes8, core.dynamic8_map(), nested, offset, 64)
        else:
            scale = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
            theirs = ops.int8_vectorwise_dequant.default(module.weight.data, scale)
            mine = core.int8_decode(*core.int8_encode(value.numpy()))
        assert np.array_equal(bits(theirs.numpy()).reshape(-1), bits(mine))
        plain.get_submodule(name.removesuffix(".weight")).weight.data = torch.from_numpy(mine).reshape(value.shape)
    ids = torch.arange(24).reshape(2, 12) % 96
    with torch.no_grad():
        got, want = model(ids).logits, plain(ids).logits
    # bitsandbytes multiplies in bf16 (NF4, where the processor has it) or quantizes activations to 8 bits (int8).
    error = ((got - want).norm() / want.norm()).item()
    assert error < (0.02 if dtype == "nf4" else 0.05), error


# ---- refusals


def test_refusals_leave_nothing(tiny, tmp_path, capsys):
    folder, values = tiny["F32"]
    out = tmp_path / "out"

    def refused(error, part, source=folder, dtype="nf4", **more):
        with pytest.raises(error, match=part):
            quantize(source, out, dtype, **more)
        assert not any(name.startswith("out") for name in os.listdir(tmp_path)), os.listdir(tmp_path)

    for block in (0, -64, 16, 48, 8192):
        refused(ArgumentError, "power of two", blocksize=block)
    refused(ArgumentError, "expected nf4 or int8", dtype="fp4")
    refused(ArgumentError, "double quantization", dtype="int8", double_quant=True)
    refused(ArgumentError, "not a folder", tmp_path / "nowhere")

    quantize(folder, tmp_path / "q")
    refused(ArgumentError, "quantized already", tmp_path / "q")
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    config.pop("quantization_config")
    (tmp_path / "q" / "config.json").write_text(json.dumps(config))
    refused(ArgumentError, "dtype U8", tmp_path / "q")
    with pytest.raises(ArgumentError, match="already there"):
        quantize(folder, tmp_path / "q")

    def changed(name, c, weights):
        return tiny_llama.save(tmp_path / name, c, weights)

    c = json.loads((folder / "config.json").read_text())
    name = tiny_llama.linear_names(values)[3]
    odd = changed("odd", c, values | {name: np.ones((3, 5), np.float32)})
    refused(ArgumentError, "even number", odd)
    for bad in (np.nan, np.inf, -np.inf):
        broken = values[name].copy()
        broken[-1, -1] = bad
        source = changed("broken", c, values | {name: broken})
        refused(FormatError, "NaN or an infinity", source)
        refused(FormatError, "NaN or an infinity", source, dtype="int8")
    refused(FormatError, "linear layer", changed("other", c, {"model.norm.weight": np.ones(4, np.float32)}))
    cut = changed("cut", c, values) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-10])
    refused(IoError, "truncated", tmp_path / "cut")

    def stop(done, total):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        quantize(folder, out, progress=stop)
    assert not any(name.startswith("out") for name in os.listdir(tmp_path))
    assert main(["quantize", "--model", str(folder), "--dtype", "q3", "--out", str(out)]) == 2
    assert "expected nf4 or int8" in capsys.readouterr().err


def test_verb_prints_json(tiny, tmp_path, capsys):
    folder, _ = tiny["BF16"]
    command = ["quantize", "--model", str(folder), "--dtype", "nf4", "--blocksize", "128", "--double-quant"]
    assert main([*command, "--out", str(tmp_path / "new" / "q"), "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out.splitlines()[-1])
    assert found["bytes_in"] > found["bytes_out"] > 0 and found["seconds"] > 0 and found["peak_rss_bytes"] > 0
    assert "quantize" in captured.err and "peak" in captured.err
    assert found["bytes_out"] == sum(t.numel() * t.element_size() for t in read(tmp_path / "new" / "q").values())


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_model(tmp_path):
    """A base of 256 MiB, originals of an index set kept, in a process that may use 64 MiB more than it had."""
    import subprocess
    import sys

    from safetensors.numpy import save_file

    c = tiny_llama.config(hidden=1024, inner=4096, layers=6, heads=8, kv_heads=8, vocab=2048)
    rng = np.random.default_rng(0)
    values = {n: np.tile(rng.normal(size=w.shape[-1:]).astype(np.float32), (*w.shape[:-1], 1)) for n, w in shapes_of(c)}
    tiny_llama.save(tmp_path / "base", c, values)
    index = {n: np.arange(0, w.size, 300, dtype=np.int32) for n, w in values.items() if "_proj" in n}
    save_file(index, tmp_path / "index.safetensors")
    code = """if True:
        import sys
        from pysmezo import _core, memory
        before = memory.rss_bytes(); memory.reset_peak()
        r = _core.quantize_folder(sys.argv[1], sys.argv[2], "nf4", double_quant=True, threads=2, keep=sys.argv[3])
        print(r["bytes_in"], memory.peaks()[0] - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "base"), str(tmp_path / "q"), str(tmp_path / "index.safetensors")],
        capture_output=True,
        text=True,
        check=True,
    )
    bytes_in, above = map(int, done.stdout.split())
    assert bytes_in > 256 << 20
    assert above < 64 << 20, above


def shapes_of(c):
    """(name, an array of that shape without memory of its own) of every tensor."""
    small = tiny_llama.config(layers=1)
    names = [n for n in tiny_llama.random_weights(small) if ".layers." not in n]
    d, f, v = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    for n in names:
        yield n, np.broadcast_to(np.float32(0), (d,) if "norm" in n else (v, d))
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for proj in "qkvo":
            yield f"{at}self_attn.{proj}_proj.weight", np.broadcast_to(np.float32(0), (d, d))
        for proj, shape in (("gate", (f, d)), ("up", (f, d)), ("down", (d, f))):
            yield f"{at}mlp.{proj}_proj.weight", np.broadcast_to(np.float32(0), shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}{norm}.weight", np.broadcast_to(np.float32(0), (d,))
