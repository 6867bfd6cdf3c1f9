"""What the rows of the learning comparison say: paired differences with t intervals over seeds, and dev loss against
forwards."""

from __future__ import annotations

import math
import statistics

from .common import target

NAMES = {"mezo": "MeZO", "random-mask": "RandomMask(0.75)", "sparse-mezo": "SparseMeZO(0.75)"}
# Student's t, 97.5 % point, by degrees of freedom.
T975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
MOST_LOST = -0.02  # of test accuracy by an NF4 base
MEASURES = {
    "test_loss": "cross-entropy",
    "test_accuracy": "accuracy",
    "test_auc": "AUC",
    "test_accuracy_calibrated": "calibrated accuracy",
}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of the 95 % t interval; the width is infinite for one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.inf
    return mean, T975[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def finals(rows: list[dict], kind: str = "final/rt") -> dict[str, dict[int, dict]]:
    """method -> seed -> row of the finished runs whose piece begins with `kind`."""
    out: dict = {}
    for r in rows:
        if r["piece"].startswith(kind + "/") and "test_loss" in r:
            out.setdefault(r["method"], {})[r["seed"]] = r
    return out


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _head(cells: list[str]) -> list[str]:
    return [_line(cells), _line(["---"] * len(cells))]


def _runs(title: str, chosen: list[dict]) -> list[str]:
    out = [
        "",
        title,
        "",
        *_head(["run", "lr", "eps", *MEASURES.values(), "surviving perturbation", "density at start, end"]),
    ]
    for r in chosen:
        label = f"{NAMES[r['method']]}, {r['noise']}, {r['operand']}, seed {r['seed']}"
        scores = ["-" if r[m] is None else f"{r[m]:.4f}" for m in MEASURES]
        out.append(
            _line(
                [
                    label,
                    f"{r['lr']:.3g}",
                    f"{r['eps']:.3g}",
                    *scores,
                    f"{r['survival_end']:.3f}",
                    f"{r['density_start']:.4f}, {r['density_end']:.4f}",
                ]
            )
        )
    return out


def _paired(a: dict[int, dict], b: dict[int, dict], measure: str) -> dict | None:
    """Runs a less runs b, seed by seed: mean and 95 % t interval; None where no seed has both."""
    both = sorted(set(a) & set(b))
    if not both:
        return None
    mean, half = interval([a[s][measure] - b[s][measure] for s in both])
    return {"mean": mean, "lower": mean - half, "upper": mean + half, "seeds": len(both)}


def differences(rows: list[dict]) -> list[tuple[str, str, str, dict]]:
    """(method, other method, measure, the paired difference of the final runs)."""
    found = finals(rows)
    pairs = (("sparse-mezo", "mezo"), ("sparse-mezo", "random-mask"), ("random-mask", "mezo"))
    out = [(a, b, m, _paired(found.get(a, {}), found.get(b, {}), m)) for a, b in pairs for m in MEASURES]
    return [row for row in out if row[3]]


# What runs over an NF4 base are called in keys -> whose lr and eps they have.
OVER_NF4 = {"nf4/rt": "of the bf16 base", "nf4-tuned/rt": "its own"}


def nf4_less_bf16(rows: list[dict], kind: str = "nf4-tuned/rt") -> dict | None:
    """Test accuracy over an NF4 base less that over the bf16 base."""
    over_nf4, over_bf16 = (finals(rows, k).get("sparse-mezo", {}) for k in (kind, "final/rt"))
    return _paired(over_nf4, over_bf16, "test_accuracy")


def result(rows: list[dict]) -> dict:
    """{rows, targets} of `--json`."""
    named = {f"{NAMES[a]} less {NAMES[b]}, {MEASURES[m]}": found for a, b, m, found in differences(rows)}
    nf4 = nf4_less_bf16(rows)
    name = "test accuracy over NF4 less that over bf16, lower end"
    return {
        "rows": named,
        "targets": [target(name, nf4 and nf4["lower"], at_least=MOST_LOST, why="stage 7 is not done")],
    }


def _nf4(rows: list[dict]) -> list[str]:
    found = {whose: nf4_less_bf16(rows, kind) for kind, whose in OVER_NF4.items()}
    if not any(found.values()):
        return []
    out = ["", "NF4 base less bf16 base, SparseMeZO(0.75), test accuracy, seed by seed", ""]
    out += _head(["lr and eps", "seeds", "mean", "lower end of the 95 % t interval", "reading"])
    for whose, r in found.items():
        if r:
            reading = f"{'above' if r['lower'] > MOST_LOST else 'not above'} {MOST_LOST:+.2f}"
            out.append(_line([whose, str(r["seeds"]), f"{r['mean']:+.4f}", f"{r['lower']:+.4f}", reading]))
    return out


def table(rows: list[dict]) -> str:
    out = [
        "Stage 0: diagnostics",
        "",
        *_head(
            [
                "method",
                "data",
                "eps",
                "g at eps and 2 eps differ by",
                "tr(H)",
                "lr by it",
                "surviving perturbation",
                "density",
            ]
        ),
    ]
    for r in rows:
        if r["piece"].startswith("diagnose/"):
            _, task, name, *_ = r["piece"].split("/")
            trace = f"{r['trace_h']:.4g} +- {r['trace_h_error']:.2g}" if r["trace_h"] else "lost in noise"
            out.append(
                _line(
                    [
                        NAMES[name],
                        task,
                        f"{r['eps']:.3g}",
                        f"{r['eps_rms_difference']:.3f}",
                        trace,
                        f"{r['lr']:.3g}",
                        f"{r['survival']:.3f}",
                        f"{r['density']:.4f}",
                    ]
                )
            )
    out += [
        "",
        "Stage 1: dev cross-entropy after 200 steps",
        "",
        *_head(["method", "lr", "dev cross-entropy", "dev accuracy"]),
    ]
    for r in sorted(
        (r for r in rows if r["piece"].startswith("tune/") and "dev_loss" in r), key=lambda r: (r["method"], r["lr"])
    ):
        out.append(_line([NAMES[r["method"]], f"{r['lr']:.3g}", f"{r['dev_loss']:.4f}", f"{r['dev_accuracy']:.3f}"]))
    found = finals(rows)
    if not found:
        return "\n".join([*out, "", "No final run is finished yet."])
    seeds = sorted(set.union(*(set(s) for s in found.values())))
    out += ["", f"Stages 2 and 3: means over seeds ({', '.join(map(str, seeds))}), 95 % t intervals", ""]
    out += _head(["method", "runs", *MEASURES.values()])
    for name, by_seed in found.items():
        cells = []
        for m in MEASURES:
            mean, half = interval([r[m] for r in by_seed.values()])
            cells.append(f"{mean:.4f} +- {half:.4f}")
        out.append(_line([NAMES[name], str(len(by_seed)), *cells]))
    out += [
        "",
        "Paired differences, seed by seed",
        "",
        *_head(["difference", "measure", "seeds", "mean", "95 % interval", "reading"]),
    ]
    for a, b, m, d in differences(rows):
        better = (d["mean"] < 0) == (m == "test_loss")
        shown = not d["lower"] <= 0 <= d["upper"]
        reading = f"{NAMES[a if better else b]} better" if shown else "inside its interval: no difference shown"
        what = [f"{NAMES[a]} - {NAMES[b]}", MEASURES[m], str(d["seeds"])]
        out.append(_line([*what, f"{d['mean']:+.4f}", f"{d['lower']:+.4f} to {d['upper']:+.4f}", reading]))
    out += _runs("Every run on Rotten Tomatoes", [r for s in found.values() for r in s.values()])
    for title, kind in (
        ("SMS spam", "final/spam"),
        ("Operand split", "split/rt"),
        ("Kinds of noise", "noise/rt"),
        *((f"Base in NF4, lr and eps {whose}", kind) for kind, whose in OVER_NF4.items()),
    ):
        chosen = [r for r in rows if r["piece"].startswith(kind + "/") and "test_loss" in r]
        if chosen:
            out += _runs(title, chosen)
    return "\n".join([*out, *_nf4(rows)])


def plot(rows: list[dict], path) -> None:
    """Dev cross-entropy and accuracy against forwards: mean over seeds, shaded from least to greatest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
    for name, by_seed in finals(rows).items():
        for axis, measure in zip(axes, ("loss", "accuracy"), strict=True):
            curves = [{c["forwards"]: c[measure] for c in r["curve"]} for r in by_seed.values()]
            x = sorted(set.intersection(*(set(c) for c in curves)))
            values = [[c[f] for c in curves] for f in x]
            (drawn,) = axis.plot(x, [statistics.fmean(v) for v in values], label=f"{NAMES[name]} ({len(curves)} seeds)")
            axis.fill_between(
                x, [min(v) for v in values], [max(v) for v in values], alpha=0.15, color=drawn.get_color()
            )
    for axis, label in zip(axes, ("dev cross-entropy", "dev accuracy"), strict=True):
        axis.set_xlabel("forwards of a batch of 16")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
