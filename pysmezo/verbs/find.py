"""The verbs find-eps and find-lr: what a run with `auto` would take, measured on the same batches; nothing is trained, and no run folder is
written or read.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice

from .. import autotune, children, data, metrics, options, packing, planning, presets
from ..cli import OK, USAGE
from ..errors import ArgumentError, PysmezoError
from ..progress import WorkProgress, survival
from ..session import open_runtime

DEFAULT_PICTURE = "find-lr.png"


def add_flags(parser, verb: str) -> None:
    parser.add_argument("--config", metavar="F.yaml", help="flags as YAML; flags on the command line win")
    if verb == "find-lr":
        parser.add_argument(
            "--out", metavar="F.png", default=DEFAULT_PICTURE, help=f"the picture, replaced ({DEFAULT_PICTURE})"
        )
        parser.add_argument(
            "--presets", action="store_true", help="only list what papers publish: for reference, nothing here uses it"
        )
    options.add_flags(parser)


def run(arguments, verb: str):
    given = dict(vars(arguments))
    given.pop("json")
    out, config = given.pop("out", None), given.pop("config")
    if given.pop("presets", False):
        print("\n".join(presets.lines()), flush=True)
        return OK, {"presets": [asdict(p) for p in presets.PRESETS]}
    s, method = options.settings({**(options.read_config(config) if config else {}), **given})
    options.require(s, "model", "train", "task")
    if out is None:
        return find_eps(s, method)
    out = options.converted(options.path, out, "--out")
    if os.path.isdir(out) or not os.path.isdir(os.path.dirname(out)):
        raise ArgumentError(f"[{verb}] --out {out}, expected a file in a folder that is there")
    return find_lr(s, method, out)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def opened(s: dict, method):
    """(engine, core batches): the model with these settings and the batches on which a run would measure what is auto."""
    with tempfile.TemporaryDirectory(prefix="pysmezo-find-") as folder:
        planner = planning.planner(s["model"], method, **options.opening(s))
        ids = os.path.join(folder, "tokens-train.ids")
        found = data.tokenize(s["model"], s["train"], s["task"], ids, s["max_length"], s["truncate"])
        if s["memory_budget"] is not None:
            planning.check_budget(planner, {"train": found}, s["batch"], 2)
        with open_runtime(s, method, None) as run:
            for note in run.notes:
                say(f"note: {note}")
            batches = islice(found.batches(run.seed, s["batch"]), autotune.N_LR_PROBES)
            packed = (packing.pack_choices(b.prompts, b.options, b.labels) for b in batches)
            yield run._engine, [planning.core_batch(p) for p in packed]


def _walk(engine, batches) -> autotune.EpsChoice:
    return autotune.find_eps(engine, batches[: autotune.N_EPS_BATCHES], WorkProgress("find-eps", "probe"))


def _of_walk(choice: autotune.EpsChoice) -> list[str]:
    """The walk as lines."""
    rows = [f"{'eps':<10}{'g rms':>10}  differs from that at 2 eps by"]
    return rows + [f"{t.eps:<10.3g}{t.rms_g:>10.3g}  {t.rms_difference:.3f} of it" for t in choice.tried]


def _told(choice: autotune.EpsChoice) -> str:
    if choice.agreed:
        return f"g at eps and 2 eps differ by {choice.rms_difference:.2f}"
    return (
        f"the best there was: g at eps and 2 eps differ by {choice.rms_difference:.2f}, expected {autotune.AGREEMENT:g}"
    )


def _compared(name: str, given, found: float) -> list[str]:
    return [] if given == "auto" else [f"given        --{name} {given:.4g}, {given / found:.2g} x that; not used here"]


def find_eps(s: dict, method):
    with opened(s, method) as (engine, batches):
        choice = _walk(engine, batches)
        survives = engine.surviving_perturbation(choice.eps, 1)
    lines = [*_of_walk(choice), f"suggestion   --eps {choice.eps:.4g} ({_told(choice)})"]
    lines += _compared("eps", s["eps"], choice.eps)
    print("\n".join([*lines, f"perturbation {survival(survives)}"]), flush=True)
    return OK, {
        "eps": choice.eps,
        "rms_difference": choice.rms_difference,
        "agreed": choice.agreed,
        "tried": [asdict(t) for t in choice.tried],
        "surviving_perturbation": survives,
    }


def find_lr(s: dict, method, out: str):
    """Exit code 2 where the curvature is lost in its noise, or negative: picture and JSON (lr null) come all the same."""
    with opened(s, method) as (engine, batches):
        walk = _walk(engine, batches) if s["eps"] == "auto" else None
        eps = walk.eps if walk else s["eps"]
        engine.check_eps(eps)
        choice = autotune.measure_lr(engine, batches, eps, WorkProgress("find-lr", "probe"), method)
        survives = engine.surviving_perturbation(eps, 1)
    found = {
        "lr": choice.lr,
        "eps": eps,
        "trace_h": choice.trace_h,
        "trace_h_error": choice.trace_h_error,
        "n_probes": len(choice.samples),
        "curvature_eps": choice.curvature_eps,
        "grad_rms": choice.grad_rms,
        "step_scale": choice.step_scale,
        "eps_rms_difference": walk.rms_difference if walk else None,
        "eps_agreed": walk.agreed if walk else None,
        "eps_tried": [asdict(t) for t in walk.tried] if walk else [],
        "surviving_perturbation": survives,
    }
    title = f"{os.path.basename(s['model'])}: {method.name}, batch {s['batch']}"
    drawing = {"samples": choice.samples, "verdict": choice.verdict, "agreement": autotune.AGREEMENT, "title": title}
    picture, drawn = _picture(found | drawing, out)
    lines = [*(_of_walk(walk) if walk else [])]
    lines += [
        f"eps          {eps:.4g} ({_told(walk) if walk else 'given'})",
        f"curvature    tr(H) {choice.trace_h:.3g} +- {choice.trace_h_error:.2g} ({len(choice.samples)} probes at {choice.curvature_eps:.3g})",
        f"perturbation {survival(survives)}",
    ]
    if choice.lr is not None:
        lines += [f"suggestion   --lr {choice.lr:.4g} --eps {eps:.4g}", *_compared("lr", s["lr"], choice.lr)]
    else:
        lines += [_lost(choice)]
    print("\n".join([*lines, f"picture      {drawn}"]), flush=True)
    if choice.lr is None:
        say(f"error: {autotune.lost(choice)}")
    return (USAGE if choice.lr is None else OK), {**found, "picture": picture}


def _lost(choice: autotune.LrChoice) -> str:
    """What can be said all the same: the lr that even twice its error above the curvature would allow."""
    most = choice.trace_h + 2 * choice.trace_h_error
    cautious = (
        f"; --lr {choice.step_scale * autotune.LR_CONSTANT / most:.2g} is what {most:.3g}, twice its error above, would allow"
        if most > 0
        else ""
    )
    return f"note         the curvature is {choice.verdict}: no lr follows from it{cautious}"


def _picture(found: dict, out: str) -> tuple[str | None, str]:
    """(the picture's path or None, what is said of it)."""
    with tempfile.TemporaryDirectory(prefix="pysmezo-find-") as folder:
        source = os.path.join(folder, "found.json")
        with open(source, "w", encoding="utf-8") as f:
            json.dump(metrics.plain(found), f, allow_nan=False)
        try:
            children.run("_draw_lr", [source, out])
        except PysmezoError as e:
            return None, f"none: {e}"
    return out, out
