"""The verb inspect: a file or folder of ours, explained. Nothing is changed; what a file claims is proved before it is
told.
"""

from __future__ import annotations

import json
import os
from collections import Counter, deque

from .. import _core, ids, index_file, metrics
from ..cli import OK
from ..errors import ArgumentError, FormatError
from ..session import JOURNAL_FILE, RUN_FILE, once, read_run

JOURNAL_MAGIC = b"smezoJ\r\n"
KEPT_FILE = "kept.safetensors"  # csrc/store/originals.h
ADAPTER_FILE = "adapter_config.json"


def add_flags(parser, verb: str) -> None:
    parser.add_argument(
        "path",
        help="run folder, model folder, adapter, journal, delta, safetensors, id file, run.json or metrics.jsonl",
    )


def run(arguments, verb: str):
    found = explain(arguments.path)
    print("\n".join(lines(found)).encode(errors="backslashreplace").decode(), flush=True)
    return OK, found


def explain(path) -> dict:
    """What `path` is and says; "kind" first. ArgumentError: nothing of ours; FormatError: damaged."""
    if os.path.isdir(path):
        if os.path.exists(os.path.join(path, RUN_FILE)) or os.path.exists(os.path.join(path, JOURNAL_FILE)):
            return run_folder(path)
        if os.path.exists(os.path.join(path, "config.json")):
            return model_folder(path)
        if os.path.exists(os.path.join(path, ADAPTER_FILE)):
            return adapter(path)
        raise ArgumentError(
            f"[inspect] {path} holds neither {RUN_FILE} nor config.json nor {ADAPTER_FILE}, expected the folder of a "
            "run, a model or an adapter"
        )
    if os.path.exists(path) and not os.path.isfile(path):
        raise ArgumentError(f"[inspect] {path}, expected a plain file or a folder")
    try:
        with open(path, "rb") as f:
            head = f.read(8)
    except OSError as e:
        raise ArgumentError(f"[inspect] {path}: {e.strerror}, expected a file or folder of ours") from None
    if head == ids.MAGIC:
        return id_file(path)
    if head == JOURNAL_MAGIC:
        return journal(path)
    if str(path).endswith(".safetensors"):
        return safetensors(path)
    folder, name = os.path.split(os.path.abspath(path))
    if name == RUN_FILE:
        return {"kind": "settings of a run", "path": str(path), **read_run(folder)}
    if metrics.is_name(name):
        return metrics_file(path)
    raise ArgumentError(
        f"[inspect] {path} begins with {head!r}, expected a journal, an id file, a file that ends in .safetensors, "
        f"{RUN_FILE} or {metrics.NAME}"
    )


def metrics_file(path) -> dict:
    n_steps = n_others = 0
    first = last = None
    for line in metrics.lines_of(path):
        if "type" in line:
            n_others += 1
            continue
        n_steps, first, last = n_steps + 1, first or line, line
    out = {"kind": "metrics", "path": str(path), "file_bytes": os.path.getsize(path), "n_steps": n_steps}
    out["n_others"] = n_others
    return out | ({} if last is None else {"first_step": first["step"], "last": last})


def adapter(path) -> dict:
    """A SHiRA adapter as `export --peft` writes it, or any other of PEFT's in safetensors."""
    config = _json_of(os.path.join(path, ADAPTER_FILE))
    return {
        "kind": "PEFT adapter",
        "path": str(path),
        **{k: config[k] for k in ("peft_type", "r", "base_model_name_or_path") if k in config},
        "files": {n: safetensors(os.path.join(path, n)) for n in _weights_in(path)},
    }


def id_file(path) -> dict:
    f = ids.read(path)
    counts = Counter(f.labels.tolist())
    return {
        "kind": "id file",
        "path": str(path),
        "file_bytes": os.path.getsize(path),
        "n_examples": len(f),
        "n_options": f.n_options,
        "options": f.options(0) if f.shared else "each example's own",
        "examples_by_label": {str(k): counts[k] for k in sorted(counts)},
        "n_prompt_tokens": len(f.prompt_tokens),
        "longest_prompt": int((f.prompt_offsets[1:] - f.prompt_offsets[:-1]).max()),
        "key": ids.read_key(path).hex(),
    }


def journal(path) -> dict:
    found = _core.read_journal(str(path), False)
    out = {
        "kind": "journal",
        "path": str(path),
        "file_bytes": os.path.getsize(path),
        "header": _object(found["header_json"], path, "header"),
        "n_records": found["n_records"],
        "n_skipped": found["n_skipped"],
        "dropped_bytes": found["dropped_bytes"],
        "tail_checksum": f"{found['tail_checksum']:08x}",
    }
    if found["last_record"]:
        out["last_record"] = metrics.plain({k: v for k, v in found["last_record"].items() if k != "chain"})
    # One mask a tensor is too long to read.
    masks = out["header"].pop("masks", None)
    return {**out, "n_masks": len(masks)} if isinstance(masks, list) else out


