"""Importance of channels: what a criterion says of the weights that make them, or of their norm's scale and shift."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from regrow import names
from regrow.criteria import CRITERIA
from regrow.groups import Coupling, Group, Slice
from regrow.saliency import Role, Saliency, Scoring, generator
from regrow.state import WeightState
from regrow.surgery.width import Width
from regrow.units import Attached

_ALL = "channels"  # the scores of all groups, one after the other


class ChannelSaliency(Saliency):
    """Scores by group instead of by parameter: fp32 [channels of the group], higher stays.

    A criterion with a `signed` form is summed over the norms of the layers coupled in a group (without norms, over the
    weights that produce the channel) before its absolute value is averaged over steps. Any other is averaged over the
    weights that produce a channel, and over the group brought to a mean of 1, as layers of different fan-in do not
    compare.

    Args:
        model: whose modules say what is a norm.
        coupling: its groups.
        attached: states, criterion and scorings.
        width: says which channel each index of a slice goes with at present.
    """

    def __init__(self, model: nn.Module, coupling: Coupling, attached: Attached, width: Width) -> None:
        super().__init__(attached.states, attached.criterion, attached.scorings, attached.seed)
        self._width = width
        self._groups = {group.id: group for group in coupling.groups}
        ends = list(accumulate((group.size for group in coupling.groups), initial=0))
        self._start = dict(zip(self._groups, ends, strict=False))
        self._channels = ends[-1]
        modules = names.modules(model)
        self._makers = {group.id: _makers(modules, group, attached.states) for group in coupling.groups}
        train = {name: state for name, state in attached.states.items() if state.param.requires_grad}
        norms = {group.id: _norms(modules, group, train) for group in coupling.groups}
        self._learners = {group.id: _makers(modules, group, train) for group in coupling.groups}  # have gradients
        for block in coupling.blocks:  # of a branch as a whole, what its last layer does
            last = [piece for piece in self._groups[block.id].slices if piece.name in block.ending]
            self._makers[block.id] = [piece for piece in last if piece.name in attached.states]
            self._learners[block.id] = norms[block.id] = [piece for piece in last if piece.name in train]
        self._signed = {name: norms[name] or self._learners[name] for name in self._groups}
        self._pending: dict[Role, Tensor] = {}
        self._counted: dict[Role, Tensor] = {}
        self._index: dict[Any, Tensor] = {}  # at the width of this version:
        self._version = -1

    @torch.no_grad()
    def observe(
        self, states: Mapping[str, WeightState], scorings: list[Scoring], unscale: Tensor | None, finite: Tensor
    ) -> None:
        for scoring in scorings:
            signed = scoring.criterion.signed
            by_group = self._signed if signed else self._learners
            parts = [
                (group, part)
                for group, of_group in by_group.items()
                for part in of_group
                if part.name in states and states[part.name].param.grad is not None
            ]
            if not parts:
                continue
            weights = [states[part.name].param.detach() for _, part in parts]
            grads = [grad for _, part in parts if (grad := states[part.name].param.grad) is not None]
            if unscale is not None:
                grads = [grad * unscale for grad in grads]
            if signed:
                entries = signed(weights, grads)
            else:
                entries = [scoring.criterion(weight, grad) for weight, grad in zip(weights, grads, strict=True)]
            pairs = zip(entries, parts, strict=True)
            flat = torch.cat(
                [_along(entry, part.dim, None if signed else self._shape(part)) for entry, (_, part) in pairs]
            )
            total = flat.new_zeros(self._channels + 1).index_add_(0, self._index_of(parts, flat.device), flat)
            total = total[:-1].masked_fill_(~finite, 0)
            before = self._pending.get(scoring.role)
            self._pending[scoring.role] = total if before is None else before + total
            self._counted[scoring.role] = finite

    def _index_of(self, parts: list[tuple[str, Slice]], device: torch.device) -> Tensor:
        """Where the scores of these slices belong, one after the other; behind the last channel if nowhere."""
        if self._version != self._width.version:
            self._index.clear()
            self._version = self._width.version
        key = tuple(map(id, (part for _, part in parts)))
        if key not in self._index:
            channels = [(self._start[group], self._width.channel_of(part)) for group, part in parts]
            index = [torch.where(channel < 0, self._channels, channel + start) for start, channel in channels]
            self._index[key] = torch.cat(index).to(device)
        return self._index[key]

    def _shape(self, part: Slice) -> torch.Size:
        """Of the parameter that a slice is of, in full size."""
        return self.states[part.name].flags.shape

    def close_step(self) -> None:
        for role, pending in self._pending.items():
            sums, steps = self._sums.setdefault(role, {}), self._steps.setdefault(role, {})
            sums[_ALL] = sums[_ALL].add_(pending.abs_()) if _ALL in sums else pending.abs_()
            finite = self._counted[role]
            steps[_ALL] = steps[_ALL] + finite if _ALL in steps else finite.long()
        self._pending.clear()

    def scores(self, role: Role, name: str, step: int) -> Tensor:
        """The scores of one group: fp32 [channels], on the CPU."""
        group = self._groups[name]
        criterion = self.criterion_of(role)
        if not criterion.uses_grad:
            return self.rank(criterion, name, step)
        sums = self._sums.get(role, {})
        if _ALL not in sums:  # no step counted
            return torch.zeros(group.size)
        mine = sums[_ALL][self._start[name] : self._start[name] + group.size]
        if not self._learners[name]:  # wholly frozen: no gradient says what it is worth, so it counts as the average
            return (
                self.rank(CRITERIA["magnitude"], name, step) * sums[_ALL].mean().cpu() / self._steps[role][_ALL].cpu()
            )
        found = (mine / self._steps[role][_ALL].clamp(min=1)).cpu()
        found = found if criterion.after is None else criterion.after(found)
        return found if criterion.signed else _even(found)

    def rank(self, criterion: Any, name: str, step: int) -> Tensor:
        """The scores of one group by a criterion without gradients, at full width."""
        group = self._groups[name]
        source = generator(self.seed, step, list(self._groups).index(name))
        if criterion.uses_generator:
            return torch.rand(group.size, generator=source)
        total = torch.zeros(group.size)
        for part in self._makers[name]:
            score = _along(criterion(self.states[part.name].values()), part.dim, self._shape(part)).cpu()
            mine = part.channel >= 0
            total.index_add_(0, part.channel[mine], score[mine])
        return _even(total)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {_ALL: (self._channels,)}

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


def _along(entry: Tensor, dim: int, mean_of: torch.Size | None) -> Tensor:
    """Scores of entries summed over all dimensions but one, in fp32; or averaged, as if those that are missing of this
    shape were zero."""
    others = [d for d in range(entry.dim()) if d != dim]
    entry = entry.float()
    if not others:
        return entry
    total = entry.sum(others)
    return total if mean_of is None else total / (mean_of.numel() // mean_of[dim])


def _even(scores: Tensor) -> Tensor:
    return scores / scores.mean().clamp(min=torch.finfo(scores.dtype).tiny)


def _makers(modules: Mapping[str, nn.Module], group: Group, states: Mapping[str, WeightState]) -> list[Slice]:
    """The weights whose outputs the channels are; whatever belongs to the group, where there are none."""
    found = []
    for part in group.slices:
        if part.name in states and states[part.name].flags.dim() > 1:
            module = modules[part.name.rpartition(".")[0]]
            if part.dim == (1 if getattr(module, "transposed", False) else 0):
                found.append(part)
    return found or [part for part in group.slices if part.name in states]


def _norms(modules: Mapping[str, nn.Module], group: Group, states: Mapping[str, WeightState]) -> list[Slice]:
    """Scale and shift of the norms of a group."""
    found = []
    for part in group.slices:
        if part.name not in states or states[part.name].flags.dim() != 1:
            continue
        module = modules[part.name.rpartition(".")[0]]
        scale = getattr(module, "weight", None)
        if isinstance(scale, Tensor) and scale.dim() == 1 and not isinstance(module, nn.PReLU):
            found.append(part)
    return found
