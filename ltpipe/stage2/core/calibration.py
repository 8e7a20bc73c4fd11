"""Probabilities corrected by held-out samples: temperature, vector, bias and class-size scaling.

Every form maps a classifier's log-probabilities z to ``softmax(s_c z_c + b_c)``:

* ``temperature``: one s, b = 0 (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017);
* ``vector``: an s and a b for each class (ibid.);
* ``bcts``: one s, a b for each class (Alexandari et al., "Maximum Likelihood with Bias-Corrected
  Calibration is Hard-to-Beat at Label Shift Adaptation", ICML 2020);
* ``class-size``: ``log s_c = u + v t_c`` and ``b_c = w t_c`` with the class's standardised log
  size t, three numbers, for tails of which few samples are held out.

Biases of classes are held near ``w t_c``, a multiple of the log size: what a few held-out samples
of a rare class can't say, the other classes' do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

FORMS = ("temperature", "vector", "bcts", "class-size")
# How many samples the pull of each class's numbers to the common form is worth.
_PRIOR = 1.0


def calibrate(
    logits: np.ndarray, labels: np.ndarray, class_counts: Sequence[int], form: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and bias (C,) that maximise the likelihood of held-out samples.

    Args:
        logits: log-probabilities (N, C).
        labels: (N,).
        class_counts: (C,) training samples.
        form: one of FORMS.
    """
    logits = np.asarray(logits, np.float64)
    number, classes = logits.shape
    size = _standardised(np.log(np.maximum(np.asarray(class_counts, np.float64), 1)))
    shared, own_scale, own_bias = _basis(form, size, classes)
    parameters = len(shared) + own_scale * classes + own_bias * classes
    right = np.zeros((number, classes))
    right[np.arange(number), labels] = 1

    def unpack(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_scale, bias = np.zeros(classes), np.zeros(classes)
        for value, (part, direction) in zip(values, shared, strict=False):
            (log_scale if part == "scale" else bias)[:] += value * direction
        rest = values[len(shared) :]
        if own_scale:
            log_scale += rest[:classes]
        if own_bias:
            bias += rest[-classes:]
        return np.exp(log_scale), bias

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        scale, bias = unpack(values)
        logs = log_softmax(scale * logits + bias, axis=1)
        excess = (np.exp(logs) - right) / number
        by_scale, by_bias = (excess * logits).sum(0) * scale, excess.sum(0)
        rest = values[len(shared) :]
        gradient = [
            (by_scale if part == "scale" else by_bias) @ direction for part, direction in shared
        ]
        own = [*([by_scale] if own_scale else []), *([by_bias] if own_bias else [])]
        pulls = 2 * _PRIOR / number * rest
        value = -(logs * right).sum() / number + _PRIOR / number * rest @ rest
        whole = np.concatenate([gradient, np.concatenate(own) + pulls if own else []])
        return float(value), whole

    found = minimize(
        objective,
        np.zeros(parameters),
        jac=True,
        method="L-BFGS-B",
        # A temperature is between 1/150 and 150.
        bounds=[(-5, 5) if part == "scale" else (None, None) for part, _ in shared]
        + [(None, None)] * (parameters - len(shared)),
        options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 1000},
    )
    return unpack(found.x)


def calibrated(logits: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return the log-probabilities (N, C) of calibrated logits (N, C), float64."""
    return np.asarray(log_softmax(scale * np.asarray(logits, np.float64) + bias, axis=1))


def _basis(
    form: str, size: np.ndarray, classes: int
) -> tuple[list[tuple[str, np.ndarray]], bool, bool]:
    """Return the directions that classes share, and whether each has a scale and a bias."""
    ones = np.ones(classes)
    if form == "temperature":
        return [("scale", ones)], False, False
    if form == "class-size":
        return [("scale", ones), ("scale", size), ("bias", size)], False, False
    return [("scale", ones), ("bias", size)], form == "vector", True


def _standardised(values: np.ndarray) -> np.ndarray:
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)