def _object(text: str, path, what: str) -> dict:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise FormatError(f"[inspect] {path}: a {what} that is no JSON object, expected what pysmezo writes; damaged?")
    return found


def safetensors(path) -> dict:
    out = {"kind": "safetensors", "path": str(path), **_core.read_safetensors(str(path))}
    metadata = out["metadata"]
    if metadata.get("format") == "smezo-kept":
        return {
            "kind": "kept originals",
            "path": str(path),
            "file_bytes": out["file_bytes"],
            **_core.read_kept(str(path)),
        }
    if metadata.get("format") == index_file.FORMAT:
        return out | {"kind": "index set"}
    kind = {"smezo-delta": "delta", "smezo-generation": "generation"}.get(metadata.get("format"))
    if kind is None:
        return out
    state = _core.read_state(str(path), kind)  # proves the content too
    method = _object(state["method_json"], path, "description")
    return {
        "kind": kind,
        "path": str(path),
        "file_bytes": state["file_bytes"],
        "watermark": state["watermark"],
        "method": method.get("method", method),
        "base_fingerprint": state["base_fingerprint"],
        "journal_tail": f"{state['journal_tail']:08x}",
        "n_tensors": len(state["tensors"]),
        "n_packed": sum(t["packed"] for t in state["tensors"]),
        "dtypes": dict(Counter(t["dtype"] for t in state["tensors"])),
    }


def _json_of(path) -> dict:
    try:
        with open(path, encoding="utf-8") as f:
            found = json.load(f, object_pairs_hook=once)
    except OSError as e:
        raise ArgumentError(f"[inspect] {path}: {e.strerror}, expected a readable file") from None
    except (ValueError, RecursionError) as e:
        raise FormatError(f"[inspect] {path} is not JSON ({e}), expected an object; damaged or cut short?") from None
    if not isinstance(found, dict):
        raise FormatError(f"[inspect] {path} holds {type(found).__name__}, expected an object")
    return found


def _weights_in(path) -> list[str]:
    return sorted(n for n in os.listdir(path) if n.endswith(".safetensors") and os.path.isfile(os.path.join(path, n)))


def model_folder(path) -> dict:
    config, names = _json_of(os.path.join(path, "config.json")), _weights_in(path)
    missing = sorted(_shards_of_index(path) - set(names))
    kept = safetensors(os.path.join(path, KEPT_FILE)) if KEPT_FILE in names else None
    names = [n for n in names if n != KEPT_FILE]
    shards = [safetensors(os.path.join(path, n)) for n in names]
    dtypes: Counter = Counter()
    for shard in shards:
        dtypes.update(shard.get("n_bytes_by_dtype", {}))
    keys = (
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
    )
    return {
        "kind": "model folder",
        "path": str(path),
        **{k: config[k] for k in keys if k in config},
        "files": names,
        "n_tensors": sum(s["n_tensors"] for s in shards),
        "n_bytes_by_dtype": dict(dtypes),
        **({"missing_files": missing} if missing else {}),
        "tokenizer": os.path.exists(os.path.join(path, "tokenizer.json")),
        **({} if kept is None else {"kept_originals": kept}),
    }


def _shards_of_index(path) -> set[str]:
    """Files that the folder's index says there are; none without one."""
    index = os.path.join(path, "model.safetensors.index.json")
    if not os.path.exists(index):
        return set()
    try:
        names = set(_json_of(index)["weight_map"].values())
    except (KeyError, TypeError, AttributeError):
        names = {None}
    if not all(isinstance(name, str) for name in names):
        raise FormatError(f"[inspect] {index} has no weight_map, expected one: a file's name for each tensor")
    return names


def run_folder(path) -> dict:
    out: dict = {"kind": "run folder", "path": str(path)}
    if os.path.exists(os.path.join(path, RUN_FILE)):
        content = read_run(path)
        out |= {k: content[k] for k in ("verb", "method", "settings", "lr", "eps", "before", "after") if k in content}
    if os.path.exists(os.path.join(path, JOURNAL_FILE)):
        out["journal"] = journal(os.path.join(path, JOURNAL_FILE))
    last = deque((line for line in metrics.lines(path) if "type" not in line), maxlen=1)
    if last:
        out["last_metrics"] = last[0]
    out["files"] = {
        n: os.path.getsize(os.path.join(path, n))
        for n in sorted(os.listdir(path))
        if os.path.isfile(os.path.join(path, n))
    }
    return out


def lines(found: dict, indent: str = "") -> list[str]:
    """Nested facts, one a line."""
    width = max((len(k) for k, v in found.items() if not isinstance(v, dict)), default=0)
    out = []
    for key, value in found.items():
        if isinstance(value, dict) and value:
            out += [f"{indent}{key}", *lines(value, indent + "  ")]
        elif value is not None:
            out.append(f"{indent}{key:<{width}}  {value}")
    return out
