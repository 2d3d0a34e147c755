"""What a model does in one forward pass, as a list of units that can be measured by themselves.

A unit is a convolution or linear layer with the norm, addition and activation that follow it (runtimes fuse these, and
they find their input in the cache), or one of the other operations: attention, pooling, a norm or activation that
stands alone, an addition, a concatenation. Where its channels come from is known, so that its price follows the widths
of the layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from regrow.errors import UserError
from regrow.inputs import Inputs
from regrow.quiet import evaluating
from regrow.tracing.ops import family_of
from regrow.tracing.trace import ModelTrace, Operation, Value, record

ACTIVATIONS = {"relu", "hardtanh", "silu", "hardswish", "sigmoid", "hardsigmoid", "gelu", "tanh", "leaky_relu", "elu"}
POOLS = {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean"}
LAYERS = {"conv", "linear"}
ATTENTION = "attention"  # its channels are heads
LAYER_NORM = "layer_norm"  # over features, which are last
NORMS = {"batch_norm", LAYER_NORM}
SINCE_3 = {ATTENTION, LAYER_NORM}  # kinds that tables of earlier versions count into what has no price
_KINDS = {
    "convolutions": "conv", "matrix products": "linear", "batch norms": "batch_norm", "max pools": "max_pool2d",
    "adaptive pools": "adaptive_avg_pool2d", "layer norms": LAYER_NORM,
}  # fmt: skip
_ATTENTION = "_scaled_dot_product"  # how the names of its kernels begin
_VIEWS = {"views", "orders of dimensions", "same memory", "new strides"}  # those in place are no views to torch


@dataclass(frozen=True)
class Key:
    """What a unit is apart from its numbers of channels.

    Attributes:
        kind: "conv", "linear", "attention", "batch_norm", "layer_norm", "add", "mul", "cat", a pool or an activation
        size: height and width of the input; for "linear" and "layer_norm" the vectors of one example (tokens, places),
            () for one; for "attention" queries and the width of a head
        kernel, stride, padding, dilation: of convolutions and pools, for both dimensions; the kernel of "attention" is
            keys, and the width of a head's values
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
        c_in, c_out: channels (features, heads) that enter and leave; equal unless `Key.two_sided`
        sources: names of the layers whose outputs, concatenated, are the channels of the input, or have its heads; ()
            for the model's own input, or where it cannot be said
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

    def follows(self, channels: int) -> bool:
        """Whether its width is in proportion to these channels of its sources, all of them: as many, or their heads."""
        return channels > 0 and (self.c_in == channels or (self.key.kind == ATTENTION and channels % self.c_in == 0))


@dataclass(frozen=True)
class Network:
    """The units of a model in the order of their execution, and the calls of operations that have no price."""

    units: tuple[Unit, ...]
    unpriced: dict[str, int]


def network_of(model: nn.Module, example: Any) -> Network:
    """The units of a model in eval mode; the model's mode is left as it was.

    Args:
        model: any module that takes tensors
        example: one batch, in any form that `regrow.inputs.Inputs.of` takes; only its first example matters

    Raises:
        UserError: if the model does not run on the example.
    """
    return units_of(_traced(model, example))


def _traced(model: nn.Module, example: Any) -> ModelTrace:
    inputs = Inputs.of(example)
    try:
        with evaluating(model), torch.no_grad():
            return record(model, inputs.first().map(torch.clone))
    except Exception as error:  # models assert, index and raise whatever they like
        raise UserError(f"the model does not run on inputs of {inputs.shapes}: {inputs.failure(error)}") from error


def follow_norms(model: nn.Module, example: Any, norms: Mapping[str, bool], network: Network) -> dict[str, str]:
    """The units beside layers that are not run where norms are not: these norms, and what only they feed.

    Args:
        model: in full size.
        example: as for `network_of`.
        norms: name of a module → whether it gives no channels then; otherwise what it feeds is run all the same.
        network: of the model, where the units are looked for.

    Returns:
        Name of a unit → that of the norm; nothing where the network is not that of the model as it runs here.
    """
    reader = _Reader(_traced(model, example))
    if [unit.name for unit in _units(reader.ops)] != [unit.name for unit in network.units]:
        return {}
    found: dict[str, str] = {}
    without: dict[int, str] = {}  # op that has no channels then → the norm
    for index, op in enumerate(reader.ops):
        makers = {without.get(-1 if maker is None else maker) for maker in op.inputs}
        norm = op.norm if op.norm in norms else None
        if norm is None and len(makers) == 1 and op.unit.key.kind not in LAYERS:
            norm = next(iter(makers))
        if norm is not None:
            found[op.unit.name] = norm
            if norms[norm]:
                without[index] = norm
    names = {unit.name for unit in network.units}
    return {unit: norm for unit, norm in found.items() if unit in names}


