"""Copies of a model, and of what it is called with, that may be run and changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regrow.errors import UserError
from regrow.inputs import Inputs, first_line
from regrow.tracing.trace import held


def on_cpu(tensor: Tensor) -> Tensor:
    """The same numbers on the CPU, where possible the tensor's own; zeros, valid as indices too, for one that has only
    a shape."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor.detach().cpu()


def on_meta(tensor: Tensor) -> Tensor:
    """Its shape alone."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def replica_of(model: nn.Module, place: Callable[[Tensor], Tensor] = on_cpu) -> nn.Module:
    """A copy of a model.

    Args:
        place: brings tensors to the copy's device; by default parameters share their values with those that are on the
            CPU already. Buffers never do.

    Raises:
        UserError: the model cannot be copied, or has uninitialized (lazy) parameters.
    """
    memo: dict[int, Any] = {}  # with its tensors in there, deepcopy copies only the structure
    for p in model.parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise UserError("the model has lazy parameters without a shape: run one batch through it first")
        memo[id(p)] = nn.Parameter(place(p), requires_grad=p.requires_grad)
    for t in held(model):
        if id(t) not in memo:
            memo[id(t)] = place(t).clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise UserError(f"the model cannot be traced, as it cannot be copied: {first_line(error)}") from error


def inputs_of_replica(inputs: Inputs, place: Callable[[Tensor], Tensor] = on_cpu) -> Inputs:
    """The same call with tensors of its own."""
    return inputs.map(lambda t: place(t).clone())
