"""Files that a reader must refuse, one for each way of failing, and the sound ones they were made from: tests/bad.

`python tests/bad_files.py` writes those that are not there yet, each with its line in expected.json (path -> a regular
fragment of the refusal, null for a sound file); it replaces none. tests/test_bad_files.py replays them. What is in them
stands in bad_texts.py, bad_weights.py and bad_runs.py.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import bad_runs
import bad_texts
import bad_weights
import numpy as np
import tiny_llama
from bad_weights import DOWN, FOLDER, SOUND, packed, unpacked
from safetensors.numpy import save_file

from pysmezo import MeZO, Runtime, SparseMeZO, _core, ids

CONFIG = tiny_llama.config(hidden=4, layers=1, heads=1, kv_heads=1, inner=4, vocab=8, tied=True)
TRAINS = "*.down_proj.weight"
STEPS, GENERATION = 3, 2  # of the sound run, and the step of its generation


def make_model() -> None:
    weights = {}
    for name, w in tiny_llama.random_weights(CONFIG).items():
        values = (np.arange(w.size) * 7 % 13 - 6).reshape(w.shape)
        weights[name] = (values / 16 + (w.ndim == 1)).astype(np.float32)
    model = tiny_llama.save(SOUND / "model", CONFIG, weights, "BF16")
    (model / "config.json").write_text(json.dumps(bad_texts.CONFIG) + "\n")
    (model / "tokenizer.json").write_text(json.dumps(bad_texts.TOKENIZER) + "\n")


def make_quantized(folder: Path) -> None:
    model, index = SOUND / "model", SOUND / "index.safetensors"
    save_file({DOWN: np.array([0, 3, 9, 15], np.int32)}, index)
    plain, _ = unpacked(model / "model.safetensors")
    for name, options in {
        "nf4": {"dtype": "nf4"},
        "nf4-double": {"dtype": "nf4", "double_quant": True},
        "int8": {"dtype": "int8", "keep": str(index)},
    }.items():
        _core.quantize_folder(str(model), str(folder / name), **options)
        found, _ = unpacked(folder / name / "model.safetensors")
        # One quantized weight is enough, and the file stays small.
        mine = {n: t for n, t in found.items() if n.startswith(DOWN.removesuffix("weight"))}
        (SOUND / f"{name}.safetensors").write_bytes(packed(plain | mine))
    shutil.copytree(folder / "int8", SOUND / "kept", ignore=shutil.ignore_patterns("tokenizer.json"))


def make_runs(folder: Path) -> None:
    for name, method in {"delta": MeZO(trains=TRAINS), "packed": SparseMeZO(0.5, trains=TRAINS)}.items():
        opened = {"lr": 2.0**-7, "eps": 2.0**-6, "threads": 1, "run_dir": folder / name}
        with Runtime.from_pretrained(SOUND / "model", method=method, **opened) as run:
            for step in range(1, STEPS + 1):
                text = np.arange(step, step + 4).reshape(1, 4)
                run.train_step({"input_ids": text, "labels": text})
                if step == GENERATION:
                    run._engine.save_generation()
            run.save_delta(SOUND / f"{name}.safetensors")
    shutil.copy(folder / "delta" / "journal.smz", SOUND)
    generation = folder / "delta" / "generations" / f"generation-{GENERATION:010d}.safetensors"
    shutil.copy(generation, SOUND / "generation.safetensors")


def make_sound() -> None:
    make_model()
    with tempfile.TemporaryDirectory() as folder:
        make_quantized(Path(folder))
        make_runs(Path(folder))
    plain, _ = unpacked(SOUND / "model" / "model.safetensors")
    names = sorted(plain)
    half = len(names) // 2
    for name, part in {"a": names[:half], "b": names[half:], "twice": names[:1]}.items():
        (SOUND / f"{name}.safetensors").write_bytes(packed({n: plain[n] for n in part}))
    index = {"weight_map": {n: "ab"[i >= half] + ".safetensors" for i, n in enumerate(names)}}
    (SOUND / "model.safetensors.index.json").write_text(json.dumps(index) + "\n")
    ids.write(SOUND / "shared.ids", bytes(32), [[1, 2, 3], [4]], [[5], [6, 7]], [0, 1], [1, 2], True)
    (SOUND / "run.json").write_text(json.dumps(bad_texts.RUN) + "\n")
    (SOUND / "task.yaml").write_text(bad_texts.GOOD_TASK)
    (SOUND / "flags.yaml").write_text("batch: 4\nlr: 0.5\nsparsity: 0.5\n")
    (SOUND / "rows.jsonl").write_text(bad_texts.ROW)
    (SOUND / "rows.csv").write_text("text,label\na,0\n")
    (SOUND / "metrics.jsonl").write_text(json.dumps(bad_texts.STEP) + "\n")
    (SOUND / "adapter_config.json").write_text('{"peft_type": "SHIRA", "r": 1}\n')


def everything() -> dict[str, tuple[bytes, str | None]]:
    """{path: (content, fragment)}."""
    plain, _ = unpacked(SOUND / "model" / "model.safetensors")
    readers = {
        ("safetensors", ".safetensors"): bad_weights.of_safetensors(),
        ("shards", ".json"): bad_texts.shards(sorted(plain)),
        ("config", ".json"): bad_texts.JSON | bad_texts.OF_CONFIG,
        ("base", ".safetensors"): bad_weights.of_base(),
        ("quantize-config", ".json"): bad_texts.OF_QUANTIZE_CONFIG,
        ("quantize", ".safetensors"): bad_weights.of_quantize(),
        ("kept", ".safetensors"): bad_weights.of_kept(),
        ("index-set", ".safetensors"): bad_weights.of_index_set(),
        ("state", ".safetensors"): bad_runs.of_state(),
        ("delta", ".safetensors"): bad_runs.of_delta(),
        ("delta-in-use", ".safetensors"): bad_runs.of_delta_in_use(),
        ("generation", ".safetensors"): bad_runs.of_generation(),
        ("journal", ".smz"): bad_runs.of_journal(),
        ("journal-header", ".smz"): bad_runs.of_journal_header(),
        ("journal-record", ".smz"): bad_runs.of_journal_record(),
        ("ids", ".ids"): bad_runs.of_ids(),
        ("run", ".json"): bad_texts.OF_RUN,
        ("flags", ".yaml"): bad_texts.FLAGS,
        ("task", ".yaml"): bad_texts.TASKS,
        ("data", ""): bad_texts.DATA,
        ("metrics", ".jsonl"): bad_texts.METRICS,
        ("adapter", ".json"): bad_texts.ADAPTERS,
        ("tokenizer", ".json"): bad_texts.TOKENIZERS,
    }
    out = {str(p.relative_to(FOLDER)): (p.read_bytes(), None) for p in SOUND.rglob("*") if p.is_file()}
    for (reader, ending), files in readers.items():
        for name, (content, fragment) in files.items():
            out[f"{reader}/{name}{ending}"] = (content.encode() if isinstance(content, str) else content, fragment)
    return out


if __name__ == "__main__":
    table = FOLDER / "expected.json"
    if not SOUND.exists():
        SOUND.mkdir(parents=True)
        make_sound()
    found = json.loads(table.read_text()) if table.exists() else {}
    for path, (content, fragment) in everything().items():
        if path not in found:
            (FOLDER / path).parent.mkdir(parents=True, exist_ok=True)
            (FOLDER / path).write_bytes(content)
            found[path] = fragment
    table.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
