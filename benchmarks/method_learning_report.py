"""What the rows of benchmarks.method_learning say: speed-ups, differences, targets."""

from __future__ import annotations

import math
import statistics

from . import speedup
from .common import target
from .learning_report import MOST_LOST, _paired
from .method_learning_rows import COMPARED, FULL, MORE, NAMED, NAMES, TASKS, Sizes

AIM = 2.0


def curve_of(run: dict) -> dict[int, float]:
    """forwards -> dev loss; inf from where the run diverged."""
    return {c["forwards"]: math.inf if c["loss"] is None else c["loss"] for c in run["curve"]}


def finished(rows: list[dict], kind: str, task: str) -> dict[str, dict[int, dict]]:
    """name -> seed -> row of the finished runs."""
    out: dict = {}
    for r in rows:
        if r["piece"].startswith(f"{kind}/{task}/") and "curve" in r:
            out.setdefault(r["name"], {})[r["seed"]] = r
    return out


def by_piece(rows: list[dict]) -> dict[str, dict]:
    return {r["piece"]: r for r in rows}


def why_not(rows: list[dict], task: str) -> str:
    """Why something of a task is missing."""
    return by_piece(rows).get(f"data/{task}", {}).get("not_run") or "its turn has not come"


def speed_ups(rows: list[dict], task: str) -> dict[str, dict]:
    """name -> speedup.paired against MeZO, with what the diagnostics predicted."""
    found, out, seen = finished(rows, "run", task), {}, by_piece(rows)
    mezo = {s: curve_of(r) for s, r in found.get("mezo", {}).items()}
    for name in COMPARED[1:]:
        one = speedup.paired(mezo, {s: curve_of(r) for s, r in found.get(name, {}).items()})
        if one:
            both = [seen.get(f"diagnose/{task}/{n}") for n in (name, "mezo")]
            out[name] = one | {"predicted": speedup.predicted(*both) if all(both) else None}
    return out


def accuracy(rows: list[dict], task: str) -> dict[str, dict]:
    """name -> paired difference of test accuracy to MeZO."""
    found = finished(rows, "run", task)
    pairs = {n: _paired(found.get(n, {}), found.get("mezo", {}), "test_accuracy") for n in COMPARED[1:]}
    return {n: d for n, d in pairs.items() if d}


def of_all_seeds(rows: list[dict], task: str) -> dict | None:
    """Paired difference of test accuracy, Sensitive over NF4 less MeZO, stage 6 with the others; None before it began."""
    more = finished(rows, "more", task)
    mezo, sensitive = (finished(rows, "run", task).get(n, {}) | more.get(n, {}) for n in MORE)
    return _paired(sensitive, mezo, "test_accuracy") if more else None


def result(rows: list[dict], sizes: Sizes = FULL) -> dict:
    """{rows, targets} of the final JSON."""
    named, targets = {}, []
    for task, words in TASKS.items():
        speeds, pairs, found = speed_ups(rows, task), accuracy(rows, task), finished(rows, "run", task)
        for name in COMPARED:
            runs = found.get(name, {})
            why = {"not_run": why_not(rows, task)}
            losses = [math.inf if r["dev_loss"] is None else r["dev_loss"] for r in runs.values()]
            one: dict = {"seeds": len(runs), "dev_loss": statistics.fmean(losses)} if runs else why
            if runs and not math.isfinite(one["dev_loss"]):
                one["dev_loss"] = None
            if name in pairs and math.isfinite(pairs[name]["lower"]):
                one["accuracy_less_mezo"] = pairs[name]["mean"]
                one["lower_end"] = pairs[name]["lower"]
            one |= {k: v for k, v in speeds.get(name, {}).items() if k != "seeds"}
            named[f"{NAMES[name]}, {words}"] = one
        for name in NAMED:
            have = speeds.get(name, {"seeds": 0})
            whole = have["seeds"] >= sizes.seeds
            why = f"{have['seeds']} of {sizes.seeds} seeds"
            if not have["seeds"]:
                both = set(found.get("mezo", {})) & set(found.get(name, {}))
                why = "MeZO's last losses are not finite" if both else why_not(rows, task)
            measured = have["speed_up"] if whole else None
            targets.append(target(f"speed-up of {NAMES[name]}, {words}", measured, at_least=AIM, why=why))
    for task, words in TASKS.items():
        d = accuracy(rows, task).get("sensitive")
        measured = d["lower"] if d and d["seeds"] >= sizes.seeds else None
        name = f"test accuracy of {NAMES['sensitive']} less MeZO, {words}, lower end"
        targets.append(target(name, measured, at_least=MOST_LOST, why=why_not(rows, task)))
    for task, words in TASKS.items():
        if d := of_all_seeds(rows, task):
            named[f"{NAMES['sensitive']} less MeZO, all seeds, {words}"] = d
    return {"rows": named, "targets": targets}
