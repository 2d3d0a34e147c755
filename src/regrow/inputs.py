"""What a model is called with, in every form that users give it, and the tensors that it returns."""

from __future__ import annotations

import copy
import inspect
from collections import deque
from collections.abc import Callable, ItemsView, Iterator, Mapping, Set, ValuesView
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.data import DataLoader, Dataset

from regrow.errors import UserError

# of what a model returns
_CONTAINERS = (list, tuple, ValuesView, ItemsView, deque, np.ndarray)
_UNSEEN = (Iterator, Set)  # used up by looking, or in no order


@dataclass(frozen=True)
class Inputs:
    """One call of a model: ``model(*args, **kwargs)``.

    Attributes:
        args: positional arguments, nested as the model takes them.
        kwargs: keyword arguments.
        hint: for messages: how else the user's value could have been meant, "" where there is only one way.
        outputs: takes of what the model returns the part that counts; None where all of it does.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    hint: str = ""
    outputs: Callable[[Any], Any] | None = None

    @classmethod
    def of(cls, given: Any, kwargs: Mapping[str, Any] | None = None) -> Inputs:
        """The call that is meant by example inputs as users give them.

        Args:
            given: a mapping is keyword arguments; a tuple is positional arguments, or ``(args, kwargs)`` where it is a
                tuple and a mapping; anything else (a tensor, a list of images) is the one positional argument.
            kwargs: further keyword arguments.

        Raises:
            UserError: there is nothing in it, or it is where batches come from.

        >>> Inputs.of({"x": 1}).kwargs, Inputs.of(((1, 2), {"x": 3})).args
        ({'x': 1}, (1, 2))
        """
        more = dict(kwargs or {})
        if isinstance(given, Inputs):
            return replace(given, kwargs={**given.kwargs, **more})
        if given is None or (isinstance(given, (tuple, list, Mapping)) and not given and not more):
            raise UserError("example_inputs is empty; pass one batch as the model takes it")
        if isinstance(given, DataLoader | Dataset):
            raise UserError(
                f"example_inputs is a {type(given).__name__}; pass what the model takes of one batch of it, such as "
                "next(iter(loader))[0]"
            )
        if isinstance(given, np.ndarray):
            raise UserError("example_inputs is an array of NumPy; pass a tensor: torch.from_numpy(...)")
        if _is_call(given):
            return cls(tuple(given[0]), {**given[1], **more})
        if isinstance(given, tuple):
            return cls(given, more, "a tuple was taken as positional arguments; if one tuple is meant, pass (batch,)")
        if isinstance(given, Mapping) and all(isinstance(key, str) for key in given):
            hint = "a dict was taken as keyword arguments; if the model takes the dict itself, pass (batch,)"
            return cls((), {**given, **more}, hint)
        if isinstance(given, list):
            hint = (
                "a list was taken as the one argument; of a loader's [inputs, labels] pass what the model takes, "
                "such as batch[0], and several arguments as a tuple"
            )
            return cls((given,), more, hint)
        hint = "" if more else "pass several arguments as a tuple, keyword arguments as a dict, both as (args, kwargs)"
        return cls((given,), more, hint)

    def __call__(self, model: nn.Module) -> Any:
        """What the model returns for them, as far as it counts."""
        out = model(*self.args, **self.kwargs)
        return out if self.outputs is None else self.outputs(out)

    def in_order(self, model: nn.Module) -> Inputs:
        """The same call, positional where it can be: exported programs take their inputs in this order."""
        try:
            bound = inspect.signature(model.forward).bind(*self.args, **self.kwargs)
        except (TypeError, ValueError):  # whoever runs it says what is wrong
            return self
        return Inputs(bound.args, bound.kwargs, self.hint)

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """The same call with other tensors."""
        args, kwargs = tree_map_only(Tensor, function, (self.args, dict(self.kwargs)))
        return replace(self, args=args, kwargs=kwargs)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors in it, in order."""
        return [leaf for leaf in tree_leaves((self.args, dict(self.kwargs))) if isinstance(leaf, Tensor)]

    def first(self) -> Inputs:
        """The same call with the first example alone: the first entry of what has one for each example."""
        batch = self.batch

        def one(t: Tensor) -> Tensor:
            return t[:1] if t.dim() and t.shape[0] == batch else t

        def entry(value: Any) -> Any:
            return value[:1] if _lists_examples(value, batch) else tree_map_only(Tensor, one, value)

        return replace(self, args=tuple(map(entry, self.args)), kwargs={k: entry(v) for k, v in self.kwargs.items()})

    @property
    def shapes(self) -> str:
        """Of all tensors, in words."""
        found = [str(tuple(t.shape)) for t in self.tensors]
        return f"shape {found[0]}" if len(found) == 1 else f"shapes {', '.join(found)}" if found else "no tensor"

    @property
    def batch(self) -> int:
        """The number of examples: the first dimension of the first tensor, or the length of a list of images."""
        first = next(iter((*self.args, *self.kwargs.values())), None)
        if isinstance(first, list) and first and all(isinstance(t, Tensor) and t.dim() == 3 for t in first):
            return len(first)
        return next((t.shape[0] for t in self.tensors if t.dim()), 1) or 1

    def failure(self, error: BaseException) -> str:
        """Why the model does not run on them, in one line, with the hint."""
        return f"{first_line(error)}{f' ({self.hint})' if self.hint else ''}"

    def refusal(self, error: BaseException) -> UserError:
        """What to raise where a model that is to be traced does not run on them."""
        reason = self.failure(error)
        return UserError(f"the model cannot be traced, as it does not run on the example input: {reason}")


