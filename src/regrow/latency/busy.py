"""When a machine is too busy for a table that could be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regrow.errors import UserError
from regrow.latency.reference import Reference
from regrow.latency.spread import typical_error

_LEAST = 5  # samples that say something


@dataclass(frozen=True)
class Limits:
    """Beyond which a table is refused.

    Attributes:
        dense: relative standard error of the dense model's time
        units: the same of the sum of its units, most of which the fit to whole models takes back
        reference: spread of the reference kernel around its drift
        drift: of the reference kernel; 2 is three times as slow
    """

    dense: float = 0.15
    units: float = 0.2
    reference: float = 0.5
    drift: float = 2.0


LIMITS = Limits()


def refuse_if_busy(dense: Sequence[float], units: float, reference: Reference, threads: int) -> None:
    """Refuses what was measured if its predictions could be wrong by much.

    That other programs run is no reason. On one thread its own processor time counts, which hardly feels them, and on
    several the executions without them; and what slows all alike is divided out. What is looked at is what remains.

    Args:
        dense: seconds of the dense model, each time it was run, divided by drift
        units: relative standard error of the sum of its units' times
        reference: that was timed in between
        threads: of the runtime

    Raises:
        UserError: with what was seen, and what to do.
    """
    seen = ""
    if len(dense) >= _LEAST and typical_error(dense) > LIMITS.dense:
        seen = f"the dense model took from {_ms(min(dense))} to {_ms(max(dense))} in {len(dense)} passes"
    elif units > LIMITS.units:
        seen = f"repeats leave the times of layers uncertain, for the dense model by {units:.0%} in all"
    elif len(reference.seconds) >= _LEAST and reference.drift > LIMITS.drift:
        seen = f"a fixed piece of work became {1 + reference.drift:.1f} times as slow as before"
    elif len(reference.seconds) >= _LEAST and reference.spread > LIMITS.reference:
        seen = f"a fixed piece of work took from {_ms(min(reference.seconds))} to {_ms(max(reference.seconds))}"
    if seen:
        alone = ", measure with threads=1" if threads > 1 else ""
        raise UserError(
            f"this machine is too busy to measure latency: {seen}; close other programs{alone}, give it more time "
            "(time_limit=, --time-limit), or take a table that was measured before (table=); allow_busy=True "
            "(--allow-busy) accepts it all the same"
        )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
