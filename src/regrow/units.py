"""What a method may ask of the units of a model: to prune, to reactivate, to grow; always to exact counts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from regrow import state as codes
from regrow.criteria import CRITERIA, Criterion
from regrow.errors import UserError
from regrow.patterns.base import Attached, Binding, EntryPattern
from regrow.saliency import Role, Saliency, generator
from regrow.state import Init, WeightState

if TYPE_CHECKING:
    from regrow.channels.surgery import Index

Start = Literal["random", "criterion"]


def sparsity_of(final: Mapping[str, tuple[int, int]]) -> float:
    """The share of all entries that these (active, total) leave out; 0.0 where there are none."""
    total = sum(size for _, size in final.values())
    return 1 - sum(active for active, _ in final.values()) / total if total else 0.0


def counts_at(final: Mapping[str, tuple[int, int]], sparsity: float) -> dict[str, int]:
    """Active entries per layer where all layers have gone the same share of the way to their final (active, total)."""
    target = sparsity_of(final)
    progress = 1.0 if target == 0 else min(sparsity / target, 1.0)
    return {name: size - round(progress * (size - active)) for name, (active, size) in final.items()}


def kept(count: int, size: int, churn: float) -> int:
    """How many of `count` active units of a layer an update keeps before it grows; all where the layer is dense."""
    return count if count == size else count - math.floor(churn * count)


def check_ranks_at_once(criterion: Criterion) -> None:
    """Refuses a criterion that cannot rank before the first step.

    Raises:
        UserError: it needs gradients.
    """
    if criterion.uses_grad:
        raise UserError(
            f"criterion {criterion.name!r} needs gradients, which the first step has not made yet; "
            "score the model for a few steps first (start_steps=20, or h=20 of OneShot), or rank by 'magnitude'"
        )


class Units(ABC):
    """The sparsified units of one model, and the transitions that methods take with them.

    Attributes:
        states: of the sparsified parameters.
        target: the sparsity that the run ends at.
        saliency: the scores.
        step: at which the coming transitions happen.
        tally: counts of the update under way.
    """

    states: Mapping[str, WeightState]
    target: float
    saliency: Saliency

    def __init__(self) -> None:
        self.step = 0
        self.tally: dict[str, int] = {}

    @abstractmethod
    def aim(self, sparsity: float, churn: float, step: int) -> None:
        """Says what the coming transitions are to reach, and at which step they happen."""

    # -- transitions, in the words of the methods --------------------------------------------------------------------

    @abstractmethod
    def start(self, how: Start) -> None:
        """Takes the first structure, of the aimed counts.

        Raises:
            UserError: where the criterion needs gradients that do not exist yet.
        """

    @abstractmethod
    def prune(self) -> None:
        """Keeps the most important active units: the aimed counts less the budget's share, which is grown later."""

    @abstractmethod
    def reactivate(self, value: Literal["mru", "zero"], freeze: bool) -> None:
        """Brings every pruned unit back to train for a preview, the active ones frozen (or training on)."""

    @abstractmethod
    def grow(self, init: Init) -> None:
        """Adds the most important units outside the active structure, up to the aimed counts; the rest is pruned."""

    @abstractmethod
    def settle(self) -> None:
        """Leaves an unfinished update, back to the structure before it, and prunes what the target does not allow."""

    # -- what an update did ------------------------------------------------------------------------------------------

    @abstractmethod
    def mark(self) -> None:
        """Takes the present structure as what the last update left, and forgets the counts."""

    @abstractmethod
    def density(self) -> float:
        """Active entries as a share of all sparsified ones."""

    @abstractmethod
    def _overlap(self) -> Iterable[tuple[Tensor, Tensor]]:
        """(active, active after the last update), bool, for all units."""

    def record(self, update: int) -> dict[str, float | int | None]:
        """Sums up an update that has just ended, and marks its structure."""
        both = either = 0
        for active, previous in self._overlap():
            both += int((active & previous).sum())
            either += int((active | previous).sum())
        tally = self.tally
        grown_before = tally.get("grown_before", 0)
        record = {
            "update": update + 1,
            "step": self.step,
            "pruned": tally.get("pruned", 0),
            "grown": tally.get("grown", 0),
            "regrown": tally.get("regrown", 0),
            "iou": both / either,
            "survival": tally["survived"] / grown_before if grown_before else None,
            "density": self.density(),
        }
        self.mark()
        return record

    def _count(self, **masks: Tensor) -> None:
        for what, mask in masks.items():
            self.tally[what] = self.tally.get(what, 0) + int(mask.sum())

    # -- for the engine ----------------------------------------------------------------------------------------------

    def full_width(self) -> AbstractContextManager[None]:
        """Inside it, the model has all its units, also where the others have been taken out of it meanwhile."""
        return nullcontext()

    def index(self) -> Mapping[str, Index]:
        """Tensor name → what a thin model has of it; empty at full width."""
        return {}

    def active_of(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name → bool, what is active of these tensors (of the model or a copy, at full width); no others."""
        return {name: state.active for name, state in self.states.items() if name in tensors}

    def widths(self) -> dict[str, tuple[int, int]]:
        """Group of channels → (active, all)."""
        return {}

    def costs(self) -> dict[str, tuple[float, float]]:
        """Kind of budget → (what is spent of it now, what may be at the end), as shares of the dense model's cost."""
        return {}

    def compact(self) -> None:
        """Takes what is removed out of the model for good."""
        raise NotImplementedError

    def parts(self) -> list[object]:
        """The objects whose attributes transitions change, beside the states of the parameters."""
        return [self, self.saliency]

    @property
    def resized(self) -> bool:
        """Whether parameters have other shapes than in the dense model."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs beside the states of the parameters: tensors, numbers and texts."""
        return {"tally": dict(self.tally)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the place where `state_dict` was written."""
        self.tally = dict(state["tally"])


class EntryBinding(Binding):
    """Single entries of the parameters of one model."""

    def __init__(self, pattern: EntryPattern, model: nn.Module, example_inputs: Any = None) -> None:
        self.pattern = pattern
        selection = pattern.select(model, example_inputs)
        self.parameters, self.dense, self.decided = selection.parameters, selection.dense, selection.decided
        self.flops, self.note = selection.flops, selection.note
        self.final = pattern.counts_of(self.parameters)

    def units(self, attached: Attached) -> EntryUnits:
        return EntryUnits(self.pattern, self.final, attached)


class EntryUnits(Units):
    """Single entries of parameters, or what a pattern makes of them.

    Args:
        pattern: what a selection may be.
        final: (active, total) entries per parameter at the target.
        attached: the parameters' states, and what scores them.
    """

    def __init__(self, pattern: EntryPattern, final: Mapping[str, tuple[int, int]], attached: Attached) -> None:
        super().__init__()
        self.states = attached.states
        self.pattern = pattern
        self.final = final
        self.saliency = Saliency(attached.states, attached.criterion, attached.scorings, attached.seed)
        self.target = sparsity_of(final)
        self.targets = counts_at(final, 0.0)
        self.churn = 0.0
        self._agree = attached.agree
        self._seed = attached.seed

    def aim(self, sparsity: float, churn: float, step: int) -> None:
        self.targets = counts_at(self.final, sparsity)
        self.churn = churn
        self.step = step

    def start(self, how: Start) -> None:
        if how == "random":
            noise = CRITERIA["random"]
            self._prune(self.targets, lambda name: noise(self.states[name].values(), generator=self._generator(name)))
        else:
            if self.step == 0 and self.targets != {name: size for name, (_, size) in self.final.items()}:
                check_ranks_at_once(self.saliency.criterion)
            self._prune(self.targets, self._by("prune"))
        self.mark()

    def prune(self) -> None:
        keep = {name: kept(count, self.final[name][1], self.churn) for name, count in self.targets.items()}
        self._prune(keep, self._by("prune"))

    def reactivate(self, value: Literal["mru", "zero"], freeze: bool) -> None:
        for state in self.states.values():
            code = torch.full_like(state.flags, codes.EXPLORED)
            code[state.active] = codes.FROZEN if freeze else codes.TRAINABLE
            state.transition(code, value)

    def grow(self, init: Init) -> None:
        active = {name: state.active for name, state in self.states.items()}
        missing = {name: self.targets[name] - int(active[name].sum()) for name in self.states}
        outside = {name: ~mask for name, mask in active.items()}
        chosen = self.pattern.choose(self._by("grow"), missing, outside, spare=False)
        for name, state in self.states.items():
            code = self._agree((active[name] | chosen[name]).to(torch.uint8) * codes.TRAINABLE)
            state.transition(code, init)
            new = state.active & outside[name]
            self._count(grown=new, regrown=new & state.previous)
            state.mark(grown=new)

    def settle(self) -> None:
        for state in self.states.values():
            state.transition(self._agree(state.previous.to(torch.uint8) * codes.TRAINABLE), "mru")
        criterion = self.saliency.criterion
        read = CRITERIA["magnitude"] if criterion.uses_grad else criterion
        self._prune(self.targets, lambda name: read(self.states[name].values(), generator=self._generator(name)))
        self.mark()

    def _prune(self, keep: Mapping[str, int], scores: Callable[[str], Tensor]) -> None:
        active = {name: state.active for name, state in self.states.items()}
        chosen = self.pattern.choose(scores, keep, active, spare=True)
        for name, state in self.states.items():
            state.transition(self._agree(chosen[name].to(torch.uint8) * codes.TRAINABLE))
            still = state.active
            self._count(pruned=active[name] & ~still, grown_before=state.grown, survived=state.grown & still)

    def _by(self, role: Role) -> Callable[[str], Tensor]:
        return lambda name: self.saliency.scores(role, name, self.step)

    def _generator(self, name: str) -> torch.Generator:
        return generator(self._seed, self.step, list(self.states).index(name))

    def mark(self) -> None:
        for state in self.states.values():
            state.mark(previous=state.active)
        self.tally = {}

    def _overlap(self) -> Iterable[tuple[Tensor, Tensor]]:
        return ((state.active, state.previous) for state in self.states.values())

    def density(self) -> float:
        total = sum(size for _, size in self.final.values())
        return sum(int(state.active.sum()) for state in self.states.values()) / total
