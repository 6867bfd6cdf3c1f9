"""The training commands' flags as one table: name, type, default, meaning; and how YAML, flags and defaults become one
set of settings.

A row here is a flag, a YAML key and an entry of run.json. A method's fields are flags too, read off its dataclass.
"""

from __future__ import annotations

import argparse
import difflib
import os
from dataclasses import dataclass, fields

from . import yaml_file
from .errors import ArgumentError
from .methods import METHODS, described_by_delta

WHERE = "options"


def boolean(value) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("true", "yes", "on", "1", "false", "no", "off", "0"):
        return str(value).lower() in ("true", "yes", "on", "1")
    raise ValueError("a truth value (true or false)")


def integer(value) -> int:
    try:
        n = int(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("an integer") from None
    if isinstance(value, bool) or (isinstance(value, float) and value != n):
        raise ValueError("an integer")
    return n


def at_least(least: int, most: int = (1 << 31) - 1):
    def convert(value) -> int:
        n = integer(value)
        if not least <= n <= most:
            raise ValueError(f"an integer from {least} to {most}")
        return n

    return convert


def number(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError("a number") from None


def positive_or_auto(value):
    if value == "auto":
        return value
    try:
        x = number(value)
    except ValueError:
        x = 0.0
    if not 0 < x < float("inf"):
        raise ValueError("a positive number or auto")
    return x


def path(value) -> str:
    try:
        bad = b"\0" in os.fsencode(value)
    except (TypeError, UnicodeEncodeError):  # not a text, or half a character in it
        bad = True
    if bad:
        raise ValueError("a path")
    return os.path.abspath(os.path.expanduser(value))


def seed(value) -> int:
    value = integer(value)
    if not 0 <= value < 1 << 64:
        raise ValueError("an integer from 0 to 2^64 - 1")
    return value


def one_of(*names: str):
    def convert(value) -> str:
        if value not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return value

    return convert


def memory_size(value) -> str:
    """A size as the runtime takes it; checked there."""
    return str(value)


@dataclass(frozen=True)
class Option:
    name: str  # with underscores
    convert: object
    default: object
    help: str
    switch: bool = False  # given without a value

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


RUN_OPTIONS = (
    Option("model", path, None, "model folder (Hugging Face: config.json, tokenizer.json, safetensors)"),
    Option("train", path, None, "training data, .jsonl or .csv"),
    Option("eval", path, None, "data to evaluate before and after"),
    Option("dev", path, None, "data for the learning curve and the options' prior (default: the --eval data)"),
    Option("task", path, None, "task file: template, label_words, label_column"),
    Option("method", one_of(*METHODS), "sparse-mezo", "one of " + ", ".join(METHODS)),
    Option("lr", positive_or_auto, "auto", "learning rate, or auto"),
    Option("eps", positive_or_auto, "auto", "size of the perturbation, or auto"),
    Option(
        "operand",
        one_of("nearest", "dither", "split"),
        "nearest",
        "how perturbed weights are rounded: nearest, dither, split",
    ),
    Option(
        "values",
        one_of("auto", "fp32", "bf16+8", "bf16"),
        "auto",
        "what trained weights are kept in: auto, fp32, bf16+8, bf16",
    ),
    Option(
        "dtype",
        one_of("auto", "fp32", "bf16", "nf4", "int8"),
        "auto",
        "what inputs of products are rounded to: auto (fp32 for an fp32 base, else bf16), fp32, bf16; nf4, int8: as auto, and the base must "
        "be stored so",
    ),
    Option("reduction", one_of("example", "token"), "example", "what losses are averaged over: example, token"),
    Option("batch", at_least(1, 1 << 16), 16, "examples a step"),
    Option("steps", at_least(1), 1000, "steps of the whole run"),
    Option("max_length", at_least(1), None, "longest text in tokens (default: the model's limit)"),
    Option("truncate", boolean, False, "cut longer texts instead of refusing them", switch=True),
    Option(
        "schedule", one_of("constant", "linear", "cosine"), "constant", "of the learning rate: constant, linear, cosine"
    ),
    Option("warmup", at_least(0), 0, "steps over which the learning rate rises"),
    Option("eval_every", at_least(1), None, "steps between evaluations (default: only before and after)"),
    Option("seed", seed, 0, "of every random choice"),
    Option("threads", at_least(1, 1024), None, "default: SMEZO_THREADS, else every CPU this process may run on"),
    Option("memory_budget", memory_size, None, "bytes the run may hold above what the process had, such as 2GiB"),
    Option(
        "cached_reads",
        boolean,
        False,
        "with a budget: read weights through the page cache, which may keep what the budget cannot (a container's limit counts it)",
        switch=True,
    ),
    Option("device", str, "cpu", "cpu"),
    Option("sync_every", at_least(1), 1, "steps between syncs of the journal: a power cut may lose one less"),
    Option("delta", path, None, "delta to start from"),
    Option("run_dir", path, None, "run folder (default: runs/ and the command's name, numbered)"),
)
BY_NAME = {o.name: o for o in RUN_OPTIONS}
# Those that Runtime.from_pretrained and planning.planner take by the same names.
OPENING = (
    "memory_budget", "seed", "dtype", "device", "threads", "operand", "reduction", "sync_every", "delta", "values",
    "cached_reads",
)  # fmt: skip
TYPES = {"float": number, "int": integer, "bool": boolean, "str": str}


def method_fields() -> dict[str, list[str]]:
    """Field name -> the methods that have it."""
    out: dict[str, list[str]] = {}
    for name, method in METHODS.items():
        for f in fields(method):
            out.setdefault(f.name, []).append(name)
    return out


def _convert_of(field):
    """What makes a value of a method's field."""
    return path if field.metadata.get("path") else TYPES[field.type.split(" ")[0]]


def add_flags(parser: argparse.ArgumentParser, names=None, with_fields: bool = False) -> None:
    """The flags, each absent from the result unless given; with all of them when names is None, a method's fields
    included.
    """
    for o in RUN_OPTIONS:
        if names is None or o.name in names:
            if o.switch:
                parser.add_argument(o.flag, dest=o.name, action="store_true", default=argparse.SUPPRESS, help=o.help)
            else:
                parser.add_argument(o.flag, dest=o.name, default=argparse.SUPPRESS, metavar="X", help=o.help)
    if names is None or with_fields:
        group = parser.add_argument_group("fields of the method")
        for name, owners in method_fields().items():
            where = "every method" if len(owners) == len(METHODS) else ", ".join(owners)
            group.add_argument(
                "--" + name.replace("_", "-"), dest=name, default=argparse.SUPPRESS, metavar="X", help=where
            )


def read_config(file) -> dict:
    """The YAML of --config: the same names as the flags, with dashes or underscores."""
    content = yaml_file.mapping(file, WHERE, "a YAML mapping of flags to values") or {}
    converts = {o.name: o.convert for o in RUN_OPTIONS}
    converts |= {f.name: _convert_of(f) for method in METHODS.values() for f in fields(method)}
    out = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in converts:
            close = difflib.get_close_matches(name, converts, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ArgumentError(f"[{WHERE}] key {key!r} in {file}, expected names of flags{hint}")
        if name in out:
            raise ArgumentError(f"[{WHERE}] {name} stands twice in {file}, with a dash and without, expected it once")
        if value is not None:  # `batch:` with nothing after it
            converted(converts[name], value, f"--{name.replace('_', '-')} in {file}")
            out[name] = value
    return out


def converted(convert, value, flag: str):
    """ArgumentError: `value` is not what `flag` takes."""
    try:
        return convert(value)
    except ValueError as e:
        raise ArgumentError(f"[{WHERE}] {flag} {value!r}, expected {e}") from None


def settings(given: dict, defaults: dict | None = None) -> tuple[dict, object]:
    """(every run option by name, the method) from what flags and YAML gave; `defaults` replace the table's for one
    command. A starting delta's own method and values are the defaults above those (described_by_delta).
    """
    defaults = dict(defaults or {})
    if given.get("delta") is not None and "method" not in given:
        found = described_by_delta(converted(path, given["delta"], "--delta"))
        # Fields of another method than the delta's are defaults of nothing.
        defaults = {k: v for k, v in defaults.items() if k in BY_NAME} | found
    out = {}
    for o in RUN_OPTIONS:
        value = given.get(o.name, defaults.get(o.name, o.default))
        out[o.name] = None if value is None else converted(o.convert, value, o.flag)
    cls = METHODS[out["method"]]
    own = {f.name: f for f in fields(cls)}
    chosen = {}
    for name in method_fields():
        if name in given and name not in own:
            raise ArgumentError(
                f"[{WHERE}] --{name.replace('_', '-')} with method {out['method']}, expected only its fields: "
                f"{', '.join(own)}"
            )
        value = given.get(name, defaults.get(name))
        if value is not None and name in own:
            chosen[name] = converted(_convert_of(own[name]), value, "--" + name.replace("_", "-"))
    return out, cls(**chosen)


def opening(settings: dict) -> dict:
    """What of the settings a model is opened and planned with."""
    return {name: settings[name] for name in OPENING}


def require(values: dict, *names: str) -> None:
    missing = [BY_NAME[n].flag for n in names if values.get(n) is None]
    if missing:
        raise ArgumentError(
            f"[{WHERE}] no {', '.join(missing)}, expected {'it' if len(missing) == 1 else 'them'} on the command line "
            "or in --config"
        )
