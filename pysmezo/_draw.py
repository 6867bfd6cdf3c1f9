"""The drawing child, `python -m pysmezo._draw RUN_DIR OUT.png`: the only module that imports matplotlib.

Three panels: losses and accuracy against steps, memory against steps beside the size of the base, seconds of a step by
part.
"""

from __future__ import annotations

import os
import sys

import numpy as np

from . import children, metrics
from .errors import ArgumentError, FormatError, PysmezoError

MIB = 2**20
# Steps that the smoothed loss looks back over, as a share of the run.
WINDOW = 0.03
INK, SOFT, ACCENT, SECOND = "#1b1f24", "#b9c2cc", "#1f6fb2", "#c8552b"


def load(run_dir) -> tuple[list[dict], list[dict], dict, dict]:
    """(steps, evaluations, seconds by part, run.json)."""
    lines = metrics.read(run_dir)
    steps = [x for x in lines if "type" not in x]
    path = os.path.join(run_dir, metrics.NAME)
    if not steps:
        raise ArgumentError(f"[report] no step in {path}, expected at least one")
    for step in steps:
        _check(step, path)
    evaluations = [x for x in lines if x.get("type") == "eval"]
    parts: dict[str, float] = {}
    for step in steps:
        for name, seconds in step.get("parts", {}).items():
            parts[name] = parts.get(name, 0.0) + seconds
    try:
        from .session import read_run

        run = read_run(run_dir)
    except PysmezoError:
        run = {}
    return steps, evaluations, parts, run


def _check(step: dict, path: str) -> None:
    """FormatError: a step without what is drawn of it."""
    found = {key: step.get(key) for key in ("seconds", "peak_rss_bytes", "peak_anon_bytes")}
    found["loss"] = 0.0 if step.get("loss", "") is None else step.get("loss")
    parts = step.get("parts", {})
    found |= parts if isinstance(parts, dict) else {"parts": parts}
    for key, value in found.items():
        if not isinstance(value, (int, float)):
            raise FormatError(
                f"[report] step {step['step']} in {path} has {key} {value!r}, expected a number; edited by hand?"
            )


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` finite values at each place."""
    finite = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - window)
    return (total[end] - total[start]) / np.maximum(1, count[end] - count[start])


def _learning(ax, steps, evaluations, run) -> None:
    x = np.array([s["step"] for s in steps])
    loss = np.array([np.nan if s["loss"] is None else s["loss"] for s in steps])
    ax.plot(x, loss, color=SOFT, linewidth=0.6, label="batch loss")
    window = max(10, round(WINDOW * len(steps)))
    ax.plot(x, smoothed(loss, window), color=INK, linewidth=1.4, label=f"mean of the last {window}")
    ax.set(title="Learning", xlabel="step", ylabel="loss (nats)")
    low, high = np.nanpercentile(loss, [0.5, 99.5]) if np.isfinite(loss).any() else (0.0, 1.0)
    ax.set_ylim(low - 0.1 * (high - low) - 1e-3, high + 0.1 * (high - low) + 1e-3)
    right = ax.twinx()
    points = [(e["step"], e["accuracy"]) for e in evaluations if e.get("accuracy") is not None]
    if points:
        right.plot(
            *zip(*points, strict=True), color=ACCENT, marker="o", markersize=3, linewidth=1.2, label="accuracy, dev"
        )
    settings = run.get("settings", {})
    for key, at in (("before", 0), ("after", settings.get("steps"))):
        found = run.get(key) or {}
        if found.get("accuracy") is not None and at is not None:
            label = "accuracy, eval data" if key == "before" else None
            right.plot([at], [found["accuracy"]], color=SECOND, marker="D", markersize=6, linestyle="none", label=label)
    right.set_ylabel("accuracy")
    right.set_ylim(0.3, 1.0) if not points or min(p[1] for p in points) >= 0.3 else right.set_ylim(0, 1)
    lines = [*ax.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    ax.legend(lines, [line.get_label() for line in lines], fontsize=8, frameon=False, loc="upper right")


def _memory(ax, steps, run) -> None:
    x = [s["step"] for s in steps]
    ax.plot(x, [s["peak_rss_bytes"] / MIB for s in steps], color=ACCENT, linewidth=1.6, label="peak of the process")
    ax.plot(x, [s["peak_anon_bytes"] / MIB for s in steps], color=INK, linewidth=1.0, label="of it not backed by files")
    for key, label, color in (
        ("base_bytes", "weights on disk", SECOND),
        ("rss_at_open_bytes", "process at open", SOFT),
    ):
        if run.get(key):
            ax.axhline(run[key] / MIB, color=color, linestyle="--", linewidth=1.0, label=label)
    ax.set(title="Memory", xlabel="step", ylabel="MiB", ylim=(0, None))
    ax.legend(fontsize=8, frameon=False, loc=(0.45, 0.13))


def _parts(ax, steps, parts) -> None:
    n = len(steps)
    total = sum(s["seconds"] for s in steps) / n
    mean = {name: seconds / n for name, seconds in parts.items()}
    # What no part accounts for: the interpreter.
    mean["other"] = mean.get("other", 0.0) + max(0.0, total - sum(mean.values()))
    rows = sorted(mean.items(), key=lambda r: r[1])
    names, values = zip(*rows, strict=True)
    ax.barh(names, [1e3 * v for v in values], color=ACCENT, height=0.65)
    for i, v in enumerate(values):
        ax.text(1e3 * v, i, f" {1e3 * v:.1f}", va="center", fontsize=8, color=INK)
    ax.set(title=f"One step: {1e3 * total:.0f} ms", xlabel="ms a step (mean)", xlim=(0, 1180 * max(max(values), 1e-9)))


def pyplot():
    """matplotlib.pyplot, for files. ArgumentError: it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise ArgumentError(
            "[report] the package matplotlib is not installed, expected it: pip install matplotlib"
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(figure, out) -> None:
    temp = f"{out}.tmp"
    figure.savefig(temp, dpi=130, format="png")
    os.replace(temp, out)


def draw(run_dir, out) -> None:
    plt = pyplot()
    steps, evaluations, parts, run = load(run_dir)
    figure, axes = plt.subplots(1, 3, figsize=(14, 4), width_ratios=(1.5, 1, 1), layout="constrained")
    _learning(axes[0], steps, evaluations, run)
    _memory(axes[1], steps, run)
    _parts(axes[2], steps, parts)
    for ax in figure.axes:
        ax.spines["top"].set_visible(False)
        ax.tick_params(labelsize=8)
    method = run.get("method", {})
    if method:
        fields = ", ".join(f"{k} {v}" for k, v in method.items() if k in ("sparsity", "noise", "queries"))
        figure.suptitle(
            f"{os.path.basename(run['settings']['model'].rstrip('/'))}: {method['kind']} ({fields})",
            fontsize=10,
            color=INK,
        )
    save(figure, out)


def main(drawn) -> int:
    source, out = sys.argv[1:]
    return children.main(lambda: drawn(source, out), "report")


if __name__ == "__main__":
    sys.exit(main(draw))
