"""From what the operations ask of single atoms to groups of channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from regrow import names
from regrow.coupling.following import Demands
from regrow.coupling.labels import FORBIDDEN, Axis, Ledger
from regrow.groups import Attended, Group, Size, Slice
from regrow.surgery.scale import can_hold

Ints = npt.NDArray[np.int64]
MAY_GO = "Channels(normalised=True) may let them go"
Guess = tuple[str, str | int]  # (class of a module, attribute that counts, or number of the tensor whose width does)


def components(count: int, a: Ints, b: Ints) -> Ints:
    """The smallest number that each of `count` numbers is connected to by the edges (a[i], b[i])."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(a)), (a, b)), shape=(count, count))
    _, component = connected_components(edges, directed=False)
    return np.unique(component, return_index=True)[1][component]


class Classes:
    """Which atoms vanish together."""

    def __init__(self, ledger: Ledger, count: int, ties: Iterable[Tensor] = ()) -> None:
        self._pairs = [pair.numpy() for pair in (*ledger.pairs, *ties)]
        self._count = count
        self.of = self._connect()
        self._grids = [grid for grid in ledger.grids if bool((grid > 0).all())]
        self._even(ledger)

    def _connect(self) -> Ints:
        pairs = np.concatenate([np.zeros((2, 0), dtype=np.int64), *self._pairs], axis=1)
        return components(self._count, pairs[0], pairs[1])

    def _even(self, ledger: Ledger) -> None:
        """Where a width is cut into a grid, what is kept must fill a smaller grid: only one dimension of it may vary,
        the longest; along the others, atoms vanish together."""
        for grid in ledger.grids:
            ledger.fix(
                grid if bool((grid == 0).any()) else grid[:0], "it is cut into a grid with a tensor of fixed width"
            )
        extra = Ledger()
        while True:
            before = len(extra.pairs)
            for grid in self._grids:
                seen = self.of[grid.numpy()]
                varying = [d for d in range(seen.ndim) if (seen != seen.take([0], axis=d)).any()]
                for d in sorted(varying, key=lambda d: seen.shape[d])[:-1]:
                    extra.same(grid, grid.narrow(d, 0, 1), "its channels are cut into a grid")
            if len(extra.pairs) == before:
                break
            self._pairs.extend(pair.numpy() for pair in extra.pairs[before:])
            self.of = self._connect()
        ledger.fixed.extend(extra.fixed)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a parameter, or a module that holds it, has one of these names; ``*`` stands for anything."""
    parts = name.split(".")
    heads = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
    return any(fnmatchcase(head, pattern) for head in heads for pattern in patterns)


class Resolved:
    """Groups, and why other outputs are in none.

    Args:
        demands: of the operations.
        classes: of the atoms of these demands, which do not depend on what follows.
        forbid: names (or patterns) of parameters or modules whose outputs stay dense.
        force: names of parameters or modules whose outputs are used although removal changes the others.
        rejected: groups that turned out not to work, with the reason.
        believed: attributes that count channels, although their names are unknown, and widths that code reads.
        normalised: whether all that is normalised together is used, as if all names were forced.

    Attributes:
        believed: as given.
        groups: what goes together.
        dense: parameter → reason, for those whose outputs are in no group.
        guesses: group id → what could be believed of it.
        believed: as given.
        attended: products of activations of which parts go with channels.
    """

    def __init__(
        self,
        model: nn.Module,
        demands: Demands,
        classes: Classes,
        forbid: Iterable[str] = (),
        force: Iterable[str] = (),
        rejected: Iterable[tuple[Group, str]] = (),
        believed: frozenset[Guess] = frozenset(),
        normalised: bool = False,
    ) -> None:
        self.believed, self._modules = believed, names.modules(model)
        self._types = {name: type(module).__name__ for name, module in self._modules.items()}
        ours = (name for name, module in self._modules.items() if type(module).__module__.startswith("torch.nn."))
        self._of_torch = frozenset(ours)
        ledger = demands.ledger
        self.leaves = demands.atoms.leaves
        self.classes = classes
        if ties := [*(self._ties(ledger) if demands.narrow else ()), *self._widths(ledger)]:
            self.classes = Classes(ledger, demands.atoms.count, ties)
        of = self.classes.of
        self.reasons: dict[int, str] = {}
        self.insisted: set[int] = set(of.tolist()) if normalised else set()
        produced = torch.cat([torch.zeros(0, dtype=torch.int64), *ledger.produced]).numpy()
        self._produces = np.zeros(demands.atoms.count, dtype=bool)  # atoms of outputs, in their own weight
        self._produces[produced] = True
        self._outputs = {(name, dim) for name, dim, first, n in self.leaves if self._produces[first : first + n].any()}
        self._producers = {name for name, _ in self._outputs}
        made = np.unique(of[produced])
        made = made[made != of[0]]
        self._fix(ledger, set(made.tolist()), tuple(forbid), tuple(force), rejected)
        eligible = np.zeros(of.max() + 1, dtype=bool)
        eligible[made] = True
        eligible[list(self.reasons)] = False
        self._made = made
        members = self._signatures(eligible)
        self.channel: list[dict[int, int]] = []
        self.guesses: dict[str, set[Guess]] = {}
        self.groups = self._groups(model, ledger, members, believed)
        self.dense = self._dense(model, demands.unused)

    def _widths(self, ledger: Ledger) -> list[Tensor]:
        """What the code is believed to take for as wide as a tensor that it is given: [2, n]."""
        own = Ledger()
        for tie in ledger.ties:
            if (self._types[tie.module], tie.position) in self.believed and tie.module not in self._of_torch:
                own.same(tie.wide, tie.atoms, f"the code reads its width (in {tie.module or 'the model'})")
        return own.pairs

    def _read(self, ledger: Ledger) -> Iterable[tuple[Guess, Tensor]]:
        """The widths that code may read, none of which is believed yet, with the channels that would go together."""
        for tie in ledger.ties:
            guess = (self._types[tie.module], tie.position)
            if guess not in self.believed and tie.module not in self._of_torch:  # whose layers read none
                yield guess, torch.cat([tie.wide, tie.atoms.reshape(-1)])

    def _ties(self, ledger: Ledger) -> list[Tensor]:
        """What an attribute that is believed counts in several places (the width of queries and of values) is one
        width: [2, n]."""
        first, ties = dict[tuple[str, str], Tensor](), list[Tensor]()
        for axis in ledger.axes:
            guess = (self._types[axis.module], axis.attribute)
            counted = self._shrinking(axis) if guess in self.believed else None
            if counted is not None:
                same = first.setdefault((axis.module, axis.attribute), counted)
                ties += [] if same is counted else [torch.stack((same, counted))]
        return ties

    def _fix(
        self,
        ledger: Ledger,
        made: set[int],
        forbid: tuple[str, ...],
        force: tuple[str, ...],
        rejected: Iterable[tuple[Group, str]],
    ) -> None:
        of = self.classes.of
        begins = {(name, dim): first for name, dim, first, _ in self.leaves}
        for group, reason in rejected:
            for part in group.slices:
                held = begins[part.name, part.dim] + (part.channel >= 0).nonzero().reshape(-1).numpy()
                for c in np.unique(of[held]).tolist():
                    self.reasons.setdefault(c, reason)
        for name, dim, first, length in self.leaves:
            mine = of[first : first + length]
            if dim == 0 and matches(name, forbid):
                for c in np.unique(mine).tolist():
                    if c in made:
                        self.reasons.setdefault(c, FORBIDDEN)
            if force and dim == 0 and matches(name, force):
                self.insisted.update(np.unique(mine).tolist())
        for fixed, reason, soft in ledger.fixed:
            for c in np.unique(of[fixed.numpy()]).tolist():
                if not (soft and c in self.insisted):
                    self.reasons.setdefault(c, f"{reason}; {MAY_GO}" if soft else reason)
        self.inexact = {
            c for fixed, _, soft in ledger.fixed if soft for c in of[fixed.numpy()].tolist() if c in self.insisted
        }

    def _signatures(self, eligible: npt.NDArray[np.bool_]) -> list[list[int]]:
        """Classes that occur in the same dimensions of the same tensors, in the order of their first occurrence."""
        lengths = np.array([length for _, _, _, length in self.leaves], dtype=np.int64)
        spans = [np.arange(first, first + length) for _, _, first, length in self.leaves]
        mine = self.classes.of[np.concatenate([np.zeros(0, dtype=np.int64), *spans])]
        leaf = np.repeat(np.arange(len(lengths)), lengths)[eligible[mine]]
        mine = mine[eligible[mine]]
        pairs, at = np.unique(mine * (len(lengths) + 1) + leaf, return_index=True)  # by class, then by leaf
        classes, begins = np.unique(pairs // (len(lengths) + 1), return_index=True)
        leaves = np.split(pairs % (len(lengths) + 1), begins[1:])
        by_signature: dict[bytes, list[int]] = {}
        for i in np.argsort(np.minimum.reduceat(at, begins)) if len(at) else ():
            by_signature.setdefault(leaves[i].tobytes(), []).append(int(classes[i]))
        result = []
        for members in by_signature.values():
            if len(members) > 1:
                result.append(members)
            else:
                self.reasons[members[0]] = "all its channels can only go together"
        return result

    def _groups(
        self, model: nn.Module, ledger: Ledger, members: list[list[int]], believed: frozenset[Guess]
    ) -> tuple[Group, ...]:
        of = self.classes.of
        owner = np.full(of.max() + 1, -1, dtype=np.int64)
        channel = np.full(of.max() + 1, -1, dtype=np.int64)
        for g, group in enumerate(members):
            owner[group], channel[group] = g, np.arange(len(group))

        def split(atoms: Tensor | Ints) -> Iterable[tuple[int, Tensor]]:
            """The groups that occur in these atoms, and the channel of each atom in each of them."""
            mine = of[np.asarray(atoms)]
            for g in np.unique(owner[mine]).tolist():
                if g >= 0:
                    yield g, torch.from_numpy(np.where(owner[mine] == g, channel[mine], -1))

        lasting = {int(atoms[0]) for atoms in ledger.lasting}
        slices: list[list[Slice]] = [[] for _ in members]
        for name, dim, first, length in self.leaves:
            for g, index in split(np.arange(first, first + length)):
                slices[g].append(Slice(name, dim, index, first not in lasting))
        sizes: list[dict[tuple[str, str, int | None], Size]] = [{} for _ in members]
        said: set[tuple[str, str, int | None]] = set()  # of these, operations have said what they count
        for module, attribute, position, counted in self._counted(model, ledger):
            said.add((module, attribute, position))
            for g, index in split(counted):
                sizes[g].setdefault((module, attribute, position), Size(module, attribute, index, position))
        guesses: list[set[Guess]] = [set() for _ in members]
        possible: list[tuple[int, Guess, tuple[str, str, int | None]]] = []
        for axis in ledger.axes:
            guess: Guess = (self._types[axis.module], axis.attribute)
            key = (axis.module, axis.attribute, axis.position)
            shrinking = None if key in said else self._shrinking(axis)
            for g, index in () if shrinking is None else split(shrinking):
                if axis.known or guess in believed:
                    sizes[g].setdefault(key, Size(axis.module, axis.attribute, index, axis.position))
                else:
                    possible.append((g, guess, key))
        for g, guess, key in possible:
            if key not in sizes[g]:
                guesses[g].add(guess)
        for guess, atoms in self._read(ledger):
            for g, _ in split(atoms):
                guesses[g].add(guess)
        scaled = self._scaled(ledger, [{g for g, _ in split(atoms)} for _, _, atoms in ledger.scaled], len(members))
        multiples = [1] * len(members)
        for atoms, multiple in ledger.multiples:
            for g, _ in split(atoms):
                multiples[g] = max(multiples[g], multiple)
        found = self._named(members, slices, [tuple(of_group.values()) for of_group in sizes], multiples, scaled)
        self.attended = tuple(
            Attended(flops, {found[g].id: index for g, index in parts})
            for flops, atoms in ledger.attended
            if (parts := list(split(atoms)))
        )
        self.guesses = {group.id: mine for group, mine in zip(found, guesses, strict=True) if mine}
        return found

    def _scaled(self, ledger: Ledger, owners: Sequence[set[int]], count: int) -> list[dict[str, int]]:
        """For each group the modules whose attention goes on dividing by the root of a width; `owners` are the groups
        of each call of attention."""
        scaled: list[dict[str, int]] = [{} for _ in range(count)]
        calls = [(*call, mine) for call, mine in zip(ledger.scaled, owners, strict=True)]
        calls = [call for call in calls if can_hold(self._modules[call[0][-1]])]
        for running, width, _, mine in calls:
            for g in mine:
                scaled[g].setdefault(running[-1], width)
        for found in scaled:  # a scale that a module holds is that of the modules in it, too, which then hold their own
            held = set(found)
            for running, width, *_ in calls:
                if not held.isdisjoint(running[:-1]):
                    found.setdefault(running[-1], width)
        return scaled

    def _named(
        self,
        members: list[list[int]],
        slices: list[list[Slice]],
        sizes: list[tuple[Size, ...]],
        multiples: list[int],
        scaled: list[dict[str, int]],
    ) -> tuple[Group, ...]:
        taken: dict[str, int] = {}
        result = []
        for group, parts, counts, multiple, kept in zip(members, slices, sizes, multiples, scaled, strict=True):
            weights = [s for s in parts if s.name.endswith("weight") and not self._takes(s.name, s.dim)]
            first = next((s.name for s in sorted(weights, key=lambda s: s.dim > 0)), parts[0].name)
            name = first.removesuffix(".weight")
            taken[name] = taken.get(name, 0) + 1
            if taken[name] > 1:
                name = f"{name}#{taken[name]}"
            exact = not self.inexact & set(group)
            result.append(Group(name, len(group), tuple(parts), counts, exact, multiple, kept))
        return tuple(result)

    def _counted(self, model: nn.Module, ledger: Ledger) -> Iterable[tuple[str, str, int | None, Tensor]]:
        """Attributes that do count these atoms: they exist and have that value."""
        modules = names.modules(model)
        for module, attribute, position, counted in ledger.sizes:
            value = getattr(modules.get(module), attribute, None)
            if position is not None and isinstance(value, (tuple, list)) and len(value) > position:
                value = value[position]
            if type(value) is int and value == counted.numel():
                yield module, attribute, position, counted

    def _shrinking(self, axis: Axis) -> Tensor | None:
        """The atoms that are counted along an axis, where its grid can only shrink along this one."""
        seen = self.classes.of[axis.grid.numpy()]
        line = tuple(slice(None) if d == axis.dim else slice(0, 1) for d in range(seen.ndim))
        return axis.grid[line].reshape(-1) if (seen == seen[line]).all() else None

    def _takes(self, name: str, dim: int) -> bool:
        """Whether this dimension of a weight is another's output, which it takes in."""
        return name in self._producers and (name, dim) not in self._outputs

    def _dense(self, model: nn.Module, unused: dict[str, str]) -> dict[str, str]:
        """Parameter → reason, for those whose outputs are in no group."""
        grouped = {(part.name, part.dim) for group in self.groups for part in group.slices}
        parameters = set(names.parameters(model))
        made: Callable[[int], bool] = set(self._made.tolist()).__contains__
        dense = dict(unused)
        for name, dim, first, length in self.leaves:
            if name not in parameters or (name, dim) in grouped or name in dense:
                continue
            if self._takes(name, dim):
                continue
            mine = dict.fromkeys(self.classes.of[first : first + length].tolist())
            reasons = [self.reasons[c] for c in sorted(mine, key=made, reverse=True) if c in self.reasons]
            covered = any((name, d) in grouped for d in range(8))
            if reasons and (dim == 0 or any(map(made, mine))) and not (covered and not any(map(made, mine))):
                dense[name] = reasons[0]
        for name in parameters - {name for name, _ in grouped} - set(dense):
            dense[name] = "it has no channels that could go"
        return dense
