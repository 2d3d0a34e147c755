"""What a run will cost, before it is trained: for comparisons at equal training FLOPs, or in equal time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from regrow.actions import Action, Explore, Final, Grow, Start, counts_after, counts_at, sparsity_of
from regrow.cost import PhaseSteps, training_cost
from regrow.criteria import Criterion
from regrow.errors import UserError
from regrow.methods.method import Method
from regrow.schedule import START, Span
from regrow.tracing.flops import ModelFlops

_LONGEST = 2**32  # steps; a method without an update in so many will not have one in more
_PARTS = 10**6  # that channels are planned in, of which only the density counts


def planned_ledger(method: Method, criterion: Criterion, final: Final, total_steps: int) -> dict[str, PhaseSteps]:
    """The steps, densities and dense gradients of every phase, as `Sparsifier` will book them.

    Exact where each layer keeps its own count (``scope="layer"``); with a global scope, counts per layer are those of
    the distribution, as nobody knows beforehand how they will drift.

    Args:
        method: with its options.
        criterion: for pruning (and growing).
        final: (active, total) per parameter, from ``pattern.counts(model)``; ignored by a method that removes nothing.
        total_steps: of the run.
    """
    final = final if method.sparsifies else {}
    target = sparsity_of(final)
    method = method.at_target(target)
    ledger: dict[str, PhaseSteps] = {}
    counts = {name: size for name, (_, size) in final.items()}

    def carry_out(actions: Sequence[Action]) -> None:
        nonlocal counts
        for action in actions:
            counts = counts_after(action, final, counts)

    if method.timeline(total_steps).start == 0:
        carry_out(method.at_start(target))
    for span, actions in _walk(method, target, total_steps):
        end = min(span.end, total_steps)
        dense = method.dense_gradient_steps(criterion, span, span.start, end)
        densities = {name: count / final[name][1] for name, count in counts.items()}
        trained = None
        if span.latent is not None and span.latent.backward:
            reached = counts_at(final, span.latent.backward)
            trained = {name: max(count, reached[name]) / final[name][1] for name, count in counts.items()}
        ledger.setdefault(span.phase, PhaseSteps(span.trains)).add(end - span.start, dense, densities, trained)
        carry_out(actions)
    return ledger


def planned_cost(method: Method, criterion: Criterion, final: Final, flops: ModelFlops, total_steps: int) -> float:
    """Training FLOPs of the whole run, in forward passes of the dense model times three (one dense step is 1.0)."""
    return training_cost(flops, planned_ledger(method, criterion, final, total_steps))["total"] * total_steps


def matching_steps(method: Method, criterion: Criterion, final: Final, flops: ModelFlops, budget: float) -> int:
    """The number of steps in which `method` spends `budget` (in dense steps), to the nearest step.

    Raises:
        UserError: where even the shortest run that fits an update costs more, or no run fits one.
    """
    said = "costs {:.0f} dense steps, but the budget is {:.0f}"
    return steps_that_spend(
        budget, lambda steps: planned_cost(method, criterion, final, flops, steps), method.name, said
    )


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a training step of a model that loses channels, and what is added to some, on one machine.

    Attributes:
        dense: at full width, all of which trains.
        even: thin at the target, all widths scaled alike.
        thin: thin at the target, with widths that were chosen by importance.
        full: exploring: at full width, only what was removed trains.
        scoring: that a step takes longer in which gradients score channels.
        prune, explore, grow: that these actions take, with the change of shapes.
        target: the density at the target, as methods count it: the share of the tightest budget.
    """

    dense: float
    even: float
    thin: float
    full: float
    scoring: float
    prune: float
    explore: float
    grow: float
    target: float

    def at(self, density: float, thin: float) -> float:
        """Seconds of a step of a thin model: on the line through those at the target and the dense ones, and below the
        target never less than in proportion to what is left.

        Args:
            density: of the model.
            thin: seconds at the target.
        """
        if self.target >= 1:
            return self.dense
        on_line = thin + (self.dense - thin) * (density - self.target) / (1 - self.target)
        return on_line if density >= self.target else max(on_line, thin * density / self.target)

    def of(self, action: Action) -> float:
        """Seconds that an action takes."""
        match action:
            case Explore():
                return self.explore
            case Grow():
                return self.grow
            case _:
                return self.prune