def units_of(trace: ModelTrace) -> Network:
    """The units in a trace of a model that was called with one example."""
    reader = _Reader(trace)
    return Network(tuple(_units(reader.ops)), dict(reader.unpriced))


@dataclass
class _Op:
    unit: Unit  # by itself
    inputs: list[int | None]  # which op made each input, None for the model's own
    in_place: bool
    norm: str = ""  # of one with parameters, the name of its module
    consumers: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Carried:
    """What a tensor carries: which op made it, whose channels it has, along which dimension, and which layers' outputs
    it is a part or a new order of."""

    maker: int | None = None
    sources: tuple[str, ...] = ()
    channel: int = 1
    origin: tuple[str, ...] = ()


class _Reader:
    """Finds the operations that have a price in a trace, who made their inputs and whose channels those carry."""

    def __init__(self, trace: ModelTrace) -> None:
        self.ops: list[_Op] = []
        self.unpriced: Counter[str] = Counter()
        # a part of a parameter has a name of its own, unless it is the first
        self._layers = {(v.storage, v.offset): name.rpartition(".")[0] for name, v in trace.parameters.items()}
        self._carried = {value.number: _Carried() for value in trace.inputs}
        for operation in trace.operations:
            self._read(operation)

    def _read(self, operation: Operation) -> None:
        inputs = [value for value in operation.operands if value.number in self._carried]
        outputs = operation.results
        if not inputs or not outputs:
            return
        family = family_of(operation.func)
        kind = _KINDS.get(family or "", operation.name.rstrip("_"))
        kind = ATTENTION if kind.startswith(_ATTENTION) else kind
        if kind == "add" and self._is_bias(operation.args):
            self._carried[outputs[0].number] = self._carried[inputs[0].number]
        elif len(outputs[0].shape) < 2 or not self._record(kind, operation, inputs, outputs[0]):
            if not (operation.func.is_view or family in _VIEWS):
                self.unpriced[kind] += 1
            carried = self._carried[inputs[0].number]
            for output in outputs:
                moved = _moved(carried, kind, operation.args, inputs[0], output)
                self._carried[output.number] = replace(moved, origin=carried.origin)

    def _is_bias(self, args: Any) -> bool:
        """Whether an addition is the bias of a linear layer, which PyTorch adds by itself to strided inputs."""
        x, bias = args[:2]
        if not isinstance(bias, Value) or len(bias.shape) != 1 or bias.number in self._carried:
            return False
        maker = self._carried[x.number].maker if x.number in self._carried else None
        unit = None if maker is None else self.ops[maker].unit
        if maker is None or unit is None or unit.key.kind != "linear" or unit.key.bias or bias.shape[0] != unit.c_out:
            return False
        self.ops[maker].unit = replace(unit, key=replace(unit.key, bias=True))
        return True

    def _record(self, kind: str, operation: Operation, inputs: list[Value], output: Value) -> bool:
        """Notes an operation, if it has a price."""
        args, largest = operation.args, max(inputs, key=lambda value: value.shape.numel())
        value = self._carried[largest.number]
        channel = -1 if kind in {"linear", LAYER_NORM} else 1 if kind in {"conv", ATTENTION} else value.channel
        channel = min(channel, len(largest.shape) - 1)
        key = _key(kind, args, largest.shape, channel)
        if key is None:
            return False
        sources, origin, name = value.sources, value.origin, ""
        if kind == ATTENTION:
            sources = origin = self._carried[inputs[0].number].origin
        if kind == "cat" and (args[1] if len(args) > 1 else 0) % len(output.shape) == channel:
            sources = tuple(source for v in inputs for source in self._carried[v.number].sources)
        if kind in LAYERS:
            weight = args[1] if kind == "conv" else args[-1]
            name = self._layers.get((weight.storage, weight.offset), "")
        name = name or f"{kind}:{len(self.ops)}"
        if kind in LAYERS:
            made = _Carried(len(self.ops), (name,), channel % len(output.shape), (name,))
        else:
            made = _Carried(len(self.ops), sources, channel % len(output.shape), origin)
        if kind == "mean":
            c_in = c_out = output.shape.numel() // output.shape[0]
            made = _averaged(made, args, len(largest.shape), channel)
        else:
            c_out = output.shape[channel]
            c_in = largest.shape[channel] if kind in LAYERS else c_out
        makers = [self._carried[v.number].maker for v in inputs]
        own = all(maker is None for maker in makers)
        for maker in makers:
            if maker is not None:
                self.ops[maker].consumers.append(len(self.ops))
        self._carried[output.number] = made
        unit = Unit(name, key, c_in, c_out, sources, own=own)
        self.ops.append(_Op(unit, makers, operation.name.endswith("_"), self._norm(kind, operation)))
        return True

    def _norm(self, kind: str, operation: Operation) -> str:
        if kind not in NORMS:
            return ""
        places = ((value.storage, value.offset) for value in operation.operands)
        return next((self._layers[place] for place in places if place in self._layers), "")


