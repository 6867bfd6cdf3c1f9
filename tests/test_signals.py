"""Signals beside a step's measurements: what they are, where they stand, and that a run that goes on has the same."""

from __future__ import annotations

import json
import math
import statistics
import time

import numpy as np
import pytest
from test_cli import task_dir, train_flags  # noqa: F401 (task_dir is a fixture)

from pysmezo import cli, progress, signals
from pysmezo.methods import AdaMeZO, HiZOO, MeZO, MeZOAdam, MeZOMomentum, ZOSign
from pysmezo.signals import LEAST, WINDOW, Signals

KEYS = {"loss_mean", "loss_mean_error", "loss_change", "loss_change_z", "grad_rms", "step_rms"}


SGD = MeZO(queries=2).parts()


def line(i, loss=0.5, scalars=(3.0, -4.0), lr=1e-3, skipped=False) -> dict:
    return {"step": i, "loss": loss, "scalars": scalars, "lr": lr, "skipped": skipped}


def test_first_step():
    assert Signals(SGD).after(line(1)) == {
        "loss_mean": None, "loss_mean_error": None, "loss_change": None, "loss_change_z": None,
        "grad_rms": math.sqrt(12.5), "step_rms": 1e-3 * 5 / 2,
    }  # fmt: skip


def test_window_and_its_halves():
    s, losses = Signals(SGD), [2.0 - 0.003 * i + 0.1 * math.sin(i * i) for i in range(250)]
    for i, loss in enumerate(losses, 1):
        found = s.after(line(i, loss, scalars=(float(i),)))
        assert (found["loss_change"] is None) == (i < LEAST)
    last = losses[-WINDOW:]
    older, newer = last[: WINDOW // 2], last[WINDOW // 2 :]
    assert found["loss_mean"] == pytest.approx(statistics.mean(last))
    assert found["loss_mean_error"] == pytest.approx(statistics.stdev(last) / math.sqrt(WINDOW))
    assert found["loss_change"] == pytest.approx(statistics.mean(newer) - statistics.mean(older))
    error = math.sqrt((statistics.variance(newer) + statistics.variance(older)) / (WINDOW // 2))
    assert found["loss_change_z"] == pytest.approx(found["loss_change"] / error) and found["loss_change_z"] < -2
    assert found["grad_rms"] == pytest.approx(math.sqrt(statistics.mean(i * i for i in range(151, 251))))
    assert found["step_rms"] == pytest.approx(0.25)


def test_a_skipped_step_is_left_out():
    s = Signals(SGD)
    before = s.after(line(1)) and s.after(line(2, 0.7))
    after = s.after(line(3, math.nan, (math.inf,), skipped=True))
    assert after == before | {"step_rms": 0.0}
    assert s.after(line(4, None, (), skipped=True)) == after


def test_no_step_size_with_curvature_and_no_trend_of_a_constant():
    s = Signals(HiZOO().parts())
    for i in range(WINDOW):
        found = s.after(line(i))
    assert found["step_rms"] is None and found["loss_change"] == 0 and found["loss_change_z"] is None


RULES = {
    "sgd": MeZO(queries=2),
    "sign": ZOSign(queries=2),
    "momentum": MeZOMomentum(queries=2),
    "momentum, summed, window": MeZOMomentum(queries=2, damped=False, window=5),
    "adam": MeZOAdam(queries=2, beta2=0.9),
    "adam, as it is": MeZOAdam(queries=2, beta2=0.97, corrected=False),
    "adam, window": AdaMeZO(queries=2),
}


@pytest.mark.parametrize("name", RULES)
def test_step_size_is_that_of_the_rule_on_many_elements(name):
    """Against the rule itself, elementwise in float64, on 20,000 elements and random scalars of growing size."""
    parts, s, rng = RULES[name].parts(), Signals(RULES[name].parts()), np.random.default_rng(1)
    window, b1, b2 = parts["window"], parts["beta1"], parts["beta2"]
    add = 1.0 if parts["rule"] == "momentum" and not parts["damped"] else 1 - b1
    estimates = []
    for t in range(1, 61):
        g = rng.normal(size=2) * (1 + t / 60)
        estimates.append((g @ rng.normal(size=(2, 20_000))) / 2)
        used = estimates[-window:] if window else estimates
        m, v = np.zeros(20_000), np.zeros(20_000)
        for e in used:
            m, v = b1 * m + add * e, b2 * v + (1 - b2) * e * e
        if parts["corrected"]:
            m_hat, v_hat = m / (1 - b1 ** len(used)), v / (1 - b2 ** len(used))
        else:
            m_hat, v_hat = m, v
        step = {"sgd": e, "sign": np.sign(e), "momentum": m, "adam": m_hat / (np.sqrt(v_hat) + 1e-8)}[parts["rule"]]
        found = s.after(line(t, scalars=tuple(g), lr=0.25))["step_rms"]
        # v of few steps, or with a short memory, is no constant, and its square root no square root of its mean.
        within = {"sgd": 0.03, "sign": 1e-12, "momentum": 0.03, "adam": 0.25}[parts["rule"]]
        assert found == pytest.approx(0.25 * np.sqrt(np.mean(step * step)), rel=within), t


def test_continues_from_lines():
    whole, again = Signals(SGD), Signals(SGD)
    lines = [line(i, 1 / i, (1.0 * i,)) for i in range(1, 300)]
    expected = [whole.after(x) for x in lines]
    for x in lines[:200]:
        again.see(json.loads(json.dumps(x)))
    for edited in ({"loss": "1", "scalars": None}, {"loss": 10**400, "scalars": [1]}, {"loss": 1, "scalars": ["a"]}):
        again.see({"step": 200, **edited})
    assert [again.after(x) for x in lines[200:]] == expected[200:]


def test_costs_nothing_noticeable():
    s = Signals(SGD)
    for i in range(WINDOW):
        s.after(line(i))
    begin = time.process_time()
    for i in range(200):
        s.after(line(i))
    assert (time.process_time() - begin) / 200 < 2e-3  # about 3e-5 on a quiet machine


@pytest.mark.slow
def test_in_the_lines_of_a_run(task_dir, tmp_path, capsys):  # noqa: F811
    run_dir = tmp_path / "run"
    more = {"steps": 24, "method": "mezo", "queries": 2, "schedule": "linear"}
    assert cli.main(["train", *train_flags(task_dir, run_dir, **more), "--eval-every", "12"]) == 0
    lines = [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [x for x in lines if "type" not in x]
    assert len(steps) == 24 and all(set(x) >= KEYS for x in steps)
    again = Signals(SGD)
    for x in steps:
        assert again.after(x) == {key: x[key] for key in KEYS}
        assert x["step_rms"] == pytest.approx(x["lr"] * math.hypot(*x["scalars"]) / 2)
    told = [(x.get("type", "step"), x["step"]) for x in lines if "surviving_perturbation" in x]
    assert told == [("step", 1), ("eval", 12), ("eval", 24)]
    assert all(0.5 < x["surviving_perturbation"] <= 1 for x in lines if "surviving_perturbation" in x)
    said = capsys.readouterr().err.splitlines()
    assert [x for x in said if x.startswith("perturbation: ")] == [
        "perturbation: 1.000 of it survives operand rounding (cos^2)"
    ]
    last = steps[-1]
    trend = f"({last['loss_change']:+.3f}, {abs(last['loss_change_z']):.1f} se)"
    assert (
        f" {trend}, g {last['grad_rms']:.3g}, step {last['step_rms']:.2g}, peak "
        in [x for x in said if x.startswith("step 24/24")][0]
    )


def test_in_words():
    assert progress.learning({}) == ""
    assert progress.learning({"loss_change": 0.0, "loss_change_z": None, "grad_rms": 2.0, "step_rms": None}) == ", g 2"
    assert "keeps more" in progress.survival(0.5) and "keeps more" not in progress.survival(0.95)
    assert signals.__doc__.count("|") > 4 and all(key in signals.__doc__ for key in KEYS)