def _is_call(given: Any) -> bool:
    return (
        isinstance(given, tuple)
        and len(given) == 2
        and isinstance(given[0], tuple)
        and isinstance(given[1], Mapping)
        and all(isinstance(key, str) for key in given[1])
    )


def two_examples(inputs: Inputs, other: bool) -> Inputs:
    """The first example twice; with `other` the second one is another: its numbers stand one place further.

    What does not have one entry for each example of the batch (a mask of positions) stays as it is.
    """
    batch = inputs.batch
    generator = torch.Generator().manual_seed(0)

    def another(t: Tensor) -> Tensor:
        whole = not (t.is_floating_point() or t.is_complex())
        counts = whole and (t.dtype == torch.bool or not t.numel() or int(t.max()) <= 1)
        return t.roll(1, -1) if other and t.dim() > 1 and not counts else t.clone()

    def two(t: Tensor) -> Tensor:
        if other and t.is_floating_point() and t.numel() > 1 and bool((t == t.flatten()[0]).all()):
            t = t + torch.randn(t.shape, generator=generator).to(t.dtype)
        if not t.dim() or t.shape[0] != batch:
            return t
        return torch.cat([t[:1], another(t[:1])])

    def entry(value: Any) -> Any:
        if _lists_examples(value, batch):
            return [value[0], tree_map(lambda x: another(x) if isinstance(x, Tensor) else copy.deepcopy(x), value[0])]
        return tree_map_only(Tensor, two, value)

    kwargs = {key: entry(value) for key, value in inputs.kwargs.items()}
    return replace(inputs, args=tuple(map(entry, inputs.args)), kwargs=kwargs)


def _lists_examples(value: Any, batch: int) -> bool:
    """Whether it is a list with an entry for each example (images, targets), not of whole batches."""
    return isinstance(value, list) and bool(value) and len(value) == batch and not _is_batch(value[0], batch)


def _is_batch(value: Any, batch: int) -> bool:
    return isinstance(value, Tensor) and value.dim() != 3 and value.dim() > 0 and value.shape[0] == batch


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def output_tensors(out: Any) -> Iterator[Tensor]:
    """All tensors that a model returns, in a fixed order: inside of lists, mappings and objects of any class, with
    ``__slots__`` or without, however deeply nested; each once.

    What transformers keeps for the next token (keys and values of attention, states of a recurrence) is no output: a
    thin model fills a cache of its own.
    """
    return (value for value in _inside(out, set()) if isinstance(value, Tensor))


def output_numbers(out: Any) -> list[Tensor]:
    """The same as dense tensors of real numbers, and what is returned as an array of NumPy or a list of numbers.

    Raises:
        UserError: for a generator or the like, which looking would use up, and for a set, which has no order.
    """
    return [tensor for value in _inside(out, set()) for tensor in _numbers(value)]


def _numbers(value: Any) -> Iterator[Tensor]:
    if isinstance(value, _UNSEEN):
        kind = type(value).__name__
        raise UserError(
            f"it returns {'an' if kind[0] in 'aeiou' else 'a'} {kind}, in which outputs cannot be told apart; say what "
            "counts of its output: outputs=lambda out: ..."
        )
    if isinstance(value, list):
        yield torch.tensor([number for number in value if isinstance(number, float)], dtype=torch.float64)
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "fciub":
            yield from _numbers(torch.from_numpy(value.copy()))
    elif value.is_nested:
        yield torch.nested.to_padded_tensor(value.detach(), 0.0)
    else:
        dense = value.detach() if value.layout is torch.strided else value.detach().to_dense()
        yield torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense


def _inside(value: Any, seen: set[int]) -> Iterator[Any]:
    """Tensors, arrays, lists with numbers in them, and what is unseen, wherever they are; each once."""
    if value is None or isinstance(value, (str, bytes, int, float, complex, type, nn.Module)) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, (Tensor, *_UNSEEN)) or (isinstance(value, np.ndarray) and value.dtype != object):
        yield value
        return
    kinds = type(value).__mro__
    if any(kind.__name__.endswith("Cache") and kind.__module__.startswith("transformers.") for kind in kinds):
        return
    parts: list[Any] = []
    if isinstance(value, Mapping):
        parts.extend(value.values())
    elif isinstance(value, _CONTAINERS):
        parts.extend(value.flat if isinstance(value, np.ndarray) else value)
        if isinstance(value, list) and any(isinstance(part, float) for part in value):
            yield value
    parts.extend(getattr(value, "__dict__", {}).values())
    # a slot may be __dict__ itself, whose values have been seen
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        parts.extend(getattr(value, slot, None) for slot in ((slots,) if isinstance(slots, str) else slots))
    for part in parts:
        yield from _inside(part, seen)
