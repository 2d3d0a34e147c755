"""IEE, iterative exploitation and exploration: prune, improve, explore what was removed, regrow the best of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from regrow import hints
from regrow.actions import Action, Explore, Grow, How, Prune, Start
from regrow.criteria import Criterion
from regrow.errors import UserError
from regrow.latent import Latent
from regrow.methods.method import Method, check_backward, check_ramp, check_start, check_steps, register
from regrow.patterns.pattern import Pattern
from regrow.saliency import Scoring
from regrow.schedule import Boundary, Budget, Phase, Timeline, Trains, cubic, repeat, steps_of
from regrow.state import Init

_SHADOW_SPEED = 0.2  # chosen on a validation split: docs/studies.md


@register
@dataclass(frozen=True)
class IEE(Method):
    """Prunes and regrows by one criterion, after a preview of what the removed units would be worth
    (arXiv:2502.03658, section 3).

    By default single weights are previewed while the active structure trains on: the optimizer trains what is removed,
    too, as latent values (`regrow.latent`), which costs no step. `IEE.paper` explores as the paper does, all of the
    active structure standing still.

    Args:
        h: steps that estimate the importance of the active units (H in the paper).
        j: steps that improve the pruned structure (J).
        q: steps that explore: every removed unit is reactivated and trains, the active ones are frozen (Q). At 0, units
            grow by the value in memory. None takes 0 where removed units are previewed in memory; where they cannot be
            (channels have no gradients once removed; criteria that use gradients need live units), a tenth of h + j.
        budget: Ω, the share of the active units that an update replaces.
        update_end: when updates end, a share of training or a number of steps. A cycle that would not end by then is
            not begun.
        grown_init: the value of grown units: ``"mru"`` the one they last had in use, before the exploration (Table 4);
            ``"explored"`` the one they reached in it; ``"zero"``.
        reactivate: the value from which units are explored: ``"mru"`` or ``"zero"``.
        freeze: hold active units, other parameters and batch-norm statistics still during exploration; False for the
            paper's ablation.
        improve: train the pruned structure for `j` steps before exploring; False for the paper's ablation.
        start: ``"random"`` (from scratch) or ``"criterion"`` (the best units of a trained model).
        start_steps: steps that score the trained model, still dense, before ``start="criterion"`` chooses from it. None
            takes 20 for criteria that use gradients and 0 for others, which choose when attaching.
        ramp: sparsity to start with; it rises to the target along GMP's cubic while updates go on. None starts at the
            target.
        ramp_end: when it reaches the target, as a share of the updates.
        shadow_speed: speed, as a share of the optimizer's own, at which removed units train in memory during `h` and
            `j`, with its momentum, second moments and decay; 0 leaves them at rest. None takes 0.2 with q=0, and 0
            where units are explored for real.
        shadow_every: use the dense gradient of every n-th step only, at √n times the speed.
        previews: removed weights that are previewed at a time, as a multiple of those that are active at the target;
            the others rest. A step costs 2·f_S + f_B, with f_B of all that trains. None previews all of them.
        backward: the same as Top-KAST says it: the sparsity of the weights that train, below the pattern's.
        candidates: which removed weights are previewed, where not all are: the ``"largest"`` or ``"random"`` ones,
            chosen anew at every update.
        p: of the projection that the network computes with during a preview (`regrow.latent`): 3 shrinks active
            weights by what was removed, as Feather does, and needs a criterion that goes by magnitude; None leaves
            them as they are.

    Raises:
        UserError: for options out of range, or that contradict each other.
    """

    name: ClassVar[str] = "iee"
    repeats: ClassVar[bool] = True

    h: int = 50
    j: int = 0
    q: int | None = None
    budget: Budget = Budget("cosine", 0.3)
    update_end: float | int = 0.75
    grown_init: Init = "mru"
    reactivate: Literal["mru", "zero"] = "mru"
    freeze: bool = True
    improve: bool = True
    start: How = "random"
    start_steps: int | None = None
    ramp: float | None = None
    ramp_end: float = 1.0
    shadow_speed: float | None = None
    shadow_every: int = 1
    p: float | None = None
    previews: float | None = None
    backward: float = 0.0
    candidates: Literal["largest", "random"] = "random"

    @classmethod
    def from_dense(cls, **options: Any) -> IEE:
        """The most accurate form at equal steps in first trials (docs/studies.md): begins dense, ramps up for nine
        tenths of the training, and exchanges at every step to its end, by weights that are all previewed at half the
        speed through Feather's projection. A step costs 3·f_D at first, and 2·f_S + f_D later.

        Args:
            options: others of `IEE`; ``h=10`` takes a tenth of the time for selecting.
        """
        strong = {"h": 1, "update_end": 1.0, "ramp": 0.0, "ramp_end": 0.9, "shadow_speed": 0.5, "p": 3.0}
        return cls(**{**strong, **options})

    @classmethod
    def sparse(cls, previews: float = 1.0, **options: Any) -> IEE:
        """The form for the fewest training FLOPs (docs/studies.md): sparse from the first step, previewing at half the
        speed only a part of what is removed, others at every update. Made for ``Weights(..., scope="global")``.

        Args:
            previews: how many at a time, as a multiple of the active weights.
            options: others of `IEE`.
        """
        return cls(**{"previews": previews, "shadow_speed": 0.5, **options})

    @classmethod
    def paper(cls, steps: int = 150, **options: Any) -> IEE:
        """The method in the form of its paper: real explorations only, from and at the values last used.

        Args:
            steps: H = J = Q; 150 is the paper's best on ImageNet at 100 epochs.
            options: others of `IEE`.
        """
        hints.check_value("steps", steps, int)
        check_steps("steps", steps, 1)
        return cls(**{"h": steps, "j": steps, "q": steps, "shadow_speed": 0.0, **options})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps("h", self.h, 1)
        check_steps("j", self.j, 0)
        check_steps("q", self.explored, 0)
        check_start(self.start, self.start_steps)
        check_ramp(self.ramp, self.ramp_end)
        if not 0 <= self.speed <= hints.LARGEST:
            raise UserError(f"shadow_speed is {self.speed}, but must be a share of the optimizer's speed, at least 0")
        check_steps("shadow_every", self.shadow_every, 1)
        if self.previews is not None:
            if not 0 < self.previews <= hints.LARGEST:
                raise UserError(f"previews is {self.previews}, but must be a multiple of the active weights, above 0")
            if self.backward:
                raise UserError("previews and backward both say how many weights train: give one of them")
        if self.q == 0:
            self._check_nothing_explored()
        if not self.speed:
            self._check_nothing_previewed("nothing is previewed in memory at shadow_speed=0")
        _ = self._latent  # which checks p

    @property
    def explored(self) -> int:
        """Steps of real exploration in an update."""
        return 0 if self.q is None else self.q

    @property
    def speed(self) -> float:
        """Of the preview."""
        if self.shadow_speed is None:
            return 0.0 if self.explored else _SHADOW_SPEED
        return self.shadow_speed

    def resolve(self, pattern: Pattern, criterion: Criterion) -> Method:
        check_backward(self.backward, pattern)
        if not (pattern.blind or criterion.uses_grad):
            self._check_nothing_explored()
            sparsity = getattr(pattern, "sparsity", None)
            if sparsity is None or isinstance(getattr(pattern, "distribution", None), Mapping):  # the model says
                return super().resolve(pattern, criterion)
            return super(IEE, self.at_target(sparsity)).resolve(pattern, criterion)
        q = max(1, (self.h + self.j) // 10) if self.q is None else self.q
        speed = 0.0 if self.shadow_speed is None else self.shadow_speed
        if not speed:
            self._check_nothing_previewed("channels, and criteria that use gradients, have no preview in memory")
        return super(IEE, dataclasses.replace(self, q=q, shadow_speed=speed)).resolve(pattern, criterion)

    def at_target(self, target: float) -> IEE:
        """With `previews` said as the sparsity of all that trains."""
        if self.previews is None:
            return self
        backward = max(0.0, 1 - (1 + self.previews) * (1 - target))
        return dataclasses.replace(self, previews=None, backward=backward)

    @property
    def ranks_at_start(self) -> bool:
        return self.start == "criterion" and self.ramp != 0

    def _check_nothing_explored(self) -> None:
        if not self.explored and self.reactivate == "zero":
            raise UserError("reactivate='zero' needs steps that explore from there; use q ≥ 1, or reactivate='mru'")

    def _check_nothing_previewed(self, why: str) -> None:
        for option, value in {"p": self.p, "previews": self.previews, "backward": self.backward}.items():
            if value:
                raise UserError(f"{option}={value} is of a preview, but {why}; leave it out")

    def timeline(self, total_steps: int) -> Timeline:
        latent = self._latent
        trains: Trains = "active" if latent is None else "latent"
        return repeat(
            Phase("estimate", self.h, trains, latent),
            Phase("improve", self.j if self.improve else 0, trains, latent),
            Phase("explore", self.explored, trains="removed" if self.freeze else "all"),
            total_steps=total_steps,
            until=steps_of("update_end", self.update_end, total_steps),
            start=self.start_steps or 0,
        )

    def scorings(self, criterion: Criterion) -> Mapping[str, tuple[Scoring, ...]]:
        if criterion.uses_grad and self.explored == 0:
            raise UserError(f"criterion {criterion.name!r} needs steps to score what was removed; use q ≥ 1")
        return {"estimate": (Scoring("prune", criterion),), "explore": (Scoring("grow", criterion),)}

    def _sparsity(self, progress: float, target: float) -> float:
        return target if self.ramp is None else cubic(progress / self.ramp_end, min(self.ramp, target), target)

    @property
    def _latent(self) -> Latent | None:
        if not self.speed:
            return None
        p = math.inf if self.p is None else self.p
        return Latent(self.speed, p, self.shadow_every, backward=self.backward, candidates=self.candidates)

    def at_start(self, target: float) -> Sequence[Action]:
        start = Start(self._sparsity(0.0, target), self.start)
        if self._latent is None or self.start == "criterion":
            return [start]
        return [start, Explore("zero")]  # what was never in use starts its preview from nothing

    def at_end(self, of: Boundary, target: float) -> Sequence[Action]:
        sparsity = self._sparsity(of.progress, target)
        match of.ended:
            case "estimate":
                return [Prune(sparsity, self.budget.fraction(of.step, of.until))]
            case "improve":
                return [Explore(self.reactivate)]
            case _:
                return [Grow(sparsity, self.grown_init)]
