"""Parameters that are several, and one in memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regrow import names, shards
from regrow.errors import UserError


def check_memory(model: nn.Module, sparsified: Mapping[str, Tensor]) -> None:
    """Refuses weights that lie in the memory of another parameter, as ``a.weight.data = b.weight.data.t()`` makes them:
    each would be masked, and the masks would cut into each other.

    Raises:
        UserError: naming both.
    """
    by_storage: dict[tuple[torch.device, int], list[tuple[int, int, str]]] = {}
    for name, param in names.parameters(model).items():
        held = shards.local(param.detach())
        if held.numel() and held.layout is torch.strided and held.data_ptr():
            extent = sum((size - 1) * stride for size, stride in zip(held.shape, held.stride(), strict=True)) + 1
            place = held.device, held.untyped_storage().data_ptr()
            begin = held.data_ptr()
            by_storage.setdefault(place, []).append((begin, begin + extent * held.element_size(), name))
    for parts in by_storage.values():
        parts.sort()
        _, end, one = parts[0]  # what reaches furthest of all before
        for begin, its_end, other in parts[1:]:
            if begin < end and not sparsified.keys().isdisjoint((one, other)):
                one, other = sorted((one, other), key=list(names.parameters(model)).index)
                raise UserError(
                    f"{one} and {other} are two parameters in the same memory, so that what is removed of one would be "
                    "removed of the other, too: make them one parameter (b.weight = a.weight, transposed where it is "
                    f"used), or leave them out with exclude=[{one!r}, {other!r}]"
                )
            if its_end > end:
                end, one = its_end, other
