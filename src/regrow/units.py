"""What a method may ask of the units of a model: to prune, to reactivate, to grow; always to exact counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regrow import codes
from regrow.actions import Action, Explore, Final, Grow, Prune, Select, Start, counts_after, sparsity_of
from regrow.criteria import CRITERIA, Criterion
from regrow.errors import UserError
from regrow.latent import Latent
from regrow.patterns.base import Attached, EntryPattern
from regrow.saliency import Role, Saliency, generator
from regrow.schedule import Span
from regrow.state import Init, WeightState

if TYPE_CHECKING:
    from regrow.channels.surgery import Index
    from regrow.latency.table import LatencyTable
    from regrow.tracing.flops import ModelFlops


Masks = Mapping[str, Tensor]  # parameter → bool, its shape


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
    """The units that a pattern makes of one model: what can be removed, and the transitions that methods take with it.

    A pattern's `bind` makes them; `attach` gives them the states of their parameters, once all is checked.

    Attributes:
        parameters: what is sparsified, by canonical name, in the model's order.
        dense: parameter → why it stays dense, or why its outputs are in no group.
        decided: which of these reasons somebody has decided for, in options or in what the model is for.
        note: what there is to say about how all this was found, or "".
        flops: of the dense model, where they have been counted.
        resizes: whether parameters change their shapes in training.
        changes_states_alone: whether transitions change parameters and optimizers through their states only.
        table: of latencies, where there is such a budget.
        target: the sparsity that the run ends at.
        states: of the sparsified parameters.
        saliency: the scores.
        step: at which the coming transitions happen.
        tally: counts of the update under way.
    """

    parameters: dict[str, nn.Parameter]
    dense: Mapping[str, str]
    decided: frozenset[str] = frozenset()
    note: str = ""
    flops: ModelFlops | None = None
    resizes: bool = False
    changes_states_alone: bool = False
    table: LatencyTable | None = None
    target: float
    states: Mapping[str, WeightState]
    saliency: Saliency

    def __init__(self) -> None:
        self.step = 0
        self.tally: dict[str, int] = {}

    @abstractmethod
    def attach(self, attached: Attached) -> None:
        """Takes the states of the parameters, all of them active, and what scores them."""

    # -- transitions -------------------------------------------------------------------------------------------------

    def carry_out(self, action: Action, step: int, span: Span) -> None:
        """Does what a method asks for.

        Args:
            action: one of `regrow.actions`.
            step: at which it happens.
            span: the phase that begins, which says what trains.
        """
        self.step = step
        match action:
            case Start():
                self._start(action, span)
            case Prune():
                self._prune(action, span)
            case Explore():
                self._explore(action, span)
            case Grow():
                self._grow(action, span)
            case Select():
                self._select(action, span)

    @abstractmethod
    def _start(self, action: Start, span: Span) -> None:
        """Raises: UserError, where the criterion needs gradients that do not exist yet."""

    @abstractmethod
    def _prune(self, action: Prune, span: Span) -> None: ...

    @abstractmethod
    def _explore(self, action: Explore, span: Span) -> None: ...

    @abstractmethod
    def _grow(self, action: Grow, span: Span) -> None: ...

    @abstractmethod
    def _select(self, action: Select, span: Span) -> None: ...

    def enter(self, span: Span) -> None:  # noqa: B027 (most have no latent values)
        """Begins or ends the training of latent values, where the actions before have not done so."""

    @abstractmethod
    def end_at_target(self, step: int) -> None:
        """Leaves an unfinished update, back to the structure before it, and prunes what the target does not allow."""

    # -- what an update did ------------------------------------------------------------------------------------------

    @abstractmethod
    def mark(self) -> None:
        """Takes the present structure as what the last update left, and forgets the counts."""

    def density(self) -> float:
        """Active entries as a share of all sparsified ones; 1.0 where nothing is sparsified."""
        total = sum(state.flags.numel() for state in self.states.values())
        return sum(codes.count(state.active) for state in self.states.values()) / total if total else 1.0

    @abstractmethod
    def _overlap(self) -> Iterable[tuple[Tensor, Tensor]]:
        """(active, active after the last update), bool, for all units."""

    def record(self, update: int) -> dict[str, float | int | None]:
        """Sums up an update that has just ended, and marks its structure."""
        both = either = 0
        for active, previous in self._overlap():
            both += codes.count(active & previous)
            either += codes.count(active | previous)
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
            self.tally[what] = self.tally.get(what, 0) + codes.count(mask)

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

    def planned(self) -> Final | None:
        """Parameter → (active, all) of its units once the target is reached, as far as that is known beforehand."""
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
        """Restores from `state_dict`."""
        self.tally = dict(state["tally"])


class NoUnits(Units):
    """Nothing is sparsified."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters, self.dense, self.states, self.target = {}, {}, {}, 0.0

    def attach(self, attached: Attached) -> None:
        self.saliency = Saliency({}, attached.criterion, attached.scorings, attached.seed)

    def carry_out(self, action: Action, step: int, span: Span) -> None:
        """Nothing."""

    def end_at_target(self, step: int) -> None:
        """Nothing."""

    def mark(self) -> None:
        """Nothing."""

    def _nothing(self, *_: Any, **__: Any) -> Any:
        return ()

    _start = _prune = _explore = _grow = _select = _overlap = _nothing


