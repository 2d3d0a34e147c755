"""Scores of a phase: summed over its steps where the criterion uses gradients, read once at its end where not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regrow import hints
from regrow.criteria import Criterion
from regrow.errors import UserError
from regrow.schedule import START, Span
from regrow.shards import ALONE, Ranks
from regrow.state import WeightState

Role = Literal["prune", "grow"]


@dataclass(frozen=True)
class Scoring:
    """What a phase scores: for which purpose, by which criterion, over how many of its last steps (None: all).

    Raises:
        UserError: naming an option that is none of these.
    """

    role: Role
    criterion: Criterion
    window: int | None = None

    def __post_init__(self) -> None:
        hints.check_value("role of a Scoring", self.role, Role)
        if not isinstance(self.criterion, Criterion):
            raise UserError(f"a Scoring's criterion is {hints.show(self.criterion)}; give Criterion.of(it)")
        if self.window is not None and self.window < 1:
            raise UserError(
                f"a Scoring's window is {self.window!r}, but must be a number of steps, at least 1, or None"
            )


def generator(seed: int, step: int, index: int) -> torch.Generator:
    """Randomness that depends on nothing but these three numbers, on any device and rank."""
    mixed = ((seed * 1_000_003 + step) * 1_000_033 + index) & 0x7FFF_FFFF_FFFF_FFFF
    return torch.Generator().manual_seed(mixed)


def finite_gradients(grads: Iterable[Tensor], ranks: Ranks = ALONE) -> Tensor:
    """Whether no gradient holds a NaN or an Inf, on any of these ranks: a bool scalar, without synchronisation."""
    return ranks.all(torch.stack([grad.sum(dtype=torch.float32) for grad in grads]).isfinite().all())


class Saliency:
    """Keeps what a method asks to be scored.

    Args:
        states: the sparsified parameters.
        criterion: used where a phase names none of its own.
        scorings: what is scored in which phase.
        seed: for criteria that draw at random.
    """

    def __init__(
        self,
        states: Mapping[str, WeightState],
        criterion: Criterion,
        scorings: Mapping[str, tuple[Scoring, ...]],
        seed: int,
    ) -> None:
        self.states = states
        self.criterion = criterion
        self.scorings = scorings
        self.seed = seed
        self._sums: dict[Role, dict[str, Tensor]] = {}
        self._steps: dict[Role, dict[str, Tensor]] = {}

    def due(self, span: Span, step: int) -> list[Scoring]:
        """The scorings that take the gradients of this step."""
        if span.update == START:
            return [Scoring("prune", self.criterion)] if self.criterion.uses_grad else []
        return [
            scoring
            for scoring in self.scorings.get(span.phase, ())
            if span.update is not None
            and scoring.criterion.uses_grad
            and (scoring.window is None or step >= span.end - scoring.window)
        ]

    @torch.no_grad()
    def observe(
        self, states: Mapping[str, WeightState], scorings: list[Scoring], unscale: Tensor | None, finite: Tensor
    ) -> None:
        """Adds the scores of a step; no synchronisation.

        Args:
            states: those of the parameters that have gradients.
            scorings: those that are due.
            unscale: what gradients are multiplied by first, where a gradient scaler has not done so.
            finite: bool scalar; where it is False, nothing is added.
        """
        on_host = finite.device.type == "cpu"  # where looking at it does not wait for a device
        if on_host and not finite:
            return
        for scoring in scorings:
            sums, steps = self._sums.setdefault(scoring.role, {}), self._steps.setdefault(scoring.role, {})
            for name, state in states.items():
                grad = state.grad
                assert grad is not None
                of_live = scoring.role == "prune" and state.latent is None
                weight = state.param.detach() if of_live else state.values()
                score = scoring.criterion(weight, grad if unscale is None else grad * unscale)
                if not on_host:
                    score = score.masked_fill(~finite, 0)
                sums[name] = sums[name].add_(score) if name in sums else score.clone()  # it may be an argument
                steps[name] = steps[name] + finite if name in steps else finite.long()

    def close_step(self) -> None:
        """A step is done, whichever optimizers took part in it."""

    def criterion_of(self, role: Role) -> Criterion:
        """What the method scores by for this purpose."""
        named = (scoring for phase in self.scorings.values() for scoring in phase if scoring.role == role)
        return next((scoring.criterion for scoring in named), self.criterion)

    def scores(self, role: Role, name: str, step: int) -> Tensor:
        """The scores of one parameter: fp32, its shape, higher stays; averaged over the steps that counted."""
        state = self.states[name]
        criterion = self.criterion_of(role)
        if criterion.uses_grad:
            sums = self._sums.get(role, {})
            if name not in sums:  # it took part in no step
                return torch.zeros_like(state.param, dtype=torch.float32)
            mean = sums[name] / self._steps[role][name].clamp(min=1)
            return mean if criterion.after is None else criterion.after(mean)
        return self.read(criterion, name, step)

    def read(self, criterion: Criterion, name: str, step: int) -> Tensor:
        """The scores of one parameter by a criterion that needs no gradient; what is drawn at random for the entries
        that this process holds is what it would be for them in the whole."""
        state, source = self.states[name], None
        if criterion.uses_generator:
            source = state.holding.pass_over(generator(self.seed, step, list(self.states).index(name)))
        return criterion(state.values(), generator=source)

    def forget(self) -> None:
        """Starts afresh: scores belong to one phase."""
        self._sums.clear()
        self._steps.clear()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What scores are summed for, and in which shapes."""
        return {name: state.holding.shape_of(state.flags) for name, state in self.states.items()}

    @property
    def roles(self) -> tuple[Role, ...]:
        """What scores may be summed for."""
        found = {one.role for of_phase in self.scorings.values() for one in of_phase if one.criterion.uses_grad}
        return tuple(sorted(found | ({"prune"} if self.criterion.uses_grad else set())))

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {
            "sums": {
                role: {k: self._whole(k, v.clone()) for k, v in sums.items()} for role, sums in self._sums.items()
            },
            "steps": {role: {k: int(n) for k, n in steps.items()} for role, steps in self._steps.items()},
        }

    def _whole(self, name: str, sums: Tensor) -> Tensor:
        """Of which this process has these sums; those of no parameter, such as a group's, are whole."""
        return self.states[name].holding.whole(sums) if name in self.states else sums

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores from `state_dict`."""
        device = {name: s.param.device for name, s in self.states.items()}
        part = {name: s.holding.part for name, s in self.states.items()}
        self._sums = {
            role: {name: part[name](v).to(device[name]).clone() for name, v in sums.items()}
            for role, sums in state["sums"].items()
        }
        self._steps = {
            role: {name: torch.tensor(n, device=device[name]) for name, n in steps.items()}
            for role, steps in state["steps"].items()
        }
