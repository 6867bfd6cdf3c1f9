"""A training run as the command line makes it: run folder, tokenized data, evaluation before and after, delta, picture,
result.

run.json in the run folder holds everything that `resume` needs (absolute paths); the journal holds the run itself.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import ExitStack, suppress
from dataclasses import asdict

from . import data, ids, memory, metrics, options, planning
from .errors import ArgumentError, FormatError, bare, io_error
from .methods import from_dict

RUN_FILE = "run.json"
JOURNAL_FILE = "journal.smz"
LOCK_FILE = "lock"  # csrc/io/file.cpp
DELTA_FILE = "trained.delta.safetensors"
# What else run.json may hold, where the run has come so far.
PARTS = {"verb": str} | dict.fromkeys(("data", "before", "after", "choices", "diagnostics", "result"), dict)
# Settings that may differ when a run goes on: they change no bit of it (a delta may have moved; the engine refuses
# another one).
FREE = ("threads", "memory_budget", "cached_reads", "eval_every", "sync_every", "run_dir", "eval", "dev", "delta")


def free_run_dir(verb: str) -> str:
    """runs/VERB, or the first of runs/VERB-2, -3, ... that is not there."""
    n, path = 1, os.path.join("runs", verb)
    while os.path.exists(path):
        n += 1
        path = os.path.join("runs", f"{verb}-{n}")
    return os.path.abspath(path)


def once(pairs: list[tuple]) -> dict:
    """The object of a JSON text, for its parser. ValueError: a key twice, of which the parser would take the last."""
    out: dict = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"the key {key!r} stands twice")
        out[key] = value
    return out


def read_run(run_dir) -> dict:
    """run.json's content. ArgumentError: there is none; FormatError: it is not ours."""
    path = os.path.join(run_dir, RUN_FILE)
    try:
        with open(path, encoding="utf-8") as f:
            found = json.load(f, object_pairs_hook=once)
    except OSError as e:
        raise ArgumentError(
            f"[run] {path}: {e.strerror}, expected the run folder of an earlier train or demo"
        ) from None
    except (ValueError, RecursionError) as e:
        raise FormatError(f"[run] {path} is not JSON ({e}), expected what train wrote there") from None
    parts = (found.get(key) for key in ("settings", "method")) if isinstance(found, dict) else (None,)
    if not all(isinstance(part, dict) for part in parts):
        raise FormatError(f"[run] {path} has no settings and method, expected what train wrote there")
    for key, kind in PARTS.items():
        if not isinstance(found.get(key), (kind, type(None))):
            raise FormatError(
                f"[run] {key!r} in {path} holds {type(found[key]).__name__}, expected what train wrote there"
            )
    return found


def write_run(run_dir, content: dict) -> None:
    """IoError: it could not be written; what was there is as it was."""
    path = os.path.join(run_dir, RUN_FILE)
    text = (json.dumps(metrics.plain(content), indent=2, allow_nan=False) + "\n").encode()
    try:
        with open(path + ".tmp", "wb", buffering=0) as f:
            left = len(text)
            while left:
                left -= f.write(text[-left:])
            os.fsync(f.fileno())
        os.replace(path + ".tmp", path)
    except OSError as e:
        with suppress(OSError):
            os.remove(path + ".tmp")
        raise io_error("run", e, path, len(text)) from None


