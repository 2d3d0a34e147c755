"""How far a latency may be off: by the repeats, by the machine, and by the whole models that a table was fitted to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.9  # of intervals
QUARTILE = 0.25  # what counts of repeats

_UNFITTED = 0.1  # of a table that no thin models were fitted to, about twice what is usual for one with them


@dataclass(frozen=True)
class Spread:
    """How steady the machine was, and how well a table fits; all relative.

    Attributes:
        reference: standard deviation of the reference kernel's times around its drift
        drift: by how much the reference kernel was slower in the slowest tenth of the time than in the fastest; samples
            were divided by it. 0 where nothing but chance was seen
        dense: standard error of the dense model's time
        wholes: standard deviation of the whole models' times from the fitted table; None where too few were fitted
        freedom: degrees of freedom of that
    """

    reference: float = 0.0
    drift: float = 0.0
    dense: float = 0.0
    wholes: float | None = None
    freedom: int = 0

    def margin(self, units: float) -> float:
        """Half of the interval of a prediction, relative to it.

        Args:
            units: relative standard error of the sum of its units
        """
        from scipy.special import ndtri, stdtrit  # normal and Student's t; scipy.stats takes a second to import

        upper = (1 + LEVEL) / 2
        normal = float(ndtri(upper))
        steady = normal * math.hypot(units, self.dense, 0.5 * self.reference)
        if self.wholes is None:
            return math.hypot(steady, normal * _UNFITTED)
        return math.hypot(steady, float(stdtrit(self.freedom, upper)) * self.wholes)


def typical(samples: Sequence[float]) -> float:
    """The lower quartile: whatever disturbs a measurement makes it longer, never shorter."""
    return float(np.quantile(samples, QUARTILE))


def typical_error(samples: Sequence[float]) -> float:
    """Relative standard error of `typical`, whatever the distribution of the samples: half the distance of the ranks
    between which the true quartile lies in two of three cases (binomial)."""
    if len(samples) < 2:
        return 0.0
    step = math.sqrt(QUARTILE * (1 - QUARTILE) / len(samples))
    low, middle, high = np.quantile(samples, [max(0.0, QUARTILE - step), QUARTILE, QUARTILE + step])
    return float((high - low) / (2 * middle)) if middle > 0 else 0.0


def fit_error(predicted: Sequence[float], measured: Sequence[float], fitted: int) -> tuple[float | None, int]:
    """Standard deviation of the relative errors of whole models, and its degrees of freedom; None without any.

    Args:
        fitted: how many numbers were fitted to them
    """
    freedom = len(measured) - fitted
    if freedom < 1:
        return None, 0
    errors = np.array(predicted) / np.array(measured) - 1.0
    return float(np.sqrt((errors**2).sum() / freedom)), freedom
