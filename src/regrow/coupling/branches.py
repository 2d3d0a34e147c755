"""Finds the branches of residual sums that may go whole.

In a trace, a branch is all that leads to one operand of a sum and to nothing else. It is a block where whole groups of
channels lie inside it, so that nothing of it is left once these are gone, and where all that would fail on layers of no
width, or leave a constant, are layers that can be skipped (`regrow.surgery.skip`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from regrow import names
from regrow.coupling.resolve import matches
from regrow.groups import Block, Group, Slice
from regrow.inputs import Inputs
from regrow.quiet import no_onednn, quiet
from regrow.surgery.skip import can_pass, can_skip, is_norm
from regrow.tracing.replica import inputs_of_replica, replica_of
from regrow.tracing.trace import ModelTrace, ModuleStack, Value, held, record

_SUMS = frozenset(["add", "add_"])
_FACTORS = frozenset(["mul", "mul_"])
_VIEWS = frozenset(["view", "_unsafe_view", "unsqueeze", "expand", "permute", "transpose", "t", "_to_copy"])
_FATAL = frozenset(["_weight_norm_interface"])  # without channels torch divides by their number, which ends the process


@dataclass(frozen=True)
class Branch:
    """One operand of a sum, with what leads to it alone.

    Attributes:
        holder: the module in which the sum stands.
        readers: number of each operation of the branch, rising → those that read what it gives.
        tensors: parameters and buffers that only these read → the operations that do, rising.
        factors: those of them that only scale.
        fatal: whether one of them does not survive a tensor without entries.
        alone: whether the holder computes nothing but the sum of its input and the branch.
        activated: whether it returns a ReLU of that.
    """

    holder: str
    readers: dict[int, set[int]]
    tensors: Mapping[str, Sequence[int]]
    factors: frozenset[str]
    fatal: bool
    alone: bool = False
    activated: bool = False

    @property
    def end(self) -> int:
        """Number of the operation that gives the operand."""
        return next(reversed(self.readers))


def blocks_of(
    model: nn.Module, inputs: Inputs, groups: Sequence[Group], deadline: float, forbid: Sequence[str] = ()
) -> tuple[tuple[tuple[Block, Group], ...], dict[str, str]]:
    """The blocks of a model, with the group that stands for each, in the order in which they run; and of other branches
    that have channels of their own, the name and why they cannot go whole.

    Args:
        model: stays as it is.
        inputs: that it runs on.
        groups: of coupled channels, of which each lies in one block at most; of nested branches the inner one counts.
        deadline: of `time.process_time`, in seconds.
        forbid: names or patterns of parameters or modules; a branch that has any of these is no block.

    Raises:
        TimeLimit: it took too long.
    """
    replica = replica_of(model).eval()
    with quiet(), no_onednn():
        plain = _plain_calls(replica)
        trace = record(replica, inputs_of_replica(inputs), ModuleStack(replica), deadline)
    flow = _Flow(replica, trace, plain)
    taken: set[str] = set()
    found: list[tuple[Branch, list[Group]]] = []
    for branch in sorted(flow.branches(), key=lambda b: (len(b.readers), b.end)):
        inner = [group for group in groups if all(part.name in branch.tensors for part in group.slices)]
        if inner and not taken & {group.id for group in inner}:
            taken |= {group.id for group in inner}
            found.append((branch, inner))
    found.sort(key=lambda item: item[0].end)
    ids = _names([branch.holder for branch, _ in found], {group.id for group in groups})
    pairs, whole, gone = list[tuple[Block, Group]](), dict[str, str](), list[Branch]()
    for name, (branch, inner) in zip(ids, found, strict=True):
        if any(matches(key, forbid) for key in branch.tensors) or flow.needs(branch, gone):
            continue
        block = _block(replica, name, branch, inner)
        if isinstance(block, str):
            whole[name] = block
        else:
            pairs.append(block)
            gone.append(branch)
    return tuple(pairs), whole


class _Flow:
    """Which operations of a trace read what others give.

    Args:
        model: that was traced.
        trace: of it.
        plain: names of modules that took one tensor, and gave one.
    """

    def __init__(self, model: nn.Module, trace: ModelTrace, plain: Mapping[str, bool]) -> None:
        self._operations, self._plain = trace.operations, plain
        self._outer = {value.storage for value in (*trace.inputs, *trace.constants)}
        maker: dict[int, int] = {}  # tensor → the operation that has written it last
        given = {value.number for value in trace.inputs}
        self._readers: list[set[int]] = [set() for _ in trace.operations]
        self._makers: list[set[int]] = [set() for _ in trace.operations]  # of what each reads; -1: the model's inputs
        self._sums: list[tuple[int, list[int | None]]] = []
        for number, operation in enumerate(trace.operations):
            for value in operation.operands:
                if value.number in maker:
                    self._readers[maker[value.number]].add(number)
                    self._makers[number].add(maker[value.number])
                elif value.number in given:
                    self._makers[number].add(-1)
            if operation.name in _SUMS and (sides := _sides(operation.args)):
                self._sums.append((number, [maker.get(value.number) for value in sides]))
            for value in operation.results:
                maker[value.number] = number
        places = {id(t): value for t, value in zip(held(model), trace.constants, strict=True)}
        tensors = {places[id(t)].number: name for name, t in names.tensors(model).items() if id(t) in places}
        self._reads: dict[str, list[int]] = {}
        for number, operation in enumerate(trace.operations):
            for value in operation.operands:
                if value.number in tensors:
                    self._reads.setdefault(tensors[value.number], []).append(number)
        self._last = {number for number, readers in enumerate(self._readers) if not readers} & self._fed([])

    def branches(self) -> Iterator[Branch]:
        """All branches of sums."""
        for number, ends in self._sums:
            for end in ends:
                if end is not None and self._readers[end] == {number}:
                    inside = self._leading_to(end)
                    mine = {name: at for name, at in self._reads.items() if inside.issuperset(at)}
                    factors = {name for name in mine if all(map(self._scales, mine[name]))}
                    readers = {i: self._readers[i] for i in sorted(inside)}
                    fatal = any(self._operations[i].name in _FATAL for i in inside)
                    holder = self._operations[number].module
                    alone, activated = self._alone(holder, number, inside)
                    yield Branch(holder, readers, mine, frozenset(factors), fatal, alone, activated)

    def _alone(self, holder: str, number: int, inside: set[int]) -> tuple[bool, bool]:
        """Whether a module computes nothing but the sum of this number, of its input and a branch, and whether it gives
        a ReLU of it. Where it gives the input itself, nothing else may read that later, as it could be written to."""
        within = {i for i, one in enumerate(self._operations) if f"{one.module}.".startswith(f"{holder}.")}
        within = {i for i in within if self._makers[i] or self._readers[i]}  # others make room that nothing uses
        rest = sorted(within - inside)
        operation = self._operations[number]
        activated = [self._operations[i].name.rstrip("_") for i in rest] == ["add", "relu"]
        makers = set[int]().union(*(self._makers[i] for i in (*inside, number))) - inside
        if (
            not self._plain.get(holder)
            or operation.kwargs
            or not inside <= within
            or not (rest == [number] or activated)
        ):
            return False, False
        if len(makers) != 1 or makers & ({-1} | within) or (activated and self._readers[number] != {rest[1]}):
            return False, False
        made = {value.number for i in inside for value in self._operations[i].results}
        given = [value for value in operation.operands if value.number not in made]
        later = any(reader > number for reader in self._readers[next(iter(makers))])
        if len(given) != 1 or given[0].storage in self._outer or (later and not activated):
            return False, False
        return True, activated

    def needs(self, branch: Branch, gone: Sequence[Branch]) -> bool:
        """Whether some output would not depend on the model's inputs without a branch and those that may go, too."""
        return not self._last <= self._fed([branch.end, *(other.end for other in gone)])

    def _scales(self, number: int) -> bool:
        """Whether an operation multiplies what it reads, or only products read that."""
        if self._operations[number].name in _VIEWS and self._readers[number]:
            return all(map(self._scales, self._readers[number]))
        return self._operations[number].name in _FACTORS

    def _leading_to(self, end: int) -> set[int]:
        """The operations whose results reach the others through this one alone."""
        inside = {end}
        for number in range(end - 1, -1, -1):
            if self._readers[number] and self._readers[number] <= inside:
                inside.add(number)
        return inside

    def _fed(self, without: Sequence[int]) -> set[int]:
        """The operations that the model's inputs reach without passing any of these."""
        fed = {-1}
        for number, makers in enumerate(self._makers):
            if number not in without and makers & fed:
                fed.add(number)
        return fed


