"""What a method asks for, tried on counts before anything is changed: whether it can be done and ends at the target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from regrow import hints
from regrow.actions import Action, Explore, Final, Grow, Prune, counts_after
from regrow.errors import UserError, nearest
from regrow.methods import Method
from regrow.saliency import Scoring
from regrow.schedule import START, Boundary, Timeline

_FIRST = 100  # updates that are tried, beside the last
_MANY = 10_000  # steps between gradients, from which on nobody looks whether there are any


def check(
    method: Method, scorings: Mapping[str, tuple[Scoring, ...]], timeline: Timeline, final: Final, target: float
) -> None:
    """Refuses a method whose actions cannot be carried out, or do not end at the target.

    Of a run of very many updates the first and the last are tried. Units of all layers are counted together, as some
    methods share them out among layers.

    Args:
        scorings: what the method scores in which phase.
        timeline: of the run.
        final: (active, all) units of each parameter at the target; empty where it is not known beforehand, and counts
            are not tried.
        target: the sparsity that the run ends at.

    Raises:
        UserError: naming the method, and what it asks for.
    """
    if not method.sparsifies:
        return
    _check_phases(method.name, timeline, scorings)
    _check_latent(method.name, timeline, target)
    trial = _Trial(method.name, final)
    for boundaries in _ends(timeline):
        for of in boundaries:
            starts = of.update == START
            actions = method.at_start(target) if starts else method.at_end(of, target)
            trial.carry_out(actions, "at_start()" if starts else f"at_end() of phase {of.ended!r}")
        step = boundaries[-1].step
        trial.check_phase(step, timeline.phase_at(step).trains)
    trial.check_end()


def _check_phases(name: str, timeline: Timeline, scorings: Mapping[str, tuple[Scoring, ...]]) -> None:
    """Refuses phases of one name that cost otherwise, and scores for phases that do not exist."""
    trains: dict[str, str] = {"estimate": "active", "fixed": "active"}  # before the first update, and after the last
    for phase in timeline.cycle:
        now = "active" if phase.trains == "latent" else phase.trains  # which are booked alike
        if phase.steps and trains.setdefault(phase.name, now) != now:
            raise UserError(
                f"{name} has a phase {phase.name!r} that trains {phase.trains!r}, but phases of this name train "
                f"{trains[phase.name]!r}: give it another name"
            )
    known = {"estimate", *(phase.name for phase in timeline.cycle)}
    for of, scored in scorings.items():
        if timeline.cycle and of not in known:
            raise UserError(f"{name} scores in phase {of!r}, which it does not have{nearest(of, known)}")
        if not isinstance(scored, Sequence) or not all(isinstance(one, Scoring) for one in scored):
            raise UserError(f"{name}: scorings() gives {hints.show(scored)} for {of!r}, but must give Scorings there")


def _check_latent(name: str, timeline: Timeline, target: float) -> None:
    """Refuses latent weights of which none but active ones would ever train."""
    every = 1
    for phase in timeline.cycle:
        if phase.latent is None:
            continue
        every = max(every, phase.latent.every)
        if phase.latent.backward and phase.latent.backward >= target:
            raise UserError(
                f"backward={phase.latent.backward:g} is the sparsity of the weights that train, which must be below "
                f"{target:g}, what the layers come to; 0 trains all of them"
            )
    tried = min(timeline.updates, every)  # after so many, cycles lie to every n-th step as they did
    if 1 < every < _MANY and not any(_due_steps(timeline, update) for update in range(tried)):
        raise UserError(
            f"{name} uses the gradients of what is removed in one of {every} steps, but none of these lies in a phase "
            "in which it trains in memory: take another number (shadow_every), such as 1"
        )


def _due_steps(timeline: Timeline, update: int) -> int:
    """How many steps of an update use gradients of what is removed, in phases that train it in memory."""
    spans = timeline.spans_of(update)
    return sum(span.latent.steps(span.start, span.end) for span in spans if span.latent is not None)


class _Trial:
    """Carries out actions on counts.

    Args:
        name: of the method.
        final: (active, all) units of each parameter at the target.
    """

    def __init__(self, name: str, final: Final) -> None:
        self._name, self._final = name, final
        self._counts = {parameter: size for parameter, (_, size) in final.items()}
        self._explores = False

    def carry_out(self, actions: Any, of: str) -> None:
        if not isinstance(actions, Sequence) or isinstance(actions, str):
            raise UserError(f"{self._name}: {of} gives {hints.show(actions)}, but must give a list of actions")
        for action in actions:
            if not isinstance(action, get_args(Action)):
                raise UserError(
                    f"{self._name}: {of} asks for {hints.show(action)}, which is none of the actions in regrow.actions"
                )
            before = sum(self._counts.values())
            self._counts = counts_after(action, self._final, self._counts)
            after = sum(self._counts.values())
            if (isinstance(action, Prune) and after > before) or (isinstance(action, Grow) and after < before):
                fewer = "no more" if isinstance(action, Prune) else "no fewer"
                raise UserError(
                    f"{self._name}: {of} asks for {action}, which leaves {after} units of {before} that are active, "
                    f"but a {type(action).__name__} must leave {fewer} than there are"
                )
            self._explores = isinstance(action, Explore)

    def check_phase(self, step: int, trains: str) -> None:
        """Whether what the next phase says of itself is what there is."""
        if self._explores and trains == "active":
            raise UserError(
                f"{self._name} explores from step {step} on, but the phase that begins there trains 'active': let that "
                "train 'removed', 'all' or 'latent', or end with a Grow"
            )
        if trains in ("removed", "all") and not self._explores:
            raise UserError(
                f"{self._name} has a phase from step {step} on that trains {trains!r}, but nothing is explored in it: "
                "ask for an Explore where the phase before it ends"
            )

    def check_end(self) -> None:
        """Whether the target is reached."""
        wanted, reached = sum(active for active, _ in self._final.values()), sum(self._counts.values())
        if wanted != reached:
            raise UserError(
                f"{self._name} ends with {reached} active units, but the target has {wanted}: the last update must "
                "reach it, as Prune(target) or Grow(target) does (or Start(target), where there is no update)"
            )


def _ends(timeline: Timeline) -> Iterator[list[Boundary]]:
    """What ends together: the start, and phases of the first updates and the last."""
    updates = timeline.updates
    yield [Boundary("estimate", START, timeline.start, last=False, updates=updates, until=timeline.until)]
    for update in [*range(min(updates, _FIRST)), *range(max(_FIRST, updates - 1), updates)]:
        for span in timeline.spans_of(update):  # phases of no steps end with the one before, or the update before
            yield timeline.ended_at(span.end)
