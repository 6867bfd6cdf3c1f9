"""What the figures of `benchmarks.methods` say: targets, and tables for docs/measured.md."""

from __future__ import annotations

from . import common
from .methods_memory import NF4, Case
from .methods_queries import CASES
from .methods_rows import RANK, Row, all_rows, row_of

CHEAP, SIDE_PRODUCTS, SUBSET = 1.1, 1.05, 1.0
TEZO_ADAM, OVER_NF4, ONE_VISIT = 1.05, 0.5, 0.5


def time_targets(rows: list[Row], found: dict[str, dict]) -> list[dict]:
    out = []
    for row in (row for row in rows if row.label in found):
        r = found[row.label]
        why = r.get("not_run", "")
        if row.index_set or row.rank:
            most = CHEAP if row.rank <= RANK else round(SIDE_PRODUCTS + r.get("flop_share", 0.0), 3)
            name = f"{row.label}: step / two bare forwards, per branch"
            out.append(common.target(name, r.get("per_branch"), at_most=most, why=why))
        if row.label == "lezo":
            out.append(common.target("lezo: step / MeZO's", r.get("over_mezo"), at_most=SUBSET, why=why))
    return out


def memory_targets(found: dict[str, dict]) -> list[dict]:
    out = []
    sensitive = Case(row_of(kind="sensitive"), nf4=True)
    plain = found.get("mezo", {})
    for label, most in ((row_of(kind="tezo-adam").label, TEZO_ADAM), (sensitive.label, OVER_NF4)):
        r = found.get(label)
        if r is None:
            continue
        for what, key in (("process", "process_mib"), ("above open", "above_open_mib")):
            both = key in r and key in plain
            why = r.get("not_run") or plain.get("not_run") or "not measured"
            if both and NF4 not in label and r["values"] != plain["values"]:
                both, why = False, f"trains {r['values']}, MeZO {plain['values']}"
            measured = r[key] / plain[key] if both else None
            out.append(common.target(f"{label}: peak / MeZO's, {what}", measured, at_most=most, why=why))
    return out


def queries_targets(found: dict[str, dict]) -> list[dict]:
    out = []
    for case in (c for c in CASES if c.tokens == CASES[0].tokens and c.label in found):
        r = found[case.label]
        name = f"{case.label}: one visit / {case.queries} steps"
        out.append(common.target(name, r.get("ratio"), at_most=ONE_VISIT, why=r.get("not_run", "")))
    return out


def targets(part: str, found: dict[str, dict]) -> list[dict]:
    """The lines of the table of what must be shown of a part, of the rows that figures by label are of."""
    if part == "time":
        return time_targets(all_rows(), found)
    return memory_targets(found) if part == "memory" else queries_targets(found)


# ---------------------------------------------------------------------------------------------------------------- tables


def _table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *lines])


def _rows(head: list[str], found: dict[str, dict], cells) -> str:
    lines = []
    for label, r in found.items():
        missing = [f"not run: {r.get('not_run')}", *[""] * (len(head) - 2)]
        lines.append([label, *(missing if "not_run" in r else cells(r))])
    return _table(head, lines)


def _time(found: dict[str, dict]) -> str:
    head = ["method", "step, s", "of two bare forwards (quartiles)", "branches", "per branch", "of MeZO's step"]

    def cells(r: dict) -> list[str]:
        spread = f"{r['ratio']:.3f} ({r['ratio_q1']:.3f} to {r['ratio_q3']:.3f})"
        return [f"{r['step_s']:.3f}", spread, str(r["branches"]), f"{r['per_branch']:.3f}", f"{r['over_mezo']:.3f}"]

    return _rows(head, found, cells)


def _memory(found: dict[str, dict]) -> str:
    head = ["method", "process, MiB", "above open, MiB", "of MeZO's above open", "holds, MiB"]
    plain = found.get("mezo", {}).get("above_open_mib")

    def cells(r: dict) -> list[str]:
        share = f"{r['above_open_mib'] / plain:.2f}" if plain else ""
        held = ", ".join(f"{name} {n:g}" for name, n in r["held_mib"].items())
        return [f"{r['process_mib']:.1f}", f"{r['above_open_mib']:.1f}", share, held]

    return _rows(head, found, cells)


def _queries(found: dict[str, dict]) -> str:
    head = ["queries in one visit", "one visit, s", "as steps of one query, s", "ratio (least to most)", "read, MiB"]

    def cells(r: dict) -> list[str]:
        spread = f"{r['ratio']:.2f} ({r['ratio_min']:.2f} to {r['ratio_max']:.2f})"
        read = f"{r['one_visit_read_mib']:.0f}, a step {r['step_read_mib']:.0f}"
        return [f"{r['one_visit_s']:.2f}", f"{r['steps_s']:.2f}", spread, read]

    return _rows(head, found, cells)


def table(part: str, found: dict[str, dict]) -> str:
    """Markdown, a line a row."""
    return {"time": _time, "memory": _memory, "queries": _queries}[part](found)
