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
from regrow.schedule import Timeline, TooShort

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
    known = _known(how)
    return {name: max(1, int(steps * scale)) for name, steps in how.phase_lengths().items() if steps and name in known}


def _known(how: Method) -> dict[str, Any]:
    """The options that a method has, whosever it is."""
    return {field.name: getattr(how, field.name) for field in dataclasses.fields(cast(Any, how)) if field.init}


def _said(options: Mapping[str, int]) -> str:
    """Options of a method, as they are written in code and recipes, and on the command line."""
    if not options:
        return "shorter phases"
    name, value = next(iter(options.items()))
    more = " …" if len(options) > 1 else ""
    plain = ", ".join(f"{name}={value}" for name, value in options.items())
    return (
        f"{plain} (on the command line --method.{name} {value}{more}, or --compare.NAME.{name} {value}{more} for a "
        "method that is compared)"
    )


def timeline_of(how: Method, steps: int) -> Timeline:
    """The phases of a run.

    Raises:
        UserError: where it is too short, with a way out that the method has, and options that fit into it, if there are
            any.
    """
    try:
        found: object = how.timeline(steps)
    except UserError as error:
        why = f"{error.reason}; {_way_out(how, error)}" if isinstance(error, TooShort) else str(error)
        options, fits = _fitting(how, steps)
        if not fits:
            raise UserError(why) from error
        raise UserError(
            f"{why}; {'1 update fits' if fits == 1 else f'{fits} updates fit'} with {_said(options)}"
        ) from error
    if not isinstance(found, Timeline):
        raise UserError(f"{how.name}: timeline() gives {hints.show(found)}, but must give a regrow.schedule.Timeline")
    return found


def _way_out(how: Method, refused: TooShort) -> str:
    """Of the options that this method has."""
    known = _known(how)
    end = known.get("update_end")
    if not refused.never:
        if end == 1 and isinstance(end, int):
            return "a whole number counts steps, so for the whole run write update_end=1.0"
        return "shorten the phases or train longer"
    ways = ["let updates end later (update_end)"] if "update_end" in known else []
    ways += [f"let them begin earlier ({name})" for name in ("begin_at", "warm_up", "start_steps") if known.get(name)]
    if end != 0 and not known.get("begin_at"):  # both are shares as a rule, which longer training does not bring apart
        ways.append("train longer")
    return ", or ".join(ways)


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
        f"steps: the structure hardly changes; about ten fit with {_said(_scaled(how, scale))}",
        stacklevel=4,
    )
