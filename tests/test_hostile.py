"""Files that a stranger made: every Python reader takes them or refuses them with one of our errors, whatever they hold.
The C++ readers are fuzzed by tests/fuzz.
"""

import contextlib
import json
import struct
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pysmezo import PysmezoError, _rows, ids, metrics, options, session, tasks
from pysmezo.verbs import inspect

pytestmark = pytest.mark.slow
# derandomize: a check that stops a change must not depend on luck; without it more is found, now and then.
FEW = settings(
    max_examples=120, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
LONG_NUMBER, DEEP = b"1" * 5000, b"[" * 100_000
CONTENT = (
    st.binary(max_size=300)
    | JSON.map(lambda x: json.dumps(x).encode())
    | st.text(max_size=200).map(lambda x: x.encode("utf-8", "surrogatepass"))
    | st.sampled_from(
        [LONG_NUMBER, DEEP, b'{"a":' * 50_000, b"a: &a [*a]", b"\xff\xfe", b"\x00", b"", b"nan", b"---\n---"]
    )
)


def read(reader, path, content):
    path.write_bytes(content)
    with contextlib.suppress(PysmezoError):
        reader(path)


READERS = {
    "data.jsonl": lambda p: list(_rows.rows(p)),
    "data.csv": lambda p: list(_rows.rows(p)),
    "task.yaml": tasks.from_yaml,
    "flags.yaml": options.read_config,
    "x.ids": ids.read,
    "metrics.jsonl": lambda p: metrics.read(p.parent),
    "run.json": lambda p: session.resumed(p.parent, {}),
    "x.safetensors": inspect.explain,
    "x.smz": inspect.explain,
}


@pytest.mark.parametrize("name", READERS)
@FEW
@given(content=CONTENT)
def test_any_bytes(tmp_path, name, content):
    read(READERS[name], tmp_path / name, content)


YAML = st.dictionaries(
    st.sampled_from([*options.BY_NAME, "sparsity", "queries", "noise", "x"]) | st.text(max_size=6), JSON, max_size=5
)


@FEW
@given(content=YAML)
def test_flags_of_any_kind(tmp_path, content):
    def opened(path):
        options.settings(options.read_config(path))

    read(opened, tmp_path / "flags.yaml", json.dumps(content).encode())


@FEW
@given(
    settings_=st.dictionaries(st.sampled_from([*options.BY_NAME, "x"]), JSON, max_size=5),
    method=st.dictionaries(st.sampled_from(["kind", "noise", "queries", "sparsity", "x"]), JSON, max_size=4),
)
def test_a_run_file_of_any_kind(tmp_path, settings_, method):
    content = json.dumps({"settings": settings_, "method": {"kind": "sparse-mezo"} | method}).encode()
    read(lambda p: session.resumed(p.parent, {}), tmp_path / "run.json", content)


TASK = st.fixed_dictionaries(
    {},
    optional={
        "template": JSON | st.text("{}:!.ab ", max_size=12),
        "label_words": JSON | st.lists(st.text(max_size=4), max_size=4),
        "label_column": JSON,
        "x": JSON,
    },
)


@FEW
@given(content=TASK)
def test_a_task_of_any_kind(tmp_path, content):
    read(tasks.from_yaml, tmp_path / "task.yaml", json.dumps(content).encode())


@FEW
@given(rows=st.lists(st.dictionaries(st.sampled_from(["text", "label", "x"]), JSON, max_size=3), max_size=4))
def test_rows_of_any_kind(tmp_path, rows):
    def used(path):
        for line, row in _rows.rows(path):
            _rows.text_of(row, "text", f"line {line}")
            _rows.label_of(row, "label", 2, f"line {line}")

    read(used, tmp_path / "data.jsonl", b"\n".join(json.dumps(r).encode() for r in rows))


def id_file(n_examples, n_options, flags, tokens) -> bytes:
    """One whose checksums are right, whatever it says."""
    payload = struct.pack(f"<{len(tokens)}q", *tokens)
    head = struct.pack(
        "<8sIIqqqqq32sI",
        b"SMEZOIDS", 1, flags, n_examples, n_options, len(tokens), len(tokens), 96 + len(payload), b"k" * 32, zlib.crc32(payload),
    )  # fmt: skip
    return head + struct.pack("<I", zlib.crc32(head)) + payload


NUMBERS = st.integers(-4, 8) | st.sampled_from([2**31, 2**62, -(2**63), 2**63 - 1])


@FEW
@given(n_examples=NUMBERS, n_options=NUMBERS, flags=st.integers(0, 3), tokens=st.lists(NUMBERS, max_size=20))
def test_id_files_with_right_checksums(tmp_path, n_examples, n_options, flags, tokens):
    read(ids.read, tmp_path / "x.ids", id_file(n_examples, n_options, flags, tokens))
