"""Option scores -> loss, accuracy, AUC, and accuracy after taking out the options' prior. Float64 throughout.

A score is an option's log-probability up to a constant of the example (a candidate's logit, or a mean token
log-probability), so everything here uses differences between the options of one example only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import ArgumentError


@dataclass(frozen=True)
class EvalResult:
    """loss: mean cross-entropy over the options (nats), or mean token loss without a task. auc, accuracy_calibrated:
    None where undefined (not two options or only one class present; no options shared by all examples).
    """

    loss: float
    accuracy: float | None
    n_examples: int
    auc: float | None = None
    accuracy_calibrated: float | None = None


def prior(scores) -> np.ndarray:
    """Mean score of each option, [n_options]: what calibration takes off."""
    return np.asarray(scores, np.float64).mean(axis=0)


def auc(scores, labels) -> float | None:
    """Area under the ROC curve of score[1] - score[0], ties counted half (Mann-Whitney U over n0 * n1)."""
    labels = np.asarray(labels)
    scores = np.asarray(scores, np.float64)
    margin = scores[:, 1] - scores[:, 0]
    n1 = int((labels == 1).sum())
    n0 = len(labels) - n1
    if scores.shape[1] != 2 or n0 == 0 or n1 == 0:
        return None
    values, inverse, counts = np.unique(margin, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]  # mean rank of each tie, from 1
    return float((ranks[labels == 1].sum() - n1 * (n1 + 1) / 2) / (n0 * n1))


def evaluate_scores(scores, labels, prior_scores=None, shared_options: bool = True) -> EvalResult:
    """scores: [n_examples, n_options]; labels: [n_examples]. prior_scores: prior() of held-out examples (of dev, for a
    test set); the examples' own when None. On equal scores the first option is the answer. shared_options: an option means the same in
    every example; only then is there a prior to take off, and a class to rank examples by.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if scores.ndim != 2 or scores.shape[0] != len(labels) or len(labels) == 0 or scores.shape[1] < 2:
        raise ArgumentError(
            f"[evaluate] scores of shape {scores.shape} for {len(labels)} labels, expected [n_examples, n_options], "
            "none of them 0"
        )
    peak = scores.max(axis=1, keepdims=True)
    normaliser = peak[:, 0] + np.log(np.exp(scores - peak).sum(axis=1))
    loss = float((normaliser - scores[np.arange(len(labels)), labels]).mean())
    level = prior(scores) if prior_scores is None else np.asarray(prior_scores, np.float64)
    return EvalResult(
        loss=loss,
        accuracy=float((scores.argmax(axis=1) == labels).mean()),
        n_examples=len(labels),
        auc=auc(scores, labels) if shared_options else None,
        accuracy_calibrated=float(((scores - level).argmax(axis=1) == labels).mean()) if shared_options else None,
    )
