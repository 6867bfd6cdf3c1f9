"""Id files, the tokenizing child, and the order in which training sees examples."""

from __future__ import annotations

import json
import struct
import sys
import types
import zlib

import numpy as np
import philox_reference
import pytest
import tiny_task
from tokenizers import Tokenizer

from pysmezo import ArgumentError, FormatError, children, data, ids
from pysmezo.tasks import Task
from pysmezo.tokenizer_client import TokenizerClient

TASK = Task("{text} It was", (" terrible", " great"))
KEY = bytes(range(32))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_task.write_tokenizer(folder)
    tiny_task.write_config(folder)
    return folder


@pytest.fixture
def source(tmp_path):
    return tiny_task.write_jsonl(tmp_path / "train.jsonl", tiny_task.rows(10))


# ---- id files


def test_round_trip_shared(tmp_path):
    path = tmp_path / "a.ids"
    ids.write(path, KEY, [[1, 2, 3], [4], [5, 6]], [[7], [8, 9]], [0, 1, 1], [1, 2, 5], True)
    f = ids.read(path)
    assert len(f) == 3 and f.n_options == 2 and f.shared
    assert [f.prompt(i).tolist() for i in range(3)] == [[1, 2, 3], [4], [5, 6]]
    assert f.options(0) == f.options(2) == [[7], [8, 9]]
    assert f.labels.tolist() == [0, 1, 1] and f.lines.tolist() == [1, 2, 5]
    assert f.prompt(0).dtype == np.int32
    assert ids.read_key(path) == KEY


def test_round_trip_own_options(tmp_path):
    path = tmp_path / "a.ids"
    options = [[[7], [8, 9]], [[1, 2], [3]]]
    ids.write(path, KEY, [[1], [4, 5]], options, [0, 1], [1, 2], False)
    d = data.Dataset.open(path)
    assert [d.options_of(i) for i in range(2)] == options
    assert d.max_length == 4
    with pytest.raises(ArgumentError):
        d.options  # noqa: B018
    batch = d.gather([1, 0])
    assert batch.options == options[::-1] and batch.labels.tolist() == [1, 0]
    assert [p.tolist() for p in batch.prompts] == [[4, 5], [1]]


def test_every_bit_flip_and_cut_is_found(tmp_path):
    path = tmp_path / "a.ids"
    ids.write(path, KEY, [[1, 2, 3], [4]], [[7], [8, 9]], [0, 1], [1, 2], True)
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with pytest.raises(FormatError, match=r"^\[ids\]"):
            ids.read(path)
        path.write_bytes(whole[:i])
        with pytest.raises(FormatError, match=r"^\[ids\]"):
            ids.read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(FormatError):
        ids.read(path)


def _resealed(raw: bytearray) -> bytes:
    """The file with both checksums made right again."""
    struct.pack_into("<I", raw, 88, zlib.crc32(raw[96:]))
    struct.pack_into("<I", raw, 92, zlib.crc32(raw[:92]))
    return bytes(raw)


@pytest.mark.parametrize(
    ("offset", "fmt", "value", "found"),
    [
        (8, "<I", 2, "version"),
        (12, "<I", 2, "flags"),
        (16, "<q", 3, "bytes"),
        (16, "<q", 0, "examples"),
        (24, "<q", 1, "options"),
        (96 + 8, "<q", 0, "prompt offsets"),  # an empty prompt
        (96 + 24 + 8, "<q", 5, "option offsets"),
        (96 + 48, "<i", 2, "label"),
        (96 + 48, "<i", -1, "label"),
        (96 + 64, "<i", -3, "negative"),
    ],
)
def test_lies_behind_right_checksums_are_found(tmp_path, offset, fmt, value, found):
    path = tmp_path / "a.ids"
    ids.write(path, KEY, [[1, 2, 3], [4]], [[7], [8, 9]], [0, 1], [1, 2], True)
    raw = bytearray(path.read_bytes())
    ids.read(path)
    struct.pack_into(fmt, raw, offset, value)
    path.write_bytes(_resealed(raw))
    with pytest.raises(FormatError, match=found):
        ids.read(path)


