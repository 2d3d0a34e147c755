"""All or nothing: what an update changes is put back if it does not come to its end.

Where only the states of parameters change, as for patterns of single entries, they note what they are about to change.
Otherwise all is copied beforehand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.journal import Journal
from regrow.shards import local
from regrow.surgery import resize, scale, skip


@dataclass(frozen=True)
class Scope:
    """What an update may change.

    Attributes:
        model: its parameters, gradients, buffers, and the numbers among the attributes of its modules.
        optimizers: their states.
        parts: objects whose attributes may change.
        on_resize: called where parameters got other shapes and have them back.
        noting: what keeps in a journal what it is about to change of the model's parameters and the optimizers' states.
            Where there is any, of these nothing else may change, and no gradient.
    """

    model: nn.Module
    optimizers: Iterable[Optimizer]
    parts: Iterable[object]
    on_resize: Callable[[], None] | None = None
    noting: Sequence[Noting] = ()


class Noting(Protocol):
    """What notes tensors before it changes them in place; its other attributes it replaces.

    Attributes:
        journal: where, if anywhere.
    """

    journal: Journal | None

    def follow(self) -> None:
        """Makes again what follows from what it has noted, once that is put back."""


@contextmanager
def all_or_nothing(scope: Scope) -> Iterator[None]:
    """Inside it, an exception of any kind (Ctrl-C, too) puts everything in the scope back to what it was, and goes on.

    It holds a copy of everything meanwhile, or of what has changed.
    """
    restore = _noted(scope) if scope.noting else _snapshot(scope)
    try:
        yield
    except BaseException:
        restore()
        raise
    finally:
        for one in scope.noting:
            one.journal = None


def _noted(scope: Scope) -> Callable[[], None]:
    """Has changes noted; returns what puts everything in the scope back."""
    journal = Journal()
    attributes = [(one, dict(vars(one))) for one in scope.noting]
    parts = [(part, {name: _copy(value, tensors=False) for name, value in vars(part).items()}) for part in scope.parts]
    journal.keep(*scope.model.buffers())
    for one in scope.noting:
        one.journal = journal

    def restore() -> None:
        journal.restore()
        for part, before in (*attributes, *parts):
            vars(part).clear()
            vars(part).update(before)
        for one in scope.noting:
            one.follow()

    return restore


def _snapshot(scope: Scope) -> Callable[[], None]:
    """Copies everything in the scope; returns what puts it back."""
    held = map(local, (*scope.model.parameters(), *scope.model.buffers()))
    tensors = [(t, t.data, t.data.clone()) for t in held]
    gradients = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in scope.model.parameters()]
    numbers = [(m, {k: v for k, v in vars(m).items() if type(v) in (int, tuple, list)}) for m in scope.model.modules()]
    replaced = [(m, vars(m).get(skip.SKIPPED), vars(m).get(scale.SCALED)) for m in scope.model.modules()]
    note = copy.deepcopy(vars(scope.model).get(resize.NOTE))
    states = [(one, {p: _copy(state) for p, state in one.state.items()}) for one in scope.optimizers]
    parts = [(part, {name: _copy(value) for name, value in vars(part).items()}) for part in scope.parts]

    @torch.no_grad()
    def restore() -> None:
        resized = False
        for tensor, data, values in tensors:
            if tensor.shape != data.shape:
                resized = True
                tensor.grad = None
                resize.put(tensor, data)
            tensor.data = data
            data.copy_(values)
        for p, gradient, kept in gradients:
            p.grad = gradient
            if gradient is not None and kept is not None:
                gradient.copy_(kept)
        for module, how, width in replaced:
            skip.put_back(module, how)
            scale.put_back(module, width)
        for module, attributes in numbers:
            vars(module).update(attributes)
        vars(scope.model).pop(resize.NOTE, None)
        if note is not None:
            setattr(scope.model, resize.NOTE, note)
        for optimizer, by_parameter in states:
            for other in set(optimizer.state) - set(by_parameter):
                del optimizer.state[other]
            optimizer.state.update(by_parameter)
        for part, attributes in parts:
            vars(part).clear()
            vars(part).update(attributes)
        if resized and scope.on_resize is not None:
            scope.on_resize()

    return restore


def _copy(value: Any, tensors: bool = True) -> Any:
    """Containers anew, and tensors if they are to be; parameters, tuples of plain values and all else as they are."""
    if isinstance(value, nn.Parameter):
        return value
    if isinstance(value, Tensor):
        return value.clone() if tensors else value
    if type(value) is tuple and not any(isinstance(one, Tensor) for one in value):
        return value
    if type(value) in (dict, list, tuple):
        if isinstance(value, Mapping):
            return {key: _copy(one, tensors) for key, one in value.items()}
        return type(value)(_copy(one, tensors) for one in value)
    if is_dataclass(value) and not isinstance(value, type) and not value.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        twin = copy.copy(value)
        vars(twin).update({name: _copy(one, tensors) for name, one in vars(value).items()})
        return twin
    return value
