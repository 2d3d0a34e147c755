"""What a model executes in one call: every operation, its operands and where their numbers are stored.

There is one `TorchDispatchMode`, the `Recorder`. FLOPs and latency are read from what it has recorded (`record`); what
needs the numbers themselves, as labels of channels do, listens while it records.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from regrow import names
from regrow.inputs import Inputs
from regrow.tracing.ops import FORMULAS, name_of

_PATIENCE = 0.02  # seconds between two looks at the processor time


@dataclass(frozen=True)
class Value:
    """A tensor without its numbers.

    Attributes:
        number: of the tensor; an operation in place returns the one that it was given.
        storage: number of the memory that holds it, which views share.
        offset: of its first element in there, in elements.
        shape: its own, when it was seen.
    """

    number: int
    storage: int
    offset: int
    shape: torch.Size


@dataclass(frozen=True)
class Operation:
    """One operation, with its arguments and what it returned: tensors while a model runs, a `Value` for each in a
    trace.

    Attributes:
        func: the overload that was called, or a higher-order operator.
        args, kwargs, out: nested as it takes and returns them.
        module: canonical name of the innermost module that ran, "" for the model itself, or where nobody asked.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    module: str = ""

    @property
    def name(self) -> str:
        """Without namespace and overload, ``"convolution"``."""
        return name_of(self.func)

    @property
    def operands(self) -> list[Any]:
        """All tensors, or values, among its arguments."""
        return _tensors((self.args, self.kwargs))

    @property
    def results(self) -> list[Any]:
        """All that it returned."""
        return _tensors(self.out)

    def map(self, function: Callable[[Tensor], Any]) -> Operation:
        """The same operation with something else in the place of each tensor."""
        args, kwargs, out = tree_map_only(Tensor, function, (self.args, self.kwargs, self.out))
        return replace(self, args=args, kwargs=kwargs, out=out)


def _is_composite(func: Any) -> bool:
    """Whether it is only a name for several operations, which autograd or inference mode usually takes apart."""
    if not isinstance(func, torch._ops.OpOverload) or func._overloadpacket in FORMULAS:
        return False
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return has(func.name(), "CompositeImplicitAutograd") and not has(func.name(), "CPU")


def _tensors(nested: Any) -> list[Any]:
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, (Tensor, Value))]


class TimeLimit(BaseException):
    """A model took too long; the argument is the module that it had come to. It is no `Exception`, or code that goes on
    after any, of models and of regrow, would go on after this one."""


