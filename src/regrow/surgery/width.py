"""Whether a model is thin or whole, and what of the removed channels waits meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow import names, optim_state
from regrow.groups import Coupling, Slice
from regrow.state import WeightState
from regrow.surgery import resize, strided

Keep = Mapping[str, Tensor]


class Width(Protocol):
    """How removed channels are kept out of training.

    Attributes:
        version: changes whenever widths do.
    """

    version: int

    @property
    def index(self) -> Mapping[str, resize.Index]:
        """Tensor name → what of it is left in a thin model; empty for a whole one."""

    def widen(self) -> None:
        """Makes the model whole, with everything that was removed as it was when it was."""

    def narrow(self, keep: Keep) -> None:
        """Takes channels out of training (group → bool, True for those that stay)."""

    def channel_of(self, part: Slice) -> Tensor:
        """The channel that each index of a dimension goes with at the present width, on the CPU; -1 for none."""

    def compact(self, keep: Keep) -> None:
        """Takes channels out of the model for good."""


class Thin:
    """The layers are physically smaller."""

    def __init__(
        self, model: nn.Module, coupling: Coupling, states: Mapping[str, WeightState], optimizers: Sequence[Optimizer]
    ) -> None:
        self._model, self._coupling, self._states, self._optimizers = model, coupling, states, optimizers
        self._remainder: resize.Remainder | None = None
        self.version = 0
        strided.guard(model)

    def widen(self) -> None:
        if self._remainder is not None:
            resize.expand(self._model, self._remainder, self._optimizers)
            self._remainder = None
            self._rest(False)

    def narrow(self, keep: Keep) -> None:
        if all(bool(mask.all()) for mask in keep.values()):
            return
        self._remainder = resize.shrink(self._model, self._coupling, keep, self._optimizers)
        self._rest(True)

    def _rest(self, at_rest: bool) -> None:
        for state in self._states.values():
            state.at_rest = at_rest
        self.version += 1

    @property
    def index(self) -> Mapping[str, resize.Index]:
        return {} if self._remainder is None else self._remainder.index

    def channel_of(self, part: Slice) -> Tensor:
        for dim, stays in self.index.get(part.name, ()):
            if dim == part.dim:
                return part.channel[stays.cpu()]
        return part.channel

    def compact(self, keep: Keep) -> None:
        if self._remainder is not None:
            resize.note(self._model, self._remainder)
            self._remainder = None
        strided.unguard(self._model)


class Masked:
    """The layers stay as wide as they are. Statistics and second moments of removed channels, which training would
    wear away, are put back before a channel can return, so that masked training computes what thin training does."""

    def __init__(
        self, model: nn.Module, coupling: Coupling, states: Mapping[str, WeightState], optimizers: Sequence[Optimizer]
    ) -> None:
        self._model, self._coupling, self._states, self._optimizers = model, coupling, states, optimizers
        self.version = 0
        self.index: Mapping[str, resize.Index] = {}
        self._removed: dict[str, Tensor] = {}  # of buffers: name → bool
        self._saved: dict[tuple[str, str], Tensor] = {}

    def widen(self) -> None:
        for (name, key), saved in self._saved.items():
            live = self._tensors(name).get(key)
            removed = self._removed[name]
            if live is None or live.shape != saved.shape:
                continue
            live.copy_(torch.where(removed, saved, live))
        self._saved.clear()

    def narrow(self, keep: Keep) -> None:
        self._saved, self._removed = {}, {}
        tensors = names.tensors(self._model)
        for name, dims in self._coupling.kept(keep, zeroed=True).items():
            self._removed[name] = ~entries(tensors[name], dims)
            for key, value in self._tensors(name).items():
                self._saved[name, key] = value.detach().clone()

    def _tensors(self, name: str) -> dict[str, Tensor]:
        """The buffer of this name, or what the optimizer keeps of the parameter's squared gradients."""
        state = self._states.get(name)
        if state is None:
            return {"": names.buffers(self._model)[name]}
        found = optim_state.tensors(state.optimizer_state(), state.param)
        return {key: value for key, kind, value in found if kind == "second"}

    def channel_of(self, part: Slice) -> Tensor:
        return part.channel

    def compact(self, keep: Keep) -> None:
        resize.compact(self._model, self._coupling, keep, self._optimizers)


def entries(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """bool, of the tensor's shape: whether an entry stays, where these indices of its dimensions do."""
    stays = torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
    for dim, mask in dims.items():
        shape: list[Any] = [1] * tensor.dim()
        shape[dim] = -1
        stays &= mask.to(tensor.device).view(shape)
    return stays


def active_entries(coupling: Coupling, active: Keep, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameter name → bool, of its shape: whether all channels that an entry belongs to are active."""
    kept = coupling.kept(active, zeroed=True)
    return {name: entries(param, kept.get(name, {})) for name, param in params.items()}
