"""The drawing child of `bench memory`, `python -m pysmezo._draw_memory ROWS.jsonl OUT.png`.

Left: what is resident over time by purpose, and the lines it is to stay below. Right: the same at its largest, a bar a
purpose in the order of the areas, whose legend they are; a tick is what was planned.
"""

from __future__ import annotations

import os
import sys

import numpy as np

from . import held
from ._draw import ACCENT, INK, MIB, SECOND, SOFT, main, pyplot, save

# From the bottom to the top.
COLORS = {
    held.AT_OPEN: SOFT,
    held.MAPPED: "#8796a5",
    "working copies": "#174f7f",
    "index sets": "#7b5aa6",
    "supports": "#b79ad6",
    "moments": "#d67f9a",
    "factors": "#7fb8d6",
    "scales": "#d9a441",
    "resident units": "#3f8f6b",
    "forward": "#8cc5a2",
    "ring": "#6aaede",
    held.OPENING: "#e6d3a8",
    held.OTHER: "#dfe4e9",
    held.UNKNOWN: "#d0342c",
}
UNNAMED = "#c98bb4"  # of a purpose that is not in the table
MOST_NUMBERS = 30  # of steps that have room above the axis
NARROW = 0.05  # of the axis: a phase without room for its name
HEADROOM = 1.12


def _lines(ax, rows, samples, top: float) -> None:
    run, before = rows[0], held.at_open(rows)
    x = [r["s"] for r in samples]
    ax.plot(x, [held.resident_bytes(r) / MIB for r in samples], color=INK, linewidth=1.2, label="resident, measured")
    since_open = [r for r in samples if r["phase"] != held.STARTING]
    peak = max(since_open, key=lambda r: r["peak_rss_bytes"])  # the first of equals: when it was reached
    n = peak["peak_rss_bytes"] / MIB
    ax.plot(peak["s"], n, color=INK, marker="o", markersize=4, linestyle="none", label=f"its peak: {n:.1f} MiB")
    if run["budget_bytes"] is not None:
        n = (before + run["budget_bytes"]) / MIB
        ax.axhline(n, color=SECOND, linewidth=1.6, label=f"process at open + budget: {n:.1f} MiB")
    n = (before + run["planned"]["predicted_peak_bytes"]) / MIB
    ax.axhline(n, color=ACCENT, linestyle="--", linewidth=1.2, label=f"planned peak: {n:.1f} MiB")
    group = [(r["s"], r["cgroup_bytes"] / MIB) for r in samples if "cgroup_bytes" in r]
    # A group that holds much else would only flatten the rest.
    if group and max(n for _, n in group) <= top:
        ax.plot(*zip(*group, strict=True), color=INK, linewidth=0.8, linestyle=":", label="its control group")


def _phases(ax, rows, end: float, top: float) -> None:
    """Where each begins, and its name above the axis where there is room."""
    begins = [(0.0, held.STARTING), (next(r["s"] for r in rows if r["type"] == held.OPENING), held.OPENING)]
    ends = [r["s"] for r in rows if r["type"] == "held"]
    begins += [(s, f"step {k}" if k == 1 else str(k)) for k, s in enumerate(ends[:-1], 1)]
    every = -(-len(ends) // MOST_NUMBERS)
    for i, (begin, name) in enumerate(begins):
        if name.isdigit() and int(name) % every:
            continue
        ax.axvline(begin, color=INK, linewidth=0.5, alpha=0.25)
        until = begins[i + 1][0] if i + 1 < len(begins) else end
        if name.isdigit() or until - begin > NARROW * end:
            ax.text((begin + until) / 2, top, name, ha="center", va="bottom", fontsize=7, color=INK)


def _over_time(ax, rows, parts, names) -> None:
    samples = [row for row, _ in parts]
    x = [row["s"] for row in samples]
    values = np.array([[found.get(name, 0) / MIB for _, found in parts] for name in names])
    ax.stackplot(x, values, colors=[COLORS.get(name, UNNAMED) for name in names], linewidth=0)
    run = rows[0]
    above = max(run["budget_bytes"] or 0, run["planned"]["predicted_peak_bytes"])
    top = HEADROOM * max((held.at_open(rows) + above) / MIB, values.sum(axis=0).max())
    _lines(ax, rows, samples, top)
    _phases(ax, rows, x[-1], top)
    ax.set(xlabel="seconds", ylabel="MiB", ylim=(0, top), xlim=(0, x[-1]))
    ax.legend(fontsize=8, framealpha=0.85, edgecolor="none", loc="lower right")


def _at_largest(ax, rows, parts, names) -> None:
    row, found = max(parts, key=lambda p: held.resident_bytes(p[0]))
    planned = rows[0]["planned"]["bytes_by_purpose"]
    names = [name for name in names if found.get(name) or planned.get(name)]
    values = [found.get(name, 0) / MIB for name in names]
    plans = [planned.get(name, 0) / MIB for name in names]
    ax.barh(names, values, color=[COLORS.get(name, UNNAMED) for name in names], height=0.65)
    for i, (name, v, plan) in enumerate(zip(names, values, plans, strict=True)):
        if name in planned:
            ax.plot(plan, i, color=ACCENT, marker="|", markersize=12, markeredgewidth=1.4, linestyle="none")
        ax.text(max(v, plan), i, f"  {v:.1f}", va="center", fontsize=8, color=INK)
    title = f"{held.resident_bytes(row) / MIB:.1f} MiB, in {row['phase']} (ticks: planned)"
    ax.set(title=title, xlabel="MiB", xlim=(0, 1.2 * max(*values, *plans)))


def draw(samples_path, out) -> None:
    plt = pyplot()
    rows = held.read(samples_path)
    parts = held.purposes(rows)
    used = {name for _, found in parts for name, n in found.items() if n}
    names = [name for name in COLORS if name in used] + sorted(used - set(COLORS))
    figure, axes = plt.subplots(1, 2, figsize=(14, 4.6), width_ratios=(2.4, 1), layout="constrained")
    _over_time(axes[0], rows, parts, names)
    _at_largest(axes[1], rows, parts, names)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    run = rows[0]
    fields = ", ".join(f"{k} {v}" for k, v in run["method"].items() if k in ("sparsity", "fraction", "queries"))
    name = os.path.basename(run["model"].rstrip("/"))
    text = f"{name}: {run['method']['kind']} ({fields}), {run['batch']} texts of {run['length']} tokens"
    figure.suptitle(text, fontsize=10, color=INK)
    save(figure, out)


if __name__ == "__main__":
    sys.exit(main(draw))
