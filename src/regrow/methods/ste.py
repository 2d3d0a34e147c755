"""Straight-through: the network computes with a projection of weights that all go on training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from regrow.actions import Action, How, Select, Start
from regrow.criteria import Criterion
from regrow.latent import Latent
from regrow.methods.method import Method, check_backward, check_ramp, check_start, check_steps, register
from regrow.patterns.pattern import Pattern
from regrow.saliency import Scoring
from regrow.schedule import Boundary, Phase, Timeline, cubic, repeat, steps_of


@dataclass(frozen=True)
class Straight(Method):
    """What straight-through methods share: latent weights, and a structure selected anew among all of them.

    Args:
        every: steps between selections.
        update_end: when the last one is, a share of training or a number of steps.
        start: how a structure that is not dense is chosen at first.
        start_steps: steps that score the model before ``start="criterion"`` chooses; None takes 20 for criteria that
            use gradients and 0 for others.
    """

    every: int = 1
    update_end: float | int = 1.0
    start: How = "criterion"
    start_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps("every", self.every, 1)
        check_start(self.start, self.start_steps)
        self._latent()

    def _latent(self) -> Latent:
        raise NotImplementedError

    def _sparsity(self, progress: float, target: float) -> float:
        return target

    @property
    def ranks_at_start(self) -> bool:
        return self.start == "criterion"

    def timeline(self, total_steps: int) -> Timeline:
        until = steps_of("update_end", self.update_end, total_steps)
        phase = Phase("latent", self.every, trains="latent", latent=self._latent())
        return repeat(phase, total_steps=total_steps, until=until, start=self.start_steps or 0)

    def scorings(self, criterion: Criterion) -> Mapping[str, tuple[Scoring, ...]]:
        return {"latent": (Scoring("prune", criterion),)}

    def at_start(self, target: float) -> Sequence[Action]:
        return [Start(self._sparsity(0.0, target), self.start)]

    def at_end(self, of: Boundary, target: float) -> Sequence[Action]:
        return [Select(self._sparsity(of.progress, target))]


@register
@dataclass(frozen=True)
class STE(Straight):
    """Trains all weights by the gradients of a projection of them, and selects the best again and again. Feather, ST-3
    and Top-KAST are settings of it.

    Args:
        p: of the projection (`regrow.latent`): 1 is the soft threshold; None, or infinity, leaves active weights as
            they are, and is the only one that goes with criteria other than magnitude.
        scale: of the gradients of removed weights.
        ramp: sparsity to start with, which rises to the target along GMP's cubic; None starts at the target.
        ramp_end: when it reaches the target, as a share of the updates.
        backward: sparsity of the weights that train, below the pattern's: so many removed ones train that this
            is left, and the others keep their value; 0 trains all of them. A step costs 2·f_S + f_B.
        candidates: which removed weights train, where not all do: the ``"largest"`` or ``"random"`` ones, chosen anew
            at every selection.

    Raises:
        UserError: for options out of range.
    """

    name: ClassVar[str] = "ste"

    p: float | None = 3.0
    scale: float = 0.5
    ramp: float | None = 0.0
    ramp_end: float = 0.75
    backward: float = 0.0
    candidates: Literal["largest", "random"] = "largest"

    @classmethod
    def feather(cls, scale: float = 0.5, **options: Any) -> STE:
        """Feather (arXiv:2310.02448): p = 3, a cubic ramp from dense, thresholds anew at every step.

        Args:
            scale: θ; the paper takes 1.0 up to 90% and about 0.5 above.
            options: others of `STE`.
        """
        return cls(**{"p": 3.0, "scale": scale, **options})

    @classmethod
    def st3(cls, **options: Any) -> STE:
        """ST-3: the soft threshold, all gradients, a cubic ramp from dense."""
        return cls(**{"p": 1.0, "scale": 1.0, **options})

    @classmethod
    def topkast(cls, backward: float = 0.0, every: int = 1, **options: Any) -> STE:
        """Top-KAST (arXiv:2106.03517): the largest weights compute, a larger set of the largest trains, from a
        structure that has the target from the start. The paper's penalty on the weights that train
        is the optimizer's decay here, without what it adds where they do not compute.

        Args:
            backward: sparsity of the set that trains; 0 for a dense backward pass.
            every: steps between selections; the paper takes 1, and up to 100 without loss.
            options: others of `STE`.
        """
        return cls(**{"p": None, "scale": 1.0, "ramp": None, "backward": backward, "every": every, **options})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ramp(self.ramp, self.ramp_end)

    @property
    def ranks_at_start(self) -> bool:
        return super().ranks_at_start and self.ramp != 0

    def _latent(self) -> Latent:
        p = math.inf if self.p is None else self.p
        return Latent(scale=self.scale, p=p, backward=self.backward, candidates=self.candidates)

    def resolve(self, pattern: Pattern, criterion: Criterion) -> Method:
        check_backward(self.backward, pattern)
        return super().resolve(pattern, criterion)

    def _sparsity(self, progress: float, target: float) -> float:
        if self.ramp is None:
            return target
        return cubic(progress / self.ramp_end, min(self.ramp, target), target)
