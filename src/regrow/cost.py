"""What training a model under masks costs, by phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from regrow.schedule import Trains
from regrow.tracing.flops import ModelFlops


@dataclass
class PhaseSteps:
    """What training has done so far in one phase: sums over its steps, which is all that the cost depends on.

    Attributes:
        trains: what the phase trains.
        steps: number of optimizer steps.
        dense_gradient_steps: how many of them needed the gradient of every weight, pruned and frozen ones too.
        density_steps: parameter name → its density summed over all the steps (a parameter that is not named is dense).
        dense_density_steps: the same sum over the dense-gradient steps only.
        gradient_density_steps: parameter name → the density of the gradient that these steps needed, summed over them;
            where only some of what is removed trains it is below 1 (a parameter that is not named has a dense one).
    """

    trains: Trains = "active"
    steps: int = 0
    dense_gradient_steps: int = 0
    density_steps: dict[str, float] = field(default_factory=dict)
    dense_density_steps: dict[str, float] = field(default_factory=dict)
    gradient_density_steps: dict[str, float] = field(default_factory=dict)

    def add(
        self,
        steps: int,
        dense_gradient_steps: int,
        densities: Mapping[str, float],
        of_gradients: Mapping[str, float] | None = None,
    ) -> None:
        """Books steps.

        Args:
            steps: how many.
            dense_gradient_steps: how many of them needed gradients of what is removed.
            densities: parameter name → its density, 0…1.
            of_gradients: parameter name → the density of these gradients; default: all of them are dense.
        """
        self.steps += steps
        self.dense_gradient_steps += dense_gradient_steps
        for sums, n, shares in (
            (self.density_steps, steps, densities),
            (self.dense_density_steps, dense_gradient_steps, densities),
            (self.gradient_density_steps, dense_gradient_steps, of_gradients or {}),
        ):
            for name, density in shares.items():
                sums[name] = sums.get(name, 0.0) + density * n


def training_cost(
    flops: ModelFlops, ledger: Mapping[str, PhaseSteps], total_steps: int | None = None
) -> dict[str, float]:
    """Training FLOPs × those of dense training, by phase, and their sum under ``"total"``.

    With f_S and f_D the FLOPs of a sparse and of the dense forward pass, a step costs 3·f_S; with dense weight
    gradients 2·f_S + f_D, with those of a larger set than the active one 2·f_S + f_B; where only what was removed
    trains 2·f_D + (f_D − f_S); where everything does 3·f_D, which is what a dense step costs.

    Args:
        flops: from `regrow.tracing.flops.count_flops`.
        ledger: phase → the steps done in it.
        total_steps: of the dense training to compare with; default: as many steps as the ledger holds.
    """
    done = sum(phase.steps for phase in ledger.values())
    # a model without a single counted op costs the same at any density
    dense_step = 3 * flops.total or 3.0
    whole = dense_step * (total_steps if total_steps is not None else done)
    costs: dict[str, float] = {}
    for name, phase in ledger.items():
        sparse = _summed(flops, phase.steps, phase.density_steps)
        sparse_at_dense_gradient = _summed(flops, phase.dense_gradient_steps, phase.dense_density_steps)
        if phase.trains == "all":
            spent = dense_step * phase.steps
        elif phase.trains == "removed":
            spent = dense_step * phase.steps - sparse
        else:
            dense = _summed(flops, phase.dense_gradient_steps, phase.gradient_density_steps)
            spent = 3 * sparse - sparse_at_dense_gradient + dense
        if not flops.total:
            spent = dense_step * phase.steps
        costs[name] = spent / whole if whole else 0.0
    return {**costs, "total": sum(costs.values())}


def dense_gradient_cost(
    flops: ModelFlops, ledger: Mapping[str, PhaseSteps], total_steps: int | None = None
) -> dict[str, float]:
    """What of `training_cost` goes into the weight gradients of pruned entries while these do not train, by phase: for
    previewing them in memory (IEE), or for choosing what to grow (RigL). Per step that needs them that is f_D − f_S; of
    a part of them f_B − f_S.

    Args:
        flops, ledger, total_steps: as there.
    """
    done = sum(phase.steps for phase in ledger.values())
    whole = 3 * flops.total * (total_steps if total_steps is not None else done)
    costs: dict[str, float] = {}
    for name, phase in ledger.items():
        if phase.trains in ("active", "latent"):  # in others they are what trains
            sparse = _summed(flops, phase.dense_gradient_steps, phase.dense_density_steps)
            dense = _summed(flops, phase.dense_gradient_steps, phase.gradient_density_steps)
            costs[name] = (dense - sparse) / whole if whole else 0.0
    return costs


def _summed(flops: ModelFlops, steps: int, density_steps: Mapping[str, float]) -> float:
    """Sparse forward FLOPs summed over steps; a parameter that is not named is dense in all of them."""
    flops.check_names(density_steps)
    by_parameter = sum(cost * density_steps.get(name, steps) for name, cost in flops.by_parameter.items())
    return flops.other * steps + by_parameter
