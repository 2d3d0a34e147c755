"""What a model of coupled channels may cost: the prices of its widths, and the budgets that a pattern sets."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from regrow import names
from regrow.channels.amounts import amount
from regrow.channels.pricing import Prices
from regrow.channels.table import Coupling
from regrow.errors import UserError
from regrow.latency.table import LatencyTable
from regrow.tracing.flops import ModelFlops

if TYPE_CHECKING:
    from regrow.patterns.channels import Channels

_PROFILE_SECONDS = 60.0
_MEASURED = (
    "regrow has measured a latency table of this model and machine; sparsifier.latency_table.save('latency.json') "
    "keeps it for Channels(table='latency.json'), and `regrow profile` measures one more finely"
)


class ChannelBudgets:
    """The budgets of a pattern, put to one model.

    Args:
        pattern: whose budgets they are.
        model: at its full width; stays as it is.
        coupling: its groups.
        flops: of the model.
        example_inputs: one batch, at which latency is measured where no table is given.

    Raises:
        UserError: where they cannot be met.

    Attributes:
        prices: what the model costs at any widths.
        amounts: kind → amount at the end.
        table: of latencies, if there is such a budget.
    """

    def __init__(
        self, pattern: Channels, model: nn.Module, coupling: Coupling, flops: ModelFlops, example_inputs: Any
    ) -> None:
        self.pattern, self.model, self.coupling, self.flops = pattern, model, coupling, flops
        self.table = self._table(example_inputs) if pattern.latency is not None else None
        self.prices, self.amounts = self._priced()
        self._check_budgets()

    def _priced(self) -> tuple[Prices, dict[str, float]]:
        asked = self.pattern.budgets
        prices = Prices.of(self.model, self.coupling, kinds=tuple(asked), flops=self.flops, table=self.table)
        return prices, {kind: amount(kind, value, prices.dense[kind]) for kind, value in asked.items()}

    def adopt(self, table: LatencyTable) -> None:
        """Takes another table of the same model, which must have its full width."""
        self.table = table
        self.prices, self.amounts = self._priced()

    def _table(self, example_inputs: Any) -> LatencyTable:
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
        for kind, budget in self.amounts.items():
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
