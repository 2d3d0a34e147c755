"""The codes and the memory of what this process holds of a parameter, and what they say; who changes them is
`regrow.state`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regrow import codes
from regrow.shards import Ranks, holding


class Coded:
    """One byte and one number for each entry that is held here.

    Args:
        name: the parameter's canonical name.
        parameter: any shape.
        ranks: the processes that hold it.

    Attributes:
        holding: how this process holds it.
        held: parameter-like optimizer state while entries are frozen.
        holds_zero: whether the optimizer leaves pruned entries at zero by itself once their gradient is masked.
    """

    holds_zero: bool

    def __init__(self, name: str, parameter: Tensor, ranks: Ranks) -> None:
        self.name = name
        self.holding = holding(parameter, ranks)
        self.ranks = ranks
        self._memory = torch.zeros_like(self.param, requires_grad=False)
        self._flags = torch.full_like(self.param, codes.TRAINABLE, dtype=torch.uint8, requires_grad=False)
        self.held: dict[str, Tensor] = {}
        self._counts = [self.size] * 2 if ranks.several else []  # over all processes: active, training

    @property
    def param(self) -> Tensor:
        """What this process holds of the parameter, as a plain tensor."""
        return self.holding.local

    @property
    def grad(self) -> Tensor | None:
        """Its gradient, likewise."""
        return self.holding.grad

    @property
    def memory(self) -> Tensor:
        """The value that each entry last had, in the parameter's shape, on its device and of its type (which follows
        where the model has been cast or moved)."""
        self._follow()
        return self._memory

    @property
    def flags(self) -> Tensor:
        """uint8, the parameter's shape: codes and history."""
        self._follow()
        return self._flags

    def _follow(self) -> None:
        param = self.param
        if self._memory.dtype is not param.dtype:
            self._memory = self._memory.to(param.dtype)
            self.holds_zero = False  # as what is added to denominators may be nothing in the new type
        if self._memory.device != param.device:
            self._memory, self._flags = self._memory.to(param.device), self._flags.to(param.device)
            self.held = {name: value.to(param.device) for name, value in self.held.items()}

    @property
    def code(self) -> Tensor:
        """uint8, the parameter's shape: PRUNED, TRAINABLE, FROZEN or EXPLORED."""
        return self.flags & codes.CODE

    @property
    def active(self) -> Tensor:
        """bool: the active structure."""
        return codes.active(self.flags).view(torch.bool)

    @property
    def trainable(self) -> Tensor:
        """bool: entries that train now, in the active structure or explored."""
        return codes.trains(self.flags).view(torch.bool)

    @property
    def previous(self) -> Tensor:
        """bool: the active structure that the last update left."""
        return (self.flags & codes.PREVIOUS).to(torch.bool)

    @property
    def grown(self) -> Tensor:
        """bool: what the last update grew."""
        return (self.flags & codes.GROWN).to(torch.bool)

    @property
    def size(self) -> int:
        """Entries of the whole parameter, at its full width."""
        return math.prod(self.holding.shape_of(self._flags))

    @property
    def active_count(self) -> int:
        """Active entries of the whole parameter; sends nothing."""
        return self._counts[0] if self._counts else codes.count(self.active)

    @property
    def trainable_count(self) -> int:
        """Likewise of those that train."""
        return self._counts[1] if self._counts else codes.count(self.trainable)

    def count_codes(self) -> tuple[int, int]:
        """(frozen, pruned) entries of the whole parameter; notes the other counts where nobody has all of them."""
        kinds = (codes.frozen, codes.pruned, *((codes.active, codes.trains) if self.ranks.several else ()))
        found = self.ranks.totals(codes.count(kind(self.flags).view(torch.bool)) for kind in kinds)
        self._counts = found[2:]
        return found[0], found[1]
