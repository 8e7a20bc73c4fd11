"""Intervals of a mean over draws of the training subset and over training seeds.

Of a value for each draw d and seed s, ``y_ds = m + a_d + b_s + e_ds`` with random effects of both:
the variance of the mean is estimated by the mean squares of a two-way analysis of variance without
replication, ``(MS_draws + MS_seeds - MS_rest) / (D S)``, with Satterthwaite's degrees of freedom
(Biometrics 1946). Seeds of one draw are no independent repetitions: their t interval, which sees no
spread of draws, is too short.
"""

from __future__ import annotations

import numpy as np
from scipy.special import stdtrit

# Of the intervals that tables and verdicts show.
LEVEL = 0.95
_NONE = float("nan"), float("nan")


def crossed_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of the mean of values (D, S), one row a draw and one column a seed.

    Draws or seeds of which a part is missing (NaN) are left out, seeds first. Of one draw the seeds
    give Student's t interval, of one seed the draws. NaN below two values.
    """
    values = np.asarray(values, np.float64)
    whole = ~np.isnan(values).any(axis=0)
    values = values[:, whole] if whole.any() else values[~np.isnan(values).any(axis=1)]
    draws, seeds = values.shape
    if values.size < 2:
        return _NONE
    mean = float(values.mean())
    if min(draws, seeds) == 1:
        flat = values.ravel()
        return _around(mean, float(flat.var(ddof=1)) / len(flat), len(flat) - 1, level)
    by_draw, by_seed = values.mean(1), values.mean(0)
    rest = values - by_draw[:, None] - by_seed + mean
    degrees = np.array([draws - 1, seeds - 1, (draws - 1) * (seeds - 1)])
    squares = np.array(
        [
            seeds * float(np.square(by_draw - mean).sum()),
            draws * float(np.square(by_seed - mean).sum()),
            float(np.square(rest).sum()),
        ]
    )
    means = squares / degrees
    # Estimates of components are not negative: without an effect of seeds theirs is the rest's.
    if means[1] <= means[2]:
        pooled = (squares[1] + squares[2]) / (degrees[1] + degrees[2])
        if means[0] <= pooled:
            everything = float(squares.sum() / degrees.sum())
            return _around(mean, everything / values.size, int(degrees.sum()), level)
        return _around(mean, float(means[0]) / values.size, int(degrees[0]), level)
    if means[0] <= means[2]:
        return _around(mean, float(means[1]) / values.size, int(degrees[1]), level)
    total = float(means[0] + means[1] - means[2])
    freedom = total**2 / float((np.square(means) / degrees).sum())
    return _around(mean, total / values.size, max(freedom, 1.0), level)


def _around(mean: float, variance: float, freedom: float, level: float) -> tuple[float, float]:
    half = float(stdtrit(freedom, (1 + level) / 2)) * variance**0.5
    return mean - half, mean + half
