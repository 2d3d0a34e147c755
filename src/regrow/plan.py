"""What a run will cost, before it is trained: for comparisons at equal training FLOPs."""

from __future__ import annotations

from collections.abc import Sequence

from regrow.actions import Action, Final, counts_after, counts_at, sparsity_of
from regrow.cost import PhaseSteps, training_cost
from regrow.criteria import Criterion
from regrow.errors import UserError
from regrow.methods.method import Method
from regrow.schedule import START
from regrow.tracing.flops import ModelFlops

_LONGEST = 2**32  # steps; a method without an update in so many will not have one in more


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
    timeline = method.timeline(total_steps)
    final = final if method.sparsifies else {}
    target = sparsity_of(final)
    ledger: dict[str, PhaseSteps] = {}
    counts = {name: size for name, (_, size) in final.items()}

    def carry_out(actions: Sequence[Action]) -> None:
        nonlocal counts
        for action in actions:
            counts = counts_after(action, final, counts)

    if timeline.start == 0:
        carry_out(method.at_start(target))
    for span in timeline.spans():
        end = min(span.end, total_steps)
        dense = method.dense_gradient_steps(criterion, span, span.start, end)
        densities = {name: count / final[name][1] for name, count in counts.items()}
        trained = None
        if span.latent is not None and span.latent.backward:
            reached = counts_at(final, span.latent.backward)
            trained = {name: max(count, reached[name]) / final[name][1] for name, count in counts.items()}
        ledger.setdefault(span.phase, PhaseSteps(span.trains)).add(end - span.start, dense, densities, trained)
        for boundary in timeline.ended_at(end):
            starts = boundary.update == START
            carry_out(method.at_start(target) if starts else method.at_end(boundary, target))
    return ledger


def planned_cost(method: Method, criterion: Criterion, final: Final, flops: ModelFlops, total_steps: int) -> float:
    """Training FLOPs of the whole run, in forward passes of the dense model times three (one dense step is 1.0)."""
    return training_cost(flops, planned_ledger(method, criterion, final, total_steps))["total"] * total_steps


def matching_steps(method: Method, criterion: Criterion, final: Final, flops: ModelFlops, budget: float) -> int:
    """The number of steps in which `method` spends `budget` (in dense steps), to the nearest step.

    The method's schedule stretches with the run, so this is found by bisection.

    Raises:
        UserError: where even the shortest run that fits an update costs more, or no run fits one.
    """
    refusal: UserError | None = None

    def cost(steps: int) -> float:
        nonlocal refusal
        try:
            return planned_cost(method, criterion, final, flops, steps)
        except UserError as error:  # too short for an update
            refusal = error
            return -1.0

    low, high = 1, 2
    while (spent := cost(high)) < budget:
        if high >= _LONGEST and spent < 0 and refusal is not None:
            raise refusal
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) < budget else (low, middle)
    if cost(low) < 0:
        raise UserError(
            f"{method.name} cannot be matched: its shortest run of {high} steps costs {cost(high):.0f} dense steps, "
            f"but the budget is {budget:.0f}; shorten its update interval"
        )
    return min((low, high), key=lambda steps: abs(cost(steps) - budget))
