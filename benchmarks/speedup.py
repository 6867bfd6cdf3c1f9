"""Speed-ups from curves of dev losses. A curve is {forwards: dev loss}; a point that a run did not live to see is inf.

Means of three consecutive losses stand at the middle one's forwards, so that the mean delays nobody. What a method
needs is the first forwards from which on all its means are at most the level, and the level is MeZO's last mean; both
are of the curve averaged over seeds. Speed-up = forwards that MeZO needs / forwards that the row needs; 0 where the
row's own run ends above the level.
"""

from __future__ import annotations

import itertools
import math
import statistics


def mean_curve(curves: list[dict]) -> dict[int, float]:
    """Averaged over seeds, at the points of all of them."""
    points = sorted(set.intersection(*map(set, curves)))
    return {f: statistics.fmean(c[f] for c in curves) for f in points}


def smooth(curve: dict) -> list[tuple[int, float]]:
    """(forwards of the middle one, mean of three consecutive losses)."""
    points = sorted(curve)
    return [(points[i], statistics.fmean(curve[f] for f in points[i - 1 : i + 2])) for i in range(1, len(points) - 1)]


def needed(curve: dict, level: float) -> int | None:
    """Forwards from which on every mean of three is at most the level; None: the last one is not."""
    found = None
    for forwards, loss in reversed(smooth(curve)):
        if not loss <= level:
            break
        found = forwards
    return found


def speed_up(mezo: list[dict], row: list[dict]) -> dict | None:
    """{level, mezo_forwards, row_forwards, speed_up} of the runs' mean curves; None: no three points, or MeZO
    diverged."""
    reference, means = mean_curve(mezo), mean_curve(row)
    if len(reference) < 3 or len(means) < 3 or not math.isfinite(smooth(reference)[-1][1]):
        return None
    level = smooth(reference)[-1][1]
    first, second = needed(reference, level), needed(means, level)
    return {
        "level": level,
        "mezo_forwards": first,
        "row_forwards": second,
        "speed_up": first / second if second else 0.0,
    }


def paired(mezo: dict[int, dict], row: dict[int, dict]) -> dict | None:
    """speed_up over the seeds that both have, with `seeds` and, from two seeds on, `lower` and `upper`: the 95 %
    percentile interval of the bootstrap over pairs. All n^n resamples are counted, none drawn, so it is exact; with
    five pairs it is known to be rather narrow."""
    both = sorted(set(mezo) & set(row))
    if not both:
        return None
    found = speed_up([mezo[s] for s in both], [row[s] for s in both])
    if found is None:
        return None
    found["seeds"] = len(both)
    if len(both) > 1:
        # The same multiset of pairs has the same curves: counted by how many orders it has.
        ratios: list[tuple[float, int]] = []
        for chosen in itertools.combinations_with_replacement(both, len(both)):
            orders = math.factorial(len(both))
            for s in set(chosen):
                orders //= math.factorial(chosen.count(s))
            one = speed_up([mezo[s] for s in chosen], [row[s] for s in chosen])
            ratios.append((one["speed_up"] if one else 0.0, orders))
        found["lower"], found["upper"] = percentile(ratios, 0.025), percentile(ratios, 0.975)
    return found


def percentile(counted: list[tuple[float, int]], p: float) -> float:
    """The least value with at least a share p of the counts at or below it."""
    total, below = sum(n for _, n in counted), 0
    for value, n in sorted(counted):
        below += n
        if below >= p * total:
            return value
    raise ValueError("no values")


def predicted(row: dict, mezo: dict) -> tuple[float, float] | None:
    """(speed-up per forward that the diagnostics predict, its standard error); None: a curvature is lost in its noise.

    Along the best lr a step lowers the loss by Q g^2 / tr(H) up to a constant, Q queries of them averaged, and costs S
    forwards. That is of the direction and the query plan only: what moments or signs do is not in it.
    """
    if not all(r["trace_h"] > 2 * r["trace_h_error"] for r in (row, mezo)):
        return None

    def per_forward(r):
        return r["grad_square"] / r["trace_h"] * r["queries"] / r["branches"]

    def relative(r):
        return (r["trace_h_error"] / r["trace_h"]) ** 2 + (r["grad_square_error"] / r["grad_square"]) ** 2

    same = row["probes_of"] == mezo["probes_of"]
    ratio = per_forward(row) / per_forward(mezo)
    return ratio, 0.0 if same else ratio * math.sqrt(relative(row) + relative(mezo))
