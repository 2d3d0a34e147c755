"""Does a model that has lost channels compute what it computes with these channels at zero?

A coupling is believed only after it has been tried: what regrow cannot follow (a number of heads in the code, a norm
written by hand, heads folded into the batch) often runs with fewer channels all the same, and computes something else.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from regrow import names
from regrow.batchnorm import norm_buffers
from regrow.coupling.kept_norms import KeptNorms
from regrow.errors import UserError
from regrow.groups import Coupling, Group
from regrow.inputs import Inputs, first_line, output_tensors, two_examples
from regrow.quiet import quiet
from regrow.surgery import resize
from regrow.tracing.ops import name_of
from regrow.tracing.replica import inputs_of_replica, replica_of
from regrow.tracing.trace import ModuleStack, Operation, Recorder

Mode = Literal["eval", "training"]
Masks = dict[str, Tensor]  # group id → bool, True for the channels that stay
Keep = Callable[[Iterable[Group]], Masks]

# Largest difference, relative to the largest number of the same output, that rounding explains. What is above it in
# single precision is computed again in double precision: two images that a norm brings to the same scale, or a decision
# between equal numbers, can make rounding large.
SINGLE, DOUBLE = 5e-5, 1e-6

_NOISE = 1_000_003  # numbers that are drawn; large parameters take them again and again


@dataclass(frozen=True)
class TrialFailure:
    """How a model without some channels fails.

    Attributes:
        reason: for the user, without a subject.
        module: where an exception was raised; None where it ran and computed something else.
    """

    reason: str
    module: str | None = None


@dataclass(frozen=True)
class _Call:
    inputs: Inputs
    inner: bool  # whether what its modules return is compared: it returns no number itself, or no box was found


class Trial:
    """Copies of a model, with other values of its parameters, that lose channels for trial. It stays as it is.

    Parameters are shaken, as many a fresh model computes nothing in places (a residual branch under a scale of zero),
    and the inputs become two different examples, as heads folded into the batch are right for one.

    Args:
        model: on any device, in any mode.
        inputs: that it runs on.
        deadline: of `time.process_time`, in seconds.

    Attributes:
        untrained: why training mode could not be tried; "" where it could.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, deadline: float) -> None:
        self._deadline = deadline
        self._calls: dict[Mode, _Call] = {}
        self.untrained = why = ""
        for shaken in (True, False):
            self._base = replica_of(model)
            if shaken:
                _shake(self._base)
            call = self._runnable("eval", inputs)
            if isinstance(call, _Call):
                self._calls["eval"] = call
                break
            why = why or call
        else:
            raise UserError(f"the model cannot be tried out with fewer channels: {why}")
        call = self._runnable("training", inputs)
        if isinstance(call, _Call):
            self._calls["training"] = call
        else:
            self.untrained = call

    def _runnable(self, mode: Mode, inputs: Inputs) -> _Call | str:
        """The first of several forms of the inputs on which the whole model runs to finite numbers, or why none."""
        ready = inputs_of_replica(inputs)
        why = ""
        for form in (two_examples(ready, other=True), two_examples(ready, other=False), ready):
            call = _Call(form.map(_like(self._base)), inner=False)
            try:
                out = self._outputs(self._copy(), mode, call)
                if not any(t.numel() for t in out):
                    call = _Call(call.inputs, inner=True)
                    out = self._outputs(self._copy(), mode, call)
            except Exception as error:
                why = why or inputs.failure(error)
                continue
            if any(bool(t.isfinite().any()) for t in out):
                return call
            why = why or "its outputs are not finite"
        return why

    # -- one trial ---------------------------------------------------------------------------------------------------

    def failure(self, groups: Sequence[Group]) -> TrialFailure | None:
        """What goes wrong without about half of the channels of these groups, or with few of them left; None where
        nothing does.

        What code does may depend on whether there are many or few. Few are left of every other group at a time, as
        a difference in one could be lost in the next if that had hardly any left.

        Of groups that are not exact, norms leave out the channels that are removed.

        Raises:
            TimeLimit: the deadline has passed.
        """
        trials: list[tuple[Sequence[Group], Keep]] = [(groups, about_half), (groups[::2], few), (groups[1::2], few)]
        for tried, keep in trials:
            failure = self._failure(tried, keep(tried)) if tried else None
            if failure is not None:
                return failure
        return None

    def _failure(self, groups: Sequence[Group], keep: Masks) -> TrialFailure | None:
        """What goes wrong where these channels stay."""
        off = self._difference(groups, keep, None)
        if isinstance(off, TrialFailure):
            return off
        if off > SINGLE:
            precise = self._difference(groups, keep, torch.float64)
            # it may run in single precision only
            if isinstance(precise, TrialFailure) or precise > DOUBLE:
                return TrialFailure(
                    f"computes something else with fewer channels ({_percent(off)} of its output), so its code "
                    "depends on their number in a way that cannot be followed"
                )
        return None

    def _difference(self, groups: Sequence[Group], keep: Masks, kind: torch.dtype | None) -> float | TrialFailure:
        """How far the thin model is from the masked one, over all modes; or why it does not run."""
        thin = self._thin(groups, keep, kind)
        if isinstance(thin, TrialFailure):
            return thin
        masked, off = self._masked(groups, keep, kind), 0.0
        normed = None if all(group.exact for group in groups) else (tuple(groups), keep)
        for mode, call in self._calls.items():
            try:
                outputs = self._outputs(masked, mode, call, kind, normed=normed)
            except Exception as error:
                return TrialFailure(f"does not run with channels at zero: {first_line(error)}", "")
            off = max(off, difference(outputs, thin[mode], same_shapes=not call.inner))
        return off

    def _thin(
        self, groups: Sequence[Group], keep: Masks, kind: torch.dtype | None
    ) -> dict[Mode, list[Tensor]] | TrialFailure:
        """What the model returns without channels in each mode, or why it does not."""
        model = self._copy(kind)
        stack = ModuleStack(model)
        try:
            resize.compact(model, Coupling(tuple(groups)), {g.id: keep[g.id] for g in groups})
            return {mode: self._outputs(model, mode, call, kind, stack) for mode, call in self._calls.items()}
        except Exception as error:
            return TrialFailure(f"does not run with fewer channels: {first_line(error)}", stack.last)

    def _copy(self, kind: torch.dtype | None = None) -> nn.Module:
        """The model, with buffers of its own; parameters share their values with it."""
        replica = replica_of(self._base)
        return replica if kind is None else replica.double()

    def _masked(self, groups: Sequence[Group], keep: Masks, kind: torch.dtype | None) -> nn.Module:
        """The model with channels at zero."""
        model, coupling = self._copy(kind), Coupling(tuple(groups))
        keep = {group.id: keep[group.id] for group in groups}
        tensors = names.tensors(model)
        for name in coupling.kept(keep):
            tensors[name].data = tensors[name].data.clone()
        resize.zero(model, coupling, keep)
        return model

    def _outputs(
        self,
        model: nn.Module,
        mode: Mode,
        call: _Call,
        kind: torch.dtype | None = None,
        stack: ModuleStack | None = None,
        normed: tuple[tuple[Group, ...], Masks] | None = None,
    ) -> list[Tensor]:
        """All numbers that the model returns, or its modules do; with norms over the channels that these masks keep."""
        inputs = call.inputs.map(lambda t: t.to(kind) if kind and t.is_floating_point() else t.clone())
        model.train(mode == "training")
        see, execute = _look_away, _still
        if normed is not None:
            stack = ModuleStack(model)
            see, execute = (norms := KeptNorms(model, *normed, inputs, stack, _still)).see, norms
        inner: list[Tensor] = []
        modules = [m for m in model.modules() if call.inner and not isinstance(m, torch.jit.ScriptModule)]
        handles = [module.register_forward_hook(_keep_in(inner)) for module in modules]
        try:
            with quiet(), _same_dice(), Recorder(see, execute, stack, deadline=self._deadline):
                out = [t for t in output_tensors(inputs(model)) if t.is_floating_point()]
        finally:
            for handle in handles:
                handle.remove()
        return inner if call.inner else out


