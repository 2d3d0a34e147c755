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

from regrow import names
from regrow.errors import UserError
from regrow.inputs import Inputs
from regrow.quiet import evaluating

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
        size: height and width of the input; for "linear" the vectors of one example (tokens, places); () for one
        kernel, stride, padding, dilation: of convolutions and pools, for both dimensions
        groups: of a convolution; 0 where they follow its channels, as whole groups come and go
        per_group: channels of a group, where ``groups`` is 0; 1 for a depthwise convolution
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
    per_group: int = 1

    def __str__(self) -> str:
        follow = "-depthwise" if self.per_group == 1 else f"-groups-of-{self.per_group}"
        parts = [self.kind + (follow if self.groups == 0 else f"-groups{self.groups}" if self.groups > 1 else "")]
        parts.append("x".join(map(str, self.size)))
        for letter, numbers, usual in zip(
            "kspd", (self.kernel, self.stride, self.padding, self.dilation), (0, 1, 0, 1), strict=True
        ):
            if any(n != usual for n in numbers):
                parts.append(letter + "x".join(map(str, numbers)))
        return " ".join([p for p in parts if p] + (["bias"] if self.bias else []) + [f"+{t}" for t in self.tail])

    def groups_at(self, c_in: int) -> int:
        """Groups of a convolution with so many channels."""
        return self.groups or max(1, c_in // self.per_group)

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
        own: the input is the model's own, so ``c_in`` never changes
    """

    name: str
    key: Key
    c_in: int
    c_out: int
    sources: tuple[str, ...] = ()
    fixed: bool = False
    own: bool = False


@dataclass(frozen=True)
class Network:
    """The units of a model in the order of their execution, and the calls of operations that have no price."""

    units: tuple[Unit, ...]
    unpriced: dict[str, int]


def trace(model: nn.Module, example: Any) -> Network:
    """The units of a model in eval mode; the model's mode is left as it was.

    Args:
        model: any module that takes tensors
        example: one batch, in any form that `regrow.inputs.Inputs.of` takes; only its first example matters

    Raises:
        UserError: if the model does not run on the example.
    """
    recorder = _Recorder(model)
    inputs = Inputs.of(example)
    first = inputs.first()
    for tensor in first.tensors:
        recorder.keep(tensor, _Value())
    try:
        with evaluating(model), torch.no_grad(), recorder:
            first(model)
    except Exception as error:  # models assert, index and raise whatever they like
        raise UserError(f"the model does not run on inputs of {inputs.shapes}: {inputs.failure(error)}") from error
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


@dataclass(frozen=True)
class _Value:
    """What is known of a tensor: which op made it, whose channels it carries, along which dimension."""

    maker: int | None = None
    sources: tuple[str, ...] = ()
    channel: int = 1


class _Recorder(TorchDispatchMode):
    """Notes the operations that are executed, who made their inputs and whose channels those carry."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.ops: list[_Op] = []
        self.unpriced: Counter[str] = Counter()
        self._parameters = {p.data_ptr(): name.rpartition(".")[0] for name, p in names.parameters(model).items()}
        self._values: dict[int, _Value] = {}
        self._kept: list[Any] = []  # so that no id is used twice

    def keep(self, tensor: Tensor, value: _Value) -> None:
        self._kept.append(tensor)
        self._values[id(tensor)] = value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        inputs = _tensors(args)
        first = next((t for t in inputs if id(t) in self._values), None)
        outputs = _tensors([result])
        if first is None or not outputs:
            return result
        kind = _NAMES.get(name, _NAMES.get(name.rstrip("_"), name.rstrip("_")))
        if kind == "add" and self._is_bias(args):
            self.keep(outputs[0], self._values[id(first)])
        elif outputs[0].dim() >= 2 and _has_price(kind, args, first):
            self._record(kind, name, args, [t for t in inputs if id(t) in self._values], outputs[0])
        else:
            if not (func.is_view or kind in _FREE):
                self.unpriced[kind] += 1
            for output in outputs:
                self.keep(output, _moved(self._values[id(first)], kind, args, first, output))
        return result

    def _is_bias(self, args: Any) -> bool:
        """Whether an addition is the bias of a linear layer, which PyTorch adds by itself to strided inputs."""
        x, bias = args[:2]
        maker = self._values[id(x)].maker if id(x) in self._values else None
        if maker is None or not isinstance(bias, Tensor) or bias.dim() != 1 or id(bias) in self._values:
            return False
        op = self.ops[maker]
        if op.kind != "linear" or op.key.bias or len(bias) != op.c_out:
            return False
        op.key = replace(op.key, bias=True)
        return True

    def _record(self, kind: str, name: str, args: Any, inputs: list[Tensor], output: Tensor) -> None:
        largest = max(inputs, key=lambda t: t.numel())
        value = self._values[id(largest)]
        channel = -1 if kind == "linear" else 1 if kind in LAYERS else min(value.channel, largest.dim() - 1)
        key, weight = _key(kind, args, largest, channel)
        sources = value.sources
        if kind == "cat" and (args[1] if len(args) > 1 else 0) % output.dim() == channel:
            sources = tuple(s for t in inputs for s in self._values[id(t)].sources)
        label = self._parameters.get(weight.data_ptr(), "") if weight is not None else ""
        label = label or f"{kind}:{len(self.ops)}"
        made = _Value(len(self.ops), (label,) if kind in LAYERS else sources, channel % output.dim())
        if kind == "mean":
            c_in = c_out = output.numel() // len(output)
            made = _averaged(made, args, largest, channel)
        else:
            c_in, c_out = largest.shape[channel], output.shape[channel]
            c_in = c_in if kind in LAYERS else c_out
        makers = [self._values[id(t)].maker for t in inputs]
        for maker in makers:
            if maker is not None:
                self.ops[maker].consumers.append(len(self.ops))
        self.keep(output, made)
        self.ops.append(_Op(kind, key, c_in, c_out, label, makers, name.endswith("_"), sources))


def _moved(value: _Value, kind: str, args: Any, x: Tensor, output: Tensor) -> _Value:
    """What is known after an operation without a price: where its channels are now, if they can be followed."""
    at = value.channel
    if kind in {"permute", "transpose"}:
        order = list(range(x.dim()))
        if kind == "permute":
            order = [dim % x.dim() for dim in args[1]]
        else:
            a, b = (dim % x.dim() for dim in args[1:3])
            order[a], order[b] = order[b], order[a]
        return replace(value, channel=order.index(at))
    last = at == x.dim() - 1
    if at == 1 and output.dim() > 1 and output.shape[:2] == x.shape[:2]:
        return value
    if last and output.dim() > 1 and output.shape[-1] == x.shape[-1]:
        return replace(value, channel=output.dim() - 1)
    return value if output.shape == x.shape else _Value(value.maker, (), output.dim() - 1 if last else 1)


def _averaged(value: _Value, args: Any, x: Tensor, channel: int) -> _Value:
    gone = {dim % x.dim() for dim in args[1]}
    if channel in gone:
        return _Value(value.maker)
    return value if len(args) > 2 and args[2] else replace(value, channel=channel - sum(dim < channel for dim in gone))


def _tensors(args: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for arg in args:
        if isinstance(arg, Tensor):
            found.append(arg)
        elif isinstance(arg, list | tuple):
            found += [t for t in arg if isinstance(t, Tensor)]
    return found


def _has_price(kind: str, args: Any, x: Tensor) -> bool:
    """Whether an operation can be measured by itself; convolutions and pools in two dimensions can."""
    if kind == "conv":
        return x.dim() == 4 and not args[6]  # [6]: transposed
    if kind == "mean":
        return len(args) > 1 and isinstance(args[1], list | tuple) and 0 < len(args[1]) < x.dim()
    if kind in POOLS:
        return x.dim() == 4
    return kind in LAYERS | ACTIVATIONS | {"batch_norm", "add", "mul", "cat"}


def _key(kind: str, args: Any, x: Tensor, channel: int) -> tuple[Key, Tensor | None]:
    """The key without its tail, and the weight of a layer."""
    size = tuple(n for dim, n in enumerate(x.shape) if dim not in {0, channel})
    if kind == "conv":
        weight, bias = args[1:3]
        stride, padding, dilation = (tuple(numbers) for numbers in args[3:6])
        follow = args[8] > 1 and x.shape[1] == weight.shape[0]
        groups, per_group = (0, weight.shape[1]) if follow else (args[8], 1)
        kernel = tuple(weight.shape[2:])
        return Key("conv", size, kernel, stride, padding, dilation, groups, bias is not None, (), per_group), weight
    if kind == "linear":
        # PyTorch has put what is between batch and features into the rows; the batch is one example
        rows = x.numel() // x.shape[-1]
        return Key("linear", (rows,) if rows > 1 else (), bias=len(args) == 3), args[-1]
    if kind == "mean":
        return Key(kind, tuple(x.shape[dim] for dim in args[1])), None
    if kind in {"max_pool2d", "avg_pool2d"}:
        kernel = _pair(args[1])
        stride = _pair(args[2]) if len(args) > 2 and args[2] else kernel
        return Key(kind, size, kernel, stride, _pair(args[3]) if len(args) > 3 else (0, 0)), None
    if kind == "adaptive_avg_pool2d":
        return Key(kind, size, kernel=_pair(args[1])), None
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
            own = all(maker is None for maker in op.inputs)
            units[index] = Unit(op.name, key, op.c_in, op.c_out, op.sources, not ops[last].consumers, own)
    for index, op in enumerate(ops):
        if index not in units and index not in taken:
            own = all(maker is None for maker in op.inputs)
            units[index] = Unit(op.name, op.key, op.c_in, op.c_out, op.sources, own=own)
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
