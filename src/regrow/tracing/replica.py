"""Copies of a model, and of what it is called with, that may be run and changed."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from regrow.errors import UserError
from regrow.inputs import Inputs, first_line
from regrow.tracing.trace import held

_DEEPEST = 8  # levels of containers that are looked into


def on_cpu(tensor: Tensor) -> Tensor:
    """The same numbers on the CPU, where possible the tensor's own; zeros, valid as indices too, for one that has only
    a shape."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor.detach().cpu()


class NoReplica(UserError):
    """A model that cannot be copied, whatever it is called with."""


def on_meta(tensor: Tensor) -> Tensor:
    """Its shape alone."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def replica_of(model: nn.Module, place: Callable[[Tensor], Tensor] = on_cpu) -> nn.Module:
    """A copy of a model.

    Args:
        place: brings tensors to the copy's device; by default parameters share their values with those that are on the
            CPU already. Buffers never do.

    Raises:
        NoReplica: the model cannot be copied.
        UserError: it has uninitialized (lazy) parameters.
    """
    memo: dict[int, Any] = {}  # with its tensors in there, deepcopy copies only the structure
    for p in model.parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise UserError("the model has lazy parameters without a shape: run one batch through it first")
        memo[id(p)] = nn.Parameter(place(p), requires_grad=p.requires_grad)
    for t in held(model):
        if id(t) not in memo:
            memo[id(t)] = place(t).clone()
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in _OF_TORCH:
                _prepare(value, place, memo)
            elif type(value) is OrderedDict and not value:  # ten of them in each module, and each slow to copy
                memo[id(value)] = OrderedDict()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise NoReplica(f"the model cannot be traced, as it cannot be copied: {first_line(error)}") from error


_OF_TORCH = frozenset(vars(nn.Module()))  # attributes that every module has: copied with it


def _prepare(value: Any, place: Callable[[Tensor], Tensor], memo: dict[int, Any], depth: int = 0) -> None:
    """Puts into deepcopy's memo what it would refuse in an attribute: tensors that were computed, as of features kept
    in a list, dict or namespace, get a copy; locks, files, generators and the like are shared."""
    if id(value) in memo or depth > _DEEPEST or isinstance(value, nn.Module | type):
        return
    if isinstance(value, Tensor):
        memo[id(value)] = place(value).clone()
    elif isinstance(value, torch.Generator):
        memo[id(value)] = value.clone_state()
    elif isinstance(value, Mapping):
        for one in value.values():
            _prepare(one, place, memo, depth + 1)
    elif isinstance(value, Sequence | Set) and not isinstance(value, str | bytes | range):
        for one in value:
            _prepare(one, place, memo, depth + 1)
    elif hasattr(value, "__dict__") and not callable(value):
        for one in list(vars(value).values()):
            _prepare(one, place, memo, depth + 1)
        _share_if_unique(value, memo)
    else:
        _share_if_unique(value, memo)


def _share_if_unique(value: Any, memo: dict[int, Any]) -> None:
    """Shares what has no way to be copied, such as a lock or an open file."""
    if hasattr(type(value), "__deepcopy__") or callable(value):
        return
    try:
        value.__reduce_ex__(4)
    except Exception:  # a TypeError, or what its own code raises, as NotImplementedError of an iterator of a DataLoader
        memo[id(value)] = value


def inputs_of_replica(inputs: Inputs, place: Callable[[Tensor], Tensor] = on_cpu) -> Inputs:
    """The same call with tensors of its own."""
    return inputs.map(lambda t: place(t).clone())
