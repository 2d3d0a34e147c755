"""Shadow exploration: what is out of use goes on changing in memory, by the gradients that training computes anyway.

So it is previewed while the active structure trains on, and no step is spent on exploring alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regrow import hints, optim_state
from regrow.errors import UserError
from regrow.hints import LARGEST
from regrow.latent import EveryNth
from regrow.state import WeightState


@dataclass(frozen=True)
class Shadow(EveryNth):
    """How the memory m of an entry that is out of use moves, every n steps: m ← (1 − n·r·wd)·m − √n·speed·r·g.

    r is the step that the optimizer takes per unit of a steady gradient: lr/(1 − momentum), for Adam and its kin
    lr / (√v + eps) with v the mean second moment of the layer; wd is the weight decay; g the dense gradient (negated
    where the optimizer maximizes). Memory
    starts at zero for what was never in use, and at the value it had for what was pruned.

    With √n, the noise that memory gathers from single batches is the same for every n. With n, as for the decay, the
    mean drift would be, and the noise of few batches would outgrow the active weights that memory competes with.

    Args:
        speed: share of the optimizer's own speed.
        every: n; 1 takes the gradient of every step.
        fresh: what is out of use at the first step was never in use.
    """

    speed: float
    every: int = 1
    fresh: bool = True

    def __post_init__(self) -> None:
        hints.check(self)
        if not 0 <= self.speed <= LARGEST:
            raise UserError(f"shadow_speed is {self.speed}, but must be a share of the optimizer's speed, at least 0")
        self.check_every("shadow_every")

    @torch.no_grad()
    def evolve(
        self,
        states: Mapping[str, WeightState],
        groups: Mapping[str, Mapping[str, Any]],
        unscale: Tensor | None,
        finite: Tensor,
    ) -> None:
        """Moves the memory of all entries that are out of use; no synchronisation.

        Args:
            states: those of the parameters that have gradients.
            groups: the optimizer's group of each.
            unscale: what gradients are multiplied by first, where a gradient scaler has not done so.
            finite: bool scalar; where it is False, no gradient is used.
        """
        on_host = finite.device.type == "cpu"  # where looking at it does not wait for a device
        for name, state in states.items():
            grad, group = state.param.grad, groups[name]
            assert grad is not None
            rate = group["lr"] / (1 - group.get("momentum", 0.0))
            uphill = -1 if group.get("maximize", False) else 1
            divisor = optim_state.typical_step(state.optimizer_state(), grad, group.get("eps", 0.0))
            factor = -uphill * self.speed * math.sqrt(self.every) * rate
            change = _Change(factor, unscale, divisor, None if on_host else ~finite)
            decay = 1 - self.every * rate * group.get("weight_decay", 0.0)
            state.evolve_memory(decay, None if on_host and not finite else change.add_to)


@dataclass(frozen=True)
class _Change:
    """What a gradient changes in memory: times `factor` and `unscale`, over `divisor`; nothing if `void` is True."""

    factor: float
    unscale: Tensor | None
    divisor: Tensor | None
    void: Tensor | None

    def add_to(self, memory: Tensor, grad: Tensor) -> None:
        """memory ← memory + what these gradients, of its shape, change."""
        if self.unscale is self.divisor is self.void is None:
            memory.add_(grad, alpha=self.factor)  # one pass
            return
        change = grad * self.factor
        if self.unscale is not None:
            change *= self.unscale
        if self.divisor is not None:
            change /= self.divisor
        memory.add_(change if self.void is None else change.masked_fill_(self.void, 0))


def of(speed: float, every: int, fresh: bool = True) -> Shadow | None:
    """The shadow exploration of these options; none at speed 0."""
    shadow = Shadow(speed, every, fresh)
    return shadow if speed else None
