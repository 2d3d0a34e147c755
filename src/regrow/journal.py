"""What tensors were before they were changed, for whoever may have to put them back."""

from __future__ import annotations

import torch
from torch import Tensor


class Journal:
    """Copies of tensors, each made just before it is changed for the first time."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(self, *tensors: Tensor) -> None:
        """Copies those that are not noted yet."""
        for tensor in tensors:
            if id(tensor) not in self._kept:
                self._kept[id(tensor)] = (tensor, tensor.detach().clone())

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the tensors back, in place."""
        for tensor, was in self._kept.values():
            tensor.copy_(was)
