"""Whether an exported model computes what the model does: on several inputs, in batches of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from regrow.errors import UserError
from regrow.inputs import Inputs, first_line, output_tensors, two_examples
from regrow.quiet import evaluating, quiet

BATCHES = (1, 2, 3, 5)
_REPEATS = 3  # inputs of other numbers, where the batch is fixed
# of the outputs' size; half-precision programs round in places of their own
TOLERANCES = {torch.float16: 5e-3, torch.bfloat16: 4e-2}
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Proof:
    """What was compared.

    Attributes:
        difference: the largest between outputs, divided by the largest absolute value of the output it is in
        batches: sizes of the batches, one for each input
    """

    difference: float
    batches: tuple[int, ...] = ()


@dataclass(frozen=True)
class Subject:
    """The model that is exported, on the CPU, and what it is called with.

    Attributes:
        inputs: positional where it can be, with at least two examples where the batch is dynamic; None where none
            were given
        dynamic: the file must take batches of any size
        tolerance: of the difference; None: by the type of the outputs
        advance: to be called after each step of the work
    """

    model: nn.Module
    inputs: Inputs | None
    dynamic: bool
    tolerance: float | None
    advance: Callable[[], object] = lambda: None

    def cases(self) -> list[Inputs]:
        """The calls that are compared: the example itself, and others made of it."""
        if self.inputs is None:
            return []
        sizes = BATCHES if self.dynamic else (self.inputs.batch,) * _REPEATS
        return [self.inputs, *(_varied(self.inputs, size, seed) for seed, size in enumerate(sizes, 1))]

    def outputs(self, inputs: Inputs) -> list[Tensor]:
        """What the model returns, in the order in which programs return it.

        Raises:
            UserError: if it does not run.
        """
        return run(self.model, inputs)


def run(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The tensors that a model returns in eval mode.

    Raises:
        UserError: if it does not run on the inputs, or returns none.
    """
    try:
        with quiet(), evaluating(model):
            found = flat(inputs(model))
    except Exception as error:  # whatever the model's own code raises
        raise UserError(f"the model does not run on example_inputs: {inputs.failure(error)}") from error
    if not found:
        raise UserError(
            "the model returns no tensor that could be compared: have it return what it computes, or write the formats "
            "safetensors or compressed without example_inputs"
        )
    return found


def flat(out: Any) -> list[Tensor]:
    """The tensors in what a model returns: first in the order in which programs return them, and as real numbers where
    they are complex, as ONNX has them; also in objects of classes that no program returns."""
    found = [tensor.detach() for leaf in tree_leaves(out) for tensor in output_tensors(leaf)]
    return [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in found]


def widened(inputs: Inputs) -> Inputs:
    """The same call with at least two examples, as a program that is traced with one holds for one alone."""
    return inputs if inputs.batch > 1 else two_examples(inputs, other=True)


def has_batch(inputs: Inputs, tensor: Tensor) -> bool:
    """Whether a tensor of the call has an entry for each example."""
    return tensor.dim() > 0 and tensor.shape[0] == inputs.batch


def prove(subject: Subject, exported: Callable[[Inputs], Sequence[Tensor]], what: str, way_out: str) -> Proof:
    """Compares an exported model with the model.

    Args:
        exported: runs it
        what: names it, for messages
        way_out: what to do where they differ

    Raises:
        UserError: if it does not run, or computes something else.
    """
    largest, batches = 0.0, []
    for inputs in subject.cases():
        expected = subject.outputs(inputs)
        try:
            found = list(exported(inputs))
        except UserError:
            raise
        except Exception as error:  # of the runtime
            raise UserError(f"{what} does not run on a batch of {inputs.batch}: {first_line(error)}") from error
        largest = max(largest, _compared(expected, found, subject.tolerance, f"{what} of {inputs.batch}", way_out))
        batches.append(inputs.batch)
        subject.advance()
    return Proof(largest, tuple(batches))


def _compared(
    expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float | None, what: str, way_out: str
) -> float:
    if [tuple(t.shape) for t in found] != [tuple(t.shape) for t in expected]:
        shapes = [tuple(t.shape) for t in found], [tuple(t.shape) for t in expected]
        raise UserError(f"{what} gives tensors of shapes {shapes[0]}, and the model {shapes[1]}: {way_out}")
    largest = 0.0
    for own, theirs in zip(expected, found, strict=True):
        if not own.is_floating_point():
            if not torch.equal(own, theirs.to(own.dtype)):
                raise UserError(f"{what} gives other whole numbers than the model: {way_out}")
            continue
        if not bool(own.isfinite().all()):
            raise UserError("the model's outputs are not all finite, so that nothing can be compared with them")
        size = float(own.double().abs().max()) if own.numel() else 0.0
        off = float((theirs.double() - own.double()).abs().max()) if own.numel() else 0.0
        difference = off / size if size else (0.0 if off == 0.0 else float("inf"))
        most = TOLERANCES.get(own.dtype, TOLERANCE) if tolerance is None else tolerance
        if not difference <= most:
            said = f"{what} differs from the model by {difference:.1e} of the output, more than {most:g}"
            raise UserError(f"{said}: {way_out}")
        largest = max(largest, difference)
    return largest


def _varied(inputs: Inputs, size: int, seed: int) -> Inputs:
    """The call with so many other examples, made of those that there are."""
    generator = torch.Generator().manual_seed(seed)
    rows = (torch.arange(size) + seed) % inputs.batch

    def other(t: Tensor) -> Tensor:
        if not has_batch(inputs, t):
            return t
        chosen = t[rows]
        if t.is_floating_point() or t.is_complex():
            noise = torch.randn(chosen.shape, generator=generator).to(t.dtype)
            spread = t.std() if t.numel() > 1 else t.new_zeros(())
            return chosen + noise * torch.where(spread > 0, spread, 1.0) if bool(t.isfinite().all()) else chosen
        counts = t.dtype == torch.bool or not t.numel() or int(t.max()) <= 1  # a mask, whose order has a meaning
        return chosen if counts or t.dim() < 2 else chosen.roll(seed, -1)

    return inputs.map(other)
