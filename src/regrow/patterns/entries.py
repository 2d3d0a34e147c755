"""Patterns of entries of single parameters, and how what methods ask for is carried out on them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regrow import codes
from regrow.actions import (
    Action,
    Explore,
    Fill,
    Final,
    Grow,
    Prune,
    Select,
    Start,
    counts_after,
    counts_at,
    shared,
    sparsity_of,
)
from regrow.criteria import CRITERIA, Criterion
from regrow.errors import UserError
from regrow.latent import Latent
from regrow.patterns import choices
from regrow.patterns.layers import Selection
from regrow.patterns.pattern import Pattern
from regrow.saliency import Role, Saliency
from regrow.schedule import Span
from regrow.selection import top_k_of_all
from regrow.shards import ALONE, Ranks
from regrow.state import Init
from regrow.units import Attached, Units, check_ranks_at_once

Masks = Mapping[str, Tensor]  # parameter → bool, its shape


class EntryPattern(Pattern):
    """A pattern of entries of single parameters, each to its own count. Scores and masks have the parameters' shapes.

    Attributes:
        unit_size: entries of a unit.
        local: whether units compete in smaller rounds than with all others of their parameter, or are more than single
            entries: `rivals` says how.
        shards: whether `choose` and `best` take ``ranks=``, the processes that hold the other rows of shards.
        ranks_globally: whether `choose` ranks all layers together, so that they do not keep their counts.
    """

    unit_size: int = 1
    ranks_globally: bool = False
    local: ClassVar[bool] = False
    shards: ClassVar[bool] = False

    def rivals(self, sizes: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """What each unit is up against, for projections that shrink by it (`regrow.latent`).

        Args:
            sizes: \\|w\\| of a parameter's entries; as scores in `choose`.
            active: bool, its shape.

        Returns:
            For each entry, in its shape: the size of its unit, and the largest removed size that competes with it.
        """
        return sizes, sizes.masked_fill(active, 0).amax().expand_as(sizes)

    @abstractmethod
    def select(self, model: nn.Module, example_inputs: Any = None) -> Selection:
        """The parameters that this pattern sparsifies, and those that stay dense.

        Args:
            model: stays as it is.
            example_inputs: one batch, which tells what the model multiplies with; None where there is none.

        Raises:
            UserError: where an option names nothing in the model, or nothing is left to sparsify.
        """

    @abstractmethod
    def counts_of(self, parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
        """(active, all) units of each of the selected parameters once the target is reached.

        Args:
            parameters: by canonical name, `Selection.turned`.

        Raises:
            UserError: where the target cannot be met.
        """

    def parameters(self, model: nn.Module, example_inputs: Any = None) -> dict[str, nn.Parameter]:
        """Those that `select` takes, by canonical name, in the model's order."""
        return self.select(model, example_inputs).parameters

    def counts(self, model: nn.Module, example_inputs: Any = None) -> dict[str, tuple[int, int]]:
        """`counts_of` them."""
        return self.counts_of(self.select(model, example_inputs).turned)

    def choose(
        self,
        scores: Callable[[str], Tensor],
        counts: Mapping[str, int],
        candidates: Mapping[str, Tensor],
        occupied: Mapping[str, Tensor],
        ranks: Ranks = ALONE,
    ) -> dict[str, Tensor]:
        """The legal selection of the highest scores. Every parameter keeps something. Where `select` names an axis for
        a parameter, all tensors have it as their last.

        Args:
            scores: gives the fp32 scores of a parameter's entries.
            counts: how many units of each parameter to choose; only their sum matters where layers are ranked together.
            candidates: bool, the entries that may be chosen.
            occupied: bool, the entries that stay whatever is chosen; no candidates among them.
            ranks: the processes that hold the other rows; counts are of all together.

        Returns:
            bool masks of what is chosen, with exactly these counts, `occupied` not among it.
        """
        others: dict[str, Any] = {"ranks": ranks} if ranks.several else {}
        return {
            name: self.best(scores(name), k, candidates[name], occupied[name], **others) for name, k in counts.items()
        }

    @abstractmethod
    def best(self, scores: Tensor, k: int, candidates: Tensor, occupied: Tensor) -> Tensor:
        """The same for one parameter, with tensors of its shape."""

    def bind(self, model: nn.Module, example_inputs: Any = None) -> EntryUnits:
        return EntryUnits(self, model, example_inputs)


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
        self.axes = selection.axes
        self.final = pattern.counts_of(selection.turned)
        choices.check_counts(pattern, self.final, self.parameters)
        self.target = sparsity_of(self.final)

    def planned(self) -> Final:
        return self.final

    def attach(self, attached: Attached) -> None:
        self.states = attached.states
        self.saliency = Saliency(attached.states, attached.criterion, attached.scorings, attached.seed)
        self.ranks = attached.ranks
        if self.pattern.local:
            for name, state in self.states.items():
                state.rivals = partial(self._rivals, self.axes.get(name, -1))

    def _start(self, action: Start, span: Span) -> None:
        if action.how == "random":
            self._keep(action, self._read(CRITERIA["random"]), span.latent)
        else:
            if self.step == 0 and self._counts(action) != {name: size for name, (_, size) in self.final.items()}:
                check_ranks_at_once(self.saliency.criterion)
            self._keep(action, self._by("prune"), span.latent)

    def _prune(self, action: Prune, span: Span) -> None:
        if action.layers == "all":
            self._keep_of_all(action, self._by("prune"), self._latent(span))
        else:
            self._keep(action, self._by("prune"), self._latent(span))

    def _explore(self, action: Explore, span: Span) -> None:
        if action.value == "zero" and self._are_latent():
            for state in self.states.values():  # what is out of use now arrives, at zero
                state.transition(state.active.to(torch.uint8), "mru", span.latent)
        for state in self.states.values():
            code = torch.full_like(state.flags, codes.EXPLORED)
            code[state.active] = codes.FROZEN if span.trains == "removed" else codes.TRAINABLE
            state.transition(code, action.value, span.latent)

    def enter(self, span: Span) -> None:
        if span.latent is not None and not self._are_latent():
            self._explore(Explore("mru"), span)
        elif span.latent is None and self._are_latent():
            self._become(self._active(), "mru")
        if span.latent is not None and span.latent.backward:
            self._rest(span.latent)

    def _rest(self, latent: Latent) -> None:
        """Lets what is no candidate rest."""
        active = self._active()
        candidates = self._candidates(active, latent)
        for name, state in self.states.items():
            code = active[name].to(torch.uint8).mul_(codes.TRAINABLE).masked_fill_(candidates[name], codes.EXPLORED)
            state.transition(self.ranks.agree(torch.empty_like(state.flags).copy_(code)), "mru", latent)

    def _active(self) -> dict[str, Tensor]:
        return {name: state.active for name, state in self.states.items()}

    def _are_latent(self) -> bool:
        return any(state.latent is not None for state in self.states.values())

    def _latent(self, span: Span) -> Latent | None:
        """How latent values train once an action is done: where they cease to, `enter` ends it after the last action,
        so that all of them see the same values."""
        return span.latent or next((state.latent for state in self.states.values()), None)

    def _grow(self, action: Grow, span: Span) -> None:
        active = self._active()
        outside = {name: ~mask for name, mask in active.items()}
        chosen = self._to_grow(action, active, outside)
        self._become({name: active[name] | chosen[name] for name in self.states}, action.init, self._latent(span))
        self._mark_grown({name: state.active & outside[name] for name, state in self.states.items()})

    def _fill(self, action: Fill, span: Span) -> None:
        outside = {name: ~mask for name, mask in self._active().items()}
        whole = set(action.layers(list(self.states)))
        masks = {name: mask | ~mask if name in whole else mask for name, mask in self._active().items()}
        self._become(masks, action.init, self._latent(span))
        self._mark_grown({name: state.active & outside[name] for name, state in self.states.items()})

    def _mark_grown(self, new: Masks) -> None:
        self._count(grown=new.values(), regrown=(new[name] & state.previous for name, state in self.states.items()))
        for name, state in self.states.items():
            state.mark(grown=new[name])

    def _to_grow(self, action: Grow, active: Masks, outside: Masks) -> Masks:
        """The best of what is outside, as many as are missing, in the layers that the action wants them in."""
        scores, counts = self._by("grow"), self._counts(action)
        now = self._counts_of(active)
        missing = {name: counts[name] - n for name, n in now.items()}
        if action.layers == "all":
            together = {name: scores(name) for name in active}
            return top_k_of_all(together, sum(missing.values()), outside, ranks=self.ranks)
        if action.layers != "fixed":
            room = {name: size - now[name] for name, (_, size) in self.final.items()}
            weights = {name: float(n) for name, n in now.items()}
            if action.layers == "scores":
                weights = {name: self._mean(scores(name)[mask]) for name, mask in active.items()}
            missing = shared(sum(missing.values()), weights, room)
        return self._choose(scores, missing, outside, active)

    def _mean(self, scores: Tensor) -> float:
        """Of scores on all ranks; 0 of none."""
        here = scores.double().sum()
        total, count = self.ranks.sums(torch.stack([here, torch.full_like(here, scores.numel())]))
        return float((total / count).nan_to_num())

    def _select(self, action: Select, span: Span) -> None:
        before = self._active()
        nothing = {name: torch.zeros_like(mask) for name, mask in before.items()}
        everything = {name: ~mask for name, mask in nothing.items()}
        chosen = self._choose(self._by("prune"), self._counts(action), everything, nothing)
        self._become(chosen, "mru", span.latent)
        now = self._active()
        self._count_survivors(before, now)
        self._mark_grown({name: mask & ~before[name] for name, mask in now.items()})

    def end_at_target(self, step: int, shares_out: bool = False) -> None:
        self.step = step
        self._become({name: state.previous for name, state in self.states.items()}, "mru")
        criterion = self.saliency.criterion
        keep = self._keep_of_all if shares_out else self._keep  # a layer may have come to fewer than the pattern's
        keep(Prune(self.target), self._read(CRITERIA["magnitude"] if criterion.uses_grad else criterion))
        self.mark()

    def _keep(self, action: Action, scores: Callable[[str], Tensor], latent: Latent | None = None) -> None:
        """The best of what is active, to the counts of an action."""
        active = self._active()
        nothing = {name: torch.zeros_like(mask) for name, mask in active.items()}
        self._drop(active, self._choose(scores, self._counts(action), active, nothing), latent)

    def _keep_of_all(self, action: Action, scores: Callable[[str], Tensor], latent: Latent | None = None) -> None:
        """The best of what is active in all layers together, as many as the action's counts add up to."""
        active = self._active()
        together = {name: scores(name) for name in active}
        total = sum(self._counts(action).values())
        self._drop(active, top_k_of_all(together, total, active, floor=1, ranks=self.ranks), latent)

    def _drop(self, active: Masks, chosen: Masks, latent: Latent | None) -> None:
        """Leaves what is chosen of the active units."""
        self._become(chosen, latent=latent)
        self._count_survivors(active, self._active())

    def _count_survivors(self, before: Masks, now: Masks) -> None:
        grown = {name: state.grown for name, state in self.states.items()}
        self._count(
            pruned=(mask & ~now[name] for name, mask in before.items()),
            grown_before=grown.values(),
            survived=(mask & now[name] for name, mask in grown.items()),
        )

    def _choose(
        self, scores: Callable[[str], Tensor], counts: Mapping[str, int], candidates: Masks, occupied: Masks
    ) -> Masks:
        """The pattern's choice, which sees the axis that it has asked for as the last."""

        def turned(masks: Masks) -> Masks:
            return {name: mask.movedim(self.axes.get(name, -1), -1) for name, mask in masks.items()}

        def turned_scores(name: str) -> Tensor:
            return scores(name).movedim(self.axes.get(name, -1), -1)

        self.ranks.compare("counts", counts)
        others: dict[str, Any] = {"ranks": self.ranks} if self.ranks.several else {}
        allowed = turned(candidates)
        chosen = self.pattern.choose(turned_scores, counts, allowed, turned(occupied), **others)
        if choices.are_own(self.pattern):
            choices.check_choice(self.pattern, chosen, counts, allowed, self.ranks)
        return {name: mask.movedim(-1, self.axes.get(name, -1)) for name, mask in chosen.items()}

    def _rivals(self, axis: int, sizes: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """The pattern's, which sees the axis that it has asked for as the last."""
        of_units, thresholds = self.pattern.rivals(sizes.movedim(axis, -1), active.movedim(axis, -1))
        of_units, thresholds = of_units.movedim(-1, axis), thresholds.movedim(-1, axis)
        return of_units.contiguous(), thresholds.contiguous()  # powers of strided tensors take three times as long

    def _become(self, masks: Mapping[str, Tensor], init: Init = "zero", latent: Latent | None = None) -> None:
        """Puts a structure in force, the same on all ranks. Latent values of what it leaves out train on, and those
        that rest still do."""
        for name, state in self.states.items():
            code = torch.empty_like(state.flags).copy_(masks[name])  # as the parameter lies in memory
            if latent is not None:
                rests = state.code == codes.PRUNED if state.latent is not None else torch.zeros_like(state.active)
                code.masked_fill_(~masks[name] & ~rests, codes.EXPLORED)
            state.transition(self.ranks.agree(code), init, latent)

    def _candidates(self, active: Masks, latent: Latent) -> Masks:
        """What trains beside an active structure, legal together with it."""
        reached = counts_at(self.final, latent.backward)
        now = self._counts_of(active)
        more = {name: max(0, reached[name] - n) for name, n in now.items()}
        if self.pattern.ranks_globally:  # what some layers have beyond their share is missing in others
            more = shared(max(0, sum(reached.values()) - sum(now.values())), more, more)
        outside = {name: ~mask for name, mask in active.items()}
        if latent.candidates == "random":
            return self._choose(self._read(CRITERIA["random"]), more, outside, active)
        return self._choose(lambda name: self.states[name].values().abs().float(), more, outside, active)

    def _counts(self, action: Action) -> dict[str, int]:
        now = {name: state.active_count // self.pattern.unit_size for name, state in self.states.items()}
        return counts_after(action, self.final, now)

    def _counts_of(self, masks: Masks) -> dict[str, int]:
        """How many units masks of entries have, on all ranks."""
        found = self.ranks.totals(codes.count(mask) for mask in masks.values())
        return {name: count // self.pattern.unit_size for name, count in zip(masks, found, strict=True)}

    def _by(self, role: Role) -> Callable[[str], Tensor]:
        return lambda name: self.saliency.scores(role, name, self.step)

    def _read(self, criterion: Criterion) -> Callable[[str], Tensor]:
        return lambda name: self.saliency.read(criterion, name, self.step)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "final": {name: kept for name, (kept, _) in self.final.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores from `state_dict`.

        Raises:
            UserError: it was made with other counts, as a file that said them has changed since.
        """
        for name, kept in state.get("final", {}).items():
            if kept != self.final[name][0]:
                raise UserError(
                    f"the state keeps {kept} of {name!r}, but this sparsifier would keep {self.final[name][0]}: its "
                    "distribution has changed, restore it"
                )
        super().load_state_dict(state)

    def mark(self) -> None:
        for state in self.states.values():
            state.mark(previous=state.active)
        self.tally = {}

    def _overlap(self) -> Iterable[tuple[Tensor, Tensor]]:
        return ((state.active, state.previous) for state in self.states.values())
