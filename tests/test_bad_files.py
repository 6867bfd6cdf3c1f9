"""Files of tests/bad, one for each way of failing: the reader that a user reaches refuses each of them, in the words of
expected.json, names it, and leaves it as it was.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import bad_files
import pytest

from pysmezo import (
    MeZO,
    PysmezoError,
    Runtime,
    Sensitive,
    SparseMeZO,
    _core,
    _draw,
    _rows,
    data,
    ids,
    metrics,
    options,
    planning,
    session,
    tasks,
)
from pysmezo.verbs import inspect

BAD, SOUND = bad_files.FOLDER, bad_files.SOUND
EXPECTED = json.loads((BAD / "expected.json").read_text())
CASES = [path for path, fragment in EXPECTED.items() if fragment is not None]
METHOD, INDEX = MeZO(trains=bad_files.TRAINS), Sensitive(index=str(SOUND / "index.safetensors"))
OPEN = {"lr": 2.0**-7, "eps": 2.0**-6, "threads": 1}
GENERATION = f"generation-{bad_files.GENERATION:010d}.safetensors"
MOST_SECONDS, MOST_SECONDS_OF_CHILD = 2, 30  # a child takes its time to start


def opened(folder, method=METHOD, **more):
    Runtime.from_pretrained(folder, method=method, **(OPEN | more)).close()


def model(folder: Path, bad: Path | None = None, name: str = "") -> Path:
    """A copy of the sound model with a file in place of its own."""
    shutil.copytree(SOUND / "model", folder)
    if bad is not None:
        shutil.copy(bad, folder / name)
    return folder


def run_folder(folder: Path, journal: Path, generation: Path | None = None) -> Path:
    (folder / "generations").mkdir(parents=True)
    shutil.copy(journal, folder / "journal.smz")
    if generation is not None:
        shutil.copy(generation, folder / "generations" / GENERATION)
    return folder


# Each takes a file and an empty folder; returns the file as it is placed, the calls that read it, the first of which
# gives the expected words and all of which refuse it, and calls that may also find nothing wrong.


def a_safetensors(bad, to):
    folder = model(to / "model", bad, "model.safetensors")
    at = folder / "model.safetensors"
    calls = [
        lambda: opened(folder),
        lambda: opened(folder, memory_budget="64MiB"),
        lambda: opened(SOUND / "model", delta=at),
        lambda: opened(SOUND / "model", Sensitive(index=str(at))),
        lambda: _core.read_kept(str(at)),
        lambda: inspect.explain(at),
        lambda: inspect.explain(folder),
    ]
    return at, calls, []


def a_base(bad, to):
    folder = model(to / "model", bad, "model.safetensors")
    calls = [
        lambda: opened(folder),
        lambda: opened(folder, memory_budget="64MiB"),
        lambda: planning.planner(folder, METHOD),
    ]
    return folder / "model.safetensors", calls, [lambda: inspect.explain(folder)]


def an_index(bad, to):
    folder = model(to / "model", bad, "model.safetensors.index.json")
    (folder / "model.safetensors").unlink()
    for part in ("a", "b", "twice"):
        shutil.copy(SOUND / f"{part}.safetensors", folder)
    calls = [lambda: opened(folder), lambda: _core.quantize_folder(str(folder), str(to / "q"), dtype="int8")]
    return folder / "model.safetensors.index.json", calls, [lambda: inspect.explain(folder)]


def a_config(bad, to):
    folder = model(to / "model", bad, "config.json")
    calls = [lambda: opened(folder), lambda: planning.planner(folder, METHOD)]
    return folder / "config.json", calls, [lambda: inspect.explain(folder)]


def a_model_to_quantize(bad, to):
    folder = model(to / "model", bad, "model.safetensors")
    calls = [lambda: _core.quantize_folder(str(folder), str(to / "q"), dtype="nf4")]
    return folder / "model.safetensors", calls, [lambda: inspect.explain(folder)]


def a_config_to_quantize(bad, to):
    folder = model(to / "model", bad, "config.json")
    calls = [lambda: _core.quantize_folder(str(folder), str(to / "q"), dtype="int8")]
    return folder / "config.json", calls, [lambda: inspect.explain(folder)]


def kept_originals(bad, to):
    folder = Path(shutil.copytree(SOUND / "kept", to / "model"))
    shutil.copy(bad, folder / "kept.safetensors")
    at = folder / "kept.safetensors"
    calls = [lambda: opened(folder, INDEX), lambda: opened(folder, INDEX, memory_budget="64MiB")]
    return at, calls, [lambda: inspect.explain(at), lambda: inspect.explain(folder)]


def an_index_set(bad, to):
    at = Path(shutil.copy(bad, to))
    calls = [
        lambda: opened(SOUND / "model", Sensitive(index=str(at))),
        lambda: _core.quantize_folder(str(SOUND / "model"), str(to / "q"), dtype="int8", keep=str(at)),
    ]
    return at, calls, [lambda: inspect.explain(at)]


def a_state(bad, to):
    at = Path(shutil.copy(bad, to))
    calls = [lambda: _core.read_state(str(at), "delta"), lambda: opened(SOUND / "model", delta=at)]
    return at, calls, [lambda: inspect.explain(at)]


def a_delta(bad, to):
    at = Path(shutil.copy(bad, to))

    def use():
        with Runtime.from_pretrained(SOUND / "model", method=METHOD, **OPEN) as run:
            run.load_delta("it", at)
            run.use({"it": 1.0})

    calls = [lambda: opened(SOUND / "model", None, delta=at)]
    return at, calls, [use, lambda: inspect.explain(at), lambda: options.settings({"delta": str(at)})]


def a_delta_in_use(bad, to):
    at = Path(shutil.copy(bad, to))
    method = SparseMeZO(0.5, trains=bad_files.TRAINS) if b"sparse-mezo" in at.read_bytes() else METHOD

    def use():
        with Runtime.from_pretrained(SOUND / "model", method=method, **OPEN) as run:
            run.load_delta("it", at)
            run.use({"it": 1.0})

    streamed = {"memory_budget": "64MiB", "stream_trained": True, "run_dir": to / "run"}
    calls = [
        use,
        lambda: opened(SOUND / "model", method, delta=at),
        lambda: opened(SOUND / "model", method, delta=at, **streamed),
    ]
    return at, calls, [lambda: inspect.explain(at)]


def a_generation(bad, to):
    folder = run_folder(to / "run", SOUND / "journal.smz", bad)
    calls = [
        lambda: opened(SOUND / "model", run_dir=folder),
        lambda: opened(SOUND / "model", run_dir=folder, memory_budget="64MiB", stream_trained=True),
        lambda: Runtime.from_journal(SOUND / "model", folder / "journal.smz").close(),
    ]
    return folder / "generations" / GENERATION, calls, []


def a_journal(bad, to):
    at = run_folder(to / "run", bad) / "journal.smz"
    calls = [
        lambda: _core.read_journal(str(at)),
        lambda: opened(SOUND / "model", run_dir=to / "run"),
        lambda: Runtime.from_journal(SOUND / "model", at).close(),
        lambda: _core.fork_journal(str(at), str(to / "fork.smz"), 1),
        lambda: inspect.explain(at),
        lambda: inspect.explain(to / "run"),
    ]
    return at, calls, []


def a_journal_of_another_run(bad, to):
    at = run_folder(to / "run", bad) / "journal.smz"
    calls = [
        lambda: opened(SOUND / "model", run_dir=to / "run"),
        lambda: Runtime.from_journal(SOUND / "model", at).close(),
    ]
    return at, calls, [lambda: inspect.explain(at)]


def an_id_file(bad, to):
    at = Path(shutil.copy(bad, to))
    return at, [lambda: ids.read(at), lambda: data.Dataset.open(at)], [lambda: inspect.explain(at)]


def a_run_file(bad, to):
    shutil.copy(bad, to / "run.json")
    calls = [lambda: session.resumed(to, {})]
    return to / "run.json", calls, [lambda: inspect.explain(to)]


def flags(bad, to):
    at = Path(shutil.copy(bad, to))
    return at, [lambda: options.settings(options.read_config(at))], []


def a_task(bad, to):
    at = Path(shutil.copy(bad, to))
    return at, [lambda: tasks.from_yaml(at), lambda: Runtime.from_pretrained(SOUND / "model", task=at, **OPEN)], []


def tokenized(folder, source, out):
    data.tokenize(folder, source, SOUND / "task.yaml", out)


def rows(bad, to):
    at = Path(shutil.copy(bad, to))

    def read():
        found = list(_rows.rows(at))
        for line, row in found:
            _rows.text_of(row, "text", f"line {line} of {at.name}")
            _rows.label_of(row, "label", 2, f"line {line} of {at.name}")
        if not found:  # only what tokenizes them asks for one
            tokenized(SOUND / "model", at, to / "x.ids")

    return at, [read], []


def measurements(bad, to):
    at = to / "metrics.jsonl"
    shutil.copy(bad, at)
    return at, [lambda: _draw.load(to)], [lambda: metrics.read(to), lambda: inspect.explain(at)]


def an_adapter(bad, to):
    shutil.copy(bad, to / "adapter_config.json")
    return to / "adapter_config.json", [lambda: inspect.explain(to)], []


def a_tokenizer(bad, to):
    folder = model(to / "model", bad, "tokenizer.json")
    return folder / "tokenizer.json", [lambda: tokenized(folder, SOUND / "rows.jsonl", to / "x.ids")], []


# {reader: (how, the sound files that it takes)}
READERS = {
    "safetensors": (a_safetensors, ["model/model.safetensors"]),
    "shards": (an_index, ["model.safetensors.index.json"]),
    "config": (a_config, ["model/config.json"]),
    "base": (a_base, ["model/model.safetensors", "nf4.safetensors", "nf4-double.safetensors", "int8.safetensors"]),
    "quantize": (a_model_to_quantize, ["model/model.safetensors"]),
    "quantize-config": (a_config_to_quantize, ["model/config.json"]),
    "kept": (kept_originals, ["kept/kept.safetensors"]),
    "index-set": (an_index_set, ["index.safetensors"]),
    "state": (a_state, ["delta.safetensors", "packed.safetensors"]),
    "delta": (a_delta, ["delta.safetensors", "packed.safetensors"]),
    "delta-in-use": (a_delta_in_use, ["delta.safetensors", "packed.safetensors"]),
    "generation": (a_generation, ["generation.safetensors"]),
    "journal": (a_journal, ["journal.smz"]),
    "journal-header": (a_journal_of_another_run, ["journal.smz"]),
    "journal-record": (a_journal_of_another_run, ["journal.smz"]),
    "ids": (an_id_file, ["shared.ids"]),
    "run": (a_run_file, ["run.json"]),
    "flags": (flags, ["flags.yaml"]),
    "task": (a_task, ["task.yaml"]),
    "data": (rows, ["rows.jsonl", "rows.csv"]),
    "metrics": (measurements, ["metrics.jsonl"]),
    "adapter": (an_adapter, ["adapter_config.json"]),
    "tokenizer": (a_tokenizer, ["model/tokenizer.json"]),
}


def mark(path: str):
    """Child processes that load a tokenizer are slow."""
    return pytest.param(path, marks=pytest.mark.slow) if path.startswith("tokenizer") else path


def refusal(call, at: Path) -> str:
    with pytest.raises(PysmezoError) as e:
        call()
    found = str(e.value)
    assert re.match(r"\[[^]]+\] \S", found) and "\n" not in found
    assert at.name in found or str(at.parent) in found, found
    return found


def test_the_table_has_every_file():
    there = {str(p.relative_to(BAD)) for p in BAD.rglob("*") if p.is_file()} - {"expected.json"}
    assert there == set(EXPECTED)
    assert {path.split("/")[0] for path in CASES} == set(READERS)
    assert {path for path in EXPECTED if path.startswith("sound/")} == set(EXPECTED) - set(CASES)


@pytest.mark.parametrize("path", [mark(path) for path in CASES])
def test_refused(tmp_path, path):
    how, _ = READERS[path.split("/")[0]]
    at, calls, others = how(BAD / path, tmp_path)
    seconds = MOST_SECONDS_OF_CHILD if path.startswith(("tokenizer/", "data/")) else MOST_SECONDS
    for i, call in enumerate(calls + others):
        begin = time.monotonic()
        if i < len(calls):
            found = refusal(call, at)
            assert i > 0 or re.search(EXPECTED[path], found), found
        else:
            try:
                call()
            except PysmezoError as e:
                assert str(e).startswith("["), e
        assert time.monotonic() - begin < seconds
        assert at.read_bytes() == (BAD / path).read_bytes()
    assert not (tmp_path / "q").exists() and not (tmp_path / "fork.smz").exists()
    assert "PYSMEZO_UNPICKLED" not in os.environ


@pytest.mark.parametrize("reader", [mark(reader) for reader in READERS])
def test_what_they_were_made_from_is_taken(tmp_path, reader):
    """Else a file may be refused for something that all of them have."""
    how, names = READERS[reader]
    for i, name in enumerate(names):
        (tmp_path / str(i)).mkdir()
        _, calls, _ = how(SOUND / name, tmp_path / str(i))
        calls[0]()


def test_a_folder_where_a_file_belongs(tmp_path):
    for name in ("x.safetensors", "x.smz", "x.ids", "x.yaml", "x.jsonl", "run.json"):
        (tmp_path / name).mkdir()
    run = run_folder(tmp_path / "run", SOUND / "journal.smz")
    (run / "generations" / GENERATION).mkdir()
    at = tmp_path / "x.safetensors"
    for found, call in (
        (at, lambda: opened(SOUND / "model", delta=at)),
        (at, lambda: opened(SOUND / "model", Sensitive(index=str(at)))),
        (at, lambda: _core.read_kept(str(at))),
        (tmp_path / "x.smz", lambda: _core.read_journal(str(tmp_path / "x.smz"))),
        (tmp_path / "x.smz", lambda: Runtime.from_journal(SOUND / "model", tmp_path / "x.smz")),
        (run / "generations" / GENERATION, lambda: opened(SOUND / "model", run_dir=run)),
        (tmp_path / "x.ids", lambda: ids.read(tmp_path / "x.ids")),
        (tmp_path / "x.yaml", lambda: options.read_config(tmp_path / "x.yaml")),
        (tmp_path / "x.yaml", lambda: tasks.from_yaml(tmp_path / "x.yaml")),
        (tmp_path / "x.jsonl", lambda: list(_rows.rows(tmp_path / "x.jsonl"))),
        (tmp_path / "run.json", lambda: session.resumed(tmp_path, {})),
    ):
        assert str(found) in refusal(call, found)
    for name in ("config.json", "model.safetensors"):
        folder = model(tmp_path / f"with {name}")
        (folder / name).unlink()
        (folder / name).mkdir()
        assert str(folder) in refusal(lambda folder=folder: opened(folder), folder / name)


def test_a_pickle_under_its_own_names(tmp_path):
    pickle = BAD / "safetensors" / "pickle.safetensors"
    folder = model(tmp_path / "model", pickle, "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    at = folder / "pytorch_model.bin"
    for call in (
        lambda: opened(folder),
        lambda: opened(SOUND / "model", delta=at),
        lambda: opened(SOUND / "model", Sensitive(index=str(at))),
        lambda: Runtime.from_journal(SOUND / "model", at),
        lambda: ids.read(at),
        lambda: inspect.explain(at),
    ):
        refusal(call, at)
    assert "PYSMEZO_UNPICKLED" not in os.environ
