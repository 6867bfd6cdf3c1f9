"""The quantized formats against bitsandbytes: codes, scales and decoded values bit for bit."""

import numpy as np
import pytest

core = pytest.importorskip("pysmezo._core")
torch = pytest.importorskip("torch")

BLOCKS = [32, 64, 128, 256, 512, 1024, 2048, 4096]
ops = torch.ops.bitsandbytes


@pytest.fixture(scope="module", autouse=True)
def bitsandbytes():
    """Its import takes four seconds: for the process that runs these tests, not for all that collect them."""
    global bnb, F
    bnb = pytest.importorskip("bitsandbytes")
    F = bnb.functional


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
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        state.dtype = dtype
        # Large blocks take its fallback in torch, which would be compiled for half a minute.
        with torch.compiler.set_stance("force_eager"):
            found[dtype] = F.dequantize_4bit(codes, state).reshape(-1)

    def mine(bf16):
        if not double:
            return core.nf4_decode(packed, state.absmax.numpy(), block, bf16)
        s = state.state2
        scales = state.absmax.numpy(), s.code.numpy(), s.absmax.numpy(), state.offset.item()
        return core.nf4_decode_nested(packed, *scales, block, s.blocksize, bf16)

    values = found[torch.float32].numpy()
    assert np.array_equal(bits(mine(False)), bits(values))
    # The processor's own conversion to bf16, where it has one, makes a subnormal number zero.
    normal = (np.abs(values) >= 2.0**-126) | (values == 0)
    assert np.array_equal(mine(True)[normal], found[torch.bfloat16].view(torch.uint16).numpy()[normal])
    assert normal.mean() > 0.99


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
