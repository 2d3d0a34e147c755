"""Optimizers and learning-rate schedules by name: one small dataclass each, which lists exactly the options it uses."""

from __future__ import annotations

import dataclasses
import math
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from regrow.errors import UserError
from regrow.training.fields import number

if TYPE_CHECKING:
    import torch

Groups = list[dict[str, Any]]

_DECAY = 0.999999  # at 1, what is averaged would never move
_NEEDS_SCHEDULEFREE = "the schedule-free optimizers need one more package: pip install schedulefree"
_TINY = 1e-30  # below, it is nothing in float32
_RATE = 10**6  # of decay
_POINT = 10**6  # epochs


@dataclass(frozen=True)
class Optimizer:
    """What every optimizer of a recipe has.

    Attributes:
        lr: peak learning rate; the schedule multiplies it
        weight_decay: weight decay, in the optimizer's own sense
        decay_norms: whether biases and norm parameters (one-dimensional ones) decay too
    """

    made_by: ClassVar[str]  # module:class
    needs: ClassVar[str] = ""  # what to say where that is not installed

    lr: float = number(0.1, above=0)
    weight_decay: float = number(0.0, low=0, cap=_RATE)
    decay_norms: bool = True

    def make(self, groups: Groups) -> torch.optim.Optimizer:
        """The optimizer for these parameter groups.

        Raises:
            UserError: what makes it is not installed.
        """
        try:
            kind = pkgutil.resolve_name(self.made_by)
        except ImportError as error:
            raise UserError(self.needs or str(error)) from error
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "decay_norms"}
        return kind(groups, **options)

    def build(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        """The optimizer for a model's trainable parameters."""
        trainable = [p for _, p in named_parameters if p.requires_grad]
        if self.decay_norms:
            return self.make([{"params": trainable}])
        groups: Groups = [{"params": [p for p in trainable if p.ndim > 1]}]
        groups.append({"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0})
        return self.make([g for g in groups if g["params"]])


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent.

    Attributes:
        momentum: momentum
        nesterov: Nesterov's momentum
    """

    made_by = "torch.optim:SGD"
    momentum: float = number(0.9, 0, _DECAY)
    nesterov: bool = False

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise UserError("optimizer.nesterov needs a momentum: set optimizer.momentum above 0")


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam; the weight decay is added to the gradient.

    Attributes:
        betas: decay of the two moments
        eps: added to the denominator
    """

    made_by = "torch.optim:Adam"
    lr: float = number(1e-3, above=0)
    betas: tuple[float, float] = number((0.9, 0.999), 0, _DECAY)
    eps: float = number(1e-8, _TINY, cap=1)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay."""

    made_by = "torch.optim:AdamW"
    weight_decay: float = number(0.01, low=0, cap=_RATE)


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """RMSprop.

    Attributes:
        alpha: decay of the squared gradient
        momentum: momentum
        eps: added to the denominator
    """

    made_by = "torch.optim:RMSprop"
    lr: float = number(1e-3, above=0)
    alpha: float = number(0.99, 0, _DECAY)
    momentum: float = number(0.0, 0, _DECAY)
    eps: float = number(1e-8, _TINY, cap=1)


@dataclass(frozen=True)
class Muon(Optimizer):
    """Muon (timm's) for convolution and linear weights, AdamW for all other parameters.

    Attributes:
        momentum: momentum of the weights that Muon updates
        nesterov: Nesterov's momentum
        betas: decay of AdamW's two moments
    """

    made_by = "timm.optim.muon:Muon"
    needs = "optimizer.name muon needs timm 1.0.20 or newer: pip install -U timm"
    lr: float = number(0.02, above=0)
    momentum: float = number(0.95, 0, _DECAY)
    nesterov: bool = True
    betas: tuple[float, float] = number((0.9, 0.95), 0, _DECAY)


@dataclass(frozen=True)
class ScheduleFreeSGD(Optimizer):
    """Schedule-free SGD (package schedulefree); use it with the constant schedule.

    Attributes:
        momentum: interpolation between the fast and the averaged weights
    """

    made_by = "schedulefree:SGDScheduleFree"
    needs = _NEEDS_SCHEDULEFREE
    lr: float = number(1.0, above=0)
    momentum: float = number(0.9, above=0, high=_DECAY)


@dataclass(frozen=True)
class ScheduleFreeAdamW(AdamW):
    """Schedule-free AdamW (package schedulefree); use it with the constant schedule."""

    made_by = "schedulefree:AdamWScheduleFree"
    needs = _NEEDS_SCHEDULEFREE
    lr: float = number(2.5e-3, above=0)


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
    "muon": Muon,
    "schedulefree-sgd": ScheduleFreeSGD,
    "schedulefree-adamw": ScheduleFreeAdamW,
}


POINTS = ("warmup", "peak", "every", "milestones")  # keys of schedules that are points in time


class Schedule:
    """A learning-rate schedule: a pure function of the step, so that a resumed run needs no state.

    Points in time are fractions of the training below 1 and epochs from 1 on.
    """

    def factor(self, step: int, total_steps: int, steps_per_epoch: float) -> float:
        """What the peak learning rate is multiplied with at ``step`` (from 0)."""
        raise NotImplementedError

    def check(self, total_steps: int, steps_per_epoch: float) -> None:
        """Refuse a point in time beyond the end of the run.

        Raises:
            UserError: naming the key.
        """
        for key in POINTS:
            value = getattr(self, key, ())
            for point in value if isinstance(value, tuple) else (value,):
                if self.at(point, total_steps, steps_per_epoch) > total_steps * (1 + 1e-9):
                    raise UserError(
                        f"schedule.{key} {point:g} is in epochs, but the run has only "
                        f"{total_steps / steps_per_epoch:g}: give less, or a fraction of the training below 1"
                    )

    @staticmethod
    def at(point: float, total_steps: int, steps_per_epoch: float) -> float:
        """A point in time as a step."""
        return point * total_steps if point < 1 else point * steps_per_epoch


@dataclass(frozen=True)
class Warmed(Schedule):
    """A schedule that may begin with a warm-up.

    Attributes:
        warmup: length of the linear warm-up: a fraction of the training, or epochs from 1 on; 0 means none
    """

    warmup: float = number(0.0, low=0, cap=_POINT)

    def factor(self, step: int, total_steps: int, steps_per_epoch: float) -> float:
        """What the peak learning rate is multiplied with at ``step`` (from 0)."""
        warmup = self.at(self.warmup, total_steps, steps_per_epoch)
        after = self.after_warmup(step, warmup, total_steps, steps_per_epoch)
        return after * min(1.0, (step + 1) / warmup) if step < warmup else after

    def after_warmup(self, step: int, warmup: float, total_steps: int, steps_per_epoch: float) -> float:
        """The factor without the warm-up; ``warmup`` is its length in steps."""
        return 1.0


@dataclass(frozen=True)
class Constant(Warmed):
    """The same learning rate all the time (after the warm-up)."""


@dataclass(frozen=True)
class CosineDecay(Warmed):
    """Half a cosine from the peak to ``final``.

    Attributes:
        final: last learning rate as a share of the peak
    """

    final: float = number(0.0, 0, 1)

    def after_warmup(self, step: int, warmup: float, total_steps: int, steps_per_epoch: float) -> float:
        progress = min(max((step - warmup) / max(total_steps - warmup, 1), 0.0), 1.0)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up from ``initial`` to the peak, then down to ``final``, both along half a cosine.

    Attributes:
        peak: when the peak is reached
        initial: first learning rate as a share of the peak
        final: last learning rate as a share of the peak
    """

    peak: float = number(0.3, above=0, cap=_POINT)
    initial: float = number(0.04, 0, 1)
    final: float = number(4e-6, 0, 1)

    def factor(self, step: int, total_steps: int, steps_per_epoch: float) -> float:
        peak = min(self.at(self.peak, total_steps, steps_per_epoch), total_steps - 1.0)
        if step <= peak:
            start, end, progress = self.initial, 1.0, step / max(peak, 1)
        else:
            start, end, progress = 1.0, self.final, (step - peak) / max(total_steps - 1 - peak, 1)
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


@dataclass(frozen=True)
class Step(Warmed):
    """Multiplied with ``gamma`` after every ``every``.

    Attributes:
        every: time between two drops
        gamma: what the learning rate is multiplied with at a drop
    """

    every: float = number(0.3, above=0, cap=_POINT)
    gamma: float = number(0.1, above=0, high=1)

    def after_warmup(self, step: int, warmup: float, total_steps: int, steps_per_epoch: float) -> float:
        return self.gamma ** int(step // max(self.at(self.every, total_steps, steps_per_epoch), 1))


@dataclass(frozen=True)
class MultiStep(Warmed):
    """Multiplied with ``gamma`` at every one of the ``milestones``.

    Attributes:
        milestones: when the learning rate drops
        gamma: what the learning rate is multiplied with at a drop
    """

    milestones: tuple[float, ...] = number((0.5, 0.75), above=0, cap=_POINT)
    gamma: float = number(0.1, above=0, high=1)

    def after_warmup(self, step: int, warmup: float, total_steps: int, steps_per_epoch: float) -> float:
        passed = sum(step >= round(self.at(m, total_steps, steps_per_epoch)) for m in self.milestones)
        return self.gamma**passed


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "cosine": CosineDecay,
    "onecycle": OneCycle,
    "step": Step,
    "multistep": MultiStep,
}
