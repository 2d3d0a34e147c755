"""How long a run is, and whether its method fits into it: what is refused, what is warned of, and what would fit."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

from regrow import hints
from regrow.errors import UserError
from regrow.methods import Method
from regrow.schedule import Timeline

FEW = 5  # updates


def total_steps(value: int | None) -> int:
    """The length of a run, checked.

    Raises:
        UserError: where it is no number of steps.
    """
    if value is not None:
        hints.check_value("total_steps", value, int)
    if value is None or value < 1:
        raise UserError(f"total_steps is {value!r}, but must be the number of optimizer steps of the whole run")
    return value


def _scaled(how: Method, scale: float) -> dict[str, int]:
    """The steps that an update takes, in each of its options, times a factor below 1."""
    return {name: max(1, int(steps * scale)) for name, steps in how.phase_lengths().items() if steps}


def _call(how: Method, options: Mapping[str, int]) -> str:
    return f"{type(how).__name__}({', '.join(f'{name}={value}' for name, value in options.items())})"


def timeline_of(how: Method, steps: int) -> Timeline:
    """The phases of a run.

    Raises:
        UserError: where it is too short, with options that fit into it, if there are any.
    """
    try:
        return how.timeline(steps)
    except UserError as error:
        options, fits = _fitting(how, steps)
        if not fits:
            raise
        many = "1 update" if fits == 1 else f"{fits} updates"
        raise UserError(f"{error}: {_call(how, options)} has {many}") from error


def _fitting(how: Method, steps: int) -> tuple[dict[str, int], int]:
    """The longest phases, halved again and again, of which `FEW` updates fit, or if need be one; and how many do."""
    for enough in (FEW, 1):
        for halvings in range(1, 16):
            options = _scaled(how, 0.5**halvings)
            with suppress(UserError):
                fits = dataclasses.replace(cast(Any, how), **options).timeline(steps).updates
                if fits >= enough:
                    return options, fits
    return {}, 0


def warn_of_few_updates(how: Method, timeline: Timeline) -> None:
    """Warns where a method that changes its mind has hardly a chance to.

    Warns:
        UserWarning: fewer than `FEW` updates fit, with the options that make ten fit.
    """
    if not how.repeats or not 0 < timeline.updates < FEW:
        return
    scale = (timeline.until - timeline.begin) / (10 * timeline.length)
    fit = "update fits" if timeline.updates == 1 else "updates fit"
    warnings.warn(
        f"only {timeline.updates} {fit} into total_steps={timeline.total_steps}, as one takes {timeline.length} "
        f"steps: the structure hardly changes; {_call(how, _scaled(how, scale))} has about ten",
        stacklevel=5,
    )
