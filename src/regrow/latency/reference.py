"""A fixed piece of work, timed between all others: whatever changes its time is the machine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from regrow.latency.clock import Clock

_RUNS = 3  # of which the fastest counts
_HALF = 3  # ticks to each side that are smoothed over
_LEAST = 0.02  # drift that is worth dividing by
_SURE = 4.0  # standard errors of the smoothed times that drift has to exceed
_NORMAL = 0.6745  # median of the sizes of normal deviations, in standard deviations


class Reference:
    """Follows the speed of a machine.

    Args:
        clock: of the runtime whose works are timed
        work: always the same

    Attributes:
        seconds: of each tick so far
    """

    def __init__(self, clock: Clock, work: Callable[[], object]) -> None:
        self._clock, self._work = clock, work
        self.seconds: list[float] = []

    def tick(self) -> None:
        """Time the work once more."""
        self._clock.seconds(self._work, "reference")  # brings it into the caches
        self.seconds.append(min(self._clock.seconds(self._work, "reference") for _ in range(_RUNS)))

    @property
    def now(self) -> int:
        """The number of the last tick."""
        return len(self.seconds) - 1

    @property
    def drift(self) -> float:
        """By how much the slowest tenth of the time was slower than the fastest; 0 where that may be chance."""
        if len(self.seconds) < 2 * _HALF + 1:
            return 0.0
        smooth = self._smooth()
        low, high = np.quantile(smooth, [0.1, 0.9])
        # differences of neighbours do not know of drift
        noise = float(np.median(np.abs(np.diff(self._logs())))) / _NORMAL / np.sqrt(2)
        error = 1.25 * noise / np.sqrt(2 * _HALF + 1)  # of a median
        return float(np.expm1(high - low)) if high - low > max(_SURE * error, _LEAST) else 0.0

    @property
    def spread(self) -> float:
        """Standard deviation of the ticks around what `slowness` says, relative, by the middle half of them."""
        if len(self.seconds) < 2:
            return 0.0
        low, high = np.quantile(self._logs() - np.log(self.slowness()), [0.25, 0.75])
        return float((high - low) / (2 * _NORMAL))

    def slowness(self) -> NDArray[np.float64]:
        """(ticks): times by which the machine was slower at each than it typically is; all 1 without drift."""
        if not self.drift:
            return np.ones(len(self.seconds))
        smooth = self._smooth()
        slowness: NDArray[np.float64] = np.exp(smooth - np.quantile(smooth, 0.25))
        return slowness

    def _logs(self) -> NDArray[np.float64]:
        # a clock that ticks coarsely may say 0
        logs: NDArray[np.float64] = np.log(np.maximum(self.seconds, 1e-9))
        return logs

    def _smooth(self) -> NDArray[np.float64]:
        logs = self._logs()
        return np.array([np.median(logs[max(0, i - _HALF) : i + _HALF + 1]) for i in range(len(logs))])
