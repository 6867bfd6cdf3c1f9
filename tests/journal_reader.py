"""A journal reader written from the byte table at the head of csrc/io/journal.h alone: no code is shared."""

import struct
from dataclasses import dataclass, field

MAGIC = b"smezoJ\r\n"


class DamagedJournal(ValueError):
    pass


def crc32c(data: bytes) -> int:
    """CRC-32C bit by bit, from the polynomial."""
    c = 0xFFFFFFFF
    for byte in data:
        c ^= byte
        for _ in range(8):
            c = (c >> 1) ^ (0x82F63B78 if c & 1 else 0)
    return c ^ 0xFFFFFFFF


@dataclass
class JournalRecord:
    kind: int
    flags: int
    step: int
    n_synced: int
    bits: dict[str, int]  # fp32 fields as their bits: a NaN keeps its payload
    scalars: list[int]  # bits too
    chain: int

    def value(self, name: str) -> float:
        return struct.unpack("<f", struct.pack("<I", self.bits[name]))[0]


@dataclass
class JournalFile:
    header_json: str
    salt: int
    records: list[JournalRecord] = field(default_factory=list)
    dropped_bytes: int = 0


def _intact(data: bytes, at: int, salt: bytes) -> int:
    """Length of the intact record at `at`, or 0."""
    if at + 40 > len(data) or not 1 <= data[at + 8] <= 15:
        return 0
    n = 40 + 4 * data[at + 9]
    if at + n > len(data):
        return 0
    (own,) = struct.unpack_from("<I", data, at + 4)
    return n if crc32c(salt + data[at + 8 : at + n]) == own else 0


def read_journal(data: bytes) -> JournalFile:
    if len(data) < 28 or data[:8] != MAGIC:
        raise DamagedJournal("not a journal")
    version, m = struct.unpack_from("<II", data, 8)
    if version != 1:
        raise DamagedJournal(f"version {version}, expected 1")
    salt = data[16:24]
    end = 24 + m + (-m) % 4
    if end + 4 > len(data) or crc32c(data[:end]) != struct.unpack_from("<I", data, end)[0]:
        raise DamagedJournal("the header is damaged")
    journal = JournalFile(data[24 : 24 + m].decode(), int.from_bytes(salt, "little"))
    chain = data[end : end + 4]
    at = end + 4
    while n := _intact(data, at, salt):
        (found,) = struct.unpack_from("<I", data, at)
        kind, n_scalars, flags, step, n_synced = struct.unpack_from("<BBHII", data, at + 8)
        if found != crc32c(chain + data[at + 4 : at + n]) or n_synced > len(journal.records):
            break
        names = ("lr", "decay", "loss", "loss_plus", "loss_minus")
        bits = dict(zip(names, struct.unpack_from("<5I", data, at + 20), strict=True))
        scalars = list(struct.unpack_from(f"<{n_scalars}I", data, at + 40))
        journal.records.append(JournalRecord(kind, flags, step, n_synced, bits, scalars, found))
        chain = data[at : at + 4]
        at += n
    journal.dropped_bytes = len(data) - at
    for later in range(at, len(data), 4):
        if _intact(data, later, salt) and struct.unpack_from("<I", data, later + 16)[0] > len(journal.records):
            raise DamagedJournal(f"record {len(journal.records)} is damaged: a later one was written after its sync")
    return journal
