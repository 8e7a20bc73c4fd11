"""Several methods' predictions in one: a log-linear pool with non-negative weights.

``p(c | x) ~ prod_m p_m(c | x) ** w_m``, w_m >= 0: a product of experts (Genest and Zidek,
Statistical Science 1986, section 3), stacked in the sense of Wolpert (Neural Networks 1992): the
weights maximise the likelihood of samples that no member was trained on. A power is a temperature,
too, so cosines times 30 and plain logits meet on one scale. Each class of the held-out samples
counts the same; a quadratic pull towards 1 / M stands in for the classes and the certainty that a
few held-out samples lack. The objective is convex, so its optimum does not depend on the start.

Features of a backbone are over-confident on its own training images, so the held-out samples are
features of backbones that never saw them: the data set's validation part, or a tenth that a second
set of backbones was trained without. Members are trained once on those backbones, for the weights,
and once on the full ones, for the test.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp
from torch import Tensor

from ltpipe.artifacts.job import Job
from ltpipe.stage2.core.inference import Fitted, Samples, evaluate_points
from ltpipe.stage2.core.results import method_settings, open_stores, under
from ltpipe.stage2.stacked.members import FLOOR, held_out_members, member_logs, run_members
from ltpipe.stage2.stacked.settings import Stacked
from ltpipe.utils.io import write_text_atomic
from ltpipe.utils.progress import say

_FOLDS = 5


def run(job: Job) -> dict[str, Any]:
    """Train the members, weigh them by held-out samples, evaluate the pool.

    Writes members.csv beside the results: each member's weight, and on the held-out samples its
    mean class accuracy and class-balanced negative log-likelihood; the stack's own figures there
    are cross-fitted over five folds.
    """
    roles = list(under(job.inputs, "features"))
    settings = method_settings(job, Stacked, roles)
    # By name: files keep no order of keys.
    names = sorted(settings.members)
    weights = np.full(len(names), 1 / len(names))
    facts: dict[str, Any] = {}
    if settings.needs_validation():
        held_out = held_out_members(job, roles, names)
        logs = held_out.logs
        weights = fit_weights(logs, held_out.labels, settings.prior)
        table = _judge(logs, held_out.labels, weights, settings.prior, names)
        write_text_atomic(job.output / "members.csv", table.to_csv(index=False))
        facts = {"held_out": len(held_out.labels)}
    folders = {role: job.inputs[f"features.{role}"] for role in roles}
    trained = run_members(job, folders, names)
    for name, weight in zip(names, weights, strict=True):
        say(f"weight of {name}: {weight:.2f}")
    facts["member_weights"] = dict(zip(names, weights.round(6).tolist(), strict=True))
    facts["members"] = trained.facts
    tensors = {**trained.weights, "weights": torch.from_numpy(weights).float()[None]}
    return evaluate_points(job, settings, open_stores(job, "test"), logits, tensors, **facts)


def logits(fitted: Fitted[Stacked], samples: Samples) -> Tensor:
    """Return the members' log-probabilities, weighted and summed, (N, C)."""
    logs = member_logs(fitted, samples)
    return torch.einsum("m,mnc->nc", fitted.weights["weights"], torch.stack(logs))


def pool(logs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the pooled probabilities (N, C) of members' log-probabilities (M, N, C)."""
    return np.exp(log_softmax(np.einsum("m,mnc->nc", weights, logs), axis=1))


def fit_weights(logs: np.ndarray, labels: np.ndarray, prior: float) -> np.ndarray:
    """Return the weights (M,) that are best for held-out samples.

    They minimise ``sum_i v_i (-log p(y_i | x_i)) + prior / N sum_m (w_m - 1 / M) ** 2`` over
    w >= 0, where v_i gives each class that has samples the same share of one.

    Args:
        logs: log-probabilities (M, N, C), float64.
        labels: (N,) int64.
        prior: how many samples the pull towards equal weights is worth.
    """
    members, samples, _ = logs.shape
    shares = _class_shares(labels)
    right = logs[:, np.arange(samples), labels]

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        joined = np.einsum("m,mnc->nc", weights, logs)
        normaliser = logsumexp(joined, axis=1)
        value = shares @ (normaliser - weights @ right)
        expected = np.einsum("nc,mnc->mn", np.exp(joined - normaliser[:, None]), logs)
        apart = weights - 1 / members
        gradient = (expected - right) @ shares + 2 * prior / samples * apart
        return float(value + prior / samples * apart @ apart), gradient

    optimum = minimize(
        objective,
        np.full(members, 1 / members),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * members,
        options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 1000},
    )
    return np.asarray(optimum.x, np.float64)


def cross_fitted(logs: np.ndarray, labels: np.ndarray, prior: float) -> np.ndarray:
    """Return pooled probabilities (N, C), each by weights that its sample had no part in.

    Samples go to five folds in turn, class by class.
    """
    order = np.argsort(labels, kind="stable")
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % min(_FOLDS, len(labels))
    pooled = np.empty(logs.shape[1:])
    for number in range(fold.max() + 1):
        inside = fold == number
        weights = fit_weights(logs[:, ~inside], labels[~inside], prior)
        pooled[inside] = pool(logs[:, inside], weights)
    return pooled


def _class_shares(labels: np.ndarray) -> np.ndarray:
    """Return a weight for each sample: every class that has samples sums to the same, all to 1."""
    counts = np.bincount(labels)
    return 1 / ((counts > 0).sum() * counts[labels])


def _judge(
    logs: np.ndarray, labels: np.ndarray, weights: np.ndarray, prior: float, names: list[str]
) -> pd.DataFrame:
    shares = _class_shares(labels)
    rows = []

    def judge(name: str, weight: float, probabilities: np.ndarray) -> None:
        right = np.log(probabilities[np.arange(len(labels)), labels].clip(FLOOR))
        rows.append(
            {
                "member": name,
                "weight": weight,
                "balanced_accuracy": shares @ (probabilities.argmax(1) == labels),
                "balanced_nll": -(shares @ right),
            }
        )

    for name, weight, log in zip(names, weights, logs, strict=True):
        judge(name, weight, np.exp(log))
    judge("equal weights", float("nan"), pool(logs, np.full(len(names), 1 / len(names))))
    if len(labels) > 1:
        judge("stack, cross-fitted", float("nan"), cross_fitted(logs, labels, prior))
    return pd.DataFrame(rows)
