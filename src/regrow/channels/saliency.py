"""Importance of channels: what a criterion says of the weights that make them, or of their norm's scale and shift."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regrow.channels.table import Coupling, Group, Slice
from regrow.patterns.base import Attached
from regrow.saliency import Role, Saliency, Scoring, generator
from regrow.state import WeightState

# Criteria that are summed with their sign over all that goes with a channel, and made positive afterwards; on the
# scale and shift of norms, where there are any (HALP, section 3.1; Molchanov et al. 2019).
SIGNED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"taylor": lambda weight, grad: weight * grad}


class ChannelSaliency(Saliency):
    """Scores by group instead of by parameter: fp32 [channels of the group], higher stays.

    A criterion in `SIGNED` is summed over the norms of the layers coupled in a group (without norms, over the weights
    that produce the channel) before its absolute value is averaged over steps. Any other is averaged over the weights
    that produce a channel, and over the group brought to a mean of 1, as layers of different fan-in do not compare.

    Args:
        model: whose modules say what is a norm.
        coupling: its groups.
        attached: states, criterion and scorings.
        channel_of: the channel that each index of a slice goes with at the present width.
    """

    def __init__(
        self, model: nn.Module, coupling: Coupling, attached: Attached, channel_of: Callable[[Slice], Tensor]
    ) -> None:
        super().__init__(attached.states, attached.criterion, attached.scorings, attached.seed)
        self._channel_of = channel_of
        self._groups = {group.id: group for group in coupling.groups}
        self._makers = {group.id: _makers(model, group, attached.states) for group in coupling.groups}
        self._norms = {group.id: _norms(model, group, attached.states) for group in coupling.groups}
        self._pending: dict[Role, dict[str, Tensor]] = {}
        self._counted: dict[Role, Tensor] = {}

    @torch.no_grad()
    def observe(
        self, states: Mapping[str, WeightState], scorings: list[Scoring], unscale: Tensor | None, finite: Tensor
    ) -> None:
        for scoring in scorings:
            pending = self._pending.setdefault(scoring.role, {})
            signed = SIGNED.get(scoring.criterion.name)
            for name in self._groups:
                for part in self._norms[name] if signed and self._norms[name] else self._makers[name]:
                    state = states.get(part.name)
                    if state is None or state.param.grad is None:
                        continue
                    grad = state.param.grad if unscale is None else state.param.grad * unscale
                    weight = state.param.detach()
                    entry = signed(weight, grad) if signed else scoring.criterion(weight, grad)
                    score = self._by_channel(entry, part, mean=signed is None).masked_fill_(~finite, 0)
                    pending[name] = pending[name].add_(score) if name in pending else score
            self._counted[scoring.role] = finite

    def close_step(self) -> None:
        for role, pending in self._pending.items():
            sums, steps = self._sums.setdefault(role, {}), self._steps.setdefault(role, {})
            finite = self._counted[role]
            for name, score in pending.items():
                sums[name] = sums[name].add_(score.abs_()) if name in sums else score.abs_()
                steps[name] = steps[name] + finite if name in steps else finite.long()
        self._pending.clear()

    def scores(self, role: Role, name: str, step: int) -> Tensor:
        """The scores of one group: fp32 [channels], on the CPU."""
        group = self._groups[name]
        criterion = next(
            (scoring.criterion for phase in self.scorings.values() for scoring in phase if scoring.role == role),
            self.criterion,
        )
        if not criterion.uses_grad:
            return self.rank(criterion, name, step)
        sums = self._sums.get(role, {})
        if name not in sums:
            return torch.zeros(group.size)
        found = (sums[name] / self._steps[role][name].clamp(min=1)).cpu()
        return found if criterion.name in SIGNED else _even(found)

    def rank(self, criterion: Any, name: str, step: int) -> Tensor:
        """The scores of one group by a criterion without gradients, at full width."""
        group = self._groups[name]
        source = generator(self.seed, step, list(self._groups).index(name))
        if criterion.uses_generator:
            return torch.rand(group.size, generator=source)
        total = torch.zeros(group.size)
        for part in self._makers[name]:
            total += self._by_channel(criterion(self.states[part.name].values()), part, mean=True).cpu()
        return _even(total)

    def _by_channel(self, entry: Tensor, part: Slice, mean: bool) -> Tensor:
        """Scores of entries → of channels, fp32 [channels]."""
        others = [dim for dim in range(entry.dim()) if dim != part.dim]
        entry = entry.float()
        if others:
            entry = entry.mean(others) if mean else entry.sum(others)
        channel = self._channel_of(part).to(entry.device)
        size = int(part.channel.max()) + 1
        mine = channel >= 0
        return torch.zeros(size, device=entry.device).index_add_(0, channel[mine], entry[mine])

    def forget(self) -> None:
        super().forget()
        self._pending.clear()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = next(iter(self.states.values())).param.device
        self._sums = {role: {k: v.to(device).clone() for k, v in sums.items()} for role, sums in state["sums"].items()}
        self._steps = {
            role: {k: torch.tensor(n, device=device) for k, n in steps.items()}
            for role, steps in state["steps"].items()
        }


def _even(scores: Tensor) -> Tensor:
    return scores / scores.mean().clamp(min=torch.finfo(scores.dtype).tiny)


def _makers(model: nn.Module, group: Group, states: Mapping[str, WeightState]) -> list[Slice]:
    """The weights whose outputs the channels are; whatever belongs to the group, where there are none."""
    found = []
    for part in group.slices:
        if part.name in states and states[part.name].flags.dim() > 1:
            module = model.get_submodule(part.name.rpartition(".")[0])
            if part.dim == (1 if getattr(module, "transposed", False) else 0):
                found.append(part)
    return found or [part for part in group.slices if part.name in states]


def _norms(model: nn.Module, group: Group, states: Mapping[str, WeightState]) -> list[Slice]:
    """Scale and shift of the norms of a group."""
    found = []
    for part in group.slices:
        if part.name not in states or states[part.name].flags.dim() != 1:
            continue
        module = model.get_submodule(part.name.rpartition(".")[0])
        scale = getattr(module, "weight", None)
        if isinstance(scale, Tensor) and scale.dim() == 1 and not isinstance(module, nn.PReLU):
            found.append(part)
    return found
