"""Bad files that a run leaves: deltas, generations, journals, id files. Rows as in bad_texts. A checksum is right wherever
it is not what fails, so that the reader gets as far as what does.
"""

from __future__ import annotations

import json
import struct
import zlib

from bad_weights import DOWN, NORM, SOUND, floats, packed, unpacked
from journal_reader import crc32c

N_BYTES = {"BF16": 2, "I8": 1}
DEEP = "[" * 100 + "]" * 100
STARS = "*" * 200  # tried one by one they take longer than anybody waits


def _json(content: dict) -> str:
    return json.dumps({k: v for k, v in content.items() if v is not None}, separators=(",", ":"))


def of_numbers(described: dict, said) -> dict:
    """Numbers in the description of a run that no run has; said(changes) is the file."""

    def bits(x: float) -> int:
        return struct.unpack("<I", struct.pack("<f", x))[0]

    def queries(n: int):
        return said(method=described["method"] | {"queries": n})

    finite, of_32 = "expected finite numbers not below 0", "expected the 32 bits of a number"

    def masks(at: int, value: int):
        return said(masks=[[*m[:at], value, *m[at + 1 :]] for m in described["masks"]])

    return {
        "lr-negative": (said(lr_bits=bits(-1.0)), f"lr -1 and eps .*, {finite}"),
        "lr-infinite": (said(lr_bits=bits(float("inf"))), f"lr inf and eps .*, {finite}"),
        "lr-not-a-number": (said(lr_bits=bits(float("nan"))), f"lr nan and eps .*, {finite}"),
        "eps-negative": (said(eps_bits=bits(-1.0)), f"eps -1, {finite}"),
        "eps-not-a-number": (said(eps_bits=bits(float("nan"))), f"eps nan, {finite}"),
        "lr-past-32-bits": (said(lr_bits=2**32 + bits(0.5)), f"{2**32 + bits(0.5)}, {of_32}"),
        "eps-bits-negative": (said(eps_bits=-1), f"-1, {of_32}"),
        "threshold-past-32-bits": (masks(1, 2**32), f"4294967296, {of_32}"),
        "threshold-not-a-number": (masks(1, bits(float("nan"))), "a mask with threshold -?nan"),
        "mask-denser-than-all": (masks(2, 65537), "density 65537 of 65536"),
        "mask-density-past-32-bits": (masks(2, 2**32 + 1), "density 4294967297 of 65536"),
        "mask-of-negative-elements": (masks(3, -1), "-1 elements, expected numbers of a mask"),
        "mask-of-more-than-any": (masks(3, 2**62), f"{2**62} elements, expected numbers of a mask"),
        "queries-past-32-bits": (queries(2**32 + 1), "4294967297, expected a whole number of at most "),
        "queries-zero": (queries(0), "0 queries, expected 1 to "),
        "queries-negative": (queries(-1), "-1, expected a whole number of at most "),
        "queries-one-more": (queries(65), "65 queries, expected 1 to "),
    }


# ---- deltas and generations


def sealed(tensors: dict, metadata: dict, shift: int = 0) -> bytes:
    """With the checksums of what is in it, unless the metadata say others."""
    sums = "".join(f"{crc32c(content):08x}" for _, _, content in tensors.values())
    words = {"crc32c": sums} | metadata
    return packed(tensors, {k: v for k, v in words.items() if v is not None}, shift)


def opened(name: str) -> tuple[dict, dict, dict]:
    """(tensors, metadata without checksums, the description of the run) of a sound one."""
    tensors, metadata = unpacked(SOUND / f"{name}.safetensors")
    metadata.pop("crc32c")
    return tensors, metadata, json.loads(metadata["method"])


def first(tensors: dict, *shape: int, name: str = DOWN) -> dict:
    """As many values as the shape has, under another name."""
    n = shape[0] * (shape[1] if len(shape) > 1 else 1)
    return {k.replace(DOWN, name): (d, shape, (2 * c)[: n * N_BYTES[d]]) for k, (d, _, c) in tensors.items()}