def discard(run_dir) -> None:
    """Removes a folder that holds no run yet; leaves it where another process has begun one in it meanwhile."""
    with suppress(OSError), ExitStack() as held:
        path = os.path.join(run_dir, LOCK_FILE)
        if os.path.exists(path):
            # Until the folder is gone: who opens the file before that finds it locked.
            fcntl.flock(held.enter_context(open(path, "rb")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in os.listdir(run_dir):
            if name.startswith("tokens-") or name == LOCK_FILE:
                os.remove(os.path.join(run_dir, name))
        os.rmdir(run_dir)


def check_same(run_dir, found: dict, settings: dict, method: dict) -> None:
    """ArgumentError: the folder's run is another one than asked for; names the first difference."""
    wanted = {**{k: v for k, v in settings.items() if k not in FREE}, **method}
    there = {**found["settings"], **found["method"]}
    for key, value in wanted.items():
        if there.get(key) != value:
            raise ArgumentError(
                f"[run] {run_dir} holds a run with {key} {there.get(key)!r}, expected {value!r} as asked for; name "
                "another --run-dir"
            )


def open_runtime(settings: dict, method, run_dir):
    from .runtime import Runtime

    choices = {name: settings[name] for name in ("lr", "eps")}
    return Runtime.from_pretrained(
        settings["model"], method=method, run_dir=run_dir, **choices, **options.opening(settings)
    )


def base_bytes(model_dir) -> int:
    return sum(e.stat().st_size for e in os.scandir(model_dir) if e.name.endswith(".safetensors"))


class _Measured:
    """Keeps what "auto" came to in run.json: a run that is opened again does not measure it again."""

    def __init__(self, content: dict):
        self._content = content

    def on_measured(self, trainer) -> None:
        if trainer.run.choices:
            self._content["choices"] = trainer.run.choices
            write_run(trainer.run.run_dir, self._content)


class Session:
    """One training command, new or gone on with."""

    def __init__(
        self,
        settings: dict,
        method,
        verb: str,
        callbacks=(),
        say=lambda text: None,
        evaluating=lambda: lambda done, total: None,
    ):
        """say: tells a line. evaluating: makes what an evaluation tells its progress, (done, total) examples."""
        self.evaluating = evaluating
        self.settings, self.method, self.verb = settings, method, verb
        self.callbacks, self.say = callbacks, say
        self.run_dir = settings["run_dir"]
        self.sets: dict[str, data.Dataset] = {}

    def train(self) -> tuple[bool, dict]:
        """(interrupted, the result object of --json)."""
        from .trainer import check_steps

        check_steps(self.method, self.settings["steps"], self.settings["warmup"])
        made = not os.path.exists(self.run_dir)
        os.makedirs(self.run_dir, exist_ok=True)
        try:
            content = self._record()
            s = self.settings
            # What the model is refused for, before its data is tokenized.
            planner = planning.planner(s["model"], self.method, **options.opening(s))
            self._tokenize(content)
            if s["memory_budget"] is not None:
                planning.check_budget(planner, self.sets, s["batch"], self.method.n_branches)
            with open_runtime(self.settings, self.method, self.run_dir) as run:
                for note in run.notes:
                    self.say(f"note: {note}")
                content |= {
                    "rss_at_open_bytes": run.rss_at_open_bytes,
                    "base_bytes": base_bytes(self.settings["model"]),
                }
                write_run(self.run_dir, content)
                return self._train(run, content)
        except BaseException:
            # A command that was refused or interrupted before there was a run leaves no folder behind.
            if made and not os.path.exists(os.path.join(self.run_dir, RUN_FILE)):
                discard(self.run_dir)
            raise

    def _record(self) -> dict:
        content = {"verb": self.verb, "settings": self.settings, "method": self.method.to_dict()}
        has_journal = os.path.exists(os.path.join(self.run_dir, JOURNAL_FILE))
        if os.path.exists(os.path.join(self.run_dir, RUN_FILE)):
            found = read_run(self.run_dir)
            if not has_journal and next(metrics.lines(self.run_dir), None):
                raise ArgumentError(
                    f"[run] {self.run_dir} has measurements of steps but no journal.smz, expected it: it is the run; "
                    "put it back, or name another --run-dir"
                )
            if has_journal:
                check_same(self.run_dir, found, self.settings, content["method"])
                content = {**found, **content}
        elif os.path.exists(os.path.join(self.run_dir, "config.json")):
            raise ArgumentError(f"[run] {self.run_dir} is a model folder, expected a run folder or a new one")
        elif has_journal:
            raise ArgumentError(
                f"[run] {self.run_dir} holds a journal but no {RUN_FILE}, expected a new folder or one made by train"
            )
        return content

    def _tokenize(self, content: dict) -> None:
        s = self.settings
        earlier, keys = content.get("data", {}), {}
        for name in ("train", "eval", "dev"):
            if s[name]:
                out = os.path.join(self.run_dir, f"tokens-{name}.ids")
                self.sets[name] = data.tokenize(s["model"], s[name], s["task"], out, s["max_length"], s["truncate"])
                keys[name] = ids.read_key(out).hex()
        if earlier.get("train", keys["train"]) != keys["train"]:
            raise ArgumentError(
                f"[run] {s['train']} or its task or tokenizer has changed since {self.run_dir} began, expected what it "
                "was; name another --run-dir"
            )
        if any(earlier.get(name) != keys.get(name) for name in ("eval", "dev")):
            content.pop("before", None)  # it is of other data
        content["data"] = keys

    def _evaluate(self, run) -> dict | None:
        from .trainer import evaluate

        if "eval" not in self.sets:
            return None
        return asdict(evaluate(run, self.sets["eval"], self.settings["batch"], self.sets.get("dev"), self.evaluating()))

    def _train(self, run, content: dict) -> tuple[bool, dict]:
        from .trainer import Trainer

        s = self.settings
        if run.step == 0 and "before" not in content:
            content["before"] = self._evaluate(run)
            write_run(self.run_dir, content)
        curve = self.sets.get("dev") or (self.sets.get("eval") if s["eval_every"] else None)
        trainer = Trainer(
            run, self.sets["train"], curve, steps=s["steps"], batch=s["batch"], schedule=s["schedule"],
            warmup=s["warmup"], eval_every=s["eval_every"], callbacks=(_Measured(content), *self.callbacks),
        )  # fmt: skip
        fit = trainer.fit()
        content |= {"lr": run.lr, "eps": run.eps, "diagnostics": run.diagnostics()}
        delta_path, delta_bytes = os.path.join(self.run_dir, DELTA_FILE), None
        if not fit.interrupted:
            content["after"] = self._evaluate(run)
            delta_bytes = run.save_delta(delta_path)
        before, after = content.get("before") or {}, {} if fit.interrupted else content.get("after") or {}
        result = {}
        for key in ("accuracy", "loss"):
            result |= {f"{key}_before": before.get(key), f"{key}_after": after.get(key)}
        result |= {"steps": fit.steps, "steps_skipped": fit.steps_skipped, "train_seconds": fit.train_seconds}
        for key in ("auc", "accuracy_calibrated"):
            result |= {f"{key}_before": before.get(key), f"{key}_after": after.get(key)}
        result |= {
            "peak_rss_bytes": max(fit.peak_rss_bytes, memory.peaks()[0]),
            "rss_at_open_bytes": run.rss_at_open_bytes,
            "delta_bytes": delta_bytes,
            "delta_path": delta_path if delta_bytes is not None else None,
            "run_dir": self.run_dir,
        }
        content["result"] = metrics.plain(result)
        write_run(self.run_dir, content)
        return fit.interrupted, result


def resumed(run_dir, overrides: dict) -> tuple[dict, object, str]:
    """(settings, method, verb) of the run in a folder, with `overrides` of settings that change no bit of it."""
    found = read_run(run_dir)
    defaults = {o.name: o.default for o in options.RUN_OPTIONS}  # of options the run's release did not have
    settings = {**defaults, **found["settings"], **overrides, "run_dir": os.path.abspath(run_dir)}
    for o in options.RUN_OPTIONS:
        if settings[o.name] is not None:
            settings[o.name] = options.converted(o.convert, settings[o.name], f"{o.name} of {run_dir}/{RUN_FILE}")
    try:
        method = from_dict(found["method"])
    except ArgumentError as e:
        raise FormatError(f"[run] the method in {run_dir}/{RUN_FILE}: {bare(e)}; edited by hand?") from None
    return settings, method, found.get("verb") or "train"
