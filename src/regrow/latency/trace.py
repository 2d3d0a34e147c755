"""What a model does in one forward pass, as a list of units that can be measured by themselves.

A unit is a convolution or linear layer with the norm, addition and activation that follow it (runtimes fuse these, and
they find their input in the cache), or one of the other operations: pooling, a norm or activation that stands alone, an
addition, a concatenation. Where its channels come from is known, so that its price follows the widths of the layers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from regrow.errors import UserError

aten = torch.ops.aten

ACTIVATIONS = {"relu", "hardtanh", "silu", "hardswish", "sigmoid", "hardsigmoid", "gelu", "tanh", "leaky_relu", "elu"}
POOLS = {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean"}
LAYERS = {"conv", "linear"}
_NAMES = {
    "convolution": "conv", "addmm": "linear", "mm": "linear", "native_batch_norm": "batch_norm",
    "_native_batch_norm_legit_no_training": "batch_norm", "max_pool2d_with_indices": "max_pool2d",
    "_adaptive_avg_pool2d": "adaptive_avg_pool2d", "cat": "cat", "add": "add", "mul": "mul",
}  # fmt: skip
_FREE = {"view", "_unsafe_view", "t", "permute", "transpose", "reshape", "expand", "detach", "unsqueeze", "squeeze",
         "flatten", "slice", "select", "split", "chunk", "unbind", "alias", "empty", "as_strided"}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """What a unit is apart from its numbers of channels.

    Attributes:
        kind: "conv", "linear", "batch_norm", "add", "mul", "cat", a pool or an activation
        size: height and width of the input; for "linear" what is between batch and features; () for plain vectors
        kernel, stride, padding, dilation: of convolutions and pools, for both dimensions
        groups: of a convolution; 0 for a depthwise one, whose groups follow its channels
        bias: whether a convolution or linear layer has one
        tail: operations that follow the layer at once; "_" at the end of a name marks those in place
    """

    kind: str
    size: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = False
    tail: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [self.kind + ("-depthwise" if self.groups == 0 else f"-groups{self.groups}" if self.groups > 1 else "")]
        parts.append("x".join(map(str, self.size)))
        for letter, numbers, usual in zip(
            "kspd", (self.kernel, self.stride, self.padding, self.dilation), (0, 1, 0, 1), strict=True
        ):
            if any(n != usual for n in numbers):
                parts.append(letter + "x".join(map(str, numbers)))
        return " ".join([p for p in parts if p] + (["bias"] if self.bias else []) + [f"+{t}" for t in self.tail])

    @property
    def two_sided(self) -> bool:
        """Whether input and output width are two numbers."""
        return self.kind in LAYERS and self.groups != 0


@dataclass(frozen=True)
class Unit:
    """One unit of a model.

    Attributes:
        name: of the parameter's module for layers ("layer1.0.conv1"), else the kind with a running number
        key: what it is
        c_in, c_out: channels (features) that enter and leave; equal unless `Key.two_sided`
        sources: names of the layers whose outputs, concatenated, are the channels of the input; () for the model's own
            input, or where it cannot be said
        fixed: the output is the model's own, so ``c_out`` never changes
    """

    name: str
    key: Key
    c_in: int
    c_out: int
    sources: tuple[str, ...] = ()
    fixed: bool = False


@dataclass(frozen=True)
class Network:
    """The units of a model in the order of their execution, and the calls of operations that have no price."""

    units: tuple[Unit, ...]
    unpriced: dict[str, int]


def trace(model: nn.Module, example: Tensor) -> Network:
    """The units of a model in eval mode; the model's mode is left as it was.

    Args:
        model: any module that takes one tensor
        example: one batch; only the shape of its first example matters

    Raises:
        UserError: if the model does not run on the example.
    """
    modes = {module: module.training for module in model.modules()}
    recorder = _Recorder(model)
    first = example[:1]
    recorder.keep(first)
    try:
        model.eval()
        with torch.no_grad(), recorder:
            model(first)
    except RuntimeError as error:
        raise UserError(f"the model does not run on inputs of shape {tuple(example.shape)}: {error}") from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Network(tuple(_units(recorder.ops)), dict(recorder.unpriced))


@dataclass
class _Op:
    kind: str
    key: Key
    c_in: int
    c_out: int
    name: str
    inputs: list[int | None]  # which op made each input, None for the model's own
    in_place: bool
    sources: tuple[str, ...]
    consumers: list[int] = field(default_factory=list)


class _Recorder(TorchDispatchMode):
    """Notes the operations that are executed, who made their inputs and whose channels those carry."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.ops: list[_Op] = []
        self.unpriced: Counter[str] = Counter()
        self._parameters = {p.data_ptr(): name.rpartition(".")[0] for name, p in model.named_parameters()}
        self._maker: dict[int, int | None] = {}
        self._sources: dict[int, tuple[str, ...]] = {}
        self._kept: list[Any] = []  # so that no id is used twice

    def keep(self, tensor: Tensor, maker: int | None = None, sources: tuple[str, ...] = ()) -> None:
        self._kept.append(tensor)
        self._maker[id(tensor)] = maker
        self._sources[id(tensor)] = sources

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        inputs = _tensors(args)
        first = next((t for t in inputs if id(t) in self._maker), None)
        outputs = _tensors([result])
        if first is None or not outputs:
            return result
        kind = _NAMES.get(name, _NAMES.get(name.rstrip("_"), name.rstrip("_")))
        if kind in LAYERS | ACTIVATIONS | POOLS | {"batch_norm", "add", "mul", "cat"} and outputs[0].dim() >= 2:
            self._record(kind, name, args, [t for t in inputs if id(t) in self._maker], outputs[0])
        else:
            if not (func.is_view or kind in _FREE):
                self.unpriced[kind] += 1
            sources = self._sources[id(first)] if outputs[0].shape[:2] == first.shape[:2] else ()
            for output in outputs:
                self.keep(output, self._maker[id(first)], sources)
        return result

    def _record(self, kind: str, name: str, args: Any, inputs: list[Tensor], output: Tensor) -> None:
        largest = max(inputs, key=lambda t: t.numel())
        key, weight = _key(kind, args, largest, output)
        sources = self._sources[id(largest)]
        if kind == "cat":
            sources = tuple(s for t in inputs for s in self._sources[id(t)])
        label = self._parameters.get(weight.data_ptr(), "") if weight is not None else ""
        label = label or f"{kind}:{len(self.ops)}"
        makers = [self._maker[id(t)] for t in inputs]
        if kind in LAYERS:
            feature = -1 if kind == "linear" else 1
            c_in, c_out = largest.shape[feature], output.shape[feature]
        else:
            c_in = c_out = output.shape[1]
        for maker in makers:
            if maker is not None:
                self.ops[maker].consumers.append(len(self.ops))
        carried = (label,) if kind in LAYERS else sources
        self.keep(output, len(self.ops), carried)
        self.ops.append(_Op(kind, key, c_in, c_out, label, makers, name.endswith("_"), sources))


