"""Finds the branches of residual sums that may go whole.

In a trace, a branch is all that leads to one operand of a sum and to nothing else. It is a block where whole groups of
channels lie inside it, so that nothing of it is left once these are gone, and where all that would fail on layers of no
width, or leave a constant, are layers that can be skipped (`regrow.surgery.skip`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from regrow import names
from regrow.groups import Block, Group, Slice
from regrow.inputs import Inputs
from regrow.quiet import no_onednn, quiet
from regrow.surgery.skip import can_skip, is_norm
from regrow.tracing.replica import inputs_of_replica, replica_of
from regrow.tracing.trace import ModelTrace, ModuleStack, Value, held, record

_SUMS = frozenset(["add", "add_"])
_FACTORS = frozenset(["mul", "mul_"])


@dataclass(frozen=True)
class Branch:
    """One operand of a sum, with what leads to it alone.

    Attributes:
        holder: the module in which the sum stands.
        operations: numbers of its operations, rising.
        tensors: parameters and buffers that only these read → the last operation that does.
        factors: those of them that only scale.
    """

    holder: str
    operations: tuple[int, ...]
    tensors: Mapping[str, int]
    factors: frozenset[str]


def blocks_of(
    model: nn.Module, inputs: Inputs, groups: Sequence[Group], deadline: float
) -> tuple[tuple[Block, Group], ...]:
    """The blocks of a model, with the group that stands for each, in the order in which they run.

    Args:
        model: stays as it is.
        inputs: that it runs on.
        groups: of coupled channels, of which each lies in one block at most; of nested branches the inner one counts.
        deadline: of `time.process_time`, in seconds.

    Raises:
        TimeLimit: it took too long.
    """
    replica = replica_of(model).eval()
    with quiet(), no_onednn():
        trace = record(replica, inputs_of_replica(inputs), ModuleStack(replica), deadline)
    branches = _branches(replica, trace)
    taken: set[str] = set()
    found: list[tuple[Branch, list[Group], list[str]]] = []
    for branch in sorted(branches, key=lambda b: (len(b.operations), b.operations)):
        inner = [group for group in groups if all(part.name in branch.tensors for part in group.slices)]
        skips = _skipped(replica, branch)
        if inner and skips and not taken & {group.id for group in inner}:
            found.append((branch, inner, skips))
            taken |= {group.id for group in inner}
    found.sort(key=lambda item: item[0].operations[-1])
    ids = _names([branch.holder for branch, _, _ in found], {group.id for group in groups})
    pairs = (_block(replica, name, *item) for name, item in zip(ids, found, strict=True))
    return tuple(pair for pair in pairs if pair is not None)


def _branches(model: nn.Module, trace: ModelTrace) -> list[Branch]:
    maker: dict[int, int] = {}  # tensor → the operation that has written it last
    readers: list[set[int]] = [set() for _ in trace.operations]
    sums: list[tuple[int, list[int | None]]] = []
    for number, operation in enumerate(trace.operations):
        for value in operation.operands:
            if value.number in maker:
                readers[maker[value.number]].add(number)
        if operation.name in _SUMS and (sides := _sides(operation.args)):
            sums.append((number, [maker.get(value.number) for value in sides]))
        for value in operation.results:
            maker[value.number] = number
    places = {id(t): value for t, value in zip(held(model), trace.constants, strict=True)}
    tensors = {places[id(t)].number: name for name, t in names.tensors(model).items() if id(t) in places}
    reads: dict[str, list[int]] = {}
    for number, operation in enumerate(trace.operations):
        for value in operation.operands:
            if value.number in tensors:
                reads.setdefault(tensors[value.number], []).append(number)
    found = []
    for number, ends in sums:
        for end in ends:
            if end is not None and readers[end] == {number}:
                inside = _leading_to(end, readers)
                mine = {name: at[-1] for name, at in reads.items() if inside.issuperset(at)}
                factors = {name for name in mine if all(trace.operations[at].name in _FACTORS for at in reads[name])}
                found.append(Branch(trace.operations[number].module, tuple(sorted(inside)), mine, frozenset(factors)))
    return found


def _sides(args: Sequence[object]) -> list[Value]:
    """The two tensors of a sum, where they have one shape."""
    sides = [value for value in args[:2] if isinstance(value, Value)]
    return sides if len(sides) == 2 and sides[0].shape == sides[1].shape else []


def _leading_to(end: int, readers: Sequence[set[int]]) -> set[int]:
    """The operations whose results reach the others through this one alone."""
    inside = {end}
    for number in range(end - 1, -1, -1):
        if readers[number] and readers[number] <= inside:
            inside.add(number)
    return inside


def _skipped(model: nn.Module, branch: Branch) -> list[str]:
    """The layers that are wholly inside a branch, none of them inside another."""
    found: list[str] = []
    for name, module in names.modules(model).items():
        mine = [f"{name}.{key}" for key, t in names.tensors(module).items() if t.dim()]
        inside = bool(mine) and all(key in branch.tensors for key in mine)
        if inside and can_skip(module) and not any(name.startswith(f"{other}.") for other in found):
            found.append(name)
    return found


def _block(
    model: nn.Module, name: str, branch: Branch, inner: Sequence[Group], skips: Sequence[str]
) -> tuple[Block, Group] | None:
    modules, tensors, parameters = names.modules(model), names.tensors(model), names.parameters(model)
    mine = [f"{skipped}.{key}" for skipped in skips for key, t in names.tensors(modules[skipped]).items() if t.dim()]
    last = max((key for key in mine if key in parameters), key=lambda key: branch.tensors[key]).rpartition(".")[0]
    ending = tuple(key for key in mine if key.rpartition(".")[0] == last and key in parameters)
    if is_norm(modules[last]) and not all(tensors[key].dim() == 1 for key in ending):
        return None
    emptied = {part.name for group in inner for part in group.slices}
    others = [key for key in parameters if key in branch.tensors and key not in emptied and key not in mine]
    if not branch.factors.issuperset(others):  # what they add would stay
        return None
    slices = tuple(
        Slice(key, 0, torch.zeros(tensors[key].shape[0], dtype=torch.int64))
        for key in mine
        if key not in emptied or key in ending
    )
    if not slices:
        return None
    return Block(name, tuple(group.id for group in inner), tuple(skips), ending), Group(name, 1, slices)


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
