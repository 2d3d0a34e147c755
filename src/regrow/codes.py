"""The codes of entries, as bits of one byte each, and what is computed of them in few passes over memory.

Comparisons and sums of bytes take PyTorch several times as long on a CPU as bitwise operations and counts.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

# Two bits of code. The lower one says that an entry trains: it is what gradients are masked with.
PRUNED = 0  # out of use: zero, its last value in memory
TRAINABLE = 1  # in the active structure, training
FROZEN = 2  # in the active structure, held at the value in memory
EXPLORED = 3  # in the exploration space, training for a preview; in a latent phase, zero, and training in memory

# Two bits of history beside it: what the last update left.
CODE = 3
PREVIOUS = 4  # was in the active structure
GROWN = 8  # was grown by it
ALL_FLAGS = CODE | PREVIOUS | GROWN

_PIECE = 1 << 17  # entries that stay in a core's cache
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of a number → integers as wide


def trains(flags: Tensor) -> Tensor:
    """Marks TRAINABLE and EXPLORED: uint8, 1 or 0, in the shape of the flags (uint8)."""
    return flags & 1


def active(flags: Tensor) -> Tensor:
    """Marks TRAINABLE and FROZEN; as `trains`."""
    return (flags >> 1).bitwise_xor_(flags).bitwise_and_(1)


def explored(flags: Tensor) -> Tensor:
    """Marks EXPLORED; as `trains`."""
    return (flags >> 1).bitwise_and_(flags).bitwise_and_(1)


def frozen(flags: Tensor) -> Tensor:
    """Marks FROZEN; as `trains`."""
    return flags.bitwise_not().bitwise_and_(flags >> 1).bitwise_and_(1)


def used(flags: Tensor) -> Tensor:
    """Marks all but PRUNED; as `trains`."""
    return (flags >> 1).bitwise_or_(flags).bitwise_and_(1)


def pruned(flags: Tensor) -> Tensor:
    """Marks PRUNED; as `trains`."""
    return used(flags).bitwise_xor_(1)


def arrives(old: Tensor, new: Tensor) -> Tensor:
    """Marks what comes into use: out of PRUNED, or from EXPLORED into the active structure; as `trains`."""
    return (pruned(old).bitwise_and_(used(new))).bitwise_or_(explored(old).bitwise_and_(active(new)))


def count(mask: Tensor) -> int:
    """How many entries of a bool tensor are set."""
    mask = mask.detach()
    return int(np.count_nonzero(mask.numpy()) if mask.device.type == "cpu" else torch.count_nonzero(mask))


def bits(tensor: Tensor) -> Tensor:
    """The same memory as integers of the same width."""
    return tensor.view(_BITS[tensor.element_size()])


def keep_only(mask: Tensor, values: Tensor, out: Tensor) -> None:
    """out ← values where the mask (uint8, 1 or 0; overwritten) is set, to the bit, and zero elsewhere.

    0 · inf would be NaN, and masked_fill_ takes four times as long.
    """
    every = mask.neg_().view(torch.int8)  # all bits, or none
    mine, into = bits(values), bits(out)
    if mine.device.type != "cpu":
        torch.bitwise_and(mine, every, out=into)
    else:  # NumPy widens bytes in a fraction of the time, but does not count what it writes
        np.bitwise_and(mine.numpy(), every.numpy().astype(mine.numpy().dtype), out=into.numpy())
        increment_version(out)


def replace(mask: Tensor, values: Tensor, others: Tensor) -> None:
    """values ← others where the mask (as in `keep_only`) is set, to the bit."""
    mine = bits(values)
    other = mine ^ bits(others)
    keep_only(mask, other, out=other)
    mine.bitwise_xor_(other)


def pieces(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Views of the same entries of tensors of one shape, few enough at a time to save passes over a CPU's memory."""
    flat = in_order(*tensors) if all(t.device.type == "cpu" for t in tensors) else None
    return [tensors] if flat is None else zip(*(t.split(_PIECE) for t in flat), strict=True)


def in_order(*tensors: Tensor) -> list[Tensor] | None:
    """One-dimensional views, in the order of memory; None where it is not the same for all of them."""
    for form in (torch.contiguous_format, torch.channels_last):
        of_rank = form is torch.contiguous_format or tensors[0].dim() == 4
        if of_rank and all(t.is_contiguous(memory_format=form) for t in tensors):
            return [t.as_strided((t.numel(),), (1,)) for t in tensors]
    return None


def move(live: Tensor, memory: Tensor, old: Tensor, new: Tensor, init: str) -> None:
    """Gives entries of a parameter, and their memory, the values that new codes ask for.

    Args:
        live, memory: changed in place.
        old, new: codes.
        init: the value of entries that come into use: ``"mru"`` from memory, ``"zero"``, or as they are.
    """
    coming = arrives(old, new).view(torch.bool)
    value = live.clone()
    if init == "mru":
        torch.where(coming, memory, value, out=value)
    elif init == "zero":
        value.masked_fill_(coming, 0)
    replace(trains(old), memory, live)
    replace(frozen(new), memory, value)
    keep_only(used(new), value, out=live)