def _plain_calls(model: nn.Module) -> dict[str, bool]:
    """Has the calls of a copy noted: name of a module inside it → whether it was called once, took one tensor and gave
    one."""
    found: dict[str, bool] = {}

    def watch(name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            inside = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            plain = len(given) == len(inside) == 1 and isinstance(out, torch.Tensor) and out.shape == given[0].shape
            found[name] = plain and name not in found

        return note

    for name, module in names.modules(model).items():
        if name and not isinstance(module, torch.jit.ScriptModule):
            module.register_forward_hook(watch(name), with_kwargs=True)
    return found


def _sides(args: Sequence[object]) -> list[Value]:
    """The two tensors of a sum, where they have one shape."""
    sides = [value for value in args[:2] if isinstance(value, Value)]
    return sides if len(sides) == 2 and sides[0].shape == sides[1].shape else []


def _skipped(model: nn.Module, branch: Branch) -> list[str]:
    """The layers that are wholly inside a branch, none of them inside another."""
    found: list[str] = []
    for name, module in names.modules(model).items():
        mine = _keys(module, name)
        inside = bool(mine) and all(key in branch.tensors for key in mine)
        if inside and can_skip(module) and not any(name.startswith(f"{other}.") for other in found):
            found.append(name)
    return found


def _block(model: nn.Module, name: str, branch: Branch, inner: Sequence[Group]) -> tuple[Block, Group] | str:
    """A branch as a block, or why it is none."""
    modules, tensors, parameters = names.modules(model), names.tensors(model), names.parameters(model)
    skips = _skipped(model, branch)
    mine = [key for skipped in skips for key in _keys(modules[skipped], skipped)]
    emptied = {part.name for group in inner for part in group.slices}
    lasting = {key for key in parameters if key in branch.tensors} - emptied - {*mine} - branch.factors
    ends = sorted((key for key in mine if key in parameters), key=lambda key: branch.tensors[key][-1])
    if lasting or not ends or branch.fatal:  # what they add would stay
        where, _, left = next(key for key in branch.tensors if key in (lasting or emptied)).rpartition(".")
        kind = f"{where} ({type(modules[where]).__name__})" if where else "the model"
        return f"what {kind} does with {left!r} where no channels are left is not known"
    last = ends[-1].rpartition(".")[0]
    ending = tuple(key for key in mine if key.rpartition(".")[0] == last and key in parameters)
    slices = tuple(
        Slice(key, 0, torch.zeros(tensors[key].shape[0], dtype=torch.int64))
        for key in mine
        if key not in emptied or key in ending
    )
    within = _within(modules, branch, skips)
    holder = branch.holder if branch.alone and can_pass(modules[branch.holder]) else ""
    activated = bool(holder) and branch.activated
    block = Block(name, tuple(group.id for group in inner), tuple(skips), ending, within, holder, activated)
    return block, Group(name, 1, slices)


def _keys(module: nn.Module, name: str) -> list[str]:
    """The names of a module's tensors, but for single numbers."""
    return [f"{name}.{key}" for key, t in names.tensors(module).items() if t.dim()]


def _within(modules: Mapping[str, nn.Module], branch: Branch, skips: Sequence[str]) -> tuple[str, ...]:
    """The norms whose results reach the sum through other layers only that are skipped."""
    used = {name: {i for key in _keys(modules[name], name) for i in branch.tensors[key]} for name in skips}
    closed = {i for name in skips if not is_norm(modules[name]) for i in used[name]}
    open_ = set[int]()
    for number in reversed(branch.readers):
        if number not in closed and (number == branch.end or branch.readers[number] & open_):
            open_.add(number)
    return tuple(name for name in skips if is_norm(modules[name]) and not used[name] & open_)


def _names(holders: Sequence[str], taken: Iterable[str]) -> list[str]:
    """A name for each block, of the module that has its sum."""
    used = set(taken)
    result = []
    for holder in holders:
        base = f"block {holder}".rstrip()
        name, count = base, 1
        while name in used:
            count += 1
            name = f"{base}#{count}"
        used.add(name)
        result.append(name)
    return result
