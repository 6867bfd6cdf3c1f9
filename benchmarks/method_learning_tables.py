"""The results of benchmarks.method_learning as text. Whatever is not there is said to be not run."""

from __future__ import annotations

import math

from . import speedup
from .learning_report import _line, interval
from .method_learning_report import accuracy, by_piece, curve_of, finished, of_all_seeds, speed_ups, why_not
from .method_learning_rows import COMPARED, FULL, TASKS, Sizes, label, others

OF_PREDICTION = (
    "Predicted: queries / forwards * g^2 / tr(H), over MeZO's. It is of directions and query plan only: what moments, "
    "signs or divided scalars do is not in it."
)
SCORES = {"test_accuracy": "test accuracy", "dev_loss": "last dev loss"}


def _number(x, form: str = ".3g") -> str:
    return "-" if x is None else format(x, form)


def _times(found: dict) -> str:
    """A speed-up with its interval; 0 is a row that did not get there."""

    def one(x):
        return f"{x:.2f}" if x else "not reached"

    between = f" ({one(found['lower'])} to {one(found['upper'])})" if "lower" in found else " (one seed)"
    return one(found["speed_up"]) + between


def _predicted(found: tuple | None) -> str:
    return "curvature lost in noise" if found is None else f"{found[0]:.2f} +- {found[1]:.2f}"


def _not_run(names: list[str], why: str) -> list[str]:
    return ["", f"not run: {', '.join(names)}: {why}"] if names else []


def _head(title: str, columns: list[str]) -> list[str]:
    """A section's title and, where there are rows for it, the head of its table."""
    return ["", title, *(["", _line(columns), _line(["---"] * len(columns))] if columns else [])]


# ----------------------------------------------------------------------------------------------------------- tables


def _diagnostics(rows: list[dict]) -> list[str]:
    from pysmezo.methods import METHODS

    out = []
    for task, words in TASKS.items():
        found = {r["piece"].split("/")[2]: r for r in rows if r["piece"].startswith(f"diagnose/{task}/")}
        expected = tuple(METHODS) if task == "rt" else COMPARED
        missing = [label(n) for n in expected if n not in found]
        head = "row,forwards a step,eps,rms of g,mean g^2,tr(H),probes,surviving perturbation,density,lr by find-lr"
        columns = [*head.split(","), "speed-up per forward that they predict"]
        out += _head(f"Diagnostics, {words}", columns if found else [])
        for name, r in found.items():
            cells = [str(r["branches"]), f"{r['eps']:.3g}", f"{r['grad_rms']:.3g}"]
            cells.append(f"{r['grad_square']:.3g} +- {r['grad_square_error']:.2g}")
            cells.append(f"{r['trace_h']:.3g} +- {r['trace_h_error']:.2g}")
            same = "" if r["probes_of"] == name else f", those of {label(r['probes_of'])}"
            rule = "" if r["lr_rule"] == "find-lr" else f", {r['lr_rule']}"
            cells += [f"{r['n_probes']}{same}", f"{r['survival']:.3f}", f"{r['density']:.4f}", f"{r['lr']:.3g}{rule}"]
            cells.append(_predicted(speedup.predicted(r, found["mezo"])) if "mezo" in found else "-")
            out.append(_line([label(name), *cells]))
        out += ["", OF_PREDICTION] if "mezo" in found else []
        out += _not_run(missing, why_not(rows, task))
    return out


def _lrs(rows: list[dict], sizes: Sizes) -> list[str]:
    seen, out = by_piece(rows), []
    for task, words in TASKS.items():
        there = [n for n in COMPARED if f"lr/{task}/{n}" in seen]
        columns = ["row", "dev loss by lr", "taken", "eps", "interior"]
        out += _head(f"lr: dev loss after {sizes.tune} forwards, {words}", columns if there else [])
        for name in there:
            r = seen[f"lr/{task}/{name}"]
            tried = ", ".join(f"{lr:.3g}: {_number(loss, '.4f') if loss else 'diverged'}" for lr, loss in r["tried"])
            interior = "yes" if r["interior"] else "no"
            out.append(_line([label(name), tried, f"{r['lr']:.3g}", f"{r['eps']:.3g}", interior]))
        out += _not_run([label(n) for n in COMPARED if n not in there], why_not(rows, task))
    return out