@contextmanager
def _same_dice() -> Iterator[None]:
    """What code draws with NumPy or `random` (masks of features in training mode) is the same each time."""
    states = np.random.get_state(), random.getstate()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(states[0])  # noqa: NPY002
        random.setstate(states[1])


def _look_away(operation: Operation) -> None:
    """Nobody needs to know."""


def _still(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Executes an operation without leaving anything to chance, as two widths would draw different numbers: dropout
    keeps all, noise is constant."""
    name = name_of(func)
    if name == "native_dropout":
        return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
    out = func(*args, **kwargs)
    fill = _CONSTANT.get(name)
    if fill is not None:
        tree_map_only(Tensor, lambda t: t.fill_(fill) if t.is_floating_point() else t.zero_(), out)
    return out


_CONSTANT = {
    **dict.fromkeys(["rand", "rand_like", "uniform_", "uniform"], 0.5),
    **dict.fromkeys(["randn", "randn_like", "normal_", "normal", "normal_functional", "log_normal_", "cauchy_"], 0.5),
    **dict.fromkeys(["bernoulli", "bernoulli_", "exponential_", "geometric_", "poisson"], 1.0),
    **dict.fromkeys(["randint", "randint_like", "random_", "multinomial"], 0.0),
}


def difference(a: Sequence[Tensor], b: Sequence[Tensor], same_shapes: bool = True) -> float:
    """The largest difference of any output, relative to the largest number in that output of `a`; infinity where one
    is zero and the other is not, where shapes differ, or where they are not finite in the same places.

    Args:
        same_shapes: False leaves out tensors of other shapes (inner ones, which have lost channels); if none is left,
            that is infinity too.
    """
    if len(a) != len(b):
        return float("inf")
    worst, compared = 0.0, same_shapes
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:
            if same_shapes:
                return float("inf")
            continue
        finite = x.isfinite()
        if not torch.equal(finite, y.isfinite()):
            return float("inf")
        x, y = x[finite].double(), y[finite].double()
        if x.numel():
            compared = True
            apart, size = float((x - y).abs().max()), float(x.abs().max())
            worst = max(worst, apart / size if size else (float("inf") if apart else 0.0))
    return worst if compared else float("inf")


def about_half(groups: Iterable[Group], seed: int = 0) -> Masks:
    """Masks that remove a quarter to a half of each group, at least one channel: group id → bool."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in groups:
        most = max(1, group.size // 2)
        count = int(torch.randint(max(1, group.size // 4), most + 1, (), generator=generator))
        count = group.size - _aligned(group, group.size - count)
        keep[group.id] = torch.ones(group.size, dtype=torch.bool)
        keep[group.id][torch.randperm(group.size, generator=generator)[:count]] = False
    return keep


def _aligned(group: Group, count: int) -> int:
    """A number of channels near this one that the group may keep."""
    return min(group.size, max(1, count // group.multiple) * group.multiple)


def few(groups: Iterable[Group], seed: int = 0) -> Masks:
    """Masks that keep a tenth of each group, but at least three channels, as one alone is easily dead, and remove at
    least one: group id → bool."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in groups:
        count = _aligned(group, min(max(3, group.size // 10), max(1, group.size - 1)))
        kept = torch.randperm(group.size, generator=generator)[:count]
        keep[group.id] = torch.zeros(group.size, dtype=torch.bool)
        keep[group.id][kept] = True
    return keep


@torch.no_grad()
def _shake(model: nn.Module) -> None:
    """Gives a replica other parameters, of about the same size and in single precision; constants become random."""
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters()):
        model.float()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(_NOISE, generator=generator)
    for p in model.parameters():
        if p.is_floating_point() and p.numel():
            fan = p[0].numel() if p.dim() > 1 else 0
            size = max(0.1 * float(p.std()), 0.1 / fan**0.5) if fan and p.numel() > 1 else 0.1
            begin = int(torch.randint(_NOISE, (), generator=generator))
            p.data = torch.add(p.data, _from(noise, begin, p.numel()).view(p.shape).to(p.dtype), alpha=size)
    for name, buffer in norm_buffers(model).items():
        if name.endswith("running_mean"):
            buffer.add_(torch.randn(buffer.shape, generator=generator), alpha=0.1)
        elif name.endswith("running_var"):
            buffer.mul_(torch.rand(buffer.shape, generator=generator) + 0.5)


def _from(noise: Tensor, begin: int, count: int) -> Tensor:
    """So many numbers of the noise, which goes round, from one on; most parameters need a small part of it alone."""
    first = noise[begin : begin + count]
    missing = count - len(first)
    return torch.cat([first, noise.repeat(-(-missing // len(noise)))[:missing]]) if missing else first


def _like(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Brings half-precision inputs to the precision of a model that has been shaken."""
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    return lambda t: t.float() if not half and t.dtype in (torch.float16, torch.bfloat16) else t


def _keep_in(inner: list[Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, out: Any) -> None:
        inner.extend(t.detach().clone() for t in output_tensors(out) if t.is_floating_point())

    return hook


def _percent(share: float) -> str:
    return "all" if share > 9.99 else f"{share:.0%}" if share >= 0.01 else f"{share:.1e}"
