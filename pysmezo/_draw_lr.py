"""The drawing child of find-lr, `python -m pysmezo._draw_lr FOUND.json OUT.png`.

Left, where eps was looked for: how far g at eps and at 2 eps are apart, against eps. Right: the running mean of the second difference of the
loss, its standard error as a band, against the number of probes.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from ._draw import ACCENT, INK, SECOND, SOFT, main, pyplot, save

LEAST_PROBES = 4  # of fewer the standard error is too rough to draw


def running(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean, its standard error) of the first 1, 2, ... samples, fp64 [n] each; the error of one is NaN."""
    n = np.arange(1, len(samples) + 1)
    mean = np.cumsum(samples) / n
    # Second moments about the end's mean: about 0 they would cancel where the mean is large.
    about = samples - mean[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = (np.cumsum(about * about) - n * (mean - mean[-1]) ** 2) / (n - 1)
    return mean, np.sqrt(np.maximum(variance, 0.0) / n)


def _eps(ax, found: dict) -> None:
    tried = [t for t in found["eps_tried"] if t["rms_difference"] is not None]
    ax.plot([t["eps"] for t in tried], [t["rms_difference"] for t in tried], color=INK, marker="o", markersize=4)
    ax.axhline(found["agreement"], color=SECOND, linestyle="--", linewidth=1.0, label=f"agree: {found['agreement']:g}")
    ax.axvline(found["eps"], color=ACCENT, linewidth=1.2, label=f"chosen: {found['eps']:.3g}")
    ax.set(xscale="log", ylim=(0, None), xlabel="eps", ylabel="rms difference, relative to g")
    ax.set_xticks([t["eps"] for t in tried], [f"{t['eps']:g}" for t in tried])
    ax.minorticks_off()
    agrees = "" if found["eps_agreed"] else ", the best there was"
    ax.set_title(f"g at eps and 2 eps: eps {found['eps']:.3g}{agrees}", fontsize=10)
    ax.legend(fontsize=8, frameon=False)


def _curvature(ax, found: dict) -> None:
    samples = np.array([np.nan if x is None else x for x in found["samples"]])
    mean, error = running(samples)
    n, mean, error = (x[LEAST_PROBES - 1 :] for x in (np.arange(1, len(samples) + 1), mean, error))
    ax.axhline(0.0, color=SOFT, linewidth=1.0)
    ax.fill_between(n, mean - error, mean + error, color=ACCENT, alpha=0.2, linewidth=0, label="+- standard error")
    ax.fill_between(n, mean - 2 * error, mean + 2 * error, color=ACCENT, alpha=0.1, linewidth=0, label="+- twice it")
    ax.plot(n, mean, color=INK, linewidth=1.4, label="mean")
    ax.set(xlabel="probes", ylabel=f"(l+ + l- - 2 l0) / e$^2$ at e = {found['curvature_eps']:.3g}")
    at_end = "not finite" if found["trace_h"] is None else f"{found['trace_h']:.3g} +- {found['trace_h_error']:.2g}"
    chosen = f"no lr: {found['verdict']}" if found["lr"] is None else f"lr {found['lr']:.3g}"
    ax.set_title(f"tr(H) {at_end}: {chosen}", fontsize=10)
    ax.legend(fontsize=8, frameon=False)


def draw(source, out) -> None:
    with open(source, encoding="utf-8") as f:
        found = json.load(f)
    plt = pyplot()
    panels = [_eps, _curvature] if found["eps_tried"] else [_curvature]
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4), layout="constrained", squeeze=False)
    for ax, panel in zip(axes[0], panels, strict=True):
        panel(ax, found)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    figure.suptitle(found["title"], fontsize=10, color=INK)
    save(figure, out)


if __name__ == "__main__":
    sys.exit(main(draw))
