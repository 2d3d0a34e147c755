"""Latent weights: what an optimizer trains while the network computes with a projection of it, and nothing is lost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from regrow.errors import UserError


class EveryNth:
    """What happens in every n-th step only, with n in `every`."""

    every: int

    def check_every(self, option: str) -> None:
        """Refuses what is no number of steps.

        Raises:
            UserError: naming the option.
        """
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise UserError(f"{option} is {self.every!r}, but must be a whole number of steps, at least 1")

    def due(self, step: int) -> bool:
        """Whether it happens in this step."""
        return step % self.every == self.every - 1

    def steps(self, start: int, end: int) -> int:
        """In how many of these steps it does."""
        return end // self.every - start // self.every


@dataclass(frozen=True)
class Latent(EveryNth):
    """How the latent weights of a phase are trained, and what the network computes with.

    The optimizer trains all latent weights w by the gradients of what the network computes with (straight-through),
    with its own momentum, second moments and decay; those of removed entries are scaled. An optimizer that divides by
    second moments undoes any scale of gradients, so there the step is scaled instead.

    Args:
        scale: of the gradients of removed entries; 0 leaves them to the decay.
        p: of the projection: sign(w)·(\\|w\\|^p − T^p)^(1/p) where active (0 where \\|w\\| < T), with T the largest
            removed \\|w\\| of the parameter. p = 1 is the soft threshold (ST-3), 3 Feather's (arXiv:2310.02448), and
            infinity the hard one: w where active.
        every: the gradients of removed entries are used in every n-th step only, at √n times the scale: with n times,
            the noise of few batches would outgrow the active weights that they compete with.
        pull: added to the gradients of removed entries, times their latent weight: SR-STE's λ (arXiv:2102.04010).

    Raises:
        UserError: for options outside their range.
    """

    scale: float = 1.0
    p: float = math.inf
    every: int = 1
    pull: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("scale", 0.0), ("pull", 0.0), ("p", 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
                raise UserError(f"{name} is {value!r}, but must be a number of at least {least:g}")
        self.check_every("every")

    @property
    def gain(self) -> float:
        """The scale of a step that uses them."""
        return self.scale * math.sqrt(self.every)

    def project(self, latent: Tensor, active: Tensor) -> Tensor:
        """What the network computes with: a new tensor, zero outside of `active` (bool)."""
        if math.isinf(self.p):
            return latent.masked_fill(~active, 0)
        size = latent.abs()
        threshold = size.masked_fill(active, 0).amax()
        if self.p == 1:
            size = size - threshold
        else:  # relative to the threshold or the size, so that no power overflows
            share = (threshold / size.clamp(min=torch.finfo(size.dtype).tiny)).pow_(self.p).neg_().add_(1).clamp_(min=0)
            size = size.mul_(share.pow_(1 / self.p))
        return torch.copysign(size.clamp_(min=0), latent).masked_fill_(~active, 0)