def _moved(carried: _Carried, kind: str, args: Any, x: Value, output: Value) -> _Carried:
    """What is known after an operation without a price: where its channels are now, if they can be followed."""
    at, before, after = carried.channel, x.shape, output.shape
    if kind in {"permute", "transpose"}:
        order = list(range(len(before)))
        if kind == "permute":
            order = [dim % len(before) for dim in args[1]]
        else:
            a, b = (dim % len(before) for dim in args[1:3])
            order[a], order[b] = order[b], order[a]
        return replace(carried, channel=order.index(at))
    last = at == len(before) - 1
    if at == 1 and len(after) > 1 and after[:2] == before[:2]:
        return carried
    if last and len(after) > 1 and after[-1] == before[-1]:
        return replace(carried, channel=len(after) - 1)
    return carried if after == before else _Carried(carried.maker, (), len(after) - 1 if last else 1)


def _averaged(carried: _Carried, args: Any, rank: int, channel: int) -> _Carried:
    gone = {dim % rank for dim in args[1]}
    if channel in gone:
        return _Carried(carried.maker)
    kept = len(args) > 2 and args[2]
    return carried if kept else replace(carried, channel=channel - sum(dim < channel for dim in gone))


def _key(kind: str, args: Any, shape: torch.Size, channel: int) -> Key | None:
    """The key without its tail; None for what cannot be measured by itself, as only convolutions and pools in two
    dimensions can."""
    size = tuple(n for dim, n in enumerate(shape) if dim not in {0, channel})
    if kind == "mean":
        over = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
        return Key(kind, tuple(shape[dim] for dim in over)) if 0 < len(over) < len(shape) else None
    if kind == "linear":
        # PyTorch has put what is between batch and features into the rows; the batch is one example
        rows = shape.numel() // shape[-1]
        return Key("linear", (rows,) if rows > 1 else (), bias=len(args) == 3)
    if kind == ATTENTION:
        keys, values = args[1].shape, args[2].shape
        one_each = len(shape) == 4 and shape == args[0].shape and shape[1] == keys[1] == values[1]
        return Key(kind, size, kernel=(keys[2], values[3])) if one_each else None
    if kind == LAYER_NORM:
        rows = shape.numel() // shape[-1]
        return Key(kind, (rows,) if rows > 1 else ()) if list(args[1]) == [shape[-1]] else None
    if kind in ACTIVATIONS | {"batch_norm", "add", "mul", "cat"}:
        return Key(kind, size)
    transposed = kind == "conv" and args[6]
    if kind not in POOLS | {"conv"} or len(shape) != 4 or transposed:
        return None
    if kind == "adaptive_avg_pool2d":
        return Key(kind, size, kernel=_pair(args[1]))
    if kind != "conv":
        kernel = _pair(args[1])
        stride = _pair(args[2]) if len(args) > 2 and args[2] else kernel
        return Key(kind, size, kernel, stride, _pair(args[3]) if len(args) > 3 else (0, 0))
    weight, bias = args[1:3]
    stride, padding, dilation = map(tuple, args[3:6])
    follow = args[8] > 1 and shape[1] == weight.shape[0]
    groups, per_group = (0, weight.shape[1]) if follow else (args[8], 1)
    kernel = tuple(weight.shape[2:])
    return Key("conv", size, kernel, stride, padding, dilation, groups, bias is not None, (), per_group)


def _pair(numbers: Any) -> tuple[int, ...]:
    return tuple(numbers) * (2 if len(numbers) == 1 else 1)


def _units(ops: list[_Op]) -> list[Unit]:
    """Layers with what follows them at once, and what is left."""
    taken: set[int] = set()
    units: list[Unit] = []
    for index, op in enumerate(ops):
        if index in taken:
            continue
        last, tail, is_layer = index, list[str](), op.unit.key.kind in LAYERS
        while is_layer and (after := _next(ops, last, tail, taken)) is not None:
            taken.add(after)
            tail.append(ops[after].unit.key.kind + ("_" if ops[after].in_place else ""))
            last = after
        key = replace(op.unit.key, tail=tuple(tail))
        units.append(replace(op.unit, key=key, fixed=is_layer and not ops[last].consumers))
    return units


def _next(ops: list[_Op], last: int, tail: list[str], taken: set[int]) -> int | None:
    """The operation that belongs to the same unit: the only user of what ``last`` made, in the usual order."""
    users = ops[last].consumers
    if len(users) != 1 or users[0] in taken:
        return None
    kind, makers = ops[users[0]].unit.key.kind, ops[users[0]].inputs
    done = {name.rstrip("_") for name in tail}
    # an addition belongs to the layer that is computed last
    adds = kind == "add" and "add" not in done and last == max(m for m in makers if m is not None)
    fits = kind in ACTIVATIONS or (kind == "batch_norm" and not done) or adds
    return users[0] if fits and not done & ACTIVATIONS else None
