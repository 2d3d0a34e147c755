"""What one call of a model shows of what it computes, and how far that of another model is from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regrow.inputs import output_tensors

_STEPS = 256  # most values of an output that is taken for one in steps
_SAMPLE = 1 << 13  # entries that are looked at


@dataclass(frozen=True)
class Seen:
    """What a call has shown.

    Attributes:
        out: all that the model returns, as dense tensors of real numbers.
        inner: what its modules return in floating point, where that is looked at.
    """

    out: Sequence[Tensor]
    inner: Sequence[Tensor]

    @property
    def says_little(self) -> bool:
        """Whether the outputs hide what leads to them: there are none, or labels, signs, spikes, of which few change
        when much of the model does."""
        return (
            not any(map(Tensor.numel, self._measured))
            or len(self._measured) < len(self.out)
            or any(map(_in_steps, self.out))
        )

    @property
    def is_finite(self) -> bool:
        """Whether any of it is a number."""
        return any(bool(t.isfinite().any()) for t in (*self._measured, *self.inner))

    @property
    def _measured(self) -> list[Tensor]:
        """Outputs that can be a little off; of others rounding may change an entry, and only their shapes count."""
        return [t for t in self.out if t.is_floating_point()]

    def difference(self, other: Seen) -> float:
        """The largest of any output or module, as of `difference`; of the modules those count that return the same
        shape, as the others have lost channels. Infinity where nothing could be compared."""
        if [t.shape for t in self.out] != [t.shape for t in other.out]:
            return float("inf")
        pairs = list(zip(self._measured, other._measured, strict=True))
        if len(self.inner) == len(other.inner):
            pairs += [(x, y) for x, y in zip(self.inner, other.inner, strict=True) if x.shape == y.shape]
        if not any(x.numel() for x, _ in pairs):
            return float("inf")
        return max(_apart(x, y) for x, y in pairs)


def difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """The largest difference of any of these tensors, relative to the largest number in that tensor of `a`; infinity
    where one is zero and the other is not, where shapes differ, or where they are not finite in the same places."""
    if [t.shape for t in a] != [t.shape for t in b]:
        return float("inf")
    return max(map(_apart, a, b), default=0.0)


def _apart(x: Tensor, y: Tensor) -> float:
    finite = x.isfinite()
    if not torch.equal(finite, y.isfinite()):
        return float("inf")
    x, y = x[finite].double(), y[finite].double()
    if not x.numel():
        return 0.0
    apart, size = float((x - y).abs().max()), float(x.abs().max())
    return apart / size if size else (float("inf") if apart else 0.0)


@contextmanager
def modules_seen(model: nn.Module | None) -> Iterator[list[Tensor]]:
    """What all modules of a model return while it is called; nothing of None."""
    inner: list[Tensor] = []

    def keep(module: nn.Module, args: Any, out: Any) -> None:
        inner.extend(t.detach().clone() for t in output_tensors(out) if t.is_floating_point())

    modules = [] if model is None else [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield inner
    finally:
        for handle in handles:
            handle.remove()


def _in_steps(t: Tensor) -> bool:
    """Whether it has few values for its size, as far as a sample tells."""
    sample = t.flatten()[:: max(1, t.numel() // _SAMPLE)]
    return sample.numel() > 3 and sample.unique().numel() <= min(_STEPS, sample.numel() // 3)
