"""Labels that follow channels through a network.

Every index of every parameter's dimension is an *atom*, a number above 0. A `Label` says which atom each slice of a
tensor vanishes with, along one or several of its dimensions (0: with none). What an operation asks of them goes into a
`Ledger`: these atoms vanish together, those cannot vanish. The labels of one tensor never share a dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

# reasons that are no shortcoming
FORBIDDEN = "the user forbids it"
OUTPUT = "it is the model's output"
TOKENS = "rows of an embedding are tokens, not channels"
UNUSED = "the forward pass does not use it"


@dataclass(frozen=True)
class Label:
    """Labels along some dimensions of a tensor.

    Attributes:
        atoms: int64, of the tensor's rank, each dimension of full length or of length 1 where labels do not vary.
        zero: whether what belongs to a removed channel is exactly zero in a model where removed slices are zeroed.
    """

    atoms: Tensor
    zero: bool = False

    @property
    def dims(self) -> frozenset[int]:
        """The dimensions along which the labels vary."""
        return frozenset(d for d, n in enumerate(self.atoms.shape) if n > 1)


Labels = tuple[Label, ...]


@dataclass(frozen=True)
class Axis:
    """An attribute of a module that may count the atoms along one dimension of a grid, as it has its length.

    Attributes:
        module, attribute: their names.
        position: which element, where the attribute is a tuple or list.
        grid: the atoms.
        dim: along which the grid has as many as the attribute says.
        known: whether it is one that is known to count channels; others are believed only where that makes the thin
            model right.
    """

    module: str
    attribute: str
    position: int | None
    grid: Tensor
    dim: int
    known: bool


@dataclass(frozen=True)
class Tie:
    """Channels of which there may be as many as there are of another tensor because the code reads its width: it is
    believed only where that makes the thin model right.

    Attributes:
        module: its name.
        position: among the tensors that it is called with, of the one whose width that is.
        wide: the atoms along that width.
        atoms: [any, as many], the others.
    """

    module: str
    position: int
    wide: Tensor
    atoms: Tensor


@dataclass
class Ledger:
    """What the operations of a network ask of the atoms."""

    pairs: list[Tensor] = field(default_factory=list)  # [2, n]: vanish together
    fixed: list[tuple[Tensor, str, bool]] = field(default_factory=list)  # (atoms, reason, whether a user may insist)
    grids: list[Tensor] = field(default_factory=list)  # what is kept of these must form a grid
    produced: list[Tensor] = field(default_factory=list)  # outputs of convolutions and linear layers
    sizes: list[tuple[str, str, int | None, Tensor]] = field(
        default_factory=list
    )  # (module, attribute, position, atoms)
    axes: list[Axis] = field(default_factory=list)
    ties: list[Tie] = field(default_factory=list)
    multiples: list[tuple[Tensor, int]] = field(default_factory=list)  # so many of these must stay, or a multiple of it
    attended: list[tuple[float, Tensor]] = field(default_factory=list)  # FLOPs of a product, atoms of its parts
    lasting: list[Tensor] = field(default_factory=list)  # their values stay in the masked model
    scaled: list[tuple[tuple[str, ...], int, Tensor]] = field(
        default_factory=list
    )  # (the modules that run, the innermost last; width, atoms of what it divides by)

    def extend(self, other: Ledger) -> None:
        """Adds what another one asks."""
        for asked in fields(self):
            getattr(self, asked.name).extend(getattr(other, asked.name))

    def same(self, a: Tensor, b: Tensor, reason: str) -> None:
        """Ties atoms at the same place (after broadcasting): they vanish together; opposite a 0, not at all."""
        if a is b:
            return
        a, b = torch.broadcast_tensors(a, b)
        pairs = torch.stack((a.reshape(-1), b.reshape(-1)))
        pairs = pairs[:, pairs[0] != pairs[1]]
        if pairs.numel() == 0:
            return
        if pairs.shape[1] > 4096:
            pairs = torch.unique(pairs, dim=1)
        lonely = (pairs == 0).any(dim=0)
        if bool(lonely.any()):
            self.fix(pairs[:, lonely].amax(dim=0), reason)
            pairs = pairs[:, ~lonely]
        self.pairs.append(pairs)

    def fix(self, atoms: Tensor, reason: str, soft: bool = False) -> None:
        """These atoms cannot vanish."""
        atoms = torch.unique(atoms)
        atoms = atoms[atoms > 0]
        if atoms.numel():
            self.fixed.append((atoms, reason, soft))

    def fix_all(self, labels: Iterable[Label], reason: str, soft: bool = False) -> None:
        """Nothing that is labelled here can vanish."""
        for label in labels:
            self.fix(label.atoms, reason, soft)

    def collapse(self, label: Label, dims: Iterable[int], reason: str, soft: bool = False) -> Label | None:
        """Slices along `dims` vanish together or, if that would be the whole tensor, not at all (None)."""
        along = label.dims & frozenset(dims)
        if not along:
            return label
        if along == label.dims:
            self.fix(label.atoms, reason, soft)
            return None
        first = label.atoms
        for d in along:
            first = first.narrow(d, 0, 1)
        self.same(first, label.atoms, reason)
        return Label(first, label.zero)

    def collapse_all(self, labels: Labels, dims: Iterable[int], reason: str, soft: bool = False) -> Labels:
        """`collapse` for each label; those that cannot vanish are gone."""
        along = frozenset(dims)
        done = (self.collapse(label, along, reason, soft) for label in labels)
        return tuple(label for label in done if label is not None)

    def along(self, labels: Labels, dim: int, reason: str, soft: bool = False) -> Tensor | None:
        """The atoms along one dimension, int64 [its length], whatever else vanishes with them; None without labels."""
        for label in labels:
            if dim in label.dims:
                flat = self.collapse(label, label.dims - {dim}, reason, soft)
                return None if flat is None else flat.atoms.reshape(-1)
        return None


def without(labels: Labels, dims: Iterable[int]) -> Labels:
    """The labels that do not vary along any of `dims`."""
    along = frozenset(dims)
    return tuple(label for label in labels if not label.dims & along)


def axis(atoms: Tensor, dim: int, rank: int) -> Tensor:
    """Atoms [n] as labels along dimension `dim` of a tensor of this rank."""
    shape = [1] * rank
    shape[dim] = -1
    return atoms.reshape(shape)


def compress(atoms: Tensor) -> Tensor:
    """Dimensions along which all labels are equal, cut to length 1."""
    for d, n in enumerate(atoms.shape):
        if n > 1:
            first = atoms.narrow(d, 0, 1)
            if torch.equal(first.expand_as(atoms), atoms):
                atoms = first
    return atoms


def tidy(labels: Iterable[Label]) -> Labels:
    """Compressed labels, without those that label nothing."""
    done = (Label(compress(label.atoms), label.zero) for label in labels)
    return tuple(label for label in done if label.dims)


def segments(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Which dimensions of a shape become which of another when the elements stay in order."""
    result: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right, a, b = [], [], 1, 1
        if i < len(old):
            left, a, i = [i], old[i], i + 1
        if j < len(new):
            right, b, j = [j], new[j], j + 1
        while a != b:
            if (a < b or j == len(new)) and i < len(old):
                left, a, i = [*left, i], a * old[i], i + 1
            else:
                right, b, j = [*right, j], b * new[j], j + 1
        result.append((left, right))
    return result