# ---- the child


def test_tokenized_as_the_tokenizer_says(model, source, tmp_path):
    d = data.tokenize(model, source, TASK, tmp_path / "t.ids")
    t = Tokenizer.from_file(str(model / "tokenizer.json"))
    assert len(d) == 10 and d.n_options == 2 and d.shared_options
    for i, row in enumerate(tiny_task.rows(10)):
        prompt, label = d.example(i)
        assert t.decode(prompt.tolist()) == row["text"] + " It was"
        assert prompt.tolist() == t.encode(row["text"] + " It was").ids
        assert label == row["label"] and d.line(i) == i + 1
    assert [t.decode(o) for o in d.options] == [" terrible", " great"]


def test_csv_equals_jsonl(model, tmp_path):
    rows = tiny_task.rows(6)
    rows[2]["text"] = 'a "quoted", text\nover two lines'
    one = data.tokenize(model, tiny_task.write_jsonl(tmp_path / "a.jsonl", rows), TASK, tmp_path / "a.ids")
    quoted = "".join('{},"{}"\r\n'.format(r["label"], r["text"].replace('"', '""')) for r in rows)
    (tmp_path / "b.csv").write_text("\ufefflabel,text\r\n" + quoted, encoding="utf-8", newline="")
    two = data.tokenize(model, tmp_path / "b.csv", TASK, tmp_path / "b.ids")
    assert [two.example(i)[0].tolist() for i in range(6)] == [one.example(i)[0].tolist() for i in range(6)]
    assert two.labels.tolist() == one.labels.tolist()
    assert [two.line(i) for i in range(6)] == [2, 3, 4, 6, 7, 8]


def test_reused_until_something_changes(model, source, tmp_path):
    out = tmp_path / "t.ids"
    data.tokenize(model, source, TASK, out)
    stamp = out.stat().st_mtime_ns
    data.tokenize(model, source, TASK, out)
    assert out.stat().st_mtime_ns == stamp
    first = ids.read_key(out)
    data.tokenize(model, source, TASK, out, max_length=60)
    second = ids.read_key(out)
    data.tokenize(model, source, Task("{text} It is", TASK.label_words), out)
    third = ids.read_key(out)
    tiny_task.write_jsonl(source, tiny_task.rows(11))
    assert len(data.tokenize(model, source, TASK, out)) == 11
    assert len({first, second, third, ids.read_key(out)}) == 4
    out.write_bytes(out.read_bytes()[:-1])
    assert len(data.tokenize(model, source, TASK, out)) == 11


def test_bos_only_where_the_tokenizer_puts_it(model, source, tmp_path):
    folder = tiny_task.write_tokenizer(tmp_path / "bos", bos=True)
    tiny_task.write_config(folder)
    d = data.tokenize(folder, source, TASK, tmp_path / "b.ids")
    plain = data.tokenize(model, source, TASK, tmp_path / "p.ids")
    for i in range(len(d)):
        assert d.example(i)[0].tolist() == [0, *plain.example(i)[0].tolist()]
    assert d.options == plain.options


def test_options_of_each_example(model, tmp_path):
    rows = [
        {"q": "is it", "a": " warm", "b": " cold", "label": "1"},
        {"q": "was it", "a": " dull", "b": " fine film", "label": 0},
    ]
    path = tiny_task.write_jsonl(tmp_path / "c.jsonl", rows)
    d = data.tokenize(model, path, {"template": "{q}", "label_words": ["{a}", "{b}"]}, tmp_path / "c.ids")
    t = Tokenizer.from_file(str(model / "tokenizer.json"))
    assert not d.shared_options
    assert [[t.decode(o) for o in d.options_of(i)] for i in range(2)] == [[" warm", " cold"], [" dull", " fine film"]]
    assert d.labels.tolist() == [1, 0]


def _row(**change):
    return {**tiny_task.rows(1)[0], **change}