def of_state() -> dict:
    """What a delta is refused for whatever the model."""
    tensors, metadata, _ = opened("delta")
    metadata["method"], tail = "{}", DOWN + ".tail"
    sums = unpacked(SOUND / "delta.safetensors")[1]["crc32c"]

    def said(**words):
        return sealed(tensors, metadata | words)

    def held(**entries):
        names = {"values": DOWN, "tail": tail, "x": "x"}
        all_of_it = tensors | {names[k]: entry for k, entry in entries.items()}
        return sealed({n: t for n, t in all_of_it.items() if t}, metadata)

    def flipped(name):
        dtype, shape, content = tensors[name]
        entry = (dtype, shape, content[:-1] + bytes([content[-1] ^ 1]))
        return sealed(tensors | {name: entry}, metadata | {"crc32c": sums})

    beside = f"entry '{tail}', expected I8 beside a BF16 tensor"
    return {f"no-{key.replace('_', '-')}": (said(**{key: None}), f"no metadata '{key}'") for key in metadata} | {
        "no-crc32c": (said(crc32c=None), "no metadata 'crc32c'"),
        "no-metadata": (packed(tensors), "no metadata 'format'"),
        "of-another-version": (said(format_version="2"), "format version '2', expected '1'"),
        "a-generation": (said(format="smezo-generation"), "format 'smezo-generation', expected 'smezo-delta'"),
        "of-another-program": (said(format="pt"), "format 'pt', expected 'smezo-delta'"),
        "watermark-a-word": (said(watermark="last"), "'watermark' is 'last', expected a decimal number"),
        "watermark-empty": (said(watermark=""), "'watermark' is '', expected a decimal number"),
        "watermark-negative": (said(watermark="-1"), "'watermark' is '-1', expected a decimal number"),
        "watermark-past-32-bits": (said(watermark="4294967296"), "'watermark' is '4294967296', expected a decimal"),
        "journal-tail-a-word": (said(journal_tail="xyz"), "'journal_tail' is 'xyz', expected a hexadecimal"),
        "packed-not-json": (said(packed="["), "metadata packed, byte 1: the text ends"),
        "packed-a-word": (said(packed='"x"'), "metadata packed is text, expected an array"),
        "packed-of-numbers": (said(packed="[1]"), "metadata packed is an integer, expected text"),
        "packed-deep": (said(packed=DEEP), "metadata packed.* nested deeper than 2"),
        "packed-unknown": (said(packed='["ghost"]'), "'ghost' is listed as packed but is no tensor"),
        "packed-a-matrix": (said(packed=f'["{DOWN}"]'), "packed tensor .* has more than one dimension"),
        "sums-too-few": (said(crc32c=sums[:8]), "8 hex digits of checksums, expected 16"),
        "sums-not-hexadecimal": (said(crc32c="z" + sums[1:]), "'crc32c' is 'z.*expected a hexadecimal"),
        "values-changed": (flipped(DOWN), f"tensor '{DOWN}' has checksum"),
        "tail-changed": (flipped(tail), f"tensor '{tail}' has checksum"),
        "tail-alone": (held(values=None), beside),
        "tail-of-another-shape": (held(tail=("I8", [16], bytes(16))), beside),
        "tail-of-floats": (held(values=("F32", [4, 4], bytes(64))), beside),
        "tail-not-signed": (held(tail=("U8", [4, 4], bytes(16))), beside),
        "values-in-half": (held(x=("F16", [2], bytes(4))), "tensor 'x' is F16, expected F32 or BF16"),
        "values-between-elements": (sealed(tensors, metadata, shift=1), "is not aligned to its element"),
    }