class EntryUnits(Units):
    """Single entries of parameters, or what a pattern makes of them.

    Args:
        pattern: which entries there are, and what a selection of them may be.
        model: stays as it is.
        example_inputs: one batch, if there is one.

    Attributes:
        final: (active, all) units of each parameter at the target.
    """

    changes_states_alone = True

    def __init__(self, pattern: EntryPattern, model: nn.Module, example_inputs: Any = None) -> None:
        super().__init__()
        self.pattern = pattern
        selection = pattern.select(model, example_inputs)
        self.parameters, self.dense, self.decided = selection.parameters, selection.dense, selection.decided
        self.flops, self.note = selection.flops, selection.note
        self._axes = selection.axes
        self.final = pattern.counts_of(self.parameters)
        self.target = sparsity_of(self.final)

    def planned(self) -> Final:
        return self.final

    def attach(self, attached: Attached) -> None:
        self.states = attached.states
        self.saliency = Saliency(attached.states, attached.criterion, attached.scorings, attached.seed)
        self._agree = attached.agree
        self._seed = attached.seed

    def _start(self, action: Start, span: Span) -> None:
        if action.how == "random":
            noise = CRITERIA["random"]
            self._keep(
                action, lambda name: noise(self.states[name].values(), generator=self._generator(name)), span.latent
            )
        else:
            if self.step == 0 and self._counts(action) != {name: size for name, (_, size) in self.final.items()}:
                check_ranks_at_once(self.saliency.criterion)
            self._keep(action, self._by("prune"), span.latent)

    def _prune(self, action: Prune, span: Span) -> None:
        self._keep(action, self._by("prune"), span.latent)

    def _explore(self, action: Explore, span: Span) -> None:
        if action.value == "zero" and self._are_latent():
            self._become({name: state.active for name, state in self.states.items()}, "mru")
        for state in self.states.values():
            code = torch.full_like(state.flags, codes.EXPLORED)
            code[state.active] = codes.FROZEN if span.trains == "removed" else codes.TRAINABLE
            state.transition(code, action.value, span.latent)

    def enter(self, span: Span) -> None:
        if span.latent is not None and not self._are_latent():
            self._explore(Explore("mru"), span)
        elif span.latent is None and self._are_latent():
            self._become({name: state.active for name, state in self.states.items()}, "mru")

    def _are_latent(self) -> bool:
        return any(state.latent is not None for state in self.states.values())

    def _grow(self, action: Grow, span: Span) -> None:
        active = {name: state.active for name, state in self.states.items()}
        outside = {name: ~mask for name, mask in active.items()}
        counts = self._counts(action)
        missing = {name: counts[name] - self._count_of(mask) for name, mask in active.items()}
        chosen = self._choose(self._by("grow"), missing, outside, active)
        self._become({name: active[name] | chosen[name] for name in self.states}, action.init, span.latent)
        for name, state in self.states.items():
            new = state.active & outside[name]
            self._count(grown=new, regrown=new & state.previous)
            state.mark(grown=new)

    def _select(self, action: Select, span: Span) -> None:
        before = {name: state.active for name, state in self.states.items()}
        nothing = {name: torch.zeros_like(mask) for name, mask in before.items()}
        everything = {name: ~mask for name, mask in nothing.items()}
        chosen = self._choose(self._by("prune"), self._counts(action), everything, nothing)
        self._become(chosen, "mru", span.latent)
        for name, state in self.states.items():
            now, grown = state.active, state.grown
            stayed = now & before[name]
            self._count(pruned=before[name] ^ stayed, grown_before=grown, survived=grown & now)
            new = now ^ stayed
            self._count(grown=new, regrown=new & state.previous)
            state.mark(grown=new)

    def end_at_target(self, step: int) -> None:
        self.step = step
        self._become({name: state.previous for name, state in self.states.items()}, "mru")
        criterion = self.saliency.criterion
        read = CRITERIA["magnitude"] if criterion.uses_grad else criterion
        target = Prune(self.target)
        self._keep(target, lambda name: read(self.states[name].values(), generator=self._generator(name)))
        self.mark()

    def _keep(self, action: Action, scores: Callable[[str], Tensor], latent: Latent | None = None) -> None:
        """The best of what is active, to the counts of an action."""
        active = {name: state.active for name, state in self.states.items()}
        nothing = {name: torch.zeros_like(mask) for name, mask in active.items()}
        self._become(self._choose(scores, self._counts(action), active, nothing), latent=latent)
        for name, state in self.states.items():
            still = state.active
            self._count(pruned=active[name] & ~still, grown_before=state.grown, survived=state.grown & still)

    def _choose(
        self, scores: Callable[[str], Tensor], counts: Mapping[str, int], candidates: Masks, occupied: Masks
    ) -> Masks:
        """The pattern's choice, which sees the axis that it has asked for as the last."""

        def turned(masks: Masks) -> Masks:
            return {name: mask.movedim(self._axes.get(name, -1), -1) for name, mask in masks.items()}

        def turned_scores(name: str) -> Tensor:
            return scores(name).movedim(self._axes.get(name, -1), -1)

        chosen = self.pattern.choose(turned_scores, counts, turned(candidates), turned(occupied))
        return {name: mask.movedim(-1, self._axes.get(name, -1)) for name, mask in chosen.items()}

    def _become(self, masks: Mapping[str, Tensor], init: Init = "zero", latent: Latent | None = None) -> None:
        """Puts a structure in force, the same on all ranks; latent values of what it leaves out train on."""
        out_of_use = codes.PRUNED if latent is None else codes.EXPLORED
        for name, state in self.states.items():
            active = self._agree(masks[name].to(torch.uint8))
            state.transition(active.mul_(out_of_use ^ codes.TRAINABLE).bitwise_xor_(out_of_use), init, latent)

    def _counts(self, action: Action) -> dict[str, int]:
        return counts_after(action, self.final, {name: self._count_of(s.active) for name, s in self.states.items()})

    def _count_of(self, mask: Tensor) -> int:
        """How many units a mask of entries has."""
        return codes.count(mask) // self.pattern.unit_size

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
