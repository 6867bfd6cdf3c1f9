"""The golden journal, written by the C++ library, read by a reader that shares no code with it."""

import struct
from pathlib import Path

import pytest
from journal_reader import DamagedJournal, crc32c, read_journal

GOLDEN = (Path(__file__).parent / "golden" / "journal_v1.smz").read_bytes()


def float_bits(x: float) -> int:
    return struct.unpack("<I", struct.pack("<f", x))[0]


def test_crc32c_known_answer():
    assert crc32c(b"123456789") == 0xE3069283


def test_golden_journal():
    journal = read_journal(GOLDEN)
    assert journal.header_json == '{"method":"SparseMeZO","seed":7}'
    assert journal.salt == 0x1122334455667788
    assert journal.dropped_bytes == 0
    assert len(journal.records) == 12
    for i, r in enumerate(journal.records):
        assert r.kind == (2 if i % 7 == 3 else 1)
        assert (r.flags, r.step, r.n_synced) == (i * 257, i, i // 3 * 3)
        assert r.value("lr") == pytest.approx(1e-3 / (i + 1), rel=1e-6)
        assert r.bits["decay"] == (0 if i % 2 else float_bits(1e-5))
        assert r.value("loss") == 0.5 + i
        assert r.bits["loss_plus"] == 0x7FC12345
        assert r.bits["loss_minus"] == 0x80000000
        assert r.scalars == [1 + 77 * k + i for k in range(i % 4)]


def test_every_cut_is_a_tail_or_refused():
    whole = len(read_journal(GOLDEN).records)
    for cut in range(0, len(GOLDEN), 5):
        try:
            journal = read_journal(GOLDEN[:cut])
        except DamagedJournal:
            assert cut < 60 + 4
        else:
            assert len(journal.records) < whole
            assert journal.dropped_bytes < 40 + 4 * 3


def test_damage_is_refused():
    at = len(GOLDEN) - 300  # well before the last sync
    flipped = GOLDEN[:at] + bytes([GOLDEN[at] ^ 16]) + GOLDEN[at + 1 :]
    with pytest.raises(DamagedJournal):
        read_journal(flipped)
