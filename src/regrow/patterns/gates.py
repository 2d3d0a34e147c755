"""Which units of a latency table go with a block, beside its layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from regrow import names
from regrow.groups import Coupling
from regrow.latency.network import follow_norms
from regrow.latency.table import LatencyTable
from regrow.surgery import skip


def gated(model: nn.Module, example_inputs: Any, coupling: Coupling, table: LatencyTable) -> dict[str, str]:
    """Name of a unit → the block without which it is not run: norms that stand alone, and what only they feed.

    Args:
        model: in full size.
        example_inputs: that it runs on.
        coupling: of the model.
        table: of the model; of another one no unit is found.
    """
    modules = names.modules(model)
    norms = {name: block for block in coupling.blocks for name in block.skips if skip.is_norm(modules[name])}
    if not norms:
        return {}
    empty = {name: skip.how(modules[name], name, block) == skip.EMPTY for name, block in norms.items()}
    found = follow_norms(model, example_inputs, empty, table.network)
    return {unit: norms[norm].id for unit, norm in found.items()}
