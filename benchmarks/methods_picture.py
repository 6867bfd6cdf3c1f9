"""The drawing child of `benchmarks.methods`, `python -m benchmarks.methods_picture FIGURES.json OUT.png`: peak memory of a
step by method, a bar a row in parts by purpose."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pysmezo._draw import INK, pyplot, save
from pysmezo._draw_memory import COLORS, UNNAMED
from pysmezo.held import AT_OPEN, MAPPED

REST = "mapped base and scratch"


def parts_of(r: dict) -> dict[str, float]:
    """MiB by purpose, which add up to the peak: what is counted, as far as the peak has room for it, then the rest."""
    out = {AT_OPEN: max(0.0, r["process_mib"] - r["above_open_mib"])}
    left = r["process_mib"] - out[AT_OPEN]
    for name, n in r["held_mib"].items():
        if name not in (AT_OPEN, MAPPED):
            out[name] = min(n, left)
            left -= out[name]
    return out | {REST: left}


def draw(figures: dict, out) -> None:
    plt = pyplot()
    rows = [(label, parts_of(r)) for label, r in figures["rows"].items() if "not_run" not in r]
    used = {name for _, parts in rows for name, n in parts.items() if n > 0}
    names = [n for n in COLORS if n in used] + sorted(used - set(COLORS) - {REST}) + [REST]
    figure, ax = plt.subplots(figsize=(11, 1.2 + 0.28 * len(rows)), layout="constrained")
    labels, left = [label for label, _ in rows], [0.0] * len(rows)
    for name in names:
        values = [parts.get(name, 0.0) for _, parts in rows]
        color = COLORS[MAPPED] if name == REST else COLORS.get(name, UNNAMED)
        ax.barh(labels, values, left=left, color=color, height=0.7, label=name)
        left = [a + b for a, b in zip(left, values, strict=True)]
    for i, total in enumerate(left):
        ax.text(total, i, f" {total:.0f}", va="center", fontsize=8, color=INK)
    ax.invert_yaxis()
    ax.set(title=figures["title"], xlabel="MiB, peak of the whole process", xlim=(0, 1.08 * max(left)))
    ax.title.set_fontsize(10)
    ax.margins(y=0.01)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, framealpha=0.85, edgecolor="none", loc="lower right")
    save(figure, out)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2])
