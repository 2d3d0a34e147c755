"""The mean loss of a model as it is, again and again over the same batches, with nothing of it changed afterwards."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regrow import batchnorm, names
from regrow.errors import UserError, percent
from regrow.quiet import evaluating

Loss = Callable[[nn.Module, Any], Any]


def classification(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Cross-entropy and accuracy of a batch ``(inputs, labels)``, on the model's device.

    Raises:
        UserError: it is no such pair.
    """
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(one, Tensor) for one in batch)):
        raise UserError(
            f"a batch is a {type(batch).__name__}, not (inputs, labels): give loss=, a function of (model, batch)"
        )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    inputs, labels = (one.to(device) for one in batch)
    logits = model(inputs)
    return nn.functional.cross_entropy(logits, labels), (logits.argmax(1) == labels).float().mean()


@dataclass(frozen=True)
class Measured:
    """Means over all examples; the accuracy is a fraction, or None where none was measured."""

    loss: float
    accuracy: float | None


class MeanLoss:
    """The mean loss of the model as it is, over the same batches with the same dice.

    Args:
        model: whose loss.
        batches: each counts by its length.
        loss: of (model, batch).
        fresh: batches to re-estimate statistics of batch norms from, or None.
        seed: of the dice.
    """

    def __init__(self, model: nn.Module, batches: list[Any], loss: Loss, fresh: list[Any] | None, seed: int) -> None:
        self._model, self._batches, self._loss, self._fresh, self._seed = model, batches, loss, fresh, seed
        if not batches:
            raise UserError("batches is empty: give a few batches of data")
        self.count, self._lengths = len(batches), [_length(batch) for batch in batches]
        self.examples = sum(self._lengths)

    @torch.no_grad()
    def __call__(self) -> Measured:
        self._throw()
        norms = batchnorm.norm_buffers(self._model)
        before = {name: buffer.clone() for name, buffer in norms.items()} if self._fresh is not None else {}
        try:
            if self._fresh is not None:
                batchnorm.recalibrate(self._model, self._fresh)
            pairs = [_pair(self._loss(self._model, batch)) for batch in self._batches]
        finally:
            batchnorm.write(norms, before)
        accuracies = [accuracy for _, accuracy in pairs if accuracy is not None]
        return Measured(
            self._mean([float(loss) for loss, _ in pairs]),
            self._mean(accuracies) if len(accuracies) == len(pairs) else None,
        )

    def _throw(self) -> None:
        """The same dice, of those generators alone that `left_as_it_was` restores."""
        for generator in (torch.default_generator, *(torch.cuda.default_generators[i] for i in _gpus(self._model))):
            generator.manual_seed(self._seed)

    def _mean(self, values: Sequence[float]) -> float:
        return sum(value * length for value, length in zip(values, self._lengths, strict=True)) / self.examples

    @torch.enable_grad()
    def gradients(self) -> Iterator[None]:
        """Yields once for each batch, while parameters have its gradients."""
        self._throw()
        for batch in self._batches:
            self._model.zero_grad(set_to_none=True)
            loss = _pair(self._loss(self._model, batch))[0]
            if not loss.requires_grad:
                raise UserError("loss must return a tensor with a gradient, as the criterion needs it")
            loss.backward()
            yield


def _pair(value: Any) -> tuple[Tensor, float | None]:
    """What a loss function returns.

    Raises:
        UserError: it is neither a real scalar tensor nor a pair of one and an accuracy from 0 to 1.
    """
    loss, accuracy = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        got = (str(loss.dtype), *loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(f"loss must return a scalar tensor, or a pair of it and the accuracy, not {got}")
    return loss.reshape(()), None if accuracy is None else _fraction(accuracy)


def _fraction(accuracy: Any) -> float:
    try:
        found = float(accuracy)
    except (TypeError, ValueError, RuntimeError):  # a text, or several numbers
        found = math.nan
    if not 0 <= found <= 1:
        raise UserError(
            f"loss returned {accuracy!r:.80} as the accuracy, which must be a fraction from 0 to 1{percent(found)}"
        )
    return found


def _length(batch: Any) -> int:
    """How many examples a batch has: those of its first part, a tensor or a list."""
    parts = list(batch.values()) if isinstance(batch, Mapping) else batch
    first = parts[0] if isinstance(parts, (tuple, list)) and parts else parts
    if isinstance(first, Mapping) and first:  # inputs by name
        first = next(iter(first.values()))
    counts = (isinstance(first, Tensor) and first.dim() > 0) or isinstance(first, (tuple, list))
    return max(1, len(first)) if counts else 1


def _gpus(model: nn.Module) -> list[int]:
    """The numbers of those that hold parameters."""
    return sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Inside it, the model is in eval mode and without gradients; afterwards modes, gradients, buffers and the random
    state are as before."""
    buffers = {name: b.detach().clone() for name, b in names.buffers(model).items()}
    gradients = [(p, p.grad) for p in model.parameters()]
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=_gpus(model)))
        stack.callback(np.random.set_state, states[1])
        stack.callback(random.setstate, states[0])
        stack.callback(lambda: batchnorm.write(names.buffers(model), buffers))
        stack.enter_context(evaluating(model))
        try:
            for p in model.parameters():
                p.grad = None
            yield
        finally:
            for p, gradient in gradients:
                p.grad = gradient
