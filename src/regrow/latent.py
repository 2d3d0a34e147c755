"""Latent weights: what an optimizer trains while the network computes with a projection of it, and nothing is lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from regrow import hints
from regrow.codes import bits, in_order, pieces
from regrow.errors import UserError, percent
from regrow.hints import LARGEST

_SAFE_CUBES = 1e-10, 6e12  # between them neither a cube nor what is left of it is lost in fp32
VECTOR_ROOTS = torch.backends.cpu.get_cpu_capability().startswith("AVX512")  # else roots are taken one by one
_POWERS = 16 * torch.finfo(torch.float32).eps  # how far powers in fp32 are from each other on any two devices


Rivals = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # see `EntryPattern.rivals`
OfAll = Callable[[Tensor], Tensor]  # the largest here → the largest of the whole parameter


def _all_here(largest: Tensor) -> Tensor:
    return largest


@dataclass(frozen=True)
class Latent:
    """How the latent weights of a phase are trained, and what the network computes with.

    The optimizer trains all latent weights w by the gradients of what the network computes with (straight-through),
    with its own momentum, second moments and decay; those of removed entries are scaled. An optimizer that divides by
    second moments undoes any scale of gradients, so there the step is scaled instead.

    Args:
        scale: of the gradients of removed entries; 0 leaves them to the decay.
        p: of the projection: sign(w)·(\\|w\\|^p − T^p)^(1/p) where active (0 where \\|w\\| < T), with T the largest
            removed \\|w\\| of those that compete with it: all of the parameter, or those of an N:M group (S-STE,
            arXiv:2409.09099). Of blocks the sizes are means, and w·(1 − (T/size)^p)^(1/p) is left. p = 1 is the soft
            threshold (ST-3), 3 Feather's (arXiv:2310.02448), and infinity the hard one: w where active.
        every: the gradients of removed entries are used in every n-th step only, at √n times the scale: with n times,
            the noise of few batches would outgrow the active weights that they compete with.
        backward: the sparsity of what trains, below the structure's: as many removed entries as it leaves train beside
            the active ones, and the others keep their value, without a gradient (Top-KAST, arXiv:2106.03517). 0 trains
            all of them.
        candidates: which removed entries train, chosen anew with each structure: the largest, or at random.
        pull: added to the gradients of removed entries, times their latent weight: SR-STE's λ (arXiv:2102.04010).

    Raises:
        UserError: for options outside their range.
    """

    scale: float = 1.0
    p: float = math.inf
    every: int = 1
    pull: float = 0.0
    backward: float = 0.0
    candidates: Literal["largest", "random"] = "largest"

    def __post_init__(self) -> None:
        hints.check(self)
        for name, least, most in (("scale", 0.0, LARGEST), ("pull", 0.0, LARGEST), ("p", 1.0, math.inf)):
            value = getattr(self, name)
            if not least <= value <= most:
                finite = "" if value < least else f", and at most {most:g}"
                raise UserError(f"{name} is {value!r}, but must be a number of at least {least:g}{finite}")
        if not 0 <= self.backward < 1:
            raise UserError(f"backward is {self.backward!r}, but must be a sparsity in [0, 1){percent(self.backward)}")
        if self.every < 1:
            raise UserError(f"every is {self.every!r}, but must be a whole number of steps, at least 1")

    def due(self, step: int) -> bool:
        """Whether this step uses the gradients of removed entries."""
        return step % self.every == self.every - 1

    def steps(self, start: int, end: int) -> int:
        """How many of these steps do."""
        return end // self.every - start // self.every

    @property
    def gain(self) -> float:
        """The scale of a step that uses them."""
        return self.scale * math.sqrt(self.every)

    @property
    def hard(self) -> bool:
        """Whether the network computes with active weights as they are."""
        return math.isinf(self.p)

    def project(
        self, latent: Tensor, active: Tensor, out: Tensor | None = None, rivals: Rivals | None = None,
        of_all: OfAll = _all_here,
    ) -> Tensor:  # fmt: skip
        """What the network computes with: zero outside of `active`.

        Powers are taken in fp32, or in fp64 for latent values of that type. In fp32 and for p = 3 the result is off by
        4e-8 of itself in the median, and by up to 5e-3·\\|w\\| where \\|w\\| agrees with T to six digits;
        on CPUs whose cube roots are vectors by rounding alone.

        Args:
            latent: of any shape and floating-point type.
            active: bool, its shape.
            out: where to write it, in the shape of `latent`; zero outside of `active` already. Default: a new tensor.
            rivals: what competes with what; None where each entry does with all others.
            of_all: makes the largest removed \\|w\\| here that of the whole parameter, where others hold some of it.

        Returns:
            `out`, or the new tensor.
        """
        out = torch.zeros_like(latent) if out is None else out
        if self.hard:
            return torch.where(active, latent, out, out=out)
        if rivals is not None:
            sizes, thresholds = rivals(latent.abs(), active)
            left = self._left(sizes, thresholds).pow_(1 / self.p)
            return out.copy_(left.mul(latent).masked_fill_(~active, 0))
        flat = in_order(latent, active, out) if latent.device.type == "cpu" else None
        if flat is None:
            threshold = of_all(_highest(latent.abs().masked_fill_(active, 0)))
            return out.copy_(self._shrink(latent, threshold).masked_fill_(~active, 0))  # powers cost little here
        values, kept, into = flat
        threshold = of_all(_largest(values, kept))
        if self.p != 3 or not _shrink_cubes(values, threshold, into):
            where = torch.from_numpy(np.flatnonzero(kept.numpy()))  # powers are dear, and active weights few
            into.index_copy_(0, where, self._shrink(values.index_select(0, where), threshold).to(into.dtype))
        return out

    def _shrink(self, latent: Tensor, threshold: Tensor) -> Tensor:
        """sign(w)·(\\|w\\|^p − T^p)^(1/p), or zero, for each w: a new tensor, of fp32 or more."""
        latent = latent.to(torch.promote_types(latent.dtype, torch.float32))
        size = latent.abs()
        if self.p == 1:
            size -= threshold
        else:
            size.mul_(self._left(size, threshold).pow_(1 / self.p))
        return torch.copysign(size.clamp_(min=0), latent)

    def _left(self, size: Tensor, threshold: Tensor) -> Tensor:
        """1 − (T/size)^p, or zero, in fp32 or more: relative to each other, so that no power overflows."""
        size = size.to(torch.promote_types(size.dtype, torch.float32))
        of = torch.finfo(size.dtype)
        smallest = of.tiny * of.eps  # above 0, however small a weight is
        return (threshold / size.clamp(min=smallest)).pow_(self.p).neg_().add_(1).clamp_(min=0)

    def differs(
        self, live: Tensor, latent: Tensor, active: Tensor, rounding: float, rivals: Rivals | None = None,
        of_all: OfAll = _all_here,
    ) -> Tensor:  # fmt: skip
        """Where active values are others than the projection, which may have been taken where powers round otherwise:
        on another device, or before a cast. Compares p-th powers, as roots blow up what rounding is near the threshold.

        Args:
            live: what the network computes with.
            latent: latent values, p finite, in the shape and type of `live`.
            active: bool, their shape.
            rounding: of live and latent values, as a share of them.
            rivals, of_all: as in `project`.

        Returns:
            bool, their shape.
        """
        values = latent.to(torch.promote_types(latent.dtype, torch.float32))
        size = values.abs()
        if rivals is None:
            largest = _highest(size.masked_fill(active, 0))
            left = self._left(size, of_all(largest))
        else:
            left = self._left(*rivals(size, active))
        reached = live.to(values.dtype) / values
        off = torch.copysign(reached.abs().pow_(self.p), reached).sub_(left).abs_()
        same = torch.where(values == 0, live == 0, off <= min(0.5, self.p * (rounding + _POWERS)))
        return active & ~same


def _highest(sizes: Tensor) -> Tensor:
    """The largest of numbers that are not negative; 0 of none."""
    return sizes.amax() if sizes.numel() else sizes.new_zeros(())


def _largest(values: Tensor, kept: Tensor) -> Tensor:
    """The largest magnitude where this bool is not set; 0 where it is everywhere. Both on a CPU, in one dimension.

    Magnitudes rank as the integers do that their bits are, and NumPy finds the largest of these much sooner.
    """
    whole = bits(values)
    kind, largest = whole.numpy().dtype, 0
    for part, mask in pieces(whole, kept):
        removed = (mask.view(torch.uint8).numpy() - 1).view(np.int8).astype(kind)  # all bits, or none
        removed &= part.numpy()
        removed &= np.iinfo(kind).max  # all but the sign
        largest = max(largest, int(removed.max(initial=0)))
    return torch.tensor(largest, dtype=whole.dtype).view(values.dtype)


def _shrink_cubes(values: Tensor, threshold: Tensor, out: Tensor) -> bool:
    """out ← ∛(w³ − T³) with the sign of w, zero where the size of w is at most T: so it needs no mask. As the product
    d·((d + 1.5·T)² + 0.75·T²), d = \\|w\\| − T, it is exact to rounding, however near w is to T.

    Half the time that powers of a tenth of the weights take, where NumPy has vectors of cube roots.

    Args:
        values: fp32, on a CPU, in one dimension.
        threshold: T, a scalar.
        out: overwritten.

    Returns:
        Whether it is done: not where roots are slow, for other types, or where a cube overflows.
    """
    t, fp32 = float(threshold), values.dtype == out.dtype == torch.float32
    if not (fp32 and VECTOR_ROOTS and _SAFE_CUBES[0] < t < _SAFE_CUBES[1]):
        return False
    for part, into in pieces(values, out):
        torch.ops.aten.softshrink.out(part, t, out=into)
        factor = into.abs().add_(1.5 * t)
        if not factor.numpy().max(initial=0.0) < _SAFE_CUBES[1]:
            return False
        factor.mul_(factor).add_(0.75 * t * t).mul_(into)
        np.cbrt(factor.numpy(), out=into.numpy())
    return True
