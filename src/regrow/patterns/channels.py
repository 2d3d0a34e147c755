"""Whole channels, under budgets of latency, FLOPs or parameters."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

from regrow import names
from regrow.errors import UserError, nearest, percent
from regrow.patterns.base import Attached, Binding, Pattern, register

if TYPE_CHECKING:
    from regrow.channels.pricing import Prices
    from regrow.channels.table import Coupling
    from regrow.channels.units import ChannelUnits
    from regrow.latency.table import LatencyTable

_UNITS: dict[str, dict[str, float]] = {
    "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6},
    "flops": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12},
    "params": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9},
}
_AMOUNT = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-zµ]*|%)\s*", re.IGNORECASE)
_PROFILE_SECONDS = 60.0
_MEASURED = (
    "regrow has measured a latency table of this model and machine; sparsifier.latency_table.save('latency.json') "
    "keeps it for Channels(table='latency.json'), and `regrow profile` measures one more finely"
)


@register
@dataclass(frozen=True)
class Channels(Pattern):
    """Whole channels of the groups that a model couples (`regrow.channels.coupling`), within one or several budgets.

    Args:
        latency: of a forward pass: a share of the dense model's (a number up to 1, or ``"50%"``) or an amount
            (``"12 ms"`` a batch).
        flops: likewise, of one example, 2 for each multiply-add (``"1.1 G"``, or a number above 100).
        params: likewise, the number of parameters (``"5 M"``).
        table: latency table of the model on the machine that counts: a path (`regrow profile` writes one) or a
            `LatencyTable`. None measures this machine when attaching, for the batch of the example inputs.
        round_to: numbers of channels are multiples of this (or a group's whole width); a mapping gives it for groups by
            name, ``*`` and ``?`` allowed, all others 8.
        min_channels: what every group keeps: a number of channels, or below 1 a share of its width.
        exclude: layers whose output channels stay, names of modules or parameters, ``*`` and ``?`` allowed.
        distribution: ``"knapsack"`` picks the most important channels that fit the budgets; ``"uniform"`` keeps the
            same share of every group.
        solver: of the knapsack: ``"joint"`` prices the input and output width of each layer together;
            ``"grouped"`` holds input widths (the paper's and HALP's; for one budget).
        thin: train physically smaller layers outside exploration, which makes steps as fast as they are small; the
            parameters change shape at updates. False masks channels instead.

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

    def __post_init__(self) -> None:
        if not self.budgets:
            raise UserError("Channels needs a budget: give latency=, flops= or params=, e.g. latency=0.5")
        for kind, value in self.budgets.items():
            amount(kind, value, 1.0)
        for number in self.round_to.values() if isinstance(self.round_to, Mapping) else (self.round_to,):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise UserError(f"round_to is {number!r}, but must be a whole number of channels, at least 1")
        if isinstance(self.min_channels, bool) or not self.min_channels > 0:
            raise UserError(f"min_channels is {self.min_channels!r}, but must be a number of channels, or a share")
        if isinstance(self.exclude, str):
            raise UserError(f"exclude must be a list of names, not the string {self.exclude!r}")
        for option, known in (("distribution", ("knapsack", "uniform")), ("solver", ("joint", "grouped"))):
            if getattr(self, option) not in known:
                raise UserError(f"{option} {getattr(self, option)!r} is unknown; use {' or '.join(map(repr, known))}")
        if self.solver == "grouped" and len(self.budgets) > 1:
            raise UserError("solver='grouped' knows one budget only; use solver='joint' for several")

    @property
    def budgets(self) -> dict[str, float | str]:
        """Kind → what was asked for."""
        asked = {"latency": self.latency, "flops": self.flops, "params": self.params}
        return {kind: value for kind, value in asked.items() if value is not None}

    def step_of(self, group: str) -> int:
        """What the number of channels of a group is a multiple of."""
        if isinstance(self.round_to, int):
            return self.round_to
        return next((n for pattern, n in self.round_to.items() if fnmatchcase(group, pattern)), 8)

    def floor_of(self, group: str, size: int) -> int:
        """How many channels a group keeps at least."""
        least = self.min_channels if self.min_channels >= 1 else self.min_channels * size
        step = self.step_of(group)
        return min(size, math.ceil(max(1, math.ceil(least)) / step) * step)

    def bind(self, model: nn.Module, example_inputs: Any = None) -> ChannelBinding:
        return ChannelBinding(self, names.unwrap(model), example_inputs)


class ChannelBinding(Binding):
    """The coupled channels of one model, and what they cost.

    Attributes:
        coupling: the groups.
        prices: what the model costs at any widths.
        budgets: kind → amount at the end.
        table: of latencies, if there is such a budget.
    """

    def __init__(self, pattern: Channels, model: nn.Module, example_inputs: Any) -> None:
        from regrow.channels.coupling import couple
        from regrow.channels.labels import FORBIDDEN, OUTPUT, TOKENS
        from regrow.tracing.flops import count_flops

        if example_inputs is None:
            raise UserError("Channels follows a batch through the model; pass example_inputs=one batch to Sparsifier")
        self.pattern = pattern
        self.model = model
        self.resizes = pattern.thin
        self.coupling: Coupling = couple(model, example_inputs, forbid=pattern.exclude)
        if not self.coupling.groups:
            raise UserError(f"no channels of this model can be removed: {self._left_dense() or 'it has no layers'}")
        self.dense = self.coupling.dense
        self.decided = frozenset([FORBIDDEN, OUTPUT, TOKENS])
        if self.coupling.untrained:
            self.note = f"the channels were not tried in training mode: {self.coupling.untrained}"
        self.parameters = self._sliced(model)
        self.flops = count_flops(model, example_inputs)
        self.table = self._table(example_inputs) if pattern.latency is not None else None
        self.prices, self.budgets = self._priced()
        self._check_budgets()

    def _priced(self) -> tuple[Prices, dict[str, float]]:
        from regrow.channels.pricing import Prices

        asked = self.pattern.budgets
        prices = Prices.of(self.model, self.coupling, kinds=tuple(asked), flops=self.flops, table=self.table)
        return prices, {kind: amount(kind, value, prices.dense[kind]) for kind, value in asked.items()}

    def adopt(self, table: LatencyTable) -> None:
        """Takes another table of the same model, which must have its full width."""
        self.table = table
        self.prices, self.budgets = self._priced()

    def _sliced(self, model: nn.Module) -> dict[str, nn.Parameter]:
        cut = {part.name for group in self.coupling.groups for part in group.slices}
        return {name: p for name, p in names.parameters(model).items() if name in cut}

    def _table(self, example_inputs: Any) -> LatencyTable:
        from regrow.latency.table import LatencyTable

        given = self.pattern.table
        if isinstance(given, LatencyTable):
            return given
        if given is not None:
            return LatencyTable.load(given)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise UserError("several processes cannot measure latency at once; run `regrow profile` and give table=")
        from regrow.profiling import profile

        threads = torch.get_num_threads()
        table, _ = profile(self.model, example_inputs, threads=threads, time_limit=_PROFILE_SECONDS, check=1)
        print(_MEASURED, file=sys.stderr)
        return table

    def _check_budgets(self) -> None:
        floor = {group.id: self.pattern.floor_of(group.id, group.size) for group in self.coupling.groups}
        smallest = self.prices.smallest(floor)
        for kind, budget in self.budgets.items():
            if smallest[kind] > budget:
                dense = self.prices.dense[kind]
                least = math.ceil(smallest[kind] / dense * 1e4) / 1e4
                raise UserError(
                    f"{kind}={self.pattern.budgets[kind]} cannot be met: with min_channels={self.pattern.min_channels} "
                    f"and round_to={self.pattern.round_to} the smallest that can is {least} of the dense model; "
                    f"ask for more, or lower these{self._blame()}"
                )

    def _blame(self) -> str:
        """What stays dense whatever the options are, where that is much."""
        fixed = sum(n for name, n in self._sizes().items() if name in self.coupling.dense)
        share = fixed / max(1, sum(self._sizes().values()))
        return f"; {share:.0%} of the parameters cannot lose outputs: {self._left_dense()}" if share > 0.1 else ""

    def _left_dense(self, most: int = 3) -> str:
        """The reasons for which most parameters keep their outputs, each with its largest parameter."""
        sizes = self._sizes()
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.coupling.dense.items():
            by_reason.setdefault(reason, []).append(name)
        ranked = sorted(by_reason.items(), key=lambda item: -sum(sizes[name] for name in item[1]))
        said = []
        for reason, found in ranked[:most]:
            largest = max(found, key=sizes.__getitem__)
            said.append(f"{largest}{f' and {len(found) - 1} more' if len(found) > 1 else ''}, as {reason}")
        more = f"; and {len(ranked) - most} other reasons" if len(ranked) > most else ""
        return "; ".join(said) + more

    def _sizes(self) -> dict[str, int]:
        return {name: p.numel() for name, p in names.parameters(self.model).items()}

    def units(self, attached: Attached) -> ChannelUnits:
        from regrow.channels.units import ChannelUnits

        return ChannelUnits(self, attached)


def amount(kind: str, value: float | str, dense: float) -> float:
    """What a budget allows, in the unit of `Prices` (seconds, FLOPs, parameters).

    Args:
        kind: latency, flops or params.
        value: a share of dense up to 1, or an amount.
        dense: the dense model's.

    Raises:
        UserError: a value that is neither.
    """
    units = _UNITS[kind]
    example = {"latency": "'12 ms'", "flops": "'1.1 G'", "params": "'5 M'"}[kind]
    shown = value[:40] if isinstance(value, str) else value
    wrong = f"{kind} is {shown!r}, but must be a share of dense in (0, 1] or an amount such as {example}"
    if isinstance(value, str):
        match = _AMOUNT.fullmatch(value)
        if match is None:
            raise UserError(wrong)
        try:
            number = float(match[1])
        except ValueError as error:
            raise UserError(wrong) from error
        unit = match[2].lower()
        if unit in ("", "%"):
            return _amount(kind, number / 100 if unit else number, dense, wrong)
        if unit not in units:
            raise UserError(f"{kind} is {value!r}, but {match[2]!r} is no unit of it{nearest(unit, units)}")
        if not 0 < number < math.inf:
            raise UserError(wrong)
        return number * units[unit]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(wrong)
    return _amount(kind, value, dense, wrong)


def _amount(kind: str, number: float, dense: float, wrong: str) -> float:
    """The same, of a plain number."""
    if not 0 < number < math.inf:
        raise UserError(wrong)
    if number <= 1:
        return number * dense
    # no network has so few operations or parameters: per cent are meant
    if kind == "latency" or number <= 100:
        raise UserError(f"{wrong}{percent(number)}")
    return float(number)
