"""The noise of csrc/noise in plain numpy and float64: an oracle written from the comments of address.h, normal.h and
gaussian8_table.h, sharing no code with the library.

Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import statistics

import numpy as np

PURPOSES = {
    "direction": 0,
    "mask": 1,
    "rounding": 2,
    "subset": 3,
    "factor": 4,
    "query_plan": 5,
    "data_order": 6,
    "dither": 7,
}
NOISE_BITS = {"rademacher": 1, "gaussian8": 8, "gaussian": 32}
GAUSSIAN8_SCALE = 1.00231
LOW = np.uint64(0xFFFFFFFF)


def philox4x32(counter, key):
    """Output words [..., 4] of counters [..., 4] under one key (2 words)."""
    c = [np.asarray(counter, dtype=np.uint64)[..., i] for i in range(4)]
    k0, k1 = (int(k) for k in key)
    for _ in range(10):
        p0 = c[0] * np.uint64(0xD2511F53)
        p1 = c[2] * np.uint64(0xCD9E8D57)
        c = [
            (p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k0),
            p1 & LOW,
            (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k1),
            p0 & LOW,
        ]
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, axis=-1).astype(np.uint32)


def _blocks(run_seed, step, query, purpose, tensor_id, blocks):
    """The four words of each block number, [..., 4]."""
    blocks = np.asarray(blocks, dtype=np.uint64)
    purpose = PURPOSES[purpose] if isinstance(purpose, str) else int(purpose)
    high = ((blocks >> np.uint64(32)) << np.uint64(24)) | np.uint64(tensor_id << 4 | purpose)
    fixed = [np.full(blocks.shape, v, dtype=np.uint64) for v in (step, query)]
    counter = np.stack([blocks & LOW, high, *fixed], axis=-1)
    return philox4x32(counter, (run_seed & 0xFFFFFFFF, run_seed >> 32))


def _place(elements, nbits):
    """Block and slot of elements that spend nbits each."""
    e = np.asarray(elements, dtype=np.uint64)
    slots = 128 // nbits
    block = e // np.uint64(16 * slots) * np.uint64(16) + e % np.uint64(16)
    return block, (e // np.uint64(16) % np.uint64(slots)).astype(np.int64)


def bits(run_seed, step, query, purpose, tensor_id, elements, nbits):
    """The nbits (1, 8, 16, 32) random bits that each element owns, uint32."""
    block, slot = _place(elements, nbits)
    words = _blocks(run_seed, step, query, purpose, tensor_id, block)
    first = slot * nbits
    word = np.take_along_axis(words, (first // 32)[..., None], axis=-1)[..., 0].astype(np.uint64)
    return (word >> (first % 32).astype(np.uint64) & np.uint64((1 << nbits) - 1)).astype(np.uint32)


def to_bf16_bits(x):
    """Nearest-even bf16 patterns of finite values."""
    u = np.asarray(x, dtype=np.float32).view(np.uint32).astype(np.uint64)
    return ((u + np.uint64(0x7FFF) + (u >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)


def from_bf16_bits(u):
    return (np.asarray(u, dtype=np.uint32) << 16).view(np.float32)


def gaussian8_table():
    """The 128 bf16 patterns, made from the quantiles of the normal distribution."""
    normal = statistics.NormalDist()
    quantiles = np.array([normal.inv_cdf(0.5 + 0.5 * (i + 0.5) / 128) for i in range(128)])
    table = to_bf16_bits(GAUSSIAN8_SCALE * quantiles)
    table[126] -= 1
    return table


def noise(kind, run_seed, step, query, tensor_id, elements, purpose="direction"):
    """Noise values in float64. Exact for rademacher and gaussian8; for gaussian the formula in float64."""
    address = (run_seed, step, query, purpose, tensor_id)
    if kind == "rademacher":
        return 1.0 - 2.0 * bits(*address, elements, 1)
    if kind == "gaussian8":
        byte = bits(*address, elements, 8)
        magnitude = from_bf16_bits(gaussian8_table())[byte & 127].astype(np.float64)
        return np.where(byte & 128, -magnitude, magnitude)
    if kind != "gaussian":
        raise ValueError(f"noise kind {kind!r}, expected one of {', '.join(NOISE_BITS)}")
    block, slot = _place(elements, 32)
    words = _blocks(*address, block)
    pair = slot // 2 * 2
    w0, w1 = (np.take_along_axis(words, (pair + i)[..., None], axis=-1)[..., 0].astype(np.float64) for i in range(2))
    # 1 - u keeps the bits that u loses near 1.
    u, below = (w0 + 0.5) * 2.0**-32, (2.0**32 - w0 - 0.5) * 2.0**-32
    radius = np.sqrt(-2.0 * np.where(w0 < 2.0**31, np.log(u), np.log1p(-below)))
    angle = 2.0 * np.pi * (w1 + 0.5) * 2.0**-32
    return radius * np.where(slot % 2 == 0, np.cos(angle), np.sin(angle))
