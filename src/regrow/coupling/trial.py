"""Does a model that has lost channels compute what it computes with these channels at zero?

A coupling is believed only after it has been tried: what regrow cannot follow (a number of heads in the code, a norm
written by hand, heads folded into the batch) often runs with fewer channels all the same, and computes something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regrow import names
from regrow.batchnorm import norm_buffers
from regrow.coupling.dice import Dice
from regrow.coupling.kept_norms import KeptNorms
from regrow.coupling.seen import Seen, modules_seen
from regrow.errors import UserError
from regrow.groups import Block, Coupling, Group
from regrow.inputs import Inputs, first_line, output_numbers, two_examples
from regrow.quiet import quiet
from regrow.surgery import resize
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
        module: where the model raised an exception without channels; None where it failed otherwise.
        raised: without which channels it did, and where the dice fell; None where it failed otherwise.
    """

    reason: str
    module: str | None = None
    raised: tuple[Keep, int] | None = None


@dataclass(frozen=True)
class _Call:
    inputs: Inputs
    inner: bool  # whether what its modules return is compared, too, as the model's outputs say too little


class Trial:
    """Copies of a model, with other values of its parameters, that lose channels for trial. It stays as it is.

    Parameters are shaken, as many a fresh model computes nothing in places (a residual branch under a scale of zero),
    and the inputs become two different examples, as heads folded into the batch are right for one.

    Args:
        model: on any device, in any mode.
        inputs: that it runs on.
        deadline: of `time.process_time`, in seconds.
        narrow: whether heads lose width, rather than go whole.

    Attributes:
        untrained: why training mode could not be tried; "" where it could.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, deadline: float, narrow: bool = False) -> None:
        self._deadline, self._narrow = deadline, narrow
        self._dice = Dice()
        self._single = True  # until a difference that it shows turns out to be rounding
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
                seen = self._outputs(self._copy(), mode, call)
                if seen.says_little:
                    call = _Call(call.inputs, inner=True)
                    seen = self._outputs(self._copy(), mode, call)
            except UserError as error:
                return str(error)
            except Exception as error:
                why = why or inputs.failure(error)
                continue
            if seen.is_finite:
                return call
            why = why or "its outputs are not finite"
        return why

    # -- one trial ---------------------------------------------------------------------------------------------------

    def failure(self, groups: Sequence[Group]) -> TrialFailure | None:
        """What goes wrong without about half of the channels of these groups, or with few of them left; None where
        nothing does.

        What code does may depend on whether there are many or few. Few are left of every other group at a time, as
        a difference in one could be lost in the next if that had hardly any left. Where code draws numbers, it may
        branch by them.

        Of groups that are not exact, norms leave out the channels that are removed.

        Raises:
            TimeLimit: the deadline has passed.
        """
        trials: list[tuple[Sequence[Group], Keep, int]] = [(groups, about_half, 0)]
        trials += [(groups, about_half, side) for side in range(1, len(Dice.SIDES)) if self._dice.rolled]
        trials += [(groups[::2], few, 0), (groups[1::2], few, 0)]
        for tried, keep, self._dice.side in trials:
            failure = self._failure(Coupling(tuple(tried)), keep(tried)) if tried else None
            if failure is not None:
                return failure if failure.module is None else replace(failure, raised=(keep, self._dice.side))
        return None

    def raises(self, groups: Sequence[Group], keep: Keep, side: int) -> bool:
        """Whether the model without channels of these groups does not run, as `TrialFailure.raised` says of others.

        Raises:
            TimeLimit: the deadline has passed.
        """
        self._dice.side = side
        return isinstance(self._thin(Coupling(tuple(groups)), keep(groups), None), TrialFailure)

    def failure_without(self, blocks: Sequence[tuple[Block, Group]], groups: Sequence[Group]) -> TrialFailure | None:
        """What goes wrong where these blocks are gone whole: with all that is outside of them, and with about half of
        it; None where nothing does.

        Args:
            blocks: each with its group.
            groups: all others.

        Raises:
            TimeLimit: the deadline has passed.
        """
        inner = {name for block, _ in blocks for name in block.inner}
        coupling = Coupling((*groups, *(group for _, group in blocks)), blocks=tuple(block for block, _ in blocks))
        gone = {g.id: torch.zeros(g.size, dtype=torch.bool) for g in coupling.groups if g.id in inner}
        gone |= {group.id: torch.zeros(1, dtype=torch.bool) for _, group in blocks}
        outside = [group for group in groups if group.id not in inner]
        self._dice.side = 0
        for keep in (gone, {**about_half(outside), **gone}):
            failure = self._failure(coupling, keep)
            if failure is not None:
                return failure
        return None

    def _failure(self, coupling: Coupling, keep: Masks) -> TrialFailure | None:
        """What goes wrong where these channels stay."""
        off = self._difference(coupling, keep, None if self._single else torch.float64)
        if isinstance(off, TrialFailure):
            return off
        if self._single and off > SINGLE:
            precise = self._difference(coupling, keep, torch.float64)
            if not isinstance(precise, TrialFailure) and precise <= DOUBLE:  # it may run in single precision only
                self._single = False
                return None
        if off > (SINGLE if self._single else DOUBLE):
            return TrialFailure(
                f"computes something else with fewer channels ({_percent(off)} of its output), so its code "
                "depends on their number in a way that cannot be followed"
            )
        return None

    def _difference(self, coupling: Coupling, keep: Masks, kind: torch.dtype | None) -> float | TrialFailure:
        """How far the thin model is from the masked one, over all modes; or why it does not run."""
        thin = self._thin(coupling, keep, kind)
        if isinstance(thin, TrialFailure):
            return thin
        masked, off = self._masked(coupling, keep, kind), 0.0
        tried = tuple(group for group in coupling.groups if group.id in keep)
        normed = None if all(group.exact for group in tried) else (tried, keep)
        for mode, call in self._calls.items():
            try:
                outputs = self._outputs(masked, mode, call, kind, normed=normed)
            except Exception as error:
                return TrialFailure(f"does not run with channels at zero: {first_line(error)}")
            off = max(off, outputs.difference(thin[mode]))
        return off

    def _thin(self, coupling: Coupling, keep: Masks, kind: torch.dtype | None) -> dict[Mode, Seen] | TrialFailure:
        """What the model returns without channels in each mode, or why it does not."""
        model = self._copy(kind)
        stack = ModuleStack(model)
        try:
            resize.compact(model, coupling, keep)
            return {mode: self._outputs(model, mode, call, kind, stack) for mode, call in self._calls.items()}
        except Exception as error:
            return TrialFailure(f"does not run with fewer channels: {first_line(error)}", stack.last)

    def _copy(self, kind: torch.dtype | None = None) -> nn.Module:
        """The model, with buffers of its own; parameters share their values with it."""
        replica = replica_of(self._base)
        return replica if kind is None else replica.double()

    def _masked(self, coupling: Coupling, keep: Masks, kind: torch.dtype | None) -> nn.Module:
        """The model with channels at zero."""
        model = self._copy(kind)
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
    ) -> Seen:
        """What the model returns, and its modules do; with norms over the channels that these masks keep."""
        inputs = call.inputs.map(lambda t: t.to(kind) if kind and t.is_floating_point() else t.clone())
        model.train(mode == "training")
        see: Callable[[Operation], None] = _look_away
        execute: Callable[..., Any] = self._dice.execute
        if normed is not None:
            stack = ModuleStack(model)
            see, execute = (norms := KeptNorms(model, *normed, inputs, stack, execute, self._narrow)).see, norms
        with modules_seen(model if call.inner else None) as inner, quiet(), self._dice.rolling():
            with Recorder(see, execute, stack, deadline=self._deadline):
                out = inputs(model)
            return Seen(output_numbers(out), inner)


def _look_away(operation: Operation) -> None:
    """Nobody needs to know."""


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


def _percent(share: float) -> str:
    return "all" if share > 9.99 else f"{share:.0%}" if share >= 0.01 else f"{share:.1e}"
