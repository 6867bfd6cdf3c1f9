"""Templates and task files."""

from __future__ import annotations

import pytest

from pysmezo import ArgumentError, FormatError, tasks
from pysmezo.tasks import Task


def test_template_pieces():
    assert tasks.pieces("{text} It was") == [("text", True), (" It was", False)]
    assert tasks.pieces("a {{b}} {c}{d}") == [("a {", False), ("b}", False), (" ", False), ("c", True), ("d", True)]


@pytest.mark.parametrize("template", ["{text", "{}", "{text!r}", "{text:>3}", "{text.real}", "{text[0]}", "{0}", "}"])
def test_template_is_column_names_only(template):
    with pytest.raises(ArgumentError, match=r"^\[task\]"):
        tasks.pieces(template)


def test_task_columns_and_options():
    task = Task("{premise} {question}", ("{choice1}", " no {premise}"), "gold")
    assert task.columns == ("premise", "question", "choice1")
    assert not task.shared_options
    assert Task("{text} It was", (" terrible", " great")).shared_options


@pytest.mark.parametrize(
    "change",
    [
        {"template": "no column"},
        {"label_words": [" one"]},
        {"label_words": [" same", " same"]},
        {"label_words": ["", " great"]},
        {"label_words": [True, " great"]},
        {"label_words": " terrible"},
        {"label_column": ""},
        {"labels": [0, 1]},
    ],
)
def test_bad_tasks(change):
    good = {"template": "{text} It was", "label_words": [" terrible", " great"]}
    assert tasks.from_dict(good).label_column == "label"
    with pytest.raises(ArgumentError, match=r"^\[task\]"):
        tasks.from_dict({**good, **change})


def test_missing_key():
    with pytest.raises(ArgumentError, match="label_words"):
        tasks.from_dict({"template": "{text}"})


def test_yaml(tmp_path):
    path = tmp_path / "task.yaml"
    path.write_text('template: "{text} It was"\nlabel_words: [" terrible", " great"]\nlabel_column: y\n')
    task = Task.from_yaml(path)
    assert task == Task("{text} It was", (" terrible", " great"), "y")
    assert tasks.load(task.to_dict()) == task and tasks.load(path) == task
    path.write_text("template: [")
    with pytest.raises(FormatError, match="not YAML"):
        Task.from_yaml(path)
    path.write_text("- a\n")
    with pytest.raises(FormatError, match="list"):
        Task.from_yaml(path)
    with pytest.raises(ArgumentError, match="nothing.yaml"):
        Task.from_yaml(tmp_path / "nothing.yaml")
    # YAML reads a bare yes as a truth value: the message says to quote it.
    path.write_text('template: "{text}"\nlabel_words: [no, yes]\n')
    with pytest.raises(ArgumentError, match="quote"):
        Task.from_yaml(path)