def of_delta() -> dict:
    """What a delta is refused for over a model."""
    tensors, metadata, described = opened("delta")
    some, of_some, by_sparse = opened("packed")
    small = [[m[0], m[1] ^ 1, *m[2:]] if m[0] == "small" else m for m in by_sparse["masks"]]
    drawn = [m if m[0] == "all" else ["random", 0, 32768, 8] for m in by_sparse["masks"]]

    def text(method: str):
        return sealed(tensors, metadata | {"method": method})

    def made(**change):
        return text(_json(described | change))

    def method(**change):
        return made(method=described["method"] | change)

    def masked(rows=some, **change):
        return sealed(rows, of_some | {"method": _json(by_sparse | change)})

    no_run, other_elements = "the description of its run is not one", "for other elements than this run trains"
    return {
        "description-not-json": (text("{"), no_run),
        "description-a-list": (text("[]"), no_run),
        "description-deep": (text(DEEP), no_run),
        "without-method": (made(method=None), f"{no_run} .no 'method'"),
        "without-values": (made(values=None), f"{no_run} .no 'values'"),
        "without-masks": (made(masks=None), "no key 'masks'"),
        "without-config": (made(config=None), "no key 'config'"),
        "numerics-of-another-version": (made(numerics_version=2), "numerics version 2"),
        "method-unknown": (method(kind="adam"), f"{no_run} .'adam', expected one of"),
        "method-a-list": (method(kind=[]), no_run),
        "noise-unknown": (method(noise="white"), f"{no_run} .noise 'white'"),
        "queries-a-word": (method(queries="two"), f"{no_run} .queries 'two', expected an integer"),
        "trains-a-number": (method(trains=5), f"{no_run} .trains 5, expected a text"),
        "sparsity-past-one": (masked(method=by_sparse["method"] | {"sparsity": 1.5}), f"{no_run} .sparsity 1.5"),
        "values-unknown": (made(values="fp64"), f"{no_run} .values 'fp64', expected one of fp32"),
        "seed-a-word": (made(seed="x"), no_run),
        "seed-past-64-bits": (made(seed=str(2**64)), f"{no_run} .seed 18446744073709551616"),
        "mask-of-three": (made(masks=[["all", 0, 0]]), "a mask of 3 fields, expected 4"),
        "mask-unknown": (made(masks=[["some", 0, 0, 0]]), "'some', expected one of all, small"),
        "masks-too-few": (masked(masks=small[:3]), "3 masks, expected 11"),
        "trains-of-many-stars": (method(trains=STARS + "norm.weight"), f"holds '{DOWN}', which this method"),
        "of-another-base": (sealed(tensors, metadata | {"base_fingerprint": "0" * 16}), "was trained on base 0000"),
        "of-another-config": (made(config=described["config"] | {"rope_theta": "500.0"}), "another rope_theta"),
        "of-an-untrained-tensor": (
            sealed(first(tensors, 4, name=NORM), metadata),
            f"holds '{NORM}', which this method",
        ),
        "of-other-values": (made(values="fp32"), "as bf16.8, this run keeps fp32"),
        "of-another-threshold": (masked(masks=small), other_elements),
        "of-random-elements": (masked(masks=drawn), f"another kind of mask on '{DOWN}'"),
        "values-too-few": (masked(first(some, 5)), "fewer than the method selects"),
        "values-too-many": (masked(first(some, 9)), "has 9 values of .*made with another sparsity"),
        "dense-values-too-few": (sealed(first(tensors, 4, 3), metadata), f"12 values of '{DOWN}', expected 16"),
        "dense-values-too-many": (sealed(first(tensors, 4, 5), metadata), f"20 values of '{DOWN}', expected 16"),
    }


def of_delta_in_use() -> dict:
    """What a delta is refused for by a run that is open already, with the method it was made by."""
    tensors, metadata, described = opened("delta")
    some, of_some, by_sparse = opened("packed")
    masks, fewer = described["masks"], "fewer values than elements that it selects"

    def said(**change):
        return sealed(tensors, metadata | {"method": _json(described | change)})

    def of_packed(rows=some, **change):
        return sealed(rows, of_some | {"method": _json(by_sparse | change)})

    return {
        "no-masks": (said(masks=[]), "has 0 masks, expected 11"),
        "masks-too-few": (said(masks=masks[:3]), "has 3 masks, expected 11"),
        "masks-too-many": (said(masks=[*masks, masks[0]]), "has 12 masks, expected 11"),
        "packed-masks-too-few": (of_packed(masks=by_sparse["masks"][:3]), "has 3 masks, expected 11"),
        "values-too-few": (sealed(first(tensors, 4, 3), metadata), f"12 values of '{DOWN}', expected 16"),
        "values-too-many": (sealed(first(tensors, 4, 5), metadata), f"20 values of '{DOWN}', expected 16"),
        "no-value": (sealed(first(tensors, 0, 4), metadata), f"0 values of '{DOWN}', expected 16"),
        "packed-values-too-few": (of_packed(first(some, 5)), fewer),
        "packed-values-too-many": (of_packed(first(some, 9)), "9 values for 8 elements"),
        "packed-no-value": (of_packed(first(some, 0)), fewer),
    } | of_numbers(described, said)


