"""Which channels of a model must be removed together, found by following them through one forward pass.

Every operation that runs on a copy of the model is followed by a rule for the labels of channels (`rules`), so
functions, buffers, weights under any name and several widths in one dimension are seen, whatever the classes of the
modules are. A graph of modules (torch-pruning's) sees less: it fails on channel shuffles and does not finish on Swin.
Afterwards the groups are tried out: a copy with fewer channels must compute what one with these channels at zero does
(`trial`). What does not is kept dense, with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor, nn

from regrow import names
from regrow.coupling.branches import blocks_of
from regrow.coupling.following import Demands, follow
from regrow.coupling.resolve import Classes, Guess, Resolved
from regrow.coupling.rules_shape import COUNTS
from regrow.coupling.trial import Trial, TrialFailure
from regrow.errors import UserError, nearest
from regrow.groups import Block, Coupling, Group, Size, Slice
from regrow.inputs import Inputs
from regrow.tracing.trace import TimeLimit

__all__ = ["Coupling", "Group", "Size", "Slice", "couple"]

MOST_TRIES = 60  # after which all groups among which one fails are kept dense: work is limited, not time


def couple(
    model: nn.Module,
    example_inputs: Any,
    *,
    forbid: Iterable[str] = (),
    force: Iterable[str] = (),
    add: Iterable[Group] = (),
    normalised: bool = False,
    outputs: Callable[[Any], Any] | None = None,
    blocks: bool = False,
    heads: Literal["count", "width"] = "count",
    time_limit: float = 60.0,
) -> Coupling:
    """Finds the groups of channels of a model. It works on a copy: the model, its mode, gradients, buffers and the
    random state stay as they are.

    Tensors are followed, plain numbers are not, unless they stand in attributes: where the code computes a factor from
    the width of channels that can go (``x * x.shape[1] ** -0.5``), the thin model would compute another. So a random
    half of the channels is removed for trial, in eval and in training mode, and what then computes something else is
    kept dense.

    Args:
        model: on any device, in any mode.
        example_inputs: one batch, in any form that `regrow.inputs.Inputs.of` takes: a tensor, a tuple of positional
            arguments, a dict of keyword arguments, or (args, kwargs); small images will do.
        forbid: names of parameters or modules (``"layer4"``, ``"*.conv1"``) whose outputs stay dense.
        force: names whose outputs are used although removing some changes the others (channels under a layer norm);
            the groups are then marked as not ``exact``: the thin model computes what the masked one does if its norms,
            and means over channels, leave out those that are removed.
        add: groups of the user's own, for what cannot be traced.
        normalised: whether all outputs are forced.
        outputs: takes of what the model returns the part that counts; what else it returns may lose channels and is not
            compared. None: all of it counts, but for caches of transformers.
        blocks: whether to look for branches of residual sums that can go whole, too; each gets a group of its own.
        heads: what of attention can go: ``"count"``, whole heads; ``"width"``, the width of all heads of a layer alike,
            of queries and keys together, and of values with the layer that takes them.
        time_limit: seconds of processor time, so that a busy machine refuses no model.

    Raises:
        UserError: the model does not run or cannot be copied, the time limit is exceeded, a name matches nothing,
            or a forced or added group is impossible.
    """
    start = time.process_time()
    forbid, force, add = tuple(forbid), tuple(force), tuple(add)
    inputs, deadline = replace(Inputs.of(example_inputs), outputs=outputs), start + time_limit
    _check_names(model, (*forbid, *force))
    with _refused_after(time_limit):
        demands = follow(model, inputs, deadline, heads == "width")
        trial = Trial(model, inputs, deadline, demands.narrow)
        found = Search(model, demands, trial, forbid, force, normalised).run()
        _check_forced(found, force)
        groups = (*found.groups, *add)
        _check_added(model, found.groups, add)
        if add and (failure := trial.failure(groups)) is not None:
            raise UserError(f"the added groups are not right: the model {failure.reason}")
        good, whole = _believed(trial, groups, *(blocks_of(model, inputs, groups, deadline, forbid) if blocks else ()))
    every, those = (*groups, *(group for _, group in good)), tuple(block for block, _ in good)
    took = time.process_time() - start
    return Coupling(every, found.dense, trial.untrained, took, found.attended, those, whole, heads)


@contextmanager
def _refused_after(seconds: float) -> Iterator[None]:
    """Says of a model that takes longer where it had come to."""
    try:
        yield
    except TimeLimit as limit:
        at = f" (it had come to {limit.args[0]!r})" if limit.args[0] else ""
        raise UserError(
            f"tracing the model took more than {seconds:g} s of processor time{at}; raise time_limit"
        ) from limit


def _believed(
    trial: Trial,
    groups: Sequence[Group],
    blocks: Sequence[tuple[Block, Group]] = (),
    whole: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[tuple[Block, Group]], dict[str, str]]:
    """The blocks without which the model computes what it does with them at zero, and why the others stay, beside those
    of which that is known."""
    good, left, whole = list(blocks), MOST_TRIES, dict(whole)
    while good and (failure := trial.failure_without(good, groups)) is not None:
        low, high = 0, len(good)  # the last of the smallest beginning that fails
        while high - low > 1 and left > 0:
            left -= 1
            middle = (low + high) // 2
            failed = trial.failure_without(good[:middle], groups)
            low, high, failure = (low, middle, failed) if failed is not None else (middle, high, failure)
        for block, _ in good[low:high]:
            whole[block.id] = f"without it the model {failure.reason}"
        del good[low:high]
        left -= 1
    return good, whole


class Search:
    """Looks for the groups that hold in a trial: takes out or mends those that do not, until all do.

    Args:
        model: stays as it is.
        demands: of the model.
        trial: of the model.
        forbid, force, normalised: as given to `couple`.
    """

    def __init__(
        self,
        model: nn.Module,
        demands: Demands,
        trial: Trial,
        forbid: tuple[str, ...],
        force: tuple[str, ...],
        normalised: bool = False,
    ) -> None:
        self._model, self._demands, self._trial = model, demands, trial
        self._classes = Classes(demands.ledger, demands.atoms.count)
        self._forbid, self._force, self._normalised = forbid, force, normalised
        self._types = {name: type(module).__name__ for name, module in names.modules(model).items()}
        self._rejected: list[tuple[Group, str]] = []
        self._believed: frozenset[Guess] = frozenset()
        self._tries = 0

    def run(self) -> Resolved:
        """Groups that compute the same together, whether they are removed or zero."""
        while True:
            found = self._resolved(self._believed)
            failure = self._failure(found.groups)
            if failure is None:
                return found
            where = failure.module or "the model"
            said = f"{where} ({self._types[failure.module or '']}) {failure.reason}"
            for group in self._guilty(found.groups, failure):
                if not self._believes(found, group):
                    self._reject(found.groups, group, said)

    def _resolved(self, believed: frozenset[Guess]) -> Resolved:
        asked = self._forbid, self._force, self._rejected, believed, self._normalised
        return Resolved(self._model, self._demands, self._classes, *asked)

    def _failure(self, groups: Sequence[Group]) -> TrialFailure | None:
        self._tries += 1
        return self._trial.failure(groups) if groups else None

    def _guilty(self, groups: tuple[Group, ...], failure: TrialFailure) -> Sequence[Group]:
        """Those because of which they fail: where the thin model raised an exception, those inside of that module that
        raise one by themselves; otherwise the last one of the smallest beginning of them that fails."""
        if failure.module is not None and failure.raised is not None:
            suspects = self._inside(groups, failure.module)
            self._tries += len(suspects)
            return [group for group in suspects if self._trial.raises((group,), *failure.raised)] or suspects
        low, high = 0, len(groups)
        while high - low > 1 and self._tries < MOST_TRIES:
            middle = (low + high) // 2
            low, high = (low, middle) if self._failure(groups[:middle]) else (middle, high)
        return groups[low:high]

    @staticmethod
    def _inside(groups: tuple[Group, ...], module: str) -> list[Group]:
        """Groups with a part inside the module, or inside the nearest module around it that has any."""
        while True:
            inside = f"{module}." if module else ""
            found = [g for g in groups if any(part.name.startswith(inside) for part in g.slices)]
            if found or not module:
                return found
            module = module.rpartition(".")[0]

    def _believes(self, found: Resolved, group: Group) -> bool:
        """Whether the group holds once an attribute of the right value is taken to count its channels, or all of these,
        or the code to read their number off the width of a tensor, with the channels of which they then go."""
        if self._believed - found.believed and self._holds(group, frozenset()):
            return True
        guesses = found.guesses.get(group.id, set())
        counts = [guess for guess in guesses if isinstance(guess[1], str)]
        counts.sort(key=lambda guess: (guess[1] not in COUNTS, guess))
        tries = [{guess} for guess in counts] + ([set(counts)] if len(counts) > 1 else [])
        for width in sorted(guesses - set(counts)):
            tries += [{width}, *({width} | some for some in tries)]
        if any(self._holds(group, frozenset(some)) for some in tries):
            return True
        if self._demands.narrow:
            return self._holds_with_two(group, counts)
        widths = guesses - set(counts)
        return len(widths) > 0 and self._holds_with_all(group, widths | {one for one in counts if one[1] in COUNTS})

    def _holds_with_two(self, group: Group, counts: Sequence[Guess]) -> bool:
        """Whether it does with one of these and one more, as the first may tie what another group has."""
        for guess in counts:
            tied = self._resolved(self._believed | {guess})
            for more in sorted({more for one in _again(tied.groups, group) for more in tied.guesses.get(one.id, ())}):
                if self._holds(group, frozenset([guess, more])):
                    return True
        return False

    def _holds_with_all(self, group: Group, guesses: set[Guess]) -> bool:
        """Whether it does with all of these and the widths that other classes of modules read in what it becomes; those
        that it does not need are left out again, so that no channels go together for no reason."""
        while self._fails_with(group, guesses):
            found = self._resolved(self._believed | guesses)
            theirs = {more for one in _again(found.groups, group) for more in found.guesses.get(one.id, ())}
            widths = {guess for guess in theirs if isinstance(guess[1], int)}
            if widths <= guesses:
                return False
            guesses |= widths
        for guess in sorted(guesses, key=repr):
            if not self._fails_with(group, guesses - {guess}):
                guesses.remove(guess)
        self._believed |= guesses
        return True

    def _holds(self, group: Group, guesses: frozenset[Guess]) -> bool:
        """Whether a group holds with these guesses beside what is believed; then they are, too."""
        if self._fails_with(group, guesses):
            return False
        self._believed |= guesses
        return True

    def _fails_with(self, group: Group, guesses: Iterable[Guess]) -> bool:
        """Whether what the group becomes with these guesses beside what is believed does not hold, or cannot go."""
        again = _again(self._resolved(self._believed.union(guesses)).groups, group)
        return not again or self._failure(again) is not None

    def _reject(self, groups: tuple[Group, ...], guilty: Group, reason: str) -> None:
        """Keeps the group dense, and those that sit in the same places of modules of the same kind."""
        role = self._role(guilty)
        for group in groups:
            if group is guilty or (role is not None and self._role(group) == role):
                self._rejected.append((group, reason))

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


def _again(groups: Sequence[Group], before: Group) -> Sequence[Group]:
    """The group of this id, or those that have all of its places, as it has become a part of another."""
    places = {(part.name, part.dim) for part in before.slices}
    same = [group for group in groups if group.id == before.id]
    return same or [group for group in groups if places <= {(part.name, part.dim) for part in group.slices}]


def _check_names(model: nn.Module, patterns: tuple[str, ...]) -> None:
    from fnmatch import fnmatchcase

    known = [name for name in (*names.modules(model), *names.parameters(model)) if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UserError(f"no parameter or module of the model is named {pattern!r}{nearest(pattern, known)[:300]}")


def _check_forced(found: Resolved, force: tuple[str, ...]) -> None:
    from regrow.coupling.resolve import matches

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
