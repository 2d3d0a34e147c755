"""A tensor as one bit for each entry and the values of those that have a bit: exact, and small where most are zero.

An entry is left out only if all of its bits are zero, so -0.0 and NaN survive.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regrow.errors import UserError

BITS = "::bits"
VALUES = "::values"
_WITH_SIGNED_ZEROS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGER_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def encode(
    name: str, tensor: Tensor, dense: bool = False, signed_zeros: bool = True
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A tensor's entry in a manifest (`regrow.manifest.TensorForm`) and what is stored of it.

    Args:
        dense: store all of it, whatever it holds
        signed_zeros: keep -0.0, which ``weight * mask`` leaves for each negative weight; False: it becomes 0.0 where a
            bitmask is used
    """
    tensor = tensor.detach().cpu().contiguous()
    entry: dict[str, Any] = {"shape": list(tensor.shape), "dtype": dtype_name(tensor.dtype), "encoding": "dense"}
    if not tensor.is_floating_point() or tensor.dim() < 2:
        return entry, {name: tensor.clone()}
    flat = tensor.flatten()
    exact = signed_zeros or flat.dtype not in _WITH_SIGNED_ZEROS
    numbers = flat.view(_INTEGER_OF_SIZE[flat.element_size()])  # which torch can index whatever the type
    present = (numbers if exact else flat) != 0
    kept = int(present.sum())
    entry["density"] = kept / max(flat.numel(), 1)
    if dense or kept * flat.element_size() + flat.numel() // 8 + 1 >= flat.numel() * flat.element_size():
        return entry, {name: tensor.clone()}
    entry["encoding"] = "bitmask"
    return entry, {name + BITS: _pack(present), name + VALUES: numbers[present].view(flat.dtype)}


def decode(name: str, entry: Mapping[str, Any], stored: Mapping[str, Tensor], path: object) -> Tensor:
    """The tensor that `encode` was given.

    Args:
        stored: all tensors of the file
        path: of the file, for messages

    Raises:
        UserError: if what is stored is not what the entry says.
    """
    damaged = UserError(f"{path} is damaged: the tensor {name!r} does not match the manifest")
    shape, encoding = entry["shape"], entry["encoding"]
    if encoding == "dense":
        if name not in stored or list(stored[name].shape) != shape or dtype_name(stored[name].dtype) != entry["dtype"]:
            raise damaged
        return stored[name]
    size = prod(shape)
    bits, values = stored.get(name + BITS), stored.get(name + VALUES)
    if encoding != "bitmask" or bits is None or values is None or dtype_name(values.dtype) != entry["dtype"]:
        raise damaged
    if bits.dtype != torch.uint8 or bits.shape != ((size + 7) // 8,):
        raise damaged
    present = _unpack(bits, size)
    if values.shape != (int(present.sum()),):
        raise damaged
    integer = _INTEGER_OF_SIZE[values.element_size()]
    flat = torch.zeros(size, dtype=integer)
    flat[present] = values.view(integer)
    try:
        return flat.view(values.dtype).view(shape)
    except (RuntimeError, OverflowError) as error:  # lengths that are no lengths beside one of 0
        raise damaged from error


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def _pack(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.numpy(), bitorder="little"))


def _unpack(bits: Tensor, size: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=size, bitorder="little")).bool()
