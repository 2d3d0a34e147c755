"""What training has cost so far: the steps of each phase, the densities they ran at, and the FLOPs of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from regrow.cost import PhaseSteps, training_cost
from regrow.errors import UserError
from regrow.inputs import Inputs
from regrow.schedule import Trains
from regrow.tracing.flops import ModelFlops, count_flops

_SMALL = 4096  # numbers
_HINT = "of large tensors only the shape is kept; if the numbers matter, call training_cost(example_inputs=one batch)"


class Accounts:
    """The books of one run.

    Args:
        model: whose FLOPs are counted.
        flops: of the dense model, where they are known; otherwise they are counted at the inputs that `recorder` has
            seen, once somebody asks.

    Attributes:
        ledger: phase → the steps booked in it: what `regrow.cost.training_cost` takes.
        until: the step up to which all is booked.
        recorder: to be called with the model's inputs.
    """

    def __init__(self, model: nn.Module, flops: ModelFlops | None) -> None:
        self.ledger: dict[str, PhaseSteps] = {}
        self.until = 0
        self.recorder = InputRecorder()
        self._model, self._flops = model, flops

    def book(
        self,
        until: int,
        phase: str,
        trains: Trains,
        dense_gradient_steps: int,
        densities: Mapping[str, float],
        of_gradients: Mapping[str, float] | None = None,
    ) -> None:
        """Books the steps since the last time, all of one phase and at these densities; see `PhaseSteps.add`."""
        entry = self.ledger.setdefault(phase, PhaseSteps(trains))
        entry.add(until - self.until, dense_gradient_steps, densities, of_gradients)
        self.until = until

    def flops(self) -> ModelFlops | None:
        """Of the dense model, at the inputs that are known; None before any are."""
        if self._flops is None and self.recorder.inputs is not None:
            self._flops = count_flops(self._model, self.recorder.inputs)
        return self._flops

    def training_cost(self, example_inputs: Any) -> dict[str, float]:
        """As `Sparsifier.training_cost`, of all that is booked."""
        flops = self.flops() if example_inputs is None else count_flops(self._model, example_inputs)
        if flops is None:
            raise UserError("training_cost() has not seen the model run uncompiled; pass example_inputs=one batch")
        return training_cost(flops, self.ledger)

    def state_dict(self) -> dict[str, Any]:
        """The ledger in plain numbers."""
        return {phase: asdict(entry) for phase, entry in self.ledger.items()}

    def load_state_dict(self, state: Mapping[str, Any], until: int) -> None:
        """Goes on from a `state_dict` in which everything up to this step is booked."""
        self.ledger = {phase: PhaseSteps(**entry) for phase, entry in state.items()}
        self.until = until


class InputRecorder:
    """A forward pre-hook that keeps the shapes of the first batch, so that FLOPs can be counted later; of small tensors
    (boxes, labels) the numbers, too, as a model may check them.

    It never disturbs the model: what it cannot record it leaves, copies and pickles of it are empty, and it does
    nothing while compiling.
    """

    def __init__(self) -> None:
        self.inputs: Inputs | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Records; called by the model with its inputs."""
        if torch.compiler.is_compiling() or self.inputs is not None:
            return
        leaves, tree = tree_flatten((args, kwargs))
        if not all(type(leaf) in (Tensor, nn.Parameter, bool, int, float, str, type(None)) for leaf in leaves):
            return
        try:
            kept = [_kept(x) if isinstance(x, Tensor) else x for x in leaves]
        except RuntimeError:  # e.g. inside a functorch transform
            return
        args, kwargs = tree_unflatten(kept, tree)
        self.inputs = Inputs(args, kwargs, _HINT)

    def __deepcopy__(self, memo: object) -> InputRecorder:
        return InputRecorder()

    def __reduce__(self) -> tuple[type[InputRecorder], tuple[()]]:
        return InputRecorder, ()


def _kept(tensor: Tensor) -> Tensor:
    """What is kept of a tensor: a copy if it is small, else its shape."""
    if tensor.is_meta or tensor.numel() > _SMALL:
        return torch.empty_like(tensor, device="meta")
    return tensor.detach().to("cpu", copy=True)
