"""Methods as values: what is selected, how it is perturbed, how the step uses the scalars. Frozen dataclasses, one a row of METHODS."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import ClassVar

from . import _core
from .errors import ArgumentError, FormatError, bare

NOISES = ("gaussian", "gaussian8", "rademacher")
# What a field of each type is in JSON.
IN_JSON = {"str": (str, "a text"), "int": (int, "an integer"), "float": ((int, float), "a number")}
# What a journal or a delta may say of a run beside its method.
WORDS = {
    "values": ("fp32", "bf16+8", "bf16"),
    "compute": ("fp32", "bf16"),
    "operand": ("nearest", "dither", "split"),
    "reduction": ("example", "token"),
}


@dataclass(frozen=True, kw_only=True)
class _Method:
    """Fields every method has.

    noise: kind of direction, all with mean 0 and variance 1. gaussian8 is a Gaussian discretised to 256 values, one random byte an element.
    queries: directions a step, averaged (n-SPSA, MeZO appendix A; each costs two branches).
    rule: what the step does with the estimate; "sgd".
    weight_decay: lambda of w <- w - lr * lambda * m * w, on matrices only (norms and biases are left alone, as in MeZO's code).
    """

    noise: str = "gaussian8"
    queries: int = 1
    rule: str = "sgd"
    weight_decay: float = 0.0

    name: ClassVar[str] = ""

    def __post_init__(self):
        where = type(self).__name__
        if self.noise not in NOISES:
            raise ArgumentError(f"[{where}] noise {self.noise!r}, expected one of {', '.join(NOISES)}")
        if not 1 <= self.queries <= 64:
            raise ArgumentError(f"[{where}] queries {self.queries}, expected 1 to 64")
        if self.rule != "sgd":
            raise ArgumentError(f"[{where}] rule {self.rule!r}, expected 'sgd'")
        if not 0 <= self.weight_decay < float("inf"):
            raise ArgumentError(f"[{where}] weight_decay {self.weight_decay}, expected a finite number not below 0")
        sparsity = getattr(self, "sparsity", 0.0)
        if not 0 <= sparsity < 1:
            raise ArgumentError(
                f"[{where}] sparsity {sparsity}, expected 0 <= sparsity < 1: it is the frozen fraction, and at 1 nothing would train"
            )

    def to_dict(self) -> dict:
        """Plain JSON form with the method's name under "kind"; `from_dict` reads it back."""
        return {"kind": self.name, **asdict(self)}


@dataclass(frozen=True)
class MeZO(_Method):
    """Dense zeroth-order SGD (Malladi et al. 2023, arXiv 2305.17333, algorithm 1).

    trains: "linear" (the linear weights of the decoder blocks), "all" (embeddings, head, norms and biases too: MeZO's own choice), or a
    glob pattern over parameter names such as "model.layers.*.self_attn.?_proj.weight".
    """

    trains: str = "linear"
    name: ClassVar[str] = "mezo"


@dataclass(frozen=True)
class SparseMeZO(_Method):
    """Perturbs and updates the small weights of each matrix, |w| <= h (Liu et al. 2024, arXiv 2402.15751).

    sparsity: the *frozen* fraction; h is the k-th smallest |w0| of a matrix with k = round((1 - sparsity) * n), ties in. 0 equals MeZO bit for
    bit. The mask is read from the current weights at every step, so the trained set can only shrink.
    """

    sparsity: float = 0.75
    trains: str = "linear"
    name: ClassVar[str] = "sparse-mezo"


@dataclass(frozen=True)
class LargestMask(_Method):
    """The other end, a control: trains the largest weights, |w| >= h; sparsity is the frozen fraction."""

    sparsity: float = 0.75
    trains: str = "linear"
    name: ClassVar[str] = "largest-mask"


@dataclass(frozen=True)
class RandomMask(_Method):
    """A random fixed mask, a control (R-MeZO of arXiv 2402.15751): Bernoulli at the density that SparseMeZO realises on each matrix."""

    sparsity: float = 0.75
    trains: str = "linear"
    name: ClassVar[str] = "random-mask"


@dataclass(frozen=True)
class Sensitive(_Method):
    """A static index set over a base that stays as it is, quantized or not; its values train in fp32 beside it (SensZOQ, Guo et al. 2024,
    arXiv 2406.02913).

    index: a file of sorted element numbers by tensor name (safetensors, I32 or I64): source "calibrated".
    Over a folder that `pysmezo quantize --keep INDEX_FILE` made, each element that was kept starts from its original value, whatever set it is
    now in; every other one, as without --keep, from what its quantized weight decodes to (`Runtime.notes` counts them where some were not
    kept). Elements that are kept but do not train stay as quantized.
    fraction, source="random": that share of each block matrix instead, one element in every run of 1/fraction, drawn from the run's seed; a
    control, and what memory and speed are measured with.
    """

    index: str | None = field(default=None, metadata={"path": True})
    fraction: float = 0.001
    source: str | None = None
    trains: str = "linear"
    name: ClassVar[str] = "sensitive"

    def __post_init__(self):
        super().__post_init__()
        wanted = "random" if self.index is None else "calibrated"
        if self.source not in (None, wanted):
            raise ArgumentError(
                f"[Sensitive] source {self.source!r} {'without' if self.index is None else 'with'} an index file, expected"
                f" {wanted!r}"
            )
        if self.index is None and not 0 < self.fraction <= 0.5:
            raise ArgumentError(f"[Sensitive] fraction {self.fraction}, expected more than 0 and at most 0.5")
        object.__setattr__(self, "source", wanted)


METHODS = {m.name: m for m in (MeZO, RandomMask, LargestMask, SparseMeZO, Sensitive)}


def _description(path, where: str, text: str) -> tuple[dict, dict, str]:
    """(all of it, the method's fields and "kind", the hash of its index file or "") of the run that a file describes as JSON.
    FormatError: no run writes such."""
    try:
        header = json.loads(text)
        found = dict(header["method"])
        cls = METHODS.get(str(found["kind"]))
        index_hash = found.get("index_hash", "")
        known = {"kind", *(f.name for f in fields(cls))} if cls else {"kind"}
        method = {key: found[key] for key in found if key in known and (key != "fraction" or not index_hash)}
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
    cls = METHODS[found.pop("kind")]
    out = {"method": cls.name, "values": header["values"]}
    if cls is RandomMask or (cls is Sensitive and not index_hash):
        out["seed"] = header["seed"]
    return out | found


def described_by_journal(path, index=None) -> tuple[_Method, dict]:
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


def from_dict(d: dict) -> _Method:
    """The method that `to_dict` wrote. ArgumentError: unknown kind (lists the known ones) or field, or a value of another type."""
    d = dict(d)
    kind = d.pop("kind", None)
    if not isinstance(kind, str) or kind not in METHODS:
        raise ArgumentError(f"[method] {kind!r}, expected one of {', '.join(METHODS)}")
    known = {f.name: f.type.split(" | ") for f in fields(METHODS[kind])}
    for key, value in d.items():
        if key not in known:
            raise ArgumentError(f"[method] {kind} has no field {key!r}, expected some of {', '.join(sorted(known))}")
        types, expected = IN_JSON[known[key][0]]
        if value is None and "None" in known[key]:
            continue
        if not isinstance(value, types) or isinstance(value, bool):
            raise ArgumentError(f"[method] {key} {value!r}, expected {expected}")
    return METHODS[kind](**d)