def planned_seconds(method: Method, criterion: Criterion, times: StepTimes, total_steps: int) -> float:
    """Seconds that the training steps of a whole run with thin channels will take.

    Args:
        method: decided for the pattern.
        criterion: for pruning and growing.
        times: of a step.
        total_steps: of the run.
    """
    final = {"channels": (round(times.target * _PARTS), _PARTS)}
    scorings = method.scorings(criterion)
    actions = [action for _, done in _walk(method, sparsity_of(final), total_steps) for action in done]
    chosen = bool(actions) or any(_ranks(action) for action in method.at_start(sparsity_of(final)))
    first = method.timeline(total_steps).phase_at(0)
    before = {first.phase} if first.update == START and criterion.uses_grad else set()  # whose steps score the start
    seconds = sum(times.of(action) for action in actions)
    for name, phase in planned_ledger(method, criterion, final, total_steps).items():
        density = phase.density_steps.get("channels", phase.steps) / phase.steps
        if phase.trains == "removed":
            seconds += phase.steps * times.full
            continue
        step = times.dense if phase.trains == "all" else times.at(density, times.thin if chosen else times.even)
        scores = name in before or any(scoring.criterion.uses_grad for scoring in scorings.get(name, ()))
        seconds += phase.steps * (step + times.scoring * scores)
    return seconds


def _ranks(action: Action) -> bool:
    """Whether importance has a say in what the first structure is."""
    return isinstance(action, Start) and action.how == "criterion" and action.sparsity > 0


def _walk(method: Method, target: float, total_steps: int) -> Iterator[tuple[Span, Sequence[Action]]]:
    """The phases of a run, and what is done where each of them ends."""
    timeline = method.timeline(total_steps)
    for span in timeline.spans():
        actions: list[Action] = []
        for boundary in timeline.ended_at(min(span.end, total_steps)):
            starts = boundary.update == START
            actions += method.at_start(target) if starts else method.at_end(boundary, target)
        yield span, actions


def steps_in_time(method: Method, criterion: Criterion, times: StepTimes, budget: float) -> int:
    """The number of steps in which `method` takes `budget` seconds, to the nearest step.

    Raises:
        UserError: where even the shortest run that fits an update takes longer, or no run fits one.
    """
    said = "takes {:.3g} seconds, but the budget is {:.3g}"
    return steps_that_spend(budget, lambda steps: planned_seconds(method, criterion, times, steps), method.name, said)


def steps_that_spend(budget: float, spent_in: Callable[[int], float], name: str, said: str) -> int:
    """The number of steps in which a run spends a budget, to the nearest step.

    A method's schedule stretches with the run, so this is found by bisection.

    Args:
        budget: in the unit of `spent_in`.
        spent_in: steps of a run → what it spends: more, the longer it is; raises a UserError where it is too short for
            an update.
        name: of the method.
        said: what is said of a shortest run that spends too much: what that is, and the budget, as ``str.format``
            puts them in.

    Raises:
        UserError: where even the shortest run that fits an update spends more, or no run fits one.
    """
    refusal: UserError | None = None

    def spent(steps: int) -> float:
        nonlocal refusal
        try:
            return spent_in(steps)
        except UserError as error:  # too short for an update
            refusal = error
            return -1.0

    low, high = 1, 2
    while (reached := spent(high)) < budget:
        if high >= _LONGEST and reached < 0 and refusal is not None:
            raise refusal
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if spent(middle) < budget else (low, middle)
    if spent(low) < 0:
        raise UserError(
            f"{name} cannot be matched: its shortest run of {high} steps {said.format(spent(high), budget)}; shorten "
            "its update interval"
        )
    return min((low, high), key=lambda steps: abs(spent(steps) - budget))
