"""Methods that files describe: a journal's header, a delta's metadata."""

from __future__ import annotations

import json

from .. import _core
from ..errors import ArgumentError, FormatError, bare
from .base import Method
from .table import METHODS, from_dict

# What a journal or a delta may say of a run beside its method.
WORDS = {
    "values": ("fp32", "bf16+8", "bf16"),
    "compute": ("fp32", "bf16"),
    "operand": ("nearest", "dither", "split"),
    "reduction": ("example", "token"),
}


def _description(path, where: str, text: str) -> tuple[dict, dict, str]:
    """(all of it, the method's fields and "kind", the hash of its index file or "") of the run that a file describes as JSON.
    FormatError: no run writes such."""
    try:
        header = json.loads(text)
        found = dict(header["method"])
        cls = METHODS.get(str(found["kind"]))
        index_hash = found.get("index_hash", "")
        parts = found | dict(found.get("parts", {}))
        method = {"kind": found["kind"]} | (cls.fields_of(parts) if cls else {})
        from_dict(method)
        header["seed"] = int(header["seed"])
        if not 0 <= header["seed"] < 1 << 64:
            raise ValueError(f"seed {header['seed']}")
        for key, words in WORDS.items():
            if header[key] not in words:
                raise ValueError(f"{key} {header[key]!r}, expected one of {', '.join(words)}")
    except (ValueError, KeyError, TypeError, RecursionError, ArgumentError) as e:
        why = f"no {e}" if isinstance(e, KeyError) else bare(e)
        raise FormatError(
            f"[{where}] {path}: the description of its run is not one ({why}), expected what pysmezo writes; damaged, or of another release?"
        ) from None
    return header, method, index_hash


def described_by_delta(path) -> dict:
    """What a delta says of the run that made it and opening it needs: method (its name), values, the method's fields, and the seed where
    its support was drawn from it. An index file is known by its hash only, which the engine compares. FormatError when the file is no delta."""
    content = _core.read_state(str(path), "delta", False)
    header, found, index_hash = _description(path, "delta", content["method_json"])
    out = {"method": found["kind"], "values": header["values"]}
    if not index_hash and from_dict(found).drawn_from_seed:
        out["seed"] = header["seed"]
    return out | {key: value for key, value in found.items() if key != "kind"}


def described_by_journal(path, index=None) -> tuple[Method, dict]:
    """(the method, the other options) of the run that a journal's header describes, as opening it again takes them.

    index: the index file, of which a journal knows the hash. ArgumentError: it has one and none is given. FormatError: no journal."""
    header, found, index_hash = _description(path, "journal", _core.read_journal(str(path), False)["header_json"])
    if index_hash and index is None:
        raise ArgumentError(
            f"[journal] {path} is of a run with an index file of hash {index_hash}, expected that file too (--index)"
        )
    if index_hash:
        found["index"] = str(index)
    options = {key: header[key] for key in ("values", "operand", "reduction", "seed")}
    return from_dict(found), {**options, "dtype": header["compute"]}