@pytest.mark.parametrize(
    ("rows", "error", "found"),
    [
        ([], ArgumentError, "no example"),
        ([_row(), _row(label=2)], ArgumentError, "line 2 of"),
        ([_row(label=-1)], ArgumentError, "label -1"),
        ([_row(label=True)], ArgumentError, "label True"),
        ([_row(label="good")], ArgumentError, "'good'"),
        ([_row(label=None)], ArgumentError, "None"),
        ([{"text": "a"}], ArgumentError, "no column 'label'"),
        ([{"label": 0, "txt": "a"}], ArgumentError, "no column 'text'.*txt"),
        ([_row(text=["a"])], ArgumentError, "holds list"),
        (
            [_row(), _row(text="the film " * 200)],
            ArgumentError,
            "line 2 .*tokens long, expected at most 64.*--truncate",
        ),
        ([[1]], FormatError, "line 1"),
    ],
)
def test_bad_rows_are_named(model, tmp_path, rows, error, found):
    path = tiny_task.write_jsonl(tmp_path / "bad.jsonl", rows)
    with pytest.raises(error, match=found) as e:
        data.tokenize(model, path, TASK, tmp_path / "bad.ids")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "bad.ids").exists()


def test_bad_files_are_named(model, source, tmp_path):
    def refused(error, found, folder=model, path=source, task=TASK, **more):
        with pytest.raises(error, match=found):
            data.tokenize(folder, path, task, tmp_path / "x.ids", **more)

    (tmp_path / "broken.jsonl").write_text('{"text": "a", "label": 0}\n{"text"\n')
    refused(FormatError, "line 2 .*not JSON", path=tmp_path / "broken.jsonl")
    (tmp_path / "broken.csv").write_text("text,label\na,0\nb\n")
    refused(FormatError, "line 3 .*1 fields, expected 2", path=tmp_path / "broken.csv")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9", "label": 0}\n')
    refused(FormatError, "UTF-8", path=tmp_path / "latin.jsonl")
    (tmp_path / "a.txt").write_text("a")
    refused(ArgumentError, ".jsonl or .csv", path=tmp_path / "a.txt")
    refused(ArgumentError, "none.jsonl", path=tmp_path / "none.jsonl")
    refused(ArgumentError, "tokenizer.json|config.json", folder=tmp_path)
    refused(ArgumentError, "none.yaml", task=tmp_path / "none.yaml")
    refused(ArgumentError, "expected 2 to 64", max_length=65)
    # A label word that does not start a token of its own changes the prompt's last token.
    refused(ArgumentError, "'terrible' runs into", task=Task("{text} It was ", ("terrible", "great")))


def test_truncation_keeps_the_template_tail(model, tmp_path):
    t = Tokenizer.from_file(str(model / "tokenizer.json"))
    tail = t.encode(" It was").ids
    for text in ("the film is dull . " * 60, "\u00e9\u4e2d" * 90):
        path = tiny_task.write_jsonl(tmp_path / "long.jsonl", [_row(text=text), _row()])
        d = data.tokenize(model, path, TASK, tmp_path / "long.ids", truncate=True)
        prompt = d.example(0)[0].tolist()
        assert 56 <= d.max_length <= 64
        assert prompt[-len(tail) :] == tail
        assert text.startswith(t.decode(prompt[: -len(tail)]).rstrip("\ufffd"))
        # The short one is left alone.
        assert t.decode(d.example(1)[0].tolist()) == tiny_task.rows(1)[0]["text"] + " It was"


def test_client_answers_and_survives_bad_batches(model, source, tmp_path):
    d = data.tokenize(model, source, TASK, tmp_path / "t.ids")
    client = TokenizerClient(model, TASK)
    try:
        batch = client.batch(tiny_task.rows(10))
        assert [p.tolist() for p in batch.prompts] == [d.example(i)[0].tolist() for i in range(10)]
        assert batch.options == d.options and batch.labels.tolist() == d.labels.tolist()
        with pytest.raises(ArgumentError, match="example 1 of the batch"):
            client.batch([_row(), _row(label=7)])
        with pytest.raises(ArgumentError, match="empty batch"):
            client.batch([])
        with pytest.raises(ArgumentError, match="a set"):
            client.batch([_row(text={1})])
        assert client.decode(client.encode("the film is fine .")) == "the film is fine ."
        assert client.batch([_row(label=np.int64(1))]).labels.tolist() == [1]
    finally:
        client.close()
    client.close()


