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

from regrow.coupling.dice import Dice
from regrow.coupling.kept_norms import KeptNorms
from regrow.coupling.repeats import Differs, Execute, Script
from regrow.coupling.seen import Seen, modules_seen
from regrow.coupling.shaken import Shaken
from regrow.errors import UserError
from regrow.groups import Block, Coupling, Group
from regrow.inputs import Inputs, first_line, output_numbers, two_examples
from regrow.quiet import quiet
from regrow.surgery import resize
from regrow.tracing.replica import inputs_of_replica
from regrow.tracing.trace import ModuleStack, Operation, Recorder

Mode = Literal["eval", "training"]
Masks = dict[str, Tensor]  # group id → bool, True for the channels that stay
Keep = Callable[[Iterable[Group]], Masks]

# Largest difference, relative to the largest number of the same output, that rounding explains. What is above it in
# single precision is computed again in double precision: two images that a norm brings to the same scale, or a decision
# between equal numbers, can make rounding large.
SINGLE, DOUBLE = 5e-5, 1e-6

LARGE = 200_000_000  # parameters, from which on it costs less to follow a call than to compute it


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


_Normed = tuple[tuple[Group, ...], Masks] | None  # groups, of which norms leave out what these masks remove


def _look_away(operation: Operation) -> None:
    """Nobody needs to know."""


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
        self._alike = False  # whether training mode does the very same as eval mode
        self.untrained = why = ""
        for shaken in (True, False):
            self._shaken = Shaken(model, shaken)
            large = sum(p.numel() for p in model.parameters()) >= LARGE
            scripts: list[Script] | None = [] if large else None
            call = self._runnable("eval", inputs, scripts)
            if isinstance(call, _Call):
                self._calls["eval"] = call
                break
            why = why or call
        else:
            raise UserError(f"the model cannot be tried out with fewer channels: {why}")
        if scripts and not call.inner:
            self._alike = self._is_repeated(scripts[-1], self._shaken.copy(), call)
        if not self._alike:
            call = self._runnable("training", inputs)
        if isinstance(call, _Call):
            self._calls["training"] = call
        else:
            self.untrained = call

    def _runnable(self, mode: Mode, inputs: Inputs, scripts: list[Script] | None = None) -> _Call | str:
        """The first of several forms of the inputs on which the whole model runs to finite numbers, or why none."""
        ready = inputs_of_replica(inputs)
        why = ""
        for form in (two_examples(ready, other=True), two_examples(ready, other=False), ready):
            call = _Call(form.map(_like(self._shaken.base)), inner=False)
            try:
                seen = self._outputs(self._shaken.copy(), mode, call, scripts=scripts)
                if seen.says_little:
                    call = _Call(call.inputs, inner=True)
                    seen = self._outputs(self._shaken.copy(), mode, call)
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
        tried = tuple(group for group in coupling.groups if group.id in keep)
        normed = None if all(group.exact for group in tried) else (tried, keep)
        try:
            with self._shaken.masked(coupling, keep, kind) as model:
                masked = self._both(model, kind, normed=normed)
        except Differs:
            self._alike = False
            return self._difference(coupling, keep, kind)
        except Exception as error:
            return TrialFailure(f"does not run with channels at zero: {first_line(error)}")
        return max(outputs.difference(thin[mode]) for mode, outputs in masked.items())

    def _thin(self, coupling: Coupling, keep: Masks, kind: torch.dtype | None) -> dict[Mode, Seen] | TrialFailure:
        """What the model returns without channels in each mode, or why it does not."""
        model = self._shaken.copy(kind)
        stack = ModuleStack(model)
        try:
            resize.compact(model, coupling, keep)
            return self._both(model, kind, stack)
        except Differs:  # and the model may hold on to what has no numbers
            self._alike = False
            return self._thin(coupling, keep, kind)
        except Exception as error:
            return TrialFailure(f"does not run with fewer channels: {first_line(error)}", stack.last)

    def _both(
        self, model: nn.Module, kind: torch.dtype | None, stack: ModuleStack | None = None, normed: _Normed = None
    ) -> dict[Mode, Seen]:
        """What a model returns in each mode; training mode is only followed where it does the same as eval mode.

        Raises:
            Differs: this was believed, and it does not.
        """
        scripts: list[Script] | None = [] if self._alike else None
        seen: dict[Mode, Seen] = {}
        for mode, call in self._calls.items():
            if mode == "eval" or not scripts:
                seen[mode] = self._outputs(model, mode, call, kind, stack, normed, scripts)
            elif self._is_repeated(scripts[0], model, call, kind):
                seen[mode] = seen["eval"]
            else:
                raise Differs
        return seen

    def _is_repeated(self, script: Script, model: nn.Module, call: _Call, kind: torch.dtype | None = None) -> bool:
        """Whether the model does in training mode what it has done in eval mode."""
        inputs = _given(call, kind)
        return script.is_repeated(lambda execute: self._run(model, "training", inputs, execute), model, inputs)

    def _run(
        self,
        model: nn.Module,
        mode: Mode,
        inputs: Inputs,
        execute: Execute,
        see: Callable[[Operation], None] = _look_away,
        stack: ModuleStack | None = None,
    ) -> Any:
        model.train(mode == "training")
        with quiet(), self._dice.rolling(), Recorder(see, execute, stack, deadline=self._deadline):
            return inputs(model)

    def _outputs(
        self,
        model: nn.Module,
        mode: Mode,
        call: _Call,
        kind: torch.dtype | None = None,
        stack: ModuleStack | None = None,
        normed: _Normed = None,
        scripts: list[Script] | None = None,
    ) -> Seen:
        """What the model returns, and its modules do; with norms over the channels that these masks keep. What it
        executes is written down where a list is given for it."""
        inputs = _given(call, kind)
        see: Callable[[Operation], None] = _look_away
        execute: Execute = self._dice.execute
        if normed is not None:
            stack = ModuleStack(model)
            see, execute = (norms := KeptNorms(model, *normed, inputs, stack, execute, self._narrow)).see, norms
        script = None if scripts is None else Script(model, inputs, execute)
        with modules_seen(model if call.inner else None) as inner:
            out = self._run(model, mode, inputs, script or execute, see, stack)
            if scripts is not None and script is not None:
                script.end(out)
                scripts.append(script)
            return Seen(output_numbers(out), inner)


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


def _given(call: _Call, kind: torch.dtype | None) -> Inputs:
    """The inputs of a call, for a model of this precision."""
    return call.inputs.map(lambda t: t.to(kind) if kind and t.is_floating_point() else t.clone())


def _like(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Brings half-precision inputs to the precision of a model that has been shaken."""
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    return lambda t: t.float() if not half and t.dtype in (torch.float16, torch.bfloat16) else t


def _percent(share: float) -> str:
    return "all" if share > 9.99 else f"{share:.0%}" if share >= 0.01 else f"{share:.1e}"
