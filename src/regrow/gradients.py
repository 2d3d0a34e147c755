"""What happens to gradients before an optimizer takes its step: they are scored, and masked."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from regrow.saliency import Saliency, Scoring, finite_gradients
from regrow.schedule import Span
from regrow.shards import version
from regrow.state import WeightState


@dataclass(frozen=True)
class _Prepared:
    """Remembers the backward pass that was prepared last.

    Attributes:
        gradient: of the first parameter that has one; another tensor is of a new backward pass.
        version: of that tensor; a higher one says that it has changed in place since.
        finite: whether all gradients were finite, so that their scores count; None where no score was due.
    """

    gradient: weakref.ref[Tensor]
    version: int
    finite: Tensor | None


class Gradients:
    """Prepares the gradients of each backward pass once, however often and by whomever it is asked to.

    Args:
        by_optimizer: id of an optimizer → the sparsified parameters that it trains.
        saliency: where scores are added up.
    """

    def __init__(self, by_optimizer: Mapping[int, Mapping[str, WeightState]], saliency: Saliency) -> None:
        self._by_optimizer = by_optimizer
        self._saliency = saliency
        self._prepared: dict[int, _Prepared] = {}

    def prepare(
        self,
        optimizer: Optimizer,
        due: list[Scoring],
        span: Span,
        step: int,
        unscale: Tensor | None,
        after_skipped_step: bool,
    ) -> None:
        """Scores and masks the gradients in the hands of one optimizer.

        Args:
            optimizer: one of those in `by_optimizer`.
            due: what is scored in this step.
            span: the phase of this step, which says what trains.
            step: its number.
            unscale: what gradients are multiplied by before they are scored, if a gradient scaler has not done so.
            after_skipped_step: whether a gradient that has changed in place since it was prepared may be of a new
                backward pass, after a step that was skipped; otherwise it was clipped.
        """
        states = self._by_optimizer[id(optimizer)]
        if span.trains == "removed":
            _drop(optimizer, {id(state.holding.parameter) for state in states.values()})
        probe = next((g for s in states.values() if (g := s.holding.parameter.grad) is not None), None)
        if probe is None:
            return
        last = self._prepared.get(id(optimizer))
        finite = None
        if last is not None and last.gradient() is probe:
            if last.version == version(probe):
                return
            finite = last.finite
        if span.latent is not None and span.latent.backward:  # what is not computed is not scored either
            for state in states.values():
                state.mask_gradient()
        scaled = span.latent is not None and not (
            span.latent.due(step) and all(s.latents is None or s.latents.scales_nothing for s in states.values())
        )
        if (due or scaled) and (finite is None or (after_skipped_step and not finite)):
            grads = {name: grad for name, state in states.items() if (grad := state.grad) is not None}
            ready = {name: states[name] for name in grads}
            finite = finite_gradients(grads.values(), next(iter(ready.values())).ranks)
            self._saliency.observe(ready, due, unscale, finite)
            if scaled and span.latent is not None:
                for latents in [state.latents for state in ready.values() if state.latents is not None]:
                    latents.scale_gradient(span.latent.due(step))
        for state in states.values():
            state.mask_gradient(seen=after_skipped_step)
        self._prepared[id(optimizer)] = _Prepared(weakref.ref(probe), version(probe), finite)

    def used(self, optimizer: Optimizer) -> None:
        """The optimizer has taken its step: whatever gradient comes next is new."""
        self._prepared.pop(id(optimizer), None)


def _drop(optimizer: Optimizer, keep: set[int]) -> None:
    """Without a gradient, an optimizer leaves a parameter and its state alone."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            if id(param) not in keep:
                param.grad = None


def closure_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    """The closure among the arguments of ``optimizer.step`` (the first is the optimizer), if there is one."""
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    return closure if callable(closure) else None


def with_closure(
    args: tuple[Any, ...], kwargs: dict[str, Any], closure: Callable[[], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with this closure in the place of theirs."""
    if "closure" in kwargs:
        return args, kwargs | {"closure": closure}
    return (args[0], closure, *args[2:]), kwargs
