"""What a model of coupled channels may cost: the prices of its widths, and the budgets that a pattern sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from torch import nn

from regrow import hints, names
from regrow.budgets.amounts import amount, written
from regrow.budgets.pricing import Prices
from regrow.errors import UserError
from regrow.groups import Coupling, Group
from regrow.latency.table import LatencyTable
from regrow.tracing.flops import ModelFlops


class Asked(Protocol):
    """What is asked of the channels of a model, as `regrow.Channels` says it."""

    @property
    def budgets(self) -> dict[str, float | str]:
        """Kind → a share of the dense model's cost, or an amount."""

    @property
    def round_to(self) -> int | Mapping[str, int]:
        """What numbers of channels are multiples of."""

    @property
    def min_channels(self) -> float:
        """What every group keeps: a number, or below 1 a share."""

    def floor_of(self, group: Group) -> int:
        """How many channels a group keeps at least."""


class ChannelBudgets:
    """The budgets of a pattern, put to one model.

    Args:
        pattern: whose budgets they are.
        model: at its full width; stays as it is.
        coupling: its groups.
        flops: of the model.
        table: of latencies; None where there is no such budget.
        gated: as for `Prices.of`.

    Raises:
        UserError: where they cannot be met.

    Attributes:
        prices: what the model costs at any widths.
        amounts: kind → amount at the end.
        table: of latencies, if there is such a budget.
        least: group id → the fewest channels that it may come to: its floor, or none where it may go with a block.
    """

    def __init__(
        self, pattern: Asked, model: nn.Module, coupling: Coupling, flops: ModelFlops, table: LatencyTable | None,
        gated: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.pattern, self.model, self.coupling, self.flops = pattern, model, coupling, flops
        self.table, self._gated = table, gated
        blocks = {member for block in coupling.blocks for member in block.members}
        self.least = {g.id: 0 if g.id in blocks else pattern.floor_of(g) for g in coupling.groups}
        self.prices, self.amounts = self._priced()
        self._check_budgets()

    def _priced(self) -> tuple[Prices, dict[str, float]]:
        asked = self.pattern.budgets
        prices = Prices.of(
            self.model, self.coupling, kinds=tuple(asked), flops=self.flops, table=self.table, gated=self._gated
        )
        return prices, {kind: amount(kind, value, prices.dense[kind]) for kind, value in asked.items()}

    def adopt(self, table: LatencyTable) -> None:
        """Takes another table of the same model, which must have its full width."""
        self.table = table
        self.prices, self.amounts = self._priced()

    def idle(self) -> tuple[str, ...]:
        """A sentence on each budget that the dense model meets as it is."""
        dense = self.prices.dense
        found = [kind for kind, budget in self.amounts.items() if budget >= dense[kind]]
        outcome = "nothing is removed" if len(found) == len(self.amounts) else "only the other budgets count"
        return tuple(
            f"{kind}={hints.show(self.pattern.budgets[kind])} limits nothing, as the dense model takes "
            f"{written(kind, dense[kind])}: {outcome}; ask for a share below 1, or for less"
            for kind in found
        )

    def _check_budgets(self) -> None:
        smallest = self.prices.smallest(self.least)
        for kind, budget in self.amounts.items():
            if smallest[kind] > budget:
                dense = self.prices.dense[kind]
                least = math.ceil(smallest[kind] / dense * 1e4) / 1e4
                still = self.prices.smallest(dict.fromkeys(self.least, 1))[kind] / dense
                rest = f"; with one channel in each group it would still take {still:.0%}" if still > 0.5 else ""
                raise UserError(
                    f"{kind}={self.pattern.budgets[kind]} cannot be met: with min_channels={self.pattern.min_channels} "
                    f"and round_to={self.pattern.round_to} the smallest that can is {least} of the dense model's "
                    f"{written(kind, dense)}; ask for more, or lower these{rest}{self._blame()}"
                )

    def _blame(self) -> str:
        """What stays dense whatever the options are, where that is much."""
        sizes = _sizes(self.model)
        share = sum(n for name, n in sizes.items() if name in self.coupling.dense) / max(1, sum(sizes.values()))
        return (
            f"; {share:.0%} of the parameters cannot lose outputs: {left_dense(self.model, self.coupling)}"
            if share > 0.1
            else ""
        )


def left_dense(model: nn.Module, coupling: Coupling, most: int = 3) -> str:
    """The reasons for which most parameters keep their outputs, each with its largest parameter."""
    sizes = _sizes(model)
    by_reason: dict[str, list[str]] = {}
    for name, reason in coupling.dense.items():
        by_reason.setdefault(reason, []).append(name)
    ranked = sorted(by_reason.items(), key=lambda item: -sum(sizes[name] for name in item[1]))
    said = []
    for reason, found in ranked[:most]:
        largest = max(found, key=sizes.__getitem__)
        said.append(f"{largest}{f' and {len(found) - 1} more' if len(found) > 1 else ''}, as {reason}")
    more = f"; and {len(ranked) - most} other reasons" if len(ranked) > most else ""
    return "; ".join(said) + more


def _sizes(model: nn.Module) -> dict[str, int]:
    return {name: p.numel() for name, p in names.parameters(model).items()}
