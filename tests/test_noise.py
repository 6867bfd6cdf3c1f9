"""The extension's noise against a Philox in numpy that shares no code with it, on every instruction set of this machine."""

import json
import os
import subprocess
import sys

import numpy as np
import philox_reference as reference
import pytest

from pysmezo import _core

ADDRESSES = [
    (0, 1, 0, 0),
    (2**63 + 12345, 7, 3, 271),
    (5, 2**32 - 1, 65535, 2**20 - 1),
]  # run seed, step, query, tensor id


def test_philox_known_answers():
    ones = 0xFFFFFFFF
    for counter, key, wanted in (
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ones,) * 4, (ones,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ):
        got = reference.philox4x32(np.array(counter, np.uint64), key)
        assert " ".join(f"{w:08x}" for w in got) == wanted


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("bits", [1, 8, 16, 32])
@pytest.mark.parametrize("purpose", ["direction", "mask", "rounding", "data_order", "dither"])
def test_bits(address, bits, purpose):
    seed, step, query, tensor = address
    for start in (0, 777, 2**33 + 5):
        got = _core.random_bits(purpose, seed, step, query, tensor, start, 3000, bits)
        wanted = reference.bits(seed, step, query, purpose, tensor, np.arange(start, start + 3000), bits)
        assert np.array_equal(got, wanted)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("kind", ["rademacher", "gaussian8", "gaussian"])
def test_noise(address, kind):
    seed, step, query, tensor = address
    for start in (0, 1001, 2**34 + 3):
        got = _core.noise(kind, seed, step, query, tensor, start, 5000)
        wanted = reference.noise(kind, seed, step, query, tensor, np.arange(start, start + 5000))
        assert np.abs(got - wanted).max() <= (1e-6 if kind == "gaussian" else 0)


def test_gaussian8_table_is_its_formula():
    """All 256 values occur in a long run of noise, and are those of the quantile formula."""
    values = np.unique(np.abs(_core.noise("gaussian8", 1, 1, 0, 0, 0, 1 << 16)))
    assert np.array_equal(values, np.sort(reference.from_bf16_bits(reference.gaussian8_table())))
    assert abs((values.astype(np.float64) ** 2).mean() - 1) < 2e-5


PROGRAM = """
import hashlib, json, sys
from pysmezo import _core
out = {}
for kind in ("rademacher", "gaussian8", "gaussian"):
    h = hashlib.sha256()
    for start, n in ((0, 100000), (13, 4099), (2**35 + 17, 5000)):
        h.update(_core.noise(kind, 99, 3, 1, 42, start, n).tobytes())
    out[kind] = h.hexdigest()
print(json.dumps(out))
"""


def test_equal_bits_on_every_instruction_set():
    found = {}
    for isa in _core.supported_isas():
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env={**os.environ, "SMEZO_ISA": isa}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found[isa] = json.loads(done.stdout)
    first = next(iter(found.values()))
    assert all(f == first for f in found.values()), found


def test_permutation_is_a_permutation_and_addressed():
    p = _core.permutation(3, 0, 1000)
    assert np.array_equal(np.sort(p), np.arange(1000))
    assert np.array_equal(p, _core.permutation(3, 0, 1000))
    assert not np.array_equal(p, _core.permutation(3, 1, 1000))
    # The rule, from the bits.
    wanted = np.arange(1000)
    for i in range(999, 0, -1):
        j = int(reference.bits(3, 0, 0, "data_order", 0, np.array([i]), 32)[0]) * (i + 1) >> 32
        wanted[[i, j]] = wanted[[j, i]]
    assert np.array_equal(p, wanted)
