"""Which channels of a model must be removed together, found by following them through one forward pass.

Every operation that runs on a copy of the model is followed by a rule for the labels of channels (`rules`), so
functions, buffers, weights under any name and several widths in one dimension are seen, whatever the classes of the
modules are. A graph of modules (torch-pruning's) sees less: it fails on channel shuffles and does not finish on Swin.
Afterwards the groups are tried out: a copy with fewer channels must run. What does not is kept dense, with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from regrow import names
from regrow.channels import surgery, tracing
from regrow.channels.resolve import Resolved
from regrow.channels.table import Coupling, Group, Size, Slice
from regrow.errors import UserError, nearest
from regrow.inputs import Inputs, first_line

__all__ = ["Coupling", "Group", "Size", "Slice", "couple"]


def couple(
    model: nn.Module,
    example_inputs: Any,
    *,
    forbid: Iterable[str] = (),
    force: Iterable[str] = (),
    add: Iterable[Group] = (),
    time_limit: float = 60.0,
) -> Coupling:
    """Finds the groups of channels of a model. It works on a copy: the model, its mode, gradients, buffers and the
    random state stay as they are.

    Tensors are followed, plain numbers are not: where the code computes a factor from the width of channels that can go
    (``x * x.shape[1] ** -0.5``), the thin model computes another. `regrow.channels.check.deviation` proves a coupling.

    Args:
        model: on any device, in any mode.
        example_inputs: one batch, in any form that `regrow.inputs.Inputs.of` takes: a tensor, a tuple of positional
            arguments, a dict of keyword arguments, or (args, kwargs); small images will do.
        forbid: names of parameters or modules (``"layer4"``, ``"*.conv1"``) whose outputs stay dense.
        force: names whose outputs are used although removing some changes the others (channels under a layer norm);
            the groups are then marked as not ``exact``.
        add: groups of the user's own, for what cannot be traced.
        time_limit: seconds of processor time, so that a busy machine refuses no model.

    Raises:
        UserError: the model does not run or cannot be copied, the time limit is exceeded, a name matches nothing,
            or a forced or added group is impossible.
    """
    start = time.process_time()
    forbid, force, add = tuple(forbid), tuple(force), tuple(add)
    inputs = Inputs.of(example_inputs)
    _check_names(model, (*forbid, *force))
    deadline = start + time_limit
    try:
        ledger, atoms, unused = tracing.trace(model, inputs, deadline)
        trial = Trial(model, inputs, deadline)
        rejected: dict[tuple[str, int], str] = {}
        while True:
            found = Resolved(model, ledger, atoms, unused, forbid, force, rejected)
            failures = trial.failures(found.groups)
            if not failures:
                break
            rejected.update(failures)
    except tracing.TimeLimit as limit:
        at = f" (it had come to {limit.args[0]!r})" if limit.args[0] else ""
        raise UserError(
            f"tracing the model took more than {time_limit:g} s of processor time{at}; raise time_limit"
        ) from limit
    _check_forced(found, force)
    groups = (*found.groups, *add)
    _check_added(model, found.groups, add)
    return Coupling(groups, found.dense, time.process_time() - start)


class Trial:
    """Runs copies of a model with fewer channels, to see whether its code allows them; nothing costly is computed."""

    def __init__(self, model: nn.Module, inputs: Inputs, deadline: float) -> None:
        self._model, self._inputs, self._deadline = model, inputs, deadline
        self._types = {name: type(module).__name__ for name, module in names.modules(model).items()}

    def failures(self, groups: tuple[Group, ...]) -> dict[tuple[str, int], str]:
        """(parameter, dimension) → reason, for some of the groups that do not work; empty when all do."""
        failed = self._fails(groups)
        if failed is None:
            return {}
        module, error = failed
        suspects = self._suspects(groups, module)
        guilty = [group for group in suspects if self._fails((group,)) is not None] or suspects
        reason = f"{module or 'the model'} ({self._types[module]}) does not run with fewer channels: {error}"
        return self._reject(groups, guilty, reason)

    def _fails(self, groups: tuple[Group, ...]) -> tuple[str, str] | None:
        """Where and how the forward pass fails without about half of the channels of these groups."""
        replica = tracing.replica_of(self._model)
        generator = torch.Generator().manual_seed(0)
        keep = {}
        for group in groups:
            mask = torch.zeros(group.size, dtype=torch.bool)
            count = max(1, group.size - int(torch.randint(1, group.size // 2 + 1, (), generator=generator)))
            mask[torch.randperm(group.size, generator=generator)[:count]] = True
            keep[group.id] = mask
        stack = tracing.Stack(replica)
        try:
            surgery.compact(replica, Coupling(groups), keep)
            tracing.run(replica.eval(), stack, None, tracing.prepared(self._inputs), self._deadline)
        except tracing.TimeLimit:
            raise
        except Exception as error:
            return (stack.failed or [""])[0], first_line(error)
        return None

    @staticmethod
    def _suspects(groups: tuple[Group, ...], module: str) -> list[Group]:
        """Groups with a part inside the module, or inside the nearest module around it that has any."""
        while True:
            inside = f"{module}." if module else ""
            found = [g for g in groups if any(part.name.startswith(inside) for part in g.slices)]
            if found or not module:
                return found
            module = module.rpartition(".")[0]

    def _reject(self, groups: tuple[Group, ...], guilty: list[Group], reason: str) -> dict[tuple[str, int], str]:
        """The guilty groups, and those that sit in the same places of modules of the same kind."""
        rejected = {(part.name, part.dim): reason for group in guilty for part in group.slices}
        roles = {role for group in guilty if (role := self._role(group))}
        for group in groups:
            if self._role(group) in roles:
                rejected.update({(part.name, part.dim): reason for part in group.slices})
        return rejected

    def _role(self, group: Group) -> tuple[str, frozenset[tuple[str, int]]] | None:
        """The class of the smallest module that holds the whole group, and the places inside it."""
        paths = [part.name.split(".") for part in group.slices]
        common = 0
        while all(len(path) > common + 1 and path[common] == paths[0][common] for path in paths):
            common += 1
        holder = ".".join(paths[0][:common])
        if not common:
            return None
        inside = frozenset((".".join(part.name.split(".")[common:]), part.dim) for part in group.slices)
        return self._types[holder], inside


def _check_names(model: nn.Module, patterns: tuple[str, ...]) -> None:
    from fnmatch import fnmatchcase

    known = [name for name in (*names.modules(model), *names.parameters(model)) if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UserError(f"no parameter or module of the model is named {pattern!r}{nearest(pattern, known)[:300]}")


def _check_forced(found: Resolved, force: tuple[str, ...]) -> None:
    from regrow.channels.resolve import matches

    grouped = {part.name for group in found.groups for part in group.slices if part.dim == 0}
    for pattern in force:
        if not any(matches(name, (pattern,)) for name in grouped):
            reason = next((why for name, why in found.dense.items() if matches(name, (pattern,))), "it has no channels")
            raise UserError(f"the channels of {pattern!r} cannot be forced: {reason}")


def _check_added(model: nn.Module, groups: tuple[Group, ...], add: tuple[Group, ...]) -> None:
    tensors = names.tensors(model)
    owned: dict[tuple[str, int], Tensor] = {}
    for group in (*groups, *add):
        for part in group.slices:
            tensor = tensors.get(part.name)
            where = f"group {group.id!r}: {part.name!r}, dimension {part.dim}"
            if tensor is None or not 0 <= part.dim < tensor.dim():
                raise UserError(f"{where} is not there; take names from named_parameters() or named_buffers()")
            if part.channel.shape != (tensor.shape[part.dim],) or int(part.channel.max()) >= group.size:
                raise UserError(f"{where} needs {tensor.shape[part.dim]} channel numbers below {group.size}, or -1")
            mine = part.channel >= 0
            before = owned.get((part.name, part.dim))
            if before is not None and bool((before & mine).any()):
                raise UserError(f"{where} already belongs to another group; forbid that one first")
            owned[part.name, part.dim] = mine if before is None else before | mine
    ids = [group.id for group in (*groups, *add)]
    for name in ids:
        if ids.count(name) > 1:
            raise UserError(f"there are two groups named {name!r}; give the added one another id")
