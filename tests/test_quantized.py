"""The quantized formats against bitsandbytes: codes, scales and decoded values bit for bit, folders through its QuantState,
and transformers' own loading of an NF4 folder."""

import json
import os

import numpy as np
import pytest
import tiny_llama

core = pytest.importorskip("pysmezo._core")
torch = pytest.importorskip("torch")
bnb = pytest.importorskip("bitsandbytes")

from bitsandbytes import functional as F

from pysmezo.cli import main
from pysmezo.errors import ArgumentError, FormatError, IoError

BLOCKS = [32, 64, 128, 256, 512, 1024, 2048, 4096]
ops = torch.ops.bitsandbytes


def bits(x) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


def weights(n, seed=0) -> np.ndarray:
    """fp32 over many magnitudes, with blocks of zeros, subnormal numbers and large ones."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=n) * 2.0 ** rng.integers(-8, 3, size=n)).astype(np.float32)
    at = n // 5
    x[:at] *= np.float32(0.02)
    x[at : at + 300] = 0
    x[2 * at : 2 * at + 300] *= np.float32(1e-39)
    x[3 * at : 3 * at + 300] *= np.float32(1e36)
    return x


def bnb_nf4(x, block):
    codes, absmax = ops.quantize_4bit.default(torch.from_numpy(x), block, "nf4", torch.uint8)
    return codes.numpy().reshape(-1), absmax.numpy()


def around(values, n=3) -> np.ndarray:
    """The values and their n nearest fp32 neighbours on each side."""
    out, up, down = [values], values, values
    for _ in range(n):
        up, down = np.nextafter(up, np.float32(9)), np.nextafter(down, np.float32(-9))
        out += [up, down]
    return np.concatenate(out).astype(np.float32)


@pytest.mark.parametrize("block", BLOCKS)
def test_nf4_codes_equal_bitsandbytes(block):
    # 2^20 and a half: the last block is shorter, and bitsandbytes divides there where it multiplies elsewhere.
    for n in (block, 2 * block + 2, (1 << 20) + block // 2, 30):
        x = weights(n, seed=block)
        codes, absmax = core.nf4_encode(x, block)
        want, want_absmax = bnb_nf4(x, block)
        assert np.array_equal(bits(absmax), bits(want_absmax))
        assert np.array_equal(codes, want)


def test_nf4_thresholds_and_ties():
    code = F.get_4bit_type("nf4", device="cpu").numpy()
    edges = around(np.concatenate([(code[:-1] + code[1:]) / 2, code, [0.0, -0.0]]).astype(np.float32))
    rng = np.random.default_rng(1)
    scales = np.concatenate([[1.0, 2.0, 3.0, 1e-38, 1.1754944e-38, 1e-30], rng.uniform(1e-3, 10, 500)]).astype(
        np.float32
    )
    edges = edges[np.abs(edges) <= 1]
    for short in (False, True):
        x = np.zeros((len(scales), 256), np.float32)
        x[:, 0] = scales
        x[:, 1 : 1 + len(edges)] = scales[:, None] * edges
        x = np.clip(x, -scales[:, None], scales[:, None])
        rows = [row[:254] for row in x] if short else [x.reshape(-1)]
        for row in rows:
            codes, absmax = core.nf4_encode(row, 256)
            want, want_absmax = bnb_nf4(row, 256)
            assert np.array_equal(codes, want) and np.array_equal(bits(absmax), bits(want_absmax))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_nf4_of_16_bit_weights(stored):
    x = torch.from_numpy(weights(1 << 16, 3).clip(-6e4, 6e4)).to(stored)
    want, absmax = ops.quantize_4bit.default(x, 64, "nf4", torch.uint8)
    codes, mine = core.nf4_encode(x.float().numpy(), 64)
    assert np.array_equal(codes, want.numpy().reshape(-1)) and np.array_equal(bits(mine), bits(absmax.numpy()))


def test_dynamic_map_equals_bitsandbytes():
    assert np.array_equal(bits(core.dynamic8_map()), bits(F.create_dynamic_map().numpy()))


def test_dynamic_codes_at_every_lattice_point():
    """bitsandbytes looks a value up in a table of 65536: all entries, and the edges between them, at absmax 1."""
    code = F.create_dynamic_map()
    edge = ((np.arange(65536) - 0.5) / 65535 * 2 - 1).astype(np.float32)
    x = np.clip(np.concatenate([around(edge, 2), np.linspace(-1, 1, 65536, dtype=np.float32)]), -1, 1)
    x = np.concatenate([x, np.zeros(-len(x) % 255, np.float32)]).reshape(-1, 255)
    x = np.concatenate([np.ones((len(x), 1), np.float32), x], axis=1)
    want, want_absmax = ops.quantize_blockwise.default(torch.from_numpy(x), code, 256)
    codes, absmax, _ = core.nested_encode(x.reshape(-1), 0.0)
    assert np.array_equal(codes, want.numpy().reshape(-1))
    assert np.array_equal(bits(absmax), bits(want_absmax.numpy()))


def test_nested_codes_given_bitsandbytes_offset():
    same = 0
    rng = np.random.default_rng(5)
    sizes = [1, 2, 255, 256, 257, 1000, 4097, 40000, 1 << 18]
    trials = [(n, seed) for n in sizes for seed in range(6)]
    for n, seed in trials:
        absmax = np.abs(rng.normal(size=n) * 0.01 + 0.05).astype(np.float32)
        if seed == 5:
            absmax[:] = absmax[0]  # all equal: nothing is left of the first block
        offset = torch.from_numpy(absmax).mean()
        want, state = F.quantize_blockwise(torch.from_numpy(absmax) - offset, blocksize=256)
        codes, nested, _ = core.nested_encode(absmax, offset.item())
        assert np.array_equal(codes, want.numpy())
        assert np.array_equal(bits(nested), bits(state.absmax.numpy()))
        mine = core.nested_encode(absmax)[2]
        same += np.float32(mine) == np.float32(offset.item())
        # The mean itself, summed in fp64, is the nearest fp32 of the true mean.
        assert np.float32(mine) == np.float32(absmax.astype(np.longdouble).sum() / n)
    print(f"offset equal to torch's mean: {same} of {len(trials)}")


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("double", [False, True])
def test_nf4_decodes_to_bitsandbytes_values(block, double):
    x = weights(1 << 18, block)[: (1 << 18)]
    codes, state = F.quantize_4bit(
        torch.from_numpy(x).reshape(256, -1), blocksize=block, compress_statistics=double, quant_type="nf4"
    )
    packed = codes.numpy().reshape(-1)
    for dtype, view in ((torch.float32, np.uint32), (torch.bfloat16, np.uint16)):
        state.dtype = dtype
        got = F.dequantize_4bit(codes, state).reshape(-1)
        want = got.view(torch.uint16).numpy() if dtype == torch.bfloat16 else got.numpy().view(view)
        bf16 = dtype == torch.bfloat16
        if double:
            inner = state.state2
            mine = core.nf4_decode_nested(
                packed,
                state.absmax.numpy(),
                inner.code.numpy(),
                inner.absmax.numpy(),
                state.offset.item(),
                block,
                inner.blocksize,
                bf16,
            )
        else:
            mine = core.nf4_decode(packed, state.absmax.numpy(), block, bf16)
        assert np.array_equal(mine.view(view), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_int8_equals_bitsandbytes(dtype):
    x = weights(600 * 500, 7).reshape(600, 500)
    x[10], x[11], x[12] = 0, x[11] * np.float32(1e-37), x[12] / np.abs(x[12]).max() * np.float32(3.74e-37)
    # Halves: an absmax of 127 makes every n + 1/2 a tie.
    x[13] = np.linspace(-250, 249, 500, dtype=np.float32) / 2
    x[13, 0] = 127
    t = torch.from_numpy(x if dtype != torch.float16 else x.clip(-6e4, 6e4)).to(dtype)
    want, absmax, _ = ops.int8_vectorwise_quant.default(t.clone(), 0.0)
    codes, mine = core.int8_encode(t.float().numpy())
    assert np.array_equal(codes, want.numpy()) and np.array_equal(bits(mine), bits(absmax.numpy()))
    back = ops.int8_vectorwise_dequant.default(want, absmax)
    assert np.array_equal(bits(core.int8_decode(codes, mine)), bits(back.numpy().reshape(-1)))
    assert np.array_equal(core.int8_decode(codes, mine, True), back.bfloat16().view(torch.uint16).numpy().reshape(-1))


# ---- folders


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


def test_peak_memory_does_not_grow_with_the_model(tmp_path):
    """A base of 256 MiB in a process that may use 64 MiB more than it had."""
    import subprocess
    import sys

    c = tiny_llama.config(hidden=1024, inner=4096, layers=6, heads=8, kv_heads=8, vocab=2048)
    rng = np.random.default_rng(0)
    values = {n: np.tile(rng.normal(size=w.shape[-1:]).astype(np.float32), (*w.shape[:-1], 1)) for n, w in shapes_of(c)}
    tiny_llama.save(tmp_path / "base", c, values)
    code = """if True:
        import sys
        from pysmezo import _core, memory
        before = memory.rss_bytes(); memory.reset_peak()
        r = _core.quantize_folder(sys.argv[1], sys.argv[2], "nf4", double_quant=True, threads=2)
        print(r["bytes_in"], memory.peaks()[0] - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "base"), str(tmp_path / "q")],
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