def of_generation() -> dict:
    """Placed as the generation of step 2 beside the sound journal."""
    tensors, metadata, described = opened("generation")
    config, masks = described["config"] | {"rope_theta": "500.0"}, described["masks"]

    def said(rows=tensors, **words):
        return sealed(rows, metadata | words)

    return {
        "a-delta": ((SOUND / "delta.safetensors").read_bytes(), "format 'smezo-delta', expected 'smezo-generation'"),
        "of-another-step": (said(watermark="3"), "holds watermark 3, expected that of its name"),
        "of-another-base": (said(base_fingerprint="0" * 16), "belongs to base 0000"),
        "of-another-journal": (said(journal_tail="01234567"), "step 2 of another journal"),
        "of-another-config": (said(method=_json(described | {"config": config})), "another rope_theta"),
        "of-an-untrained-tensor": (said(first(tensors, 4, name=NORM)), f"has no '{DOWN}', expected all that trains"),
        "with-an-untrained-tensor": (
            said(tensors | first(tensors, 4, name=NORM)),
            f"holds '{NORM}', which this method",
        ),
        "without-what-trains": (said({}), f"has no '{DOWN}', expected all that trains"),
        "masks-too-few": (said(method=_json(described | {"masks": masks[:3]})), "has 3 masks, expected 11"),
        "of-other-values": (said({DOWN: ("F32", [4, 4], bytes(64))}), "as fp32, this run keeps bf16.8"),
        "values-too-few": (said(first(tensors, 4, 3)), "12 values of"),
        "values-too-many": (said(first(tensors, 4, 5)), f"20 values of '{DOWN}', expected 16"),
        "description-not-json": (said(method="["), "the text ends"),
    }


# ---- journals


def journal_parts(file=SOUND / "journal.smz") -> tuple[bytes, bytes, list[bytes]]:
    """(JSON header, salt, records from their byte 8 on) of a sound one."""
    data = file.read_bytes()
    m = struct.unpack_from("<I", data, 12)[0]
    at, records = 24 + m + -m % 4 + 4, []
    while at < len(data):
        n = 40 + 4 * data[at + 9]
        records.append(data[at + 8 : at + n])
        at += n
    return data[24 : 24 + m], data[16:24], records


def journal(header: bytes, salt: bytes, records: list[bytes]) -> bytes:
    head = b"smezoJ\r\n" + struct.pack("<II", 1, len(header)) + salt + header + bytes(-len(header) % 4)
    chain = struct.pack("<I", crc32c(head))
    out = head + chain
    for record in records:
        record = struct.pack("<I", crc32c(salt + record)) + record
        chain = struct.pack("<I", crc32c(chain + record))
        out += chain + record
    return out


def of_journal() -> dict:
    data = (SOUND / "journal.smz").read_bytes()
    n = 8 + len(journal_parts()[2][0])
    start = len(data) - 3 * n  # of three records, each synced before the next
    head, one, two, three = data[:start], *(data[start + i * n : start + (i + 1) * n] for i in range(3))
    later = "was written after it had been synced"
    _, salt, records = journal_parts()

    def put(at: int, content: bytes):
        return data[:at] + content + data[at + len(content) :]

    def flipped(at: int):
        return put(at, bytes([data[at] ^ 1]))

    return {
        "empty": (b"", "0 bytes, expected a header of at least 28"),
        "cut-in-magic": (data[:7], "7 bytes, expected a header of at least 28"),
        "cut-in-header": (data[:200], "in a file of 200, expected it inside the file"),
        "of-another-kind": (put(0, b"SMEZOIDS"), "other bytes where a journal's magic should be"),
        "copied-as-text": (data.replace(b"\r\n", b"\n"), "copied as text"),
        "of-another-version": (put(8, struct.pack("<I", 2)), "journal version 2, expected 1"),
        "header-past-the-file": (put(12, struct.pack("<I", 5000)), "a header of 5000 bytes in a file"),
        "header-of-all-bits": (put(12, b"\xff" * 4), "a header of 4294967295 bytes in a file"),
        "header-changed": (flipped(40), "the header's checksum is wrong"),
        "header-not-utf8": (journal(b'{"seed": "\xff"}', salt, records), "a header that is not UTF-8"),
        "header-half-a-character": (journal(b'{"seed": "\xed\xa0\x80"}', salt, records), "a header that is not UTF-8"),
        "salt-changed": (flipped(16), "the header's checksum is wrong"),
        "record-changed": (flipped(start + 20), f"record 0 .*{later}"),
        "record-chain-changed": (flipped(start + n), f"record 1 .*{later}"),
        "record-kind-zero": (put(start + n + 8, b"\0"), f"record 1 .*{later}"),
        "record-taken-out": (head + two + three, f"record 0 .*{later}"),
        "record-twice": (head + one + one + two + three, f"record 1 .*{later}"),
        "records-swapped": (head + two + one + three, f"record 0 .*{later}"),
        "record-zeroed": (head + bytes(n) + two + three, f"record 0 .*{later}"),
    }


