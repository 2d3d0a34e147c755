"""How channels are chosen and trained: what `ChannelUnits` reads of the pattern."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from regrow.budgets.limits import Asked
from regrow.groups import Group


class ChannelOptions(Asked, Protocol):
    """How channels are chosen and trained, as `regrow.Channels` says it."""

    @property
    def table(self) -> Any:
        """Of latencies: a path, a `LatencyTable`, or None to measure one."""

    @property
    def exclude(self) -> Sequence[str]:
        """Layers whose output channels stay."""

    @property
    def distribution(self) -> Literal["knapsack", "uniform"]:
        """What decides the widths within the budgets."""

    @property
    def solver(self) -> Literal["joint", "grouped"]:
        """Of the knapsack."""

    @property
    def thin(self) -> bool:
        """Whether layers are physically smaller outside exploration."""

    @property
    def normalised(self) -> bool:
        """Whether channels that are normalised together may go."""

    @property
    def blocks(self) -> bool | Literal["loss"]:
        """Whether branches of residual sums may go whole, and by what they are worth."""

    @property
    def heads(self) -> Literal["count", "width"]:
        """What of attention may go."""

    @property
    def outputs(self) -> Callable[[Any], Any] | None:
        """Takes of what the model returns the part that counts."""

    @property
    def time_limit(self) -> float:
        """Seconds that finding the channels may take."""

    def step_of(self, group: Group) -> int:
        """What the number of channels of a group is a multiple of."""
