"""What a method may ask of the units of a model: to prune, to reactivate, to grow; always to exact counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from regrow import codes, hints
from regrow.actions import Action, Explore, Fill, Final, Grow, Prune, Select, Start
from regrow.criteria import Criterion
from regrow.errors import UserError
from regrow.losses import MeanLoss
from regrow.saliency import Saliency, Scoring
from regrow.schedule import Span
from regrow.selection import TooFew
from regrow.shards import ALONE, Ranks
from regrow.state import WeightState

if TYPE_CHECKING:
    from regrow.latency.table import LatencyTable
    from regrow.surgery.resize import Index
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


@dataclass(frozen=True)
class Attached:
    """What units are attached to.

    Attributes:
        states: of the sparsified parameters.
        optimizers: that train them.
        criterion: for pruning and growing.
        scorings: what the method scores in which phase.
        ranks: the processes that hold the parameters; they make codes (uint8) equal on all.
        seed: of everything drawn at random.
        on_resize: called after parameters have changed their shapes; None where nobody needs to know.
        losses: the mean loss of the model as it is, where the pattern measures it.
    """

    states: Mapping[str, WeightState]
    optimizers: Sequence[Optimizer]
    criterion: Criterion
    scorings: Mapping[str, tuple[Scoring, ...]]
    ranks: Ranks
    seed: int
    on_resize: Callable[[], None] | None = None
    losses: MeanLoss | None = None


class Units(ABC):
    """The units that a pattern makes of one model: what can be removed, and the transitions that methods take with it.

    A pattern's `bind` makes them; `attach` gives them the states of their parameters, once all is checked.

    Attributes:
        parameters: what is sparsified, by canonical name, in the model's order.
        dense: parameter → why it stays dense, or why its outputs are in no group.
        decided: which of these reasons somebody has decided for, in options or in what the model is for.
        note: what there is to say about how all this was found, a line for each thing, or "".
        doubts: sentences on what is allowed, and probably not meant.
        flops: of the dense model, where they have been counted.
        resizes: whether parameters change their shapes in training.
        changes_states_alone: whether transitions change parameters and optimizers through their states only.
        table: of latencies, where there is such a budget.
        target: the sparsity that the run ends at.
        states: of the sparsified parameters.
        saliency: the scores.
        step: at which the coming transitions happen.
        tally: counts of the update under way.
        ranks: the processes that hold the parameters.
        blocks: of the groups of channels those that stand for a block, which goes whole.
        axes: parameter → its axis along which groups lie, where they do.
        final: parameter → (active, all) of its units at the target, where the pattern gives them; else empty.
    """

    parameters: dict[str, nn.Parameter]
    dense: Mapping[str, str]
    decided: frozenset[str] = frozenset()
    note: str = ""
    doubts: tuple[str, ...] = ()
    flops: ModelFlops | None = None
    resizes: bool = False
    changes_states_alone: bool = False
    table: LatencyTable | None = None
    target: float
    states: Mapping[str, WeightState]
    saliency: Saliency
    ranks: Ranks = ALONE
    blocks: tuple[str, ...] = ()
    axes: Mapping[str, int] = MappingProxyType({})
    final: Final = MappingProxyType({})

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
        try:
            self._carry_out(action, span)
        except TooFew as error:
            raise UserError(
                f"{action} cannot be carried out on what layers have come to: {error}; where units are shared out "
                "among layers, prune with layers='now' or 'all'"
            ) from error

    def _carry_out(self, action: Action, span: Span) -> None:
        match action:
            case Start():
                self._start(action, span)
            case Prune():
                self._prune(action, span)
            case Explore():
                self._explore(action, span)
            case Grow():
                self._grow(action, span)
            case Fill():
                self._fill(action, span)
            case Select():
                self._select(action, span)
            case _:
                raise UserError(f"{hints.show(action)} is none of the actions in regrow.actions that a method may take")

    @abstractmethod
    def _start(self, action: Start, span: Span) -> None:
        """Raises: UserError, where the criterion needs gradients that do not exist yet."""

    @abstractmethod
    def _prune(self, action: Prune, span: Span) -> None: ...

    @abstractmethod
    def _explore(self, action: Explore, span: Span) -> None: ...

    @abstractmethod
    def _grow(self, action: Grow, span: Span) -> None: ...

    def _fill(self, action: Fill, span: Span) -> None:
        """Raises: UserError, where units belong to several layers."""
        raise UserError("layers share channels, so none becomes dense alone; use IEE, which explores all of them")

    @abstractmethod
    def _select(self, action: Select, span: Span) -> None: ...

    def enter(self, span: Span) -> None:  # noqa: B027 (most have no latent values)
        """Begins or ends the training of latent values, where the actions before have not done so."""

    @abstractmethod
    def end_at_target(self, step: int, shares_out: bool = False) -> None:
        """Leaves an unfinished update, back to the structure before it, and prunes what the target does not allow.

        Args:
            step: how many are done.
            shares_out: whether the method has moved units between layers, which then keep what they have come to.
        """

    # -- what an update did ------------------------------------------------------------------------------------------

    @abstractmethod
    def mark(self) -> None:
        """Takes the present structure as what the last update left, and forgets the counts."""

    def density(self) -> float:
        """Active entries as a share of all sparsified ones; 1.0 where nothing is sparsified."""
        total = sum(state.size for state in self.states.values())
        return sum(state.active_count for state in self.states.values()) / total if total else 1.0

    @abstractmethod
    def _overlap(self) -> Iterable[tuple[Tensor, Tensor]]:
        """(active, active after the last update), bool, for all units."""

    def record(self, update: int) -> dict[str, float | int | None]:
        """Sums up an update that has just ended, and marks its structure."""
        both = either = 0
        for active, previous in self._overlap():
            both += codes.count(active & previous)
            either += codes.count(active | previous)
        both, either = self.ranks.totals([both, either])
        tally = self.tally
        grown_before = tally.get("grown_before", 0)
        record = {
            "update": update + 1,
            "step": self.step,
            "pruned": tally.get("pruned", 0),
            "grown": tally.get("grown", 0),
            "regrown": tally.get("regrown", 0),
            "iou": both / either if either else 1.0,
            "survival": tally["survived"] / grown_before if grown_before else None,
            "density": self.density(),
        }
        self.mark()
        return record

    def _count(self, **masks: Iterable[Tensor]) -> None:
        """Adds up what is set in masks of all layers."""
        here = [sum(codes.count(mask) for mask in of_layers) for of_layers in masks.values()]
        for what, count in zip(masks, self.ranks.totals(here), strict=True):
            self.tally[what] = self.tally.get(what, 0) + count

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

    def end_at_target(self, step: int, shares_out: bool = False) -> None:
        """Nothing."""

    def mark(self) -> None:
        """Nothing."""

    def _nothing(self, *_: Any, **__: Any) -> Any:
        return ()

    _start = _prune = _explore = _grow = _fill = _select = _overlap = _nothing