def _speeds(rows: list[dict], task: str, sizes: Sizes) -> list[str]:
    found, speeds = finished(rows, "run", task), speed_ups(rows, task)
    columns = [
        "row",
        "seeds",
        *SCORES.values(),
        "forwards needed",
        "by MeZO",
        "speed-up (95 %)",
        "predicted per forward",
    ]
    out = _head(f"Speed-up at equal forwards, {TASKS[task]}", columns if found else [])
    for name in (n for n in COMPARED if n in found):
        runs, one = list(found[name].values()), speeds.get(name)
        cells = [str(len(runs))]
        for key in SCORES:
            values = [r[key] for r in runs]
            if None in values:
                cells.append("diverged")
                continue
            mean, half = interval(values)
            cells.append(f"{mean:.4f}" + (f" +- {half:.4f}" if math.isfinite(half) else ""))
        if one:
            needed = str(one["row_forwards"] or "not reached"), str(one["mezo_forwards"])
            cells += [*needed, _times(one), _predicted(one["predicted"])]
        else:
            cells += ["-"] * 4
        out.append(_line([label(name), *cells]))
    left = {n: [str(s) for s in range(sizes.seeds) if s not in found.get(n, {})] for n in COMPARED}
    missing = [f"{label(n)} (seeds {' '.join(seeds)})" for n, seeds in left.items() if seeds]
    return out + _not_run(missing, why_not(rows, task))


def _differences(rows: list[dict], task: str) -> list[str]:
    pairs = [(f"{label(name)} less MeZO", d) for name, d in accuracy(rows, task).items()]
    if d := of_all_seeds(rows, task):
        pairs.append((f"{label('sensitive')} less MeZO, with stage 6", d))
    out = []
    for words, d in pairs:
        if math.isfinite(d["lower"]):
            cells = [f"{d['mean']:+.4f}", f"{d['lower']:+.4f} to {d['upper']:+.4f}"]
            out.append(_line([words, str(d["seeds"]), *cells]))
    columns = ["difference", "seeds", "mean", "95 % t interval"]
    return [*_head(f"Test accuracy, seed by seed, {TASKS[task]}", columns), *out] if out else []


def _others(rows: list[dict], names: list[str]) -> list[str]:
    found, mezo = finished(rows, "other", "rt"), finished(rows, "run", "rt").get("mezo", {})
    columns = ["row", "lr", "forwards", "dev loss", "dev accuracy", "MeZO's dev loss there"]
    out = _head("The other rows, one seed on the demo task, lr not tuned", columns if found else [])
    for name in (n for n in names if n in found):
        for seed, r in found[name].items():
            there = curve_of(mezo[seed]).get(r["forwards"]) if seed in mezo else None
            cells = [f"{r['lr']:.3g}", str(r["forwards"])]
            cells += (
                ["diverged", "-"] if r["dev_loss"] is None else [f"{r['dev_loss']:.4f}", f"{r['dev_accuracy']:.3f}"]
            )
            out.append(_line([label(name), *cells, _number(there, ".4f")]))
    return out + _not_run([label(n) for n in names if n not in found], why_not(rows, "rt"))


def table(rows: list[dict], sizes: Sizes = FULL) -> str:
    base = by_piece(rows).get("base/nf4")
    out = [f"Index set over NF4 calibrated on: {base['calibration']}" if base else "not run: the base in NF4"]
    out += _diagnostics(rows) + _lrs(rows, sizes)
    for task in TASKS:
        out += _speeds(rows, task, sizes) + _differences(rows, task)
    return "\n".join(out + _others(rows, list(others())))
