"""Runs units in PyTorch, eagerly."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.inputs import Inputs
from regrow.latency.clock import Clock
from regrow.latency.network import ATTENTION, LAYER_NORM, Key

Work = Callable[[], object]

_ACTIVATIONS: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "relu": lambda x, here: F.relu(x, inplace=here),
    "hardtanh": lambda x, here: F.hardtanh(x, 0.0, 6.0, inplace=here),
    "silu": lambda x, here: F.silu(x, inplace=here),
    "hardswish": lambda x, here: F.hardswish(x, inplace=here),
    "hardsigmoid": lambda x, here: F.hardsigmoid(x, inplace=here),
    "leaky_relu": lambda x, here: F.leaky_relu(x, inplace=here),
    "elu": lambda x, here: F.elu(x, inplace=here),
    "sigmoid": lambda x, here: x.sigmoid_() if here else x.sigmoid(),
    "tanh": lambda x, here: x.tanh_() if here else x.tanh(),
    "gelu": lambda x, here: F.gelu(x),
}


class Eager:
    """Times units and whole models in PyTorch, without gradients.

    Args:
        batch: examples at a time
        threads: that PyTorch uses
        clock: what times it; default: that of the CPU
    """

    name = "eager"
    device = torch.device("cpu")

    def __init__(self, batch: int, threads: int, clock: Clock | None = None) -> None:
        self.batch, self.threads, self.clock = batch, threads, clock or Clock(threads)
        self._random = torch.Generator().manual_seed(0)
        self._pool = torch.empty(0)

    def sample(self, key: Key, c_in: int, c_out: int, repeats: int) -> list[float]:
        """Seconds of each of ``repeats`` executions of a unit with these channels, after one that is not counted.

        The input has just been written, as in a network.
        """
        shape = _shape(key, self.batch, c_in)
        x, other = torch.empty(shape, device=self.device), None

        def make() -> Work:
            nonlocal other
            self._forget()
            x.copy_(self._take(shape))
            work, other = self._work(key, x, c_in, c_out, other)
            return work

        with torch.no_grad():
            return self.clock.samples(make, repeats, (key, c_in, c_out))

    def whole(self, model: nn.Module, inputs: Inputs) -> Work:
        """One forward pass of a model in eval mode, to be called within `torch_threads`."""
        model.eval()

        def run() -> None:
            with torch.no_grad():
                inputs(model)

        return run

    def reference(self) -> Work:
        """A convolution and a matrix product of tenths of a millisecond."""
        x, weight = (torch.ones(shape, device=self.device) for shape in ((1, 32, 24, 24), (32, 32, 3, 3)))

        def run() -> None:
            with torch.no_grad():
                y = F.conv2d(x, weight).flatten(2)[0]
                torch.mm(y, y.T)

        return run

    def _forget(self) -> None:
        """Empties caches that would hold what they do not hold in a network."""

    def _take(self, shape: tuple[int, ...]) -> Tensor:
        """From places that change, as in a network weights are not in the cache when their layer comes."""
        count = prod(shape)
        if not len(self._pool):
            self._pool = torch.randn(2**24, generator=self._random).to(self.device) * 0.05
        while count > len(self._pool) // 2:
            self._pool = self._pool.repeat(2)
        start = int(torch.randint(0, (len(self._pool) - count) // 16 + 1, (), generator=self._random)) * 16
        return self._pool[start : start + count].view(shape)

    def _work(self, key: Key, x: Tensor, c_in: int, c_out: int, other: Tensor | None) -> tuple[Work, Tensor | None]:
        """The unit as a function without arguments, and the second operand of its addition (made once)."""
        first = self._layer(key, x, c_in, c_out)
        steps = [self._tail(name, c_out) for name in key.tail]
        if any(name.startswith("add") for name in key.tail) and other is None:
            other = torch.zeros_like(first())
        elif key.kind in {"add", "mul"} and other is None:
            other = self._take((self.batch, c_in, *key.size)).clone()

        def run() -> Tensor:
            y = first() if key.kind not in {"add", "mul"} else _combine(key.kind, x, other)
            for step in steps:
                y = step(y, other)
            return y

        return run, other

    def _layer(self, key: Key, x: Tensor, c_in: int, c_out: int) -> Callable[[], Tensor]:
        bias = self._take((c_out,)) if key.bias else None
        stride, padding, dilation = key.stride, key.padding, key.dilation
        match key.kind:
            case "conv":
                groups = key.groups_at(c_in)
                weight = self._take((c_out, c_in // groups, *key.kernel))
                return lambda: F.conv2d(x, weight, bias, stride, padding, dilation, groups)
            case "linear":
                weight = self._take((c_out, c_in))
                return lambda: F.linear(x, weight, bias)
            case kind if kind == ATTENTION:
                keys, width = key.kernel
                k, v = (self._take((self.batch, keys, c_in, w)).clone() for w in (key.size[1], width))
                q, k, v = (t.transpose(1, 2) for t in (x, k, v))  # as linear layers leave them
                return lambda: F.scaled_dot_product_attention(q, k, v)
            case kind if kind == LAYER_NORM:
                scale, shift = (self._take((c_in,)) for _ in range(2))
                return lambda: F.layer_norm(x, (c_in,), scale, shift)
            case "max_pool2d":
                return lambda: F.max_pool2d(x, key.kernel, stride, padding)
            case "avg_pool2d":
                return lambda: F.avg_pool2d(x, key.kernel, stride, padding)
            case "adaptive_avg_pool2d":
                height, width = key.kernel
                return lambda: F.adaptive_avg_pool2d(x, (height, width))
            case "mean":
                return lambda: x.mean(tuple(range(2, x.dim())), keepdim=True) if x.dim() > 2 else x.mean(1)
            case "cat":
                parts = [p.contiguous() for p in x.chunk(2, 1)]
                return lambda: torch.cat(parts, 1)
            case "add" | "mul":  # see _combine
                return lambda: x
        step = self._tail(key.kind, c_in)
        return lambda: step(x, None)

    def _tail(self, name: str, channels: int) -> Callable[[Tensor, Tensor | None], Tensor]:
        here, name = name.endswith("_"), name.rstrip("_")
        if name == "batch_norm":
            mean, scale, shift = (self._take((channels,)) for _ in range(3))
            variance = torch.ones(channels, device=self.device)
            return lambda y, _: F.batch_norm(y, mean, variance, scale, shift)
        if name == "add":
            return lambda y, other: y.add_(other) if here else y + other  # type: ignore[arg-type,operator]
        act = _ACTIVATIONS[name]
        return lambda y, _: act(y, here)


def _shape(key: Key, batch: int, channels: int) -> tuple[int, ...]:
    """Of a unit's input."""
    if key.kind == ATTENTION:
        return batch, key.size[0], channels, key.size[1]
    last = key.kind in {"linear", LAYER_NORM}
    return (batch, *key.size, channels) if last else (batch, channels, *key.size)


def _combine(kind: str, x: Tensor, other: Tensor | None) -> Tensor:
    assert other is not None
    return x + other if kind == "add" else x * other
