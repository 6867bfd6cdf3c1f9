"""Bad files of weights: safetensors that nobody takes, and sound ones that are not this model's. Rows as in bad_texts."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "bad"
SOUND = FOLDER / "sound"
DOWN, NORM, EMBEDDING = "model.layers.0.mlp.down_proj.weight", "model.norm.weight", "model.embed_tokens.weight"
NF4_STATE = DOWN + ".quant_state.bitsandbytes__nf4"


# ---- safetensors, put together and taken apart


def whole(header, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def packed(tensors: dict, metadata: dict | None = None, shift: int = 0) -> bytes:
    """tensors: {name: (dtype, shape, bytes)}, in the order of the data, which begins at a multiple of 8, plus shift."""
    header, data = {"__metadata__": metadata} if metadata else {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header, separators=(",", ":")).encode()
    return whole(text + b" " * (-len(text) % 8 + shift), data)


def unpacked(path: Path) -> tuple[dict, dict]:
    """(tensors as `packed` takes them, metadata)."""
    content = path.read_bytes()
    n = struct.unpack_from("<Q", content)[0]
    header, data = json.loads(content[8 : 8 + n]), content[8 + n :]
    metadata = header.pop("__metadata__", {})
    rows = sorted(header.items(), key=lambda row: row[1]["data_offsets"])
    return {n: (t["dtype"], t["shape"], data[slice(*t["data_offsets"])]) for n, t in rows}, metadata


def floats(*x) -> bytes:
    return np.array(x, np.float32).tobytes()


# ---- safetensors that no reader takes


class Marks:
    """Unpickled, it leaves a mark that the test looks for."""

    def __reduce__(self):
        return exec, ("import os; os.environ['PYSMEZO_UNPICKLED'] = '1'",)


def of_safetensors() -> dict:
    def one(dtype="F32", shape=(2,), at=(0, 8), data=bytes(8), **more):
        entry = {"dtype": dtype, "shape": shape, "data_offsets": at} | more
        return whole({"x": {k: v for k, v in entry.items() if v is not None}}, data)

    def two(first, second, n_bytes):
        entry = {"dtype": "F32", "shape": [2]}
        return whole({"x": entry | {"data_offsets": first}, "y": entry | {"data_offsets": second}}, bytes(n_bytes))

    def raw(text: bytes, n_bytes=0):
        return whole(text.replace(b"ENTRY", b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'), bytes(n_bytes))

    overflows = "whose size overflows 64 bits"
    return {
        "empty": (b"", "0 bytes, expected at least 8"),
        "seven-bytes": (bytes(7), "7 bytes, expected at least 8"),
        "pickle": (pickle.dumps(Marks(), 2), "not a safetensors file .a git-lfs pointer, a pickle"),
        "zip-of-a-pickle": (b"PK\3\4\0\0\x08\x08" + bytes(18) + b"archive/data.pkl", "not a safetensors file"),
        "git-lfs-pointer": (b"version https://git-lfs.github.com/spec/v1\nsize 1\n", "git-lfs pointer"),
        "header-of-all-bits": (b"\xff" * 16, "a header of 18446744073709551615 bytes"),
        "header-past-the-limit": (struct.pack("<Q", 100_000_001) + b"{}", "expected at most 100000000"),
        "header-past-the-file": (struct.pack("<Q", 90) + b"{}", "a header of 90 bytes in a file of 10"),
        "header-of-nothing": (bytes(8), "does not begin with '{'"),
        "header-a-list": (raw(b"[]"), "does not begin with '{'"),
        "header-cut": (raw(b'{"x":ENTRY'), "the text ends"),
        "header-twice": (raw(b"{}{}"), "more text after the value"),
        "header-deep": (raw(b'{"__metadata__":' + b"[" * 100 + b"]" * 100 + b"}"), "nested deeper than 16"),
        "name-not-utf8": (raw(b'{"\xff":ENTRY}', 1), "not valid UTF-8"),
        "name-half-a-character": (raw(b'{"\\ud800":ENTRY}', 1), "half a surrogate pair"),
        "name-twice": (raw(b'{"x":ENTRY,"x":ENTRY}', 1), "the key 'x' stands twice"),
        "entry-a-number": (raw(b'{"x":1}'), "tensor 'x' is an integer, expected an object"),
        "entry-with-more": (one(stride=[1]), "has a key 'stride'"),
        "no-dtype": (one(None), "tensor 'x' has no key 'dtype'"),
        "no-shape": (one(shape=None), "tensor 'x' has no key 'shape'"),
        "no-offsets": (one(at=None), "tensor 'x' has no key 'data_offsets'"),
        "dtype-a-number": (one(32), "tensor 'x' dtype is an integer, expected text"),
        "dtype-unknown": (one("F31"), "has dtype 'F31'"),
        "shape-a-number": (one(shape=2), "shape is an integer, expected an array"),
        "shape-with-a-point": (one(shape=[2.0]), "shape is a number, expected an integer"),
        "shape-negative": (one(shape=[-2]), "expected no negative length"),
        "shape-negative-twice": (one(shape=[-1, -2]), "expected no negative length"),
        "shape-past-64-bits": (one(shape=[2**63]), "shape is a number, expected an integer"),
        "product-past-64-bits": (one(shape=[2**32, 2**31]), overflows),
        "product-that-comes-back": (one(shape=[2**32, 2**32], at=[0, 0], data=b""), overflows),
        "bytes-past-64-bits": (one(shape=[2**61], at=[0, 0], data=b""), overflows),
        "half-a-byte": (one("F4", [1], [0, 1], bytes(1)), "4 bits, expected whole bytes"),
        "offsets-a-number": (one(at=8), "data_offsets is an integer, expected an array"),
        "offsets-one": (one(at=[0]), "has 1 data_offsets, expected 2"),
        "offsets-in-quotes": (one(at=["0", "8"]), "data_offsets is text, expected an integer"),
        "offsets-with-a-point": (one(at=[0.5, 8]), "data_offsets is a number, expected an integer"),
        "offsets-not-a-number": (raw(b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[NaN,1]}}'), "found no value"),
        "offsets-negative": (one(at=[-8, 0]), "lies at -8 to 0"),
        "offsets-backwards": (one(at=[8, 0]), "lies at 8 to 0"),
        "offsets-past-64-bits": (one(at=[0, 2**63]), "data_offsets is a number, expected an integer"),
        "offsets-of-another-size": (one(at=[0, 4], data=bytes(4)), "takes 4 bytes, expected 8"),
        "hole": (two([0, 8], [12, 20], 20), "a hole before it"),
        "hole-at-the-start": (one(at=[4, 12], data=bytes(12)), "begins at byte 4 of the data, expected 0: a hole"),
        "overlap": (two([0, 8], [4, 12], 12), "it overlaps the one before"),
        "one-place-twice": (two([0, 8], [0, 8], 8), "it overlaps the one before"),
        "data-cut": (one(data=bytes(7)), "is truncated"),
        "data-past-the-end": (one(shape=[2**40], at=[0, 2**42], data=b""), "is truncated"),
        "bytes-after": (one(data=bytes(9)), "1 bytes after the last tensor"),
        "metadata-a-word": (raw(b'{"__metadata__":"pt"}'), "__metadata__ is text, expected an object"),
        "metadata-of-a-number": (raw(b'{"__metadata__":{"step":1}}'), "__metadata__ step is an integer"),
        "metadata-twice": (raw(b'{"__metadata__":{"a":"b","a":"c"}}'), "the key 'a' stands twice"),
    }


# ---- sound safetensors, but not of this model


def of_base() -> dict:
    plain, _ = unpacked(SOUND / "model" / "model.safetensors")
    nf4, double, int8 = (unpacked(SOUND / f"{name}.safetensors")[0] for name in ("nf4", "nf4-double", "int8"))
    table = np.frombuffer(nf4[DOWN + ".quant_map"][2], np.float32)

    def change(tensors, name, *entry):
        """Another entry (dtype, shape, bytes) of the weight or of what belongs to it; without one it is taken out."""
        name = {"": DOWN, "SCB": DOWN.removesuffix("weight") + "SCB"}.get(name, f"{DOWN}.{name}")
        return packed({n: t for n, t in (tensors | {name: entry}).items() if t})

    def state(tensors, text: bytes = b"", **words):
        said = json.loads(tensors[NF4_STATE][2]) | words
        text = text or json.dumps({k: v for k, v in said.items() if v is not None}).encode()
        return packed(tensors | {NF4_STATE: ("U8", [len(text)], text)})

    def layout(dtype, *values):
        name = DOWN.removesuffix("weight") + "weight_format"
        return packed(int8 | {name: (dtype, [len(values)], bytes(values))})

    def mapped(values):
        return change(nf4, "quant_map", "F32", [len(values)], floats(*values))

    one = "expected one U8 that is 0 .rows."
    nested, fp4 = "nested scales of unexpected sizes", NF4_STATE.replace("nf4", "fp4")
    return {
        "tensor-missing": (change(plain, ""), f"'{DOWN}' is missing"),
        "tensor-unknown": (
            packed(plain | {"model.layers.1.x": ("U8", [1], b"x")}),
            "'model.layers.1.x' .1. in .* is not",
        ),
        "shape-turned": (change(plain, "", "BF16", [2, 8], bytes(32)), r"shape \[2, 8\], expected \[4, 4\]"),
        "shape-flat": (change(plain, "", "BF16", [16], bytes(32)), r"shape \[16\], expected \[4, 4\]"),
        "norm-a-matrix": (packed(plain | {NORM: ("BF16", [2, 2], bytes(8))}), r"shape \[2, 2\], expected \[1, 4\]"),
        "dtype-double": (change(plain, "", "F64", [4, 4], bytes(128)), "dtype F64, expected F32, F16, BF16"),
        "fp4": (packed(plain | {fp4: ("U8", [2], b"{}")}), "is FP4, expected NF4"),
        "nf4-state-not-json": (state(nf4, b'{"shape": [4, 4'), "quant_state of .*the text ends"),
        "nf4-state-not-utf8": (state(nf4, b'{"quant_type": "\xff"}'), "quant_state of .*not valid UTF-8"),
        "nf4-state-of-another-shape": (state(nf4, shape=[4, 2]), r"quantized shape \[4, 2\], expected \[4, 4\]"),
        "nf4-state-without-shape": (state(nf4, shape=None), "quant_state of .* has no key 'shape'"),
        "nf4-state-without-blocksize": (state(nf4, blocksize=None), "quant_state of .* has no key 'blocksize'"),
        "nf4-block-of-48": (state(nf4, blocksize=48), "blocksize 48, expected a power of two"),
        "nf4-block-negative": (state(nf4, blocksize=-64), "blocksize -64, expected a power of two"),
        "nf4-codes-cut": (change(nf4, "", "U8", [4, 1], bytes(4)), "4 packed bytes, expected 8"),
        "nf4-no-map": (change(nf4, "quant_map"), "no tensor '.*quant_map'"),
        "nf4-map-of-8": (mapped(table[:8]), "another quant_map than NF4's"),
        "nf4-map-turned": (mapped(table[::-1]), "another quant_map than NF4's"),
        "nf4-map-not-a-number": (mapped([*table[:15], np.nan]), "another quant_map than NF4's"),
        "nf4-map-in-half": (
            change(nf4, "quant_map", "F16", [16], bytes(32)),
            "dtype F16, expected F32 as bitsandbytes",
        ),
        "nf4-no-absmax": (change(nf4, "absmax"), "no tensor '.*absmax'"),
        "nf4-absmax-of-two": (change(nf4, "absmax", "F32", [2], floats(1, 1)), r"is F32 \[2\], expected F32 \[1\]"),
        "nf4-absmax-in-half": (change(nf4, "absmax", "F16", [1], bytes(2)), r"is F16 \[1\], expected F32 \[1\]"),
        "nf4-nested-as-plain": (state(nf4, nested_blocksize=256), r"is F32 \[1\], expected U8 \[1\]"),
        "nf4-nested-block-zero": (state(double, nested_blocksize=0), nested),
        "nf4-nested-offset-large": (state(double, nested_offset=1e300), "nested_offset of .*expected an fp32 number"),
        "nf4-nested-offset-a-word": (state(double, nested_offset="0"), "quant_state of .* is text, expected a number"),
        "nf4-nested-map-cut": (change(double, "nested_quant_map", "F32", [2], floats(0, 1)), nested),
        "nf4-nested-absmax-of-two": (change(double, "nested_absmax", "F32", [2], floats(1, 1)), nested),
        "int8-no-scales": (change(int8, "SCB"), "is I8 without its 4 row scales"),
        "int8-scales-cut": (change(int8, "SCB", "F32", [3], bytes(12)), "is I8 without its 4 row scales"),
        "int8-in-tiles": (layout("U8", 1), f"weight_format' is U8 .1. with layout 1, {one}"),
        "int8-in-other-tiles": (layout("U8", 3), f"weight_format' is U8 .1. with layout 3, {one}"),
        "int8-of-all-bits": (layout("U8", 255), f"weight_format' is U8 .1. with layout 255, {one}"),
        "int8-two-layouts": (layout("U8", 0, 0), f"weight_format' is U8 .2. with layout 0, {one}"),
        "int8-no-layout": (layout("U8"), f"weight_format' is U8 .0. with layout 0, {one}"),
        "int8-layout-signed": (layout("I8", 0), f"weight_format' is I8 .1. with layout 0, {one}"),
        "int8-scales-in-half": (change(int8, "SCB", "F16", [4], bytes(8)), "dtype F16, expected F32 as bitsandbytes"),
    }


def of_quantize() -> dict:
    """What `quantize` does not take."""
    plain, _ = unpacked(SOUND / "model" / "model.safetensors")
    nf4, _ = unpacked(SOUND / "nf4.safetensors")
    nan, infinite = (plain[DOWN][2][:-2] + struct.pack("<H", bits) for bits in (0x7FC0, 0xFF80))
    return {
        "not-a-number": (packed(plain | {DOWN: ("BF16", [4, 4], nan)}), f"'{DOWN}' .*holds a NaN or an infinity"),
        "infinity": (packed(plain | {DOWN: ("BF16", [4, 4], infinite)}), f"'{DOWN}' .*holds a NaN or an infinity"),
        "odd": (packed(plain | {DOWN: ("BF16", [1, 3], bytes(6))}), "3 elements, expected an even number"),
        "quantized-already": (packed(nf4), "U8, expected F32, F16 or BF16: it is quantized already"),
        "no-linear-layer": (packed({EMBEDDING: plain[EMBEDDING]}), "no tensor of .* is the weight of a linear layer"),
    }


def of_kept() -> dict:
    tensors, metadata = unpacked(SOUND / "kept" / "kept.safetensors")
    values, elements = tensors[DOWN], tensors[DOWN + ".elements"]
    changed = values[2][:-1] + bytes([values[2][-1] ^ 1])

    def said(**words):
        return packed(tensors, {k: v for k, v in (metadata | words).items() if v is not None})

    def held(values=values, elements=elements, name=DOWN):
        return packed({n: t for n, t in ((name, values), (name + ".elements", elements)) if t}, metadata)

    pairs = "expected F32 values and as many I32 or I64 elements"
    other, elsewhere = "0123456789abcdef", "model.layers.9.x.weight"
    square = (("F32", [2, 2], values[2]), ("I32", [2, 2], elements[2]))
    return {
        "no-metadata": (packed(tensors), "metadata 'format' is missing, expected smezo-kept"),
        "of-another-kind": (said(format="smezo-delta"), "metadata 'format' is smezo-delta, expected smezo-kept"),
        "of-another-version": (said(format_version="2"), "metadata 'format_version' is 2, expected 1"),
        "no-index-hash": (said(index_hash=None), "metadata 'index_hash' is missing"),
        "no-source": (said(source_fingerprint=None), "metadata 'source_fingerprint' is missing"),
        "no-base": (said(base_fingerprint=None), "metadata 'base_fingerprint' is missing"),
        "no-content-hash": (said(content_hash=None), "metadata 'content_hash' is missing"),
        "of-other-weights": (said(base_fingerprint=other), f"belongs to weights of fingerprint {other}"),
        "content-changed": (held(("F32", [4], changed)), "content of hash .*as written; damaged"),
        "values-missing": (held(None), pairs),
        "elements-missing": (held(elements=None), pairs),
        "values-in-half": (held(("F16", [4], bytes(8))), pairs),
        "elements-in-floats": (held(elements=("F32", [4], bytes(16))), pairs),
        "one-value-short": (held(("F32", [3], bytes(12))), pairs),
        "in-two-dimensions": (held(*square), pairs),
        "of-no-tensor": (held(name=elsewhere), f"'{elsewhere}', which is not there"),
        "of-a-plain-tensor": (held(name=NORM), f"'{NORM}', which is BF16 in the model"),
    }


def of_index_set() -> dict:
    def listed(*elements, name=DOWN, dtype="I32"):
        numbers = np.array(elements, {"I32": "<i4", "I64": "<i8"}[dtype])
        return packed({name: (dtype, [len(elements)], numbers.tobytes())})

    return {
        "in-floats": (packed({DOWN: ("F32", [2], floats(0, 1))}), "is F32, expected I32 or I64"),
        "not-increasing": (listed(3, 9, 4), "element 4 after 9"),
        "element-twice": (listed(3, 3), "element 3 after 3"),
        "element-negative": (listed(-1, 3), "element -1 after"),
        "element-past-the-end": (listed(3, 16), "element 16 after 3, expected increasing numbers below 16"),
        "element-past-32-bits": (listed(3, 2**32 + 4, dtype="I64"), "element 4294967300 after 3"),
        "element-at-the-least": (listed(3, -(2**63), dtype="I64"), "element -9223372036854775808 after 3"),
        "of-another-model": (listed(1, name="model.layers.7.mlp.up_proj.weight"), "elements of 'model.layers.7.mlp.up"),
    }