def of_journal_header() -> dict:
    """Whole journals that are of no run of the sound model."""
    header, salt, records = journal_parts()
    described = json.loads(header)

    def text(content: bytes):
        return journal(content, salt, records[:1])

    def said(**change):
        return text(_json(described | change).encode())

    def method(**change):
        return said(method=described["method"] | change)

    newer = [records[0], b"\3" + records[1][1:]]
    return {
        "not-json": (text(b"["), "the text ends"),
        "empty": (text(b""), "the text ends"),
        "not-utf8": (text(b'{"seed": "\xff"}'), "a header that is not UTF-8"),
        "deep": (text(DEEP.encode()), "nested deeper than 64"),
        "array": (text(b"[]"), "is an array, expected an object"),
        "key-twice": (text(b'{"seed": "1",' + header[1:]), "the key 'seed' stands twice"),
        "no-numerics-version": (said(numerics_version=None), "no key 'numerics_version'"),
        "numerics-of-another-version": (said(numerics_version=2), "numerics version 2"),
        "no-method": (said(method=None), "no key 'method'"),
        "no-masks": (said(masks=None), "no key 'masks'"),
        "no-config": (said(config=None), "no key 'config'"),
        "method-a-word": (said(method="mezo"), "is text, expected an object"),
        "method-unknown": (method(kind="adam"), "'adam', expected one of"),
        "noise-unknown": (method(noise="white"), "'white', expected one of gaussian"),
        "queries-a-word": (method(queries="two"), "is text, expected an integer"),
        "values-unknown": (said(values="fp64"), "'fp64', expected one of fp32, bf16.8, bf16"),
        "operand-unknown": (said(operand="exact"), "'exact', expected one of nearest"),
        "compute-unknown": (said(compute="fp8"), "'fp8', expected one of fp32, bf16"),
        "reduction-unknown": (said(reduction="max"), "'max', expected one of example, token"),
        "seed-a-word": (said(seed="x"), "seed 'x', expected a number"),
        "seed-negative": (said(seed="-1"), "seed '-1', expected a number"),
        "seed-past-64-bits": (said(seed=str(2**64)), "seed '18446744073709551616', expected a number"),
        "seed-a-number": (said(seed=0), "seed is an integer, expected text"),
        "eps-in-quotes": (said(eps_bits="x"), "is text, expected an integer"),
        "mask-of-three": (said(masks=[["all", 0, 0]]), "a mask of 3 fields, expected 4"),
        "mask-unknown": (said(masks=[["some", 0, 0, 0]]), "'some', expected one of all, small"),
        "masks-too-few": (said(masks=described["masks"][:3]), "has 3 masks, expected 11"),
        "trains-of-many-stars": (
            said(method=described["method"] | {"trains": STARS + "norm.weight"}, masks=described["masks"][:3]),
            "is of another run: trains",
        ),
        "of-another-base": (said(base_fingerprint="0" * 16), "is of another run: model fingerprint"),
        "of-another-config": (said(config=described["config"] | {"rope_theta": "500.0"}), "rope_theta of config.json"),
        "of-a-delta": (said(delta_hash="0" * 16), "is of another run: starting delta none, the run has 0000"),
        "record-of-a-newer-kind": (journal(header, salt, newer), "a record of kind 3, expected a step"),
    } | of_numbers(described, said)