def reshape(label: Label, old: Sequence[int], new: Sequence[int]) -> tuple[Label, list[list[int]]]:
    """Labels of a tensor of shape `old` that is viewed as `new`.

    Returns:
        The label, and the lists of new dimensions whose labels came out of mixing or splitting old ones.
    """
    full, target = list(label.atoms.shape), [1] * len(new)
    mixed = []
    for left, right in segments(old, new):
        if any(label.atoms.shape[d] > 1 for d in left):
            for d in left:
                full[d] = old[d]
            for d in right:
                target[d] = new[d]
            if len(left) > 1 or len(right) > 1:
                mixed.append(right)
    return Label(compress(label.atoms.expand(full).reshape(target)), label.zero), mixed


def combine(
    ledger: Ledger, operands: Sequence[tuple[Labels, Sequence[int]]], rank: int, zero: str, reason: str
) -> Labels:
    """Labels of an elementwise function of tensors that broadcast together.

    Args:
        operands: labels and shape of each tensor; shapes are aligned at their last dimension.
        rank: of the result.
        zero: what a zero operand makes of the result: ``"any"``, ``"all"``, ``"first"`` or ``"none"``.
        reason: why channels cannot vanish where an operand of full size has no labels.
    """
    lifted = []
    for labels, shape in operands:
        pad = (1,) * (rank - len(shape))
        lifted.append((tuple(Label(x.atoms.reshape(pad + x.atoms.shape), x.zero) for x in labels), (*pad, *shape)))
    result = []
    for dims in _connected([label.dims for labels, _ in lifted for label in labels]):
        involved = [[label for label in labels if label.dims & dims] for labels, _ in lifted]
        merged = _merge(ledger, involved, reason)
        bare: set[int] = set()  # where an operand of full length is not labelled at all
        for mine, (_, shape) in zip(involved, lifted, strict=True):
            if not mine:
                bare |= {d for d in dims if shape[d] > 1}
        flags = [any(label.zero for label in labels) for labels in involved]
        holds = {"any": any(flags), "all": all(flags), "first": flags[0], "none": False}[zero]
        done = ledger.collapse(Label(merged, holds), bare, reason) if bare else Label(merged, holds)
        if done is not None:
            result.append(done)
    return tidy(result)


def _merge(ledger: Ledger, involved: Sequence[Sequence[Label]], reason: str) -> Tensor:
    everything = [label for labels in involved for label in labels]
    merged = everything[0].atoms
    for label in everything[1:]:
        ledger.same(merged, label.atoms, reason)
        merged = torch.broadcast_tensors(merged, label.atoms)[0]
    return merged


def _connected(sets: Iterable[frozenset[int]]) -> list[frozenset[int]]:
    result: list[frozenset[int]] = []
    for dims in sets:
        touching = [other for other in result if other & dims]
        result = [other for other in result if not other & dims]
        result.append(dims.union(*touching))
    return result
