"""What tensors were before they were changed, for whoever may have to put them back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Journal:
    """Copies of tensors, each made just before it is changed for the first time."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._afterwards: list[Callable[[], None]] = []

    def keep(self, *tensors: Tensor) -> None:
        """Copies those that are not noted yet."""
        for tensor in tensors:
            if id(tensor) not in self._kept:
                self._kept[id(tensor)] = (tensor, tensor.detach().clone())

    def afterwards(self, function: Callable[[], None]) -> None:
        """Has this called when all is put back: what makes again what follows from the tensors that were kept."""
        self._afterwards.append(function)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the tensors back, in place."""
        for tensor, was in self._kept.values():
            tensor.copy_(was)

    def follow(self) -> None:
        """Calls what is to be called once everything else is put back, too."""
        for function in self._afterwards:
            function()