class ModuleStack:
    """Which module of a model runs, kept by hooks, which stay on it: so it should be a copy.

    Attributes:
        modules: canonical name → module.
        last: the module in which an operation was last seen.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = names.modules(model)
        self.last = ""
        self._running: list[tuple[str, list[Tensor]]] = []
        for name, module in self.modules.items():
            if not isinstance(module, torch.jit.ScriptModule):
                module.register_forward_pre_hook(self._enter(name), prepend=True, with_kwargs=True)
                module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, name: str) -> Callable[..., None]:
        return lambda _, args, kwargs: self._running.append((name, _tensors((args, kwargs))))

    def _leave(self, *_: Any) -> None:
        self._running.pop()

    def clear(self) -> None:
        """Begins a new call of the model."""
        self._running.clear()
        self.last = ""

    def look(self) -> str:
        """The innermost module that runs, and from now on the last one that an operation was seen in."""
        self.last = self._running[-1][0] if self._running else ""
        return self.last

    def running(self) -> tuple[str, ...]:
        """All modules that run, the outermost first; none outside of a call."""
        return tuple(name for name, _ in self._running)

    def given(self) -> list[Tensor]:
        """The tensors that the module which runs was called with."""
        return self._running[-1][1] if self._running else []

    def integers(self) -> dict[str, int]:
        """The plain integers among the attributes of the module that `look` has seen."""
        module = self.modules.get(self.last)
        return {} if module is None else {k: v for k, v in vars(module).items() if type(v) is int}

    def lists(self) -> dict[str, list[int]]:
        """The tuples and lists of plain integers among the attributes of that module."""
        held = {} if (module := self.modules.get(self.last)) is None else vars(module)
        return {k: list(v) for k, v in held.items() if type(v) in (tuple, list) and all(type(n) is int for n in v)}

    def near(self) -> dict[tuple[str, str], int]:
        """The plain integers among the attributes of modules directly in that module, layers of torch aside: (module,
        attribute) → number."""
        found: dict[tuple[str, str], int] = {}
        for child, module in () if (running := self.modules.get(self.last)) is None else running.named_children():
            name = f"{self.last}.{child}".removeprefix(".")
            if self.modules.get(name) is module and not type(module).__module__.startswith("torch.nn."):
                found |= {(name, k): v for k, v in vars(module).items() if type(v) is int}
        return found

    def counts(self) -> set[int]:
        """The plain integers above 1 among its attributes and those of the modules directly in it."""
        module = self.modules.get(self.last)
        near = () if module is None else (module, *module.children())
        return {v for one in near for v in vars(one).values() if type(v) is int and v > 1}


class Recorder(TorchDispatchMode):
    """Hands on every operation that is executed. What is only a name for several operations is taken apart, unless it
    has a number of FLOPs of its own.

    Args:
        see: is told of each, with its tensors.
        execute: executes it, given func, args and kwargs.
        stack: of the model that runs.
        deadline: of `time.process_time`, in seconds, after which `TimeLimit` is raised.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        see: Callable[[Operation], None] = lambda _: None,
        execute: Callable[..., Any] = lambda func, args, kwargs: func(*args, **kwargs),
        stack: ModuleStack | None = None,
        deadline: float = math.inf,
    ) -> None:
        super().__init__()
        self._see, self._execute, self._stack, self._deadline = see, execute, stack, deadline
        self._look_again = -math.inf
        if stack is not None:
            stack.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        module = "" if self._stack is None else self._stack.look()
        if (now := time.perf_counter()) >= self._look_again:  # to ask for processor time is slow
            self._look_again = now + _PATIENCE
            if time.process_time() > self._deadline:
                raise TimeLimit(module)
        if _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        out = self._execute(func, args, kwargs)
        self._see(Operation(func, args, kwargs, out, module))
        return out


@dataclass(frozen=True)
class ModelTrace:
    """One call of a model.

    Attributes:
        parameters: canonical name → value, for every parameter of the model.
        constants: all tensors that the model holds: parameters, buffers and plain attributes.
        inputs: the tensors that it was called with.
        operations: in the order of their execution.
    """

    parameters: Mapping[str, Value]
    constants: tuple[Value, ...]
    inputs: tuple[Value, ...]
    operations: tuple[Operation, ...]


def record(
    model: nn.Module, inputs: Inputs, stack: ModuleStack | None = None, deadline: float = math.inf
) -> ModelTrace:
    """Calls a model, in the mode and under the switches that are set, and records what it executes.

    Args:
        stack: of the model, where operations shall say which module ran.
        deadline: as of `Recorder`.

    Raises:
        Exception: whatever the model raises.
    """
    values = Values()
    parameters = {name: values.of(p) for name, p in names.parameters(model).items()}
    constants = tuple(values.of(t) for t in held(model))
    given = tuple(values.of(t) for t in inputs.tensors)
    operations: list[Operation] = []
    with Recorder(lambda operation: operations.append(operation.map(values.of)), stack=stack, deadline=deadline):
        inputs(model)
    return ModelTrace(parameters, constants, given, tuple(operations))


def held(model: nn.Module) -> Iterator[Tensor]:
    """All tensors that a model holds: parameters, buffers and plain attributes, e.g. a weight that a hook computes."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


class Values:
    """Numbers tensors and their memory, without keeping them: what is freed is never taken for what comes after it."""

    def __init__(self) -> None:
        self._tensors = WeakTensorKeyDictionary()
        self._storages: dict[int, tuple[int, StorageWeakRef]] = {}  # a weak reference keeps the address from others
        self._count = itertools.count()

    def of(self, tensor: Tensor) -> Value:
        number = self._tensors.get(tensor)
        if number is None:
            number = self._tensors[tensor] = next(self._count)
        try:
            storage = StorageWeakRef(tensor.untyped_storage())
        except (NotImplementedError, RuntimeError):  # e.g. a sparse tensor
            return Value(number, -1 - number, 0, tensor.shape)
        known = self._storages.setdefault(storage.cdata, (len(self._storages), storage))
        return Value(number, known[0], int(tensor.storage_offset()), tensor.shape)
