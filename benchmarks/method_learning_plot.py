"""The drawing child of benchmarks.method_learning, `python -m benchmarks.method_learning_plot ROWS.jsonl OUT.png`: dev
loss against forwards, mean over seeds and band from least to greatest, a panel a task and one for the other rows."""

from __future__ import annotations

import math
import statistics
import sys

from . import common
from .method_learning_report import curve_of, finished
from .method_learning_rows import COMPARED, TASKS, label


def draw(axis, named: list[tuple[str, list[dict]]]) -> None:
    for i, (name, runs) in enumerate(named):
        curves = [{f: y for f, y in curve_of(r).items() if math.isfinite(y)} for r in runs]
        x = sorted(set.intersection(*map(set, curves)))
        values = [[c[f] for c in curves] for f in x]
        style = "-" if i < 10 else "--"  # the colours begin again
        (line,) = axis.plot(
            x, [statistics.fmean(v) for v in values], style, label=f"{name} ({len(runs)})", linewidth=1.2
        )
        if len(runs) > 1:
            axis.fill_between(x, [min(v) for v in values], [max(v) for v in values], alpha=0.12, color=line.get_color())
    axis.set_xlabel("forwards of a batch of 16")
    axis.set_ylabel("dev cross-entropy")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)


def panels(rows: list[dict]) -> list[tuple[str, list[tuple[str, list[dict]]]]]:
    """(title, [(name, runs)]) of what there is."""
    out = []
    for task, words in TASKS.items():
        found = finished(rows, "run", task)
        out.append((words, [(label(n), list(found[n].values())) for n in COMPARED if n in found]))
    mezo, others = finished(rows, "run", "rt").get("mezo", {}), finished(rows, "other", "rt")
    named = [("MeZO", [mezo[0]])] if 0 in mezo and others else []
    named += [(label(n), list(runs.values())) for n, runs in others.items()]
    return [(title, lines) for title, lines in [*out, ("other rows, seed 0, lr not tuned", named)] if lines]


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    file, out = sys.argv[1:]
    found = panels(common.rows(file))
    if not found:
        raise SystemExit("not run: no finished run to draw")
    figure, axes = pyplot.subplots(1, len(found), figsize=(5.5 * len(found), 4.5), squeeze=False)
    for axis, (title, lines) in zip(axes[0], found, strict=True):
        draw(axis, lines)
        axis.set_title(title, fontsize=10)
        top = [y for _, runs in lines for r in runs for f, y in curve_of(r).items() if f and math.isfinite(y)]
        low = min(top)
        axis.set_ylim(low - 0.02, min(max(top), 2 * statistics.median(top) - low + 0.1))  # what diverges leaves above
    figure.tight_layout()
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main()
