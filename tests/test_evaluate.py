"""Accuracy, AUC and calibration against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pysmezo import ArgumentError
from pysmezo.evaluate import auc, evaluate_scores, prior


def test_by_hand():
    scores = [[2.0, 1.0], [0.0, 3.0], [1.0, 1.0], [5.0, 4.5]]
    labels = [0, 1, 1, 1]
    r = evaluate_scores(scores, labels)
    losses = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(-3)), math.log(2), math.log(1 + math.exp(0.5))]
    assert r.n_examples == 4
    assert r.accuracy == 2 / 4  # the tie goes to option 0
    assert r.loss == pytest.approx(sum(losses) / 4, rel=1e-14)
    # Margins of option 1: -1 (label 0) against 3, 0, -0.5: every pair in order.
    assert r.auc == 1.0
    # Own prior: means 2 and 2.375, so option 1 must lead by 0.375.
    assert r.accuracy_calibrated == 2 / 4
    # A prior of held-out data that favours option 0 by 1: the tie and the last example turn right, the first becomes a
    # tie.
    assert evaluate_scores(scores, labels, [1.0, 0.0]).accuracy_calibrated == 4 / 4


def _brute(scores, labels, level):
    n = len(labels)
    right = loss = calibrated = 0
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        right += max(range(len(row)), key=lambda k: row[k]) == label
        calibrated += max(range(len(row)), key=lambda k: row[k] - level[k]) == label
        loss += math.log(sum(math.exp(s) for s in row)) - row[label]
    return right / n, loss / n, calibrated / n


def _brute_auc(scores, labels):
    wins = pairs = 0
    for a, la in zip(scores.tolist(), labels.tolist(), strict=True):
        for b, lb in zip(scores.tolist(), labels.tolist(), strict=True):
            if la == 1 and lb == 0:
                d = (a[1] - a[0]) - (b[1] - b[0])
                wins += 1 if d > 0 else 0.5 if d == 0 else 0
                pairs += 1
    return wins / pairs


@pytest.mark.parametrize("n_options", [2, 3, 6])
@pytest.mark.parametrize("seed", range(5))
def test_against_counting(n_options, seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(60, n_options))
    if seed % 2:
        scores = np.round(scores)  # many ties
    labels = rng.integers(0, n_options, 60)
    held_out = rng.normal(size=(30, n_options)) + np.arange(n_options)
    level = [sum(col) / 30 for col in held_out.T.tolist()]
    assert prior(held_out) == pytest.approx(level)
    r = evaluate_scores(scores.astype(np.float32), labels, prior(held_out))
    accuracy, loss, calibrated = _brute(scores.astype(np.float32), labels, level)
    assert (r.accuracy, r.accuracy_calibrated) == (accuracy, calibrated)
    assert r.loss == pytest.approx(loss, rel=1e-6)
    if n_options == 2:
        assert r.auc == pytest.approx(_brute_auc(scores, labels), rel=1e-12)
    else:
        assert r.auc is None


def test_an_examples_constant_does_not_matter():
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(size=(40, 2)), rng.integers(0, 2, 40)
    a = evaluate_scores(scores, labels)
    b = evaluate_scores(scores + 1000 * rng.normal(size=(40, 1)).round(1), labels)
    assert (a.accuracy, a.accuracy_calibrated) == (b.accuracy, b.accuracy_calibrated)
    assert a.loss == pytest.approx(b.loss, rel=1e-9) and a.auc == pytest.approx(b.auc)


def test_where_it_is_undefined():
    assert auc([[0.0, 1.0], [1.0, 0.0]], [1, 1]) is None
    for scores, labels in (([], []), ([[1.0]], [0]), ([[1.0, 2.0]], [0, 1])):
        with pytest.raises(ArgumentError):
            evaluate_scores(np.asarray(scores), labels)