def of_journal_record() -> dict:
    """Whole journals of the sound run, with a record that it did not write."""
    header, salt, records = journal_parts()
    nan, infinite = float("nan"), float("inf")

    def stepped(*steps: int):
        changed = [r[:4] + struct.pack("<I", step) + r[8:] for r, step in zip(records, steps, strict=False)]
        return journal(header, salt, changed)

    def put(at: int, x: float, i: int = 1):
        changed = records[i][:at] + floats(x) + records[i][at + 4 :]
        return journal(header, salt, [*records[:i], changed, *records[i + 1 :]])

    def scalars(*g: float):
        return journal(header, salt, [records[0][:1] + bytes([len(g)]) + records[0][2:32] + floats(*g), *records[1:]])

    lr, decay, g = 12, 16, 32
    not_finite = "step 2 has a number that is not finite, expected it recorded as skipped"
    return {
        "steps-three-two": (stepped(3, 2), "a record of step 3 after 0, expected one a step"),
        "steps-one-one": (stepped(1, 1), "a record of step 1 after 1, expected one a step"),
        "steps-one-five": (stepped(1, 5), "a record of step 5 after 1, expected one a step"),
        "steps-one-two-one": (stepped(1, 2, 1), "a record of step 1 after 2, expected one a step"),
        "step-zero": (stepped(0), "a record of step 0 after 0, expected one a step"),
        "step-of-all-bits": (stepped(1, 2**32 - 1), "a record of step 4294967295 after 1, expected one a step"),
        "scalar-not-a-number": (put(g, nan), not_finite),
        "scalar-infinite": (put(g, -infinite), not_finite),
        "lr-not-a-number": (put(lr, nan), not_finite),
        "lr-infinite": (put(lr, infinite), not_finite),
        "decay-not-a-number": (put(decay, nan), not_finite),
        "decay-infinite": (put(decay, infinite), not_finite),
        "first-not-a-number": (put(g, nan, 0), not_finite.replace("2", "1")),
        "no-scalar": (scalars(), "step 1 has 0 scalars, expected 1, one a query"),
        "two-scalars": (scalars(0.5, 0.5), "step 1 has 2 scalars, expected 1, one a query"),
        "scalars-as-many-as-fit": (scalars(*[0.5] * 255), "step 1 has 255 scalars, expected 1, one a query"),
    }


# ---- ids


def of_ids() -> dict:
    data = (SOUND / "shared.ids").read_bytes()

    def put(at: int, fmt: str, *values: int):
        out = bytearray(data)
        struct.pack_into("<" + fmt, out, at, *values)
        struct.pack_into("<I", out, 88, zlib.crc32(out[96:]))
        struct.pack_into("<I", out, 92, zlib.crc32(out[:92]))
        return bytes(out)

    prompts, options, labels, lines, tokens = 96, 120, 144, 152, 160
    return {
        "empty": (b"", "0 bytes, expected a header of 96"),
        "cut-in-header": (data[:95], "95 bytes, expected a header of 96"),
        "of-another-kind": (b"smezoJ\r\n" + data[8:], "begins with b'smezoJ.*, expected b'SMEZOIDS'"),
        "of-another-version": (put(8, "I", 2), "version 2, expected 1"),
        "header-changed": (data[:56] + b"\1" + data[57:], "header checksum differs"),
        "flags-unknown": (put(12, "I", 2), "flags 0x2, expected 0 or 1"),
        "no-example": (put(16, "q", 0), "0 examples"),
        "examples-negative": (put(16, "q", -2), "-2 examples"),
        "one-option": (put(24, "q", 1), "1 options"),
        "prompts-without-tokens": (put(32, "q", 1), "1 prompt tokens"),
        "options-without-tokens": (put(40, "q", 1), "1 option tokens, expected at least 2"),
        "examples-past-the-file": (put(16, "qqqq", 2**62, 2, 2**62, 2**62), "its counts make"),
        "own-options-not-there": (put(12, "I", 0), "3 option tokens, expected at least 4"),
        "size-of-another": (put(48, "q", 4096), "header says 4096"),
        "cut": (data[:-4], "its counts make"),
        "bytes-after": (data + bytes(4), "its counts make"),
        "payload-changed": (data[:-1] + b"\1", "payload checksum differs"),
        "prompts-not-from-zero": (put(prompts, "q", 1), "prompt offsets out of order"),
        "prompt-empty": (put(prompts + 8, "q", 0), "prompt offsets out of order"),
        "prompts-past-the-end": (put(prompts + 8, "q", 2**40), "prompt offsets out of order"),
        "prompts-end-early": (put(prompts + 16, "q", 3), "prompt offsets out of order"),
        "options-backwards": (put(options + 8, "q", -1), "option offsets out of order"),
        "label-past-the-last": (put(labels, "i", 2), "a label outside 0 to 1"),
        "label-negative": (put(labels + 4, "i", -1), "a label outside 0 to 1"),
        "line-zero": (put(lines, "i", 0), "a line below 1"),
        "token-negative": (put(tokens, "i", -3), "a negative token id"),
        "option-token-negative": (put(len(data) - 4, "i", -3), "a negative token id"),
    }
