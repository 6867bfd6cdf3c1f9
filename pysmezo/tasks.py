"""A task: how a row of labelled data becomes a prompt and a choice between label words.

Templates name the data's columns in braces and nothing else: no attributes, indices or format codes; `{{` and `}}`
stand for braces. A label word may hold columns too (`"{choice1}"`), which makes multiple choice: then every example has
options of its own.
"""

from __future__ import annotations

import string
from dataclasses import asdict, dataclass

from . import yaml_file
from .errors import ArgumentError, FormatError

WHERE = "task"


def pieces(template: str) -> list[tuple[str, bool]]:
    """The template as (text, False) literals and (column, True) holes, in order; ArgumentError when it says more than
    column names.
    """
    out = []
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as e:
        raise ArgumentError(f"[{WHERE}] template {template!r}: {e}, expected column names in braces") from None
    for literal, column, spec, conversion in parsed:
        if literal:
            out.append((literal, False))
        if column is None:
            continue
        if not column.isidentifier() or spec or conversion:
            raise ArgumentError(
                f"[{WHERE}] {{{column}}} in template {template!r}, expected a plain column name in braces (write "
                "{{ for a brace itself)"
            )
        out.append((column, True))
    return out


@dataclass(frozen=True)
class Task:
    """template: the prompt, columns in braces. label_words: the options' texts, in the order of the integer labels;
    each follows the prompt directly, so most begin with a space. label_column: the column that holds the integer label.
    """

    template: str
    label_words: tuple[str, ...]
    label_column: str = "label"

    def __post_init__(self):
        object.__setattr__(self, "label_words", tuple(self.label_words))
        if not isinstance(self.template, str) or not any(hole for _, hole in pieces(self.template)):
            raise ArgumentError(
                f"[{WHERE}] template {self.template!r}, expected a text with at least one column in braces"
            )
        if len(self.label_words) < 2:
            raise ArgumentError(f"[{WHERE}] {len(self.label_words)} label words, expected at least two")
        for word in self.label_words:
            if not isinstance(word, str) or not word:
                raise ArgumentError(
                    f"[{WHERE}] label word {word!r}, expected a text that is not empty (quote yes, no and numbers in "
                    "YAML)"
                )
            pieces(word)
        if len(set(self.label_words)) != len(self.label_words):
            raise ArgumentError(f"[{WHERE}] label words {list(self.label_words)}, expected different ones")
        if not isinstance(self.label_column, str) or not self.label_column:
            raise ArgumentError(f"[{WHERE}] label_column {self.label_column!r}, expected a column's name")

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the template and the label words read, in order of first use."""
        texts = (self.template, *self.label_words)
        return tuple(dict.fromkeys(text for t in texts for text, hole in pieces(t) if hole))

    @property
    def shared_options(self) -> bool:
        """True when the label words are the same texts for every example."""
        return not any(hole for word in self.label_words for _, hole in pieces(word))

    def to_dict(self) -> dict:
        return {**asdict(self), "label_words": list(self.label_words)}

    @staticmethod
    def from_yaml(path) -> Task:
        return from_yaml(path)


def from_dict(d: dict, source: str = "task") -> Task:
    """ArgumentError: unknown or missing key."""
    known = ("template", "label_words", "label_column")
    for key in d:
        if key not in known:
            raise ArgumentError(f"[{WHERE}] key {key!r} in {source}, expected some of {', '.join(known)}")
    for key in known[:2]:
        if key not in d:
            raise ArgumentError(f"[{WHERE}] no {key!r} in {source}, expected it to be there")
    if not isinstance(d["label_words"], (list, tuple)):
        raise ArgumentError(f"[{WHERE}] label_words {d['label_words']!r} in {source}, expected a list of texts")
    return Task(**d)


def from_yaml(path) -> Task:
    """The task in a YAML file. FormatError: not a YAML mapping; ArgumentError: what it says makes no task."""
    expected = "a task file: template:, label_words: and label_column:"
    d = yaml_file.mapping(path, WHERE, expected)
    if d is None:
        raise FormatError(f"[{WHERE}] {path} is empty, expected {expected}")
    try:
        return from_dict(d, str(path))
    except ArgumentError as e:
        text = str(e)
        raise ArgumentError(text if str(path) in text else text.replace("] ", f"] {path}: ", 1)) from None


def load(task) -> Task:
    """A Task, a mapping or a YAML file's path, as a Task."""
    if isinstance(task, Task):
        return task
    return from_dict(task) if isinstance(task, dict) else from_yaml(task)
