"""A masked model whose norms see only the channels that stay.

Where channels are normalised together, a thin model computes something else than one with zeros: its norms see fewer
numbers. What it has to compute is what the masked model does if each norm over channels leaves out those that are
removed. Which these are, labels say that are followed through the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regrow import names
from regrow.coupling import rules
from regrow.coupling.following import Atoms, Follower
from regrow.groups import Group, stay
from regrow.inputs import Inputs
from regrow.surgery import resize
from regrow.tracing.ops import MEANS, family_of, name_of
from regrow.tracing.trace import ModuleStack

Execute = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


class KeptNorms:
    """Follows the channels of one run of a masked model.

    Args:
        model: a copy, in which labels are put on parameters and buffers.
        groups: what is masked.
        keep: group id → bool, True for the channels that stay.
        inputs: of the run; they are marked.
        execute: executes all other operations.
        narrow: whether heads have lost width, rather than gone whole.

    Attributes:
        see: to be told of every operation of the run, after it.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: tuple[Group, ...],
        keep: Mapping[str, Tensor],
        inputs: Inputs,
        stack: ModuleStack,
        execute: Execute,
        narrow: bool = False,
    ) -> None:
        atoms = Atoms()
        tensors = names.tensors(model)
        for name, tensor in tensors.items():
            tensor._regrow_labels = atoms.label(name, tensor)  # type: ignore[attr-defined]
        for t in inputs.tensors:
            t._regrow_live = True  # type: ignore[attr-defined]
        self._removed = torch.zeros(atoms.count, dtype=torch.bool)
        begins = {(name, dim): (first, length) for name, dim, first, length in atoms.leaves}
        for group in groups:
            for part in group.slices:
                first, length = begins[part.name, part.dim]
                self._removed[first : first + length] |= ~stay(part.channel, keep[group.id])
        self._execute = execute
        self.see = Follower(stack, atoms, narrow)

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Executes an operation; norms and means without removed channels."""
        name = name_of(func)
        if name == "native_layer_norm" and len(args[1]) == 1:
            return self._layer_norm(func, *args)
        if name == "native_group_norm" and args[6] == 1:
            return self._group_norm(func, *args)
        if family_of(func) == "batch norms":
            return self._batch_norm(func, args, kwargs)
        if name in MEANS and isinstance(args[0], Tensor) and len(args) > 1 and isinstance(args[1], (list, tuple)):
            x = args[0]
            for dim in args[1]:
                stays = self._stays(x, dim % x.dim())
                x = x if stays is None else x.index_select(dim, stays)
            return self._execute(func, (x, *args[1:]), kwargs)
        return self._execute(func, args, kwargs)

    def _batch_norm(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0]
        index = tuple((d, stays) for d in range(x.dim()) if d != 1 and (stays := self._stays(x, d)) is not None)
        if not index:
            return self._execute(func, args, kwargs)
        out, *moments = self._execute(func, (resize.gather(x, index), *args[1:]), kwargs)
        return (resize.scatter(torch.zeros_like(x), out, index), *moments)

    def _stays(self, x: Tensor, dim: int) -> Tensor | None:
        """The indices along a dimension that are not removed; None where all stay, or labels vary along others too."""
        for label in rules.get(x):
            if label.dims == {dim}:
                atoms = label.atoms.reshape(-1)
                removed = self._removed[atoms.clamp(max=len(self._removed) - 1)] & (atoms < len(self._removed))
                return (~removed).nonzero().reshape(-1) if bool(removed.any()) else None
        return None

    def _layer_norm(self, func: Any, x: Tensor, shape: list[int], *rest: Any) -> Any:
        stays = self._stays(x, x.dim() - 1)
        if stays is None:
            return self._execute(func, (x, shape, *rest), {})
        affine = [t if t is None else t.index_select(0, stays) for t in rest[:2]]
        out, *moments = func(x.index_select(-1, stays), [len(stays)], *affine, *rest[2:])
        return (torch.zeros_like(x).index_copy(-1, stays, out), *moments)

    def _group_norm(self, func: Any, x: Tensor, weight: Any, bias: Any, n: int, c: int, hw: int, *rest: Any) -> Any:
        stays = self._stays(x, 1)
        if stays is None:
            return self._execute(func, (x, weight, bias, n, c, hw, *rest), {})
        affine = [t if t is None else t.index_select(0, stays) for t in (weight, bias)]
        out, *moments = func(x.index_select(1, stays).contiguous(), *affine, n, len(stays), hw, *rest)
        return (torch.zeros_like(x).index_copy(1, stays, out), *moments)
