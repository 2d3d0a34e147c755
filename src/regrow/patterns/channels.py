"""Whole channels, under budgets of latency, FLOPs or parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from os import PathLike
from typing import Any, ClassVar, Literal

from torch import nn

from regrow import hints, names
from regrow.budgets.amounts import amount
from regrow.errors import UserError
from regrow.groups import Group
from regrow.patterns.channel_units import ChannelUnits
from regrow.patterns.pattern import Pattern, register


@register
@dataclass(frozen=True)
class Channels(Pattern):
    """Whole channels of the groups that a model couples (`regrow.coupling.couple`), within one or several budgets.

    Args:
        latency: of a forward pass: a share of the dense model's (a number up to 1, or ``"50%"``) or an amount
            (``"12 ms"`` a batch).
        flops: likewise, of one example, 2 for each multiply-add (``"1.1 G"``, or a number above 100).
        params: likewise, the number of parameters (``"5 M"``).
        table: latency table of the model on the machine that counts: a path (`regrow profile` writes one) or a
            `LatencyTable`. None measures this machine when attaching, for the batch of the example inputs. Only with
            `latency`.
        round_to: widths are multiples of this (or a group's whole width): numbers of channels, and of what whole heads
            have together; a mapping gives it for groups by name, ``*`` and ``?`` allowed, all others 8.
        min_channels: what every group keeps: a number of channels, or below 1 a share of its width; of what is
            normalised together at least two.
        exclude: layers whose output channels stay, names of modules or parameters, ``*`` and ``?`` allowed.
        distribution: ``"knapsack"`` picks the most important channels that fit the budgets; ``"uniform"`` keeps the
            same share of every group.
        solver: of the knapsack: ``"joint"`` prices the input and output width of each layer together;
            ``"grouped"`` holds input widths (the paper's and HALP's; for one budget).
        thin: train physically smaller layers outside exploration, which makes steps as fast as they are small; the
            parameters change shape at updates. False masks channels instead.
        normalised: also remove channels that are normalised together (under LayerNorm, RMSNorm, GroupNorm: the hidden
            size of transformers). The norms of the thin network see the channels that it has, and exploration widens
            them, so it needs ``thin``.
        blocks: whether the branches of residual sums may also go whole, each as one decision (MDP, Sun et al. 2025,
            arXiv:2504.02168). True: worth what the criterion says of its channels and its last layer; ``"loss"``: by
            how much the loss grows without it, measured on the sparsifier's `batches` (with criterion ``"taylor"``).
            Not with the distribution ``"uniform"``.
        heads: what of attention may go: ``"count"``, whole heads; ``"width"``, the width of heads, which all heads of a
            layer lose alike: of queries and keys together, and of values with the projection that takes them. Attention
            is scaled as at full width.
        outputs: takes of what the model returns the part that counts (``lambda out: out.logits``): what else it returns
            may then lose channels, and is not compared. None: all of it counts, but for caches of transformers.
        time_limit: seconds of processor time that finding the channels may take.

    Raises:
        UserError: for options out of their range.
    """

    name: ClassVar[str] = "channels"
    blind: ClassVar[bool] = True

    latency: float | str | None = None
    flops: float | str | None = None
    params: float | str | None = None
    table: Any = None
    round_to: int | Mapping[str, int] = 8
    min_channels: float | int = 0.1
    exclude: Sequence[str] = ()
    distribution: Literal["knapsack", "uniform"] = "knapsack"
    solver: Literal["joint", "grouped"] = "joint"
    thin: bool = True
    normalised: bool = False
    blocks: bool | Literal["loss"] = False
    heads: Literal["count", "width"] = "count"
    outputs: Callable[[Any], Any] | None = None
    time_limit: float = 60.0

    def __post_init__(self) -> None:
        if not self.budgets:
            raise UserError("Channels needs a budget: give latency=, flops= or params=, e.g. latency=0.5")
        for kind, value in self.budgets.items():
            amount(kind, value, 1.0)
        super().__post_init__()
        for number in self.round_to.values() if isinstance(self.round_to, Mapping) else (self.round_to,):
            if number < 1:
                raise UserError(f"round_to is {number!r}, but must be a whole number of channels, at least 1")
        least = self.min_channels
        if not 0 < least <= hints.LARGEST or (least > 1 and least != int(least)):
            raise UserError(f"min_channels is {least!r}, but must be a whole number of channels, or a share below 1")
        self._check_table()
        if self.normalised and not self.thin:
            raise UserError(
                "normalised=True needs thin=True: a mask over channels that are normalised together computes "
                "something else than their removal"
            )
        if not self.time_limit > 0:
            raise UserError(f"time_limit is {self.time_limit!r}, but must be a number of seconds above 0")
        if self.blocks and self.distribution == "uniform":
            raise UserError('distribution="uniform" keeps a share of everything, and blocks go whole; leave one out')
        if self.solver == "grouped" and len(self.budgets) > 1:
            raise UserError("solver='grouped' knows one budget only; use solver='joint' for several")

    def _check_table(self) -> None:
        from regrow.latency.table import LatencyTable

        if not isinstance(self.table, str | PathLike | LatencyTable | None) or self.table == "":
            raise UserError(
                f"table is {hints.show(self.table)}, but must be the path of a latency table, or one itself"
            )

    @property
    def budgets(self) -> dict[str, float | str]:
        """Kind → what was asked for."""
        asked = {"latency": self.latency, "flops": self.flops, "params": self.params}
        return {kind: value for kind, value in asked.items() if value is not None}

    @property
    def measures(self) -> str:
        return "blocks='loss'" if self.blocks == "loss" else ""

    def step_of(self, group: Group) -> int:
        """What the number of channels of a group is a multiple of; heads have several indices each."""
        width = self.round_to
        if not isinstance(width, int):
            width = next((n for pattern, n in width.items() if fnmatchcase(group.id, pattern)), 8)
        return math.lcm(width // math.gcd(width, group.each), group.multiple)

    def floor_of(self, group: Group) -> int:
        """How many channels a group keeps at least: what is normalised together, no less than two numbers, as one alone
        has no deviation and is constant."""
        least = self.min_channels if self.min_channels >= 1 else self.min_channels * group.size
        fewest = 1 if group.exact or group.each > 1 else 2
        step = self.step_of(group)
        return min(group.size, math.ceil(max(fewest, math.ceil(least)) / step) * step)

    def check_example(self, example_inputs: Any) -> None:
        if example_inputs is None:
            raise UserError("Channels follows a batch through the model; pass example_inputs=one batch to Sparsifier")

    def bind(self, model: nn.Module, example_inputs: Any = None) -> ChannelUnits:
        self.check_example(example_inputs)
        if self.table is not None and self.latency is None:  # recipes may have one, which times whole models
            raise UserError("table= prices latency, which is no budget here: add latency=, or leave table= out")
        return ChannelUnits(self, names.unwrap(model), example_inputs)