def _tensors(args: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for arg in args:
        if isinstance(arg, Tensor):
            found.append(arg)
        elif isinstance(arg, list | tuple):
            found += [t for t in arg if isinstance(t, Tensor)]
    return found


def _key(kind: str, args: Any, x: Tensor, output: Tensor) -> tuple[Key, Tensor | None]:
    """The key without its tail, and the weight of a layer."""
    size = tuple(x.shape[2:])
    if kind == "conv":
        weight, bias = args[1:3]
        stride, padding, dilation = (tuple(numbers) for numbers in args[3:6])
        groups = 0 if 1 < args[8] == x.shape[1] == weight.shape[0] else args[8]
        kernel = tuple(weight.shape[2:])
        return Key("conv", size, kernel, stride, padding, dilation, groups, bias is not None), weight
    if kind == "linear":
        weight = args[-1]
        return Key("linear", tuple(x.shape[1:-1]), bias=len(args) == 3), weight
    if kind in {"max_pool2d", "avg_pool2d"}:
        kernel = _pair(args[1])
        stride = _pair(args[2]) if len(args) > 2 and args[2] else kernel
        return Key(kind, size, kernel, stride, _pair(args[3]) if len(args) > 3 else (0, 0)), None
    if kind == "adaptive_avg_pool2d":
        return Key(kind, size, kernel=tuple(output.shape[2:])), None
    return Key(kind, size), None


def _pair(numbers: Any) -> tuple[int, ...]:
    return tuple(numbers) * (2 if len(numbers) == 1 else 1)


def _units(ops: list[_Op]) -> list[Unit]:
    """Layers with what follows them at once, and what is left."""
    taken: set[int] = set()
    units: dict[int, Unit] = {}
    for index, op in enumerate(ops):
        if op.kind in LAYERS:
            last = index
            tail: list[str] = []
            while (after := _next(ops, last, tail, taken)) is not None:
                taken.add(after)
                tail.append(ops[after].kind + ("_" if ops[after].in_place else ""))
                last = after
            key = replace(op.key, tail=tuple(tail))
            units[index] = Unit(op.name, key, op.c_in, op.c_out, op.sources, not ops[last].consumers)
    for index, op in enumerate(ops):
        if index not in units and index not in taken:
            units[index] = Unit(op.name, op.key, op.c_in, op.c_out, op.sources)
    return [units[index] for index in sorted(units)]


def _next(ops: list[_Op], last: int, tail: list[str], taken: set[int]) -> int | None:
    """The operation that belongs to the same unit: the only user of what ``last`` made, in the usual order."""
    users = ops[last].consumers
    if len(users) != 1 or users[0] in taken:
        return None
    op = ops[users[0]]
    done = {name.rstrip("_") for name in tail}
    if done & ACTIVATIONS:
        return None
    if op.kind == "batch_norm" and not done:
        return users[0]
    if op.kind in ACTIVATIONS:
        return users[0]
    # an addition belongs to the layer that is computed last
    if op.kind == "add" and "add" not in done and last == max(m for m in op.inputs if m is not None):
        return users[0]
    return None
