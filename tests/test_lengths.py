"""What a run that is too short is told: options that its method has, as they can be written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

import regrow
from regrow.lengths import timeline_of, warn_of_few_updates
from regrow.schedule import Phase, Timeline, repeat

LINE = "on the command line"
SHORT = "total_steps=2 is too short for one update: a cycle takes {} steps but updates must end by step {}; "


@dataclass(frozen=True)
class Own(regrow.methods.Method):
    """It has none of the options that regrow's methods share."""

    name = "own"
    repeats = True

    every: int = 9
    first: int = 0

    def timeline(self, total_steps: int) -> Timeline:
        return repeat(Phase("estimate", self.every), total_steps=total_steps, until=total_steps, begin=self.first)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (
            regrow.RigL(),  # three quarters of the run, not a number of steps
            SHORT.format(100, 1) + "shorten the phases or train longer; 1 update fits with interval=1 "
            f"({LINE} --method.interval 1, or --compare.NAME.interval 1 for a method that is compared)",
        ),
        (
            regrow.RigL(update_end=1),
            SHORT.format(100, 1) + "a whole number counts steps, so for the whole run write update_end=1.0; 1 update "
            f"fits with interval=1 ({LINE} --method.interval 1, or --compare.NAME.interval 1 for a method that is "
            "compared)",
        ),
        (Own(), SHORT.format(9, 2) + "shorten the phases or train longer"),
        (Own(first=2), SHORT.format("9 steps, begins after 2", 2).replace(" steps but", " but") + "train longer"),
        (regrow.IEE(update_end=0.0), SHORT.format(50, 0) + "let updates end later (update_end)"),
        (
            regrow.GMP(begin_at=1, update_end=1),
            SHORT.format("100 steps, begins after 1", 1).replace(" steps but", " but")
            + "let updates end later (update_end), or let them begin earlier (begin_at)",
        ),
    ],
)  # fmt: skip
def test_of_a_refusal(method: Any, said: str) -> None:
    with pytest.raises(regrow.UserError) as caught:
        timeline_of(method, 2)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (
            regrow.IEE.paper(20),
            f"h=3, j=3, q=3 ({LINE} --method.h 3 …, or --compare.NAME.h 3 … for a method that is compared)",
        ),
        (
            regrow.RigL(interval=45),
            f"interval=9 ({LINE} --method.interval 9, or --compare.NAME.interval 9 for a method that is compared)",
        ),
        (Own(every=60), "shorter phases"),
    ],
)
def test_of_a_warning(method: Any, options: str) -> None:
    with pytest.warns(UserWarning, match="^only") as caught:
        warn_of_few_updates(method, method.timeline(120))
    (one,) = caught
    assert str(one.message).endswith(f": the structure hardly changes; about ten fit with {options}")


def test_without_a_method_the_advice_names_no_option() -> None:
    with pytest.raises(regrow.UserError, match=r"by step 3; let updates end later, or begin earlier$"):
        repeat(Phase("estimate", 2), total_steps=9, until=3, begin=3)
    with pytest.raises(regrow.UserError, match=r"by step 1; shorten the phases or train longer$"):
        repeat(Phase("estimate", 2), total_steps=9, until=1)