def test_client_of_a_bad_folder(tmp_path):
    client = TokenizerClient(tmp_path, TASK)
    with pytest.raises(ArgumentError, match="config.json"):
        client.batch([_row()])


def test_this_process_stays_light():
    """Reading tokenized data brings neither tokenizers nor a YAML parser into the process."""
    code = "import sys, pysmezo.data, pysmezo.trainer, pysmezo.session; print(sorted(sys.modules))"
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", code], env=children.environment(), capture_output=True, text=True, check=True
    )
    loaded = {m.split(".")[0].strip("[]' ") for m in done.stdout.split(",")} | set()
    heavy = {"tokenizers", "transformers", "torch", "matplotlib", "yaml", "tqdm", "gguf"}
    assert not heavy & set(json.loads(done.stdout.replace("'", '"'))) and not heavy & loaded


# ---- the order


@pytest.fixture
def numbered(tmp_path):
    """Eleven examples whose one prompt token is their number."""
    ids.write(tmp_path / "n.ids", KEY, [[i] for i in range(11)], [[7], [8]], [0] * 11, range(1, 12), True)
    return data.Dataset.open(tmp_path / "n.ids")


def test_epochs_are_permutations_and_steps_are_arithmetic(numbered):
    stream = numbered.batches(3, 4)
    seen = [[int(p[0]) for p in next(stream).prompts] for _ in range(11)]
    flat = [x for batch in seen for x in batch]
    epochs = [flat[i : i + 11] for i in range(0, 44, 11)]
    assert all(sorted(e) == list(range(11)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 4
    for start in (1, 2, 3, 7):
        again = numbered.batches(3, 4, start)
        assert [[int(p[0]) for p in next(again).prompts] for _ in range(4)] == seen[start : start + 4]
    assert [int(p[0]) for p in next(numbered.batches(4, 4)).prompts] != seen[0]
    # A batch larger than the data is several epochs long.
    assert sorted(numbered.indices_of(3, 22, 0)) == sorted(2 * list(range(11)))
    with pytest.raises(ArgumentError):
        numbered.indices_of(3, 0, 0)


@pytest.mark.parametrize(("seed", "epoch", "n"), [(0, 0, 11), (7, 3, 130), (2**64 - 1, 2**31, 5)])
def test_order_is_fisher_yates_of_the_data_order_counter(numbered, seed, epoch, n):
    from pysmezo import _core

    words = philox_reference.bits(seed, epoch, 0, "data_order", 0, range(n), 32)
    order = list(range(n))
    for i in range(n - 1, 0, -1):
        j = int(words[i]) * (i + 1) >> 32
        order[i], order[j] = order[j], order[i]
    assert _core.permutation(seed, epoch, n).tolist() == order


def test_evaluation_order(numbered):
    got = [[int(p[0]) for p in b.prompts] for b in numbered.in_order(4)]
    assert got == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_an_answer_that_nobody_read_is_not_the_next_ones(model):
    """An interrupt while the client waits."""
    client = TokenizerClient(model, TASK)
    rows = tiny_task.rows(2)
    wanted = [client.batch([row]).prompts[0].tolist() for row in rows]
    assert wanted[0] != wanted[1]

    def interrupted():
        raise KeyboardInterrupt

    child = client._child
    pipe, child.stdout = child.stdout, types.SimpleNamespace(readline=interrupted, close=child.stdout.close)
    with pytest.raises(KeyboardInterrupt):
        client.batch(rows[:1])
    assert child.poll() is not None and pipe.closed
    assert client.batch(rows[1:]).prompts[0].tolist() == wanted[1]
    client.close()
