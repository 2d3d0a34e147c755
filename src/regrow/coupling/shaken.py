"""A copy of a model with other values of its parameters, of which channels become zero for a while.

Large models are mostly memory that is written, so no trial copies parameters: channels are zeroed in place, and what
they were is made again afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regrow import names
from regrow.batchnorm import norm_buffers
from regrow.groups import Coupling
from regrow.surgery import resize
from regrow.tracing.replica import replica_of

_NOISE = 1_000_003  # numbers that are drawn; large parameters take them again and again
_SAMPLE = 1 << 16  # entries of a large parameter of which the standard deviation is computed


@dataclass(frozen=True)
class _Recipe:
    """How a parameter is made: from what, and the first number of the noise that is added, times what."""

    source: Tensor
    begin: int
    size: float


class Shaken:
    """A copy of a model that is copied and masked for trial; the model itself stays as it is.

    Args:
        model: on any device.
        shake: whether parameters get other values, of about the same size and in single precision, where constants
            become random; otherwise they are the model's own.

    Attributes:
        base: the copy.
    """

    def __init__(self, model: nn.Module, shake: bool) -> None:
        self.base = replica_of(model)
        self._recipes: dict[str, _Recipe] = {}
        self._doubled: nn.Module | None = None
        if shake:
            self._shake()

    def copy(self, kind: torch.dtype | None = None) -> nn.Module:
        """Another copy, with buffers of its own; parameters share their values with all others of that precision.

        Args:
            kind: ``torch.float64`` for that precision, None for the model's own.
        """
        return replica_of(self._whole(kind))

    @contextmanager
    def masked(self, coupling: Coupling, keep: Mapping[str, Tensor], kind: torch.dtype | None) -> Iterator[nn.Module]:
        """A copy with channels at zero. Until this ends, other copies of that precision have them at zero, too."""
        model = self.copy(kind)
        tensors, parameters = names.tensors(model), names.parameters(self.base)
        changed = [name for name in coupling.kept(keep, zeroed=True) if name in parameters]
        for name in changed:
            if not self._can_restore(parameters[name], tensors[name], name):
                tensors[name].data = tensors[name].data.clone()
        try:
            resize.zero(model, coupling, keep)
            yield model
        finally:
            whole = names.parameters(self._whole(kind))
            for name in changed:
                self._restore(parameters[name], whole[name], name)

    def _whole(self, kind: torch.dtype | None) -> nn.Module:
        if kind is None:
            return self.base
        if self._doubled is None:
            self._doubled = replica_of(self.base).double()
        return self._doubled

    def _can_restore(self, base: Tensor, used: Tensor, name: str) -> bool:
        return name in self._recipes or used.dtype != base.dtype

    @torch.no_grad()
    def _restore(self, base: Tensor, used: Tensor, name: str) -> None:
        """Makes a parameter what it was before channels became zero."""
        if used.dtype != base.dtype:
            used.copy_(base)
        elif name in self._recipes:
            self._make(base.data, self._recipes[name])

    @torch.no_grad()
    def _shake(self) -> None:
        if any(p.dtype in (torch.float16, torch.bfloat16) for p in self.base.parameters()):
            self.base.float()
        generator = torch.Generator().manual_seed(0)
        self._noise = torch.randn(_NOISE, generator=generator)
        for name, p in names.parameters(self.base).items():
            if p.is_floating_point() and p.numel():
                fan = p[0].numel() if p.dim() > 1 else 0
                size = max(0.1 * _deviation(p), 0.1 / fan**0.5) if fan and p.numel() > 1 else 0.1
                begin = int(torch.randint(_NOISE, (), generator=generator))
                self._recipes[name] = _Recipe(p.data, begin, size)
                p.data = torch.empty_like(p.data)
                self._make(p.data, self._recipes[name])
        for name, buffer in norm_buffers(self.base).items():
            if name.endswith("running_mean"):
                buffer.add_(torch.randn(buffer.shape, generator=generator), alpha=0.1)
            elif name.endswith("running_var"):
                buffer.mul_(torch.rand(buffer.shape, generator=generator) + 0.5)

    def _make(self, target: Tensor, recipe: _Recipe) -> None:
        """Fills a tensor with a parameter and its noise, which goes round; a piece at a time, without more memory."""
        into = target if target.is_contiguous() else torch.empty(target.shape, dtype=target.dtype)
        source, flat = recipe.source.reshape(-1), into.view(-1)
        done = 0
        while done < flat.numel():
            begin = (recipe.begin + done) % _NOISE
            count = min(_NOISE - begin, flat.numel() - done)
            noise = self._noise[begin : begin + count].to(target.dtype)
            torch.add(source[done : done + count], noise, alpha=recipe.size, out=flat[done : done + count])
            done += count
        if into is not target:
            target.copy_(into)


def _deviation(p: Tensor) -> float:
    """The standard deviation; of a sample where there are many entries."""
    flat = p.detach().reshape(-1)
    return float(flat[:: (flat.numel() // _SAMPLE) | 1].std() if flat.numel() > 16 * _SAMPLE else flat.std())
