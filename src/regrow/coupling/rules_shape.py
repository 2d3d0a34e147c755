"""Rules for operations that move data: views, cuts, concatenations, indices. They run on the labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regrow.coupling.labels import TOKENS, Axis, Label, Labels, Ledger, Tie, axis, combine, compress, reshape, tidy
from regrow.coupling.rules import Call, disjoint, get, rule


@rule("views")
def view(call: Call) -> Sequence[Labels]:
    """The same elements in another shape."""
    out: Tensor = call.out
    result = []
    for label in get(call.x):
        seen, mixed = reshape(label, call.x.shape, out.shape)
        for new in mixed:
            _grid(call, seen, new, out.shape)
        alone = sorted(seen.dims - {d for new in mixed for d in new})
        for d in alone:
            count(call, seen.atoms, d, known=False)
        for dims in (*mixed, *([d] for d in alone)):
            _as_wide(call, seen, dims)
        result.append(seen)
    return [disjoint(call, tidy(result))]


@rule("new strides")
def restride(call: Call) -> Sequence[Labels]:
    """The same memory with other strides: it runs on labels that lie there as the numbers do. In place, the strides
    from before are gone, and are taken for those of plain memory."""
    x, shape, strides = call.x, call.args[1], call.args[2]
    begin = x.storage_offset()
    offset = call.at(3, "storage_offset", None)
    plain = call.name.endswith("_")
    before = torch.empty(x.shape, device="meta").stride() if plain else x.stride()
    length = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, before, strict=True))
    result = []
    for label in get(x):
        memory = torch.zeros(length, dtype=torch.int64)
        memory.as_strided(x.shape, before).copy_(label.atoms.expand(x.shape))
        moved = memory.as_strided(shape, strides, 0 if plain or offset is None else offset - begin)
        result.append(Label(moved.clone(), label.zero))
    return [disjoint(call, tidy(result))]


# attributes by which modules are known to cut their channels into heads or groups, or put them together again; others
# of the right value are believed where that makes the thin model right
HEADS = ["num_heads", "n_heads", "heads", "num_head", "nhead", "n_head", "num_attention_heads", "num_kv_heads"]
COUNTS = [
    *HEADS,
    "num_groups", "groups", "attn_dim", "all_head_size", "all_head_dim", "inner_dim", "dim_out", "out_dim", "dh",
    "val_dim", "val_attn_dim", "width", "hidden_dim", "embed_dim", "out_channels", "d_attn", "dim_inner",
    "total_key_dim", "key_attn_dim", "internal_dim", "group_size",
]  # fmt: skip
# attributes of layers of torch and transformers, which are known to count their channels without that
OF_LAYERS = ["in_features", "out_features", "nf", "nx", "in_channels", "out_channels", "num_features", "embedding_dim"]


def _grid(call: Call, label: Label, dims: Sequence[int], shape: Sequence[int]) -> None:
    """Notes that what is kept must fill these dimensions evenly, and which attributes may count them."""
    varying = [d for d in dims if label.atoms.shape[d] > 1]
    if len(varying) > 1:
        call.ledger.grids.append(label.atoms)
    for d in varying:
        count(call, label.atoms, d)


def _as_wide(call: Call, label: Label, dims: Sequence[int]) -> None:
    """Notes where the code may have read a width off what its module is given, as it is the same, or a part of it."""
    if call.narrow or not label.dims <= set(dims):
        return
    lengths = [n if d in dims else 1 for d, n in enumerate(call.out.shape)]
    atoms = label.atoms.expand(lengths).reshape(-1)
    if len(atoms.unique_consecutive()) > len(atoms.unique()):  # they come again for each window or image
        return
    for position, tensor in enumerate(call.given):
        for wide in (x.atoms.reshape(-1) for x in get(tensor) if len(x.dims) == 1):
            if len(atoms) % len(wide) == 0:
                call.ledger.ties.append(Tie(call.module, position, wide, atoms.reshape(-1, len(wide))))


def count(call: Call, atoms: Tensor, dim: int, known: bool = True) -> bool:
    """Notes the attributes that may count the atoms along a dimension, or those before they repeat (heads that are
    folded into the batch); without `known` they are believed only where that makes a thin model right. Returns whether
    there are any."""
    length, found = atoms.shape[dim], False
    places: dict[tuple[str, int | None], int] = {(name, None): value for name, value in call.attributes.items()}
    for name, listed in {} if call.narrow else call.lists().items():
        places |= {(name, position): value for position, value in enumerate(listed)}
    for (name, position), value in places.items():
        if value < 2 or length % value or (call.narrow and name in (*HEADS, *OF_LAYERS)):
            continue  # no head goes where all lose width, and one guess more may tie what has nothing to do with them
        once = atoms.narrow(dim, 0, value)
        if value == length or bool((atoms.unflatten(dim, (-1, value)) == once.unsqueeze(dim)).all()):
            sure = known and position is None and name in COUNTS
            sure = sure and not (call.narrow and name == "dh")  # it counts several widths
            call.ledger.axes.append(Axis(call.module, name, position, once, dim, sure))
            found = True
    return found


@rule("orders of dimensions")
def move(call: Call) -> Sequence[Labels]:
    """Dimensions in another order."""
    return [tuple(Label(call.func(x.atoms, *call.args[1:], **call.kwargs), x.zero) for x in get(call.x))]


@rule("expansion")
def expand(call: Call) -> Sequence[Labels]:
    """Broadcasting; new dimensions in front."""
    pad = (1,) * (call.out.dim() - call.x.dim())
    return [tuple(Label(x.atoms.reshape(pad + x.atoms.shape), x.zero) for x in get(call.x))]


@rule("cuts")
def cut(call: Call) -> Sequence[Labels]:
    """x[a:b:c]: equal parts are parts of a grid; any other cut is at a fixed place."""
    x, dim = call.x, call.at(1, "dim", 0) % call.x.dim()
    n, length = x.shape[dim], call.out.shape[dim]
    if n == length:
        return [get(x)]
    start = call.at(2, "start", 0) or 0
    start = start + n if start < 0 else start
    even = call.at(4, "step", 1) == 1 and length > 0 and n % length == 0 and start % length == 0
    return [_pieces(call, dim, [length] * (n // length) if even else None, [(start, length)])[0]]


@rule("splits")
def split(call: Call) -> Sequence[Labels]:
    """Parts one after the other, of equal lengths or not."""
    name = "dim"
    dim = call.at(2, name, 0) % call.x.dim()
    lengths = [part.shape[dim] for part in call.out]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return _pieces(call, dim, lengths, list(zip(starts, lengths, strict=True)))


@rule("gates")
def glu(call: Call) -> Sequence[Labels]:
    """One half times the sigmoid of the other."""
    dim = call.at(1, "dim", -1) % call.x.dim()
    half = call.x.shape[dim] // 2
    return _pieces(call, dim, [half, half], [(0, half)])


def _pieces(call: Call, dim: int, lengths: list[int] | None, wanted: Sequence[tuple[int, int]]) -> list[Labels]:
    """Labels of the wanted (start, length) parts; parts of equal length must keep equal numbers. A cut at a place that
    no attribute counts is at a fixed place."""
    result: list[list[Label]] = [[] for _ in wanted]
    for label in get(call.x):
        if dim not in label.dims:
            parts: list[Label] | None = [label] * len(wanted)
        elif lengths is not None and len(set(lengths)) == 1:
            parts = _even(call, label, dim, lengths, wanted)
        else:
            parts = _uneven(call, label, dim, lengths, wanted)
        if parts is None:
            left = call.ledger.collapse(label, [dim], f"it is cut at a fixed place ({call.where})")
            parts = [] if left is None else [left] * len(wanted)
        for target, part in zip(result, parts, strict=False):
            target.append(part)
    return [tidy(part) for part in result]


def _even(call: Call, label: Label, dim: int, lengths: list[int], wanted: Sequence[tuple[int, int]]) -> list[Label]:
    if len(lengths) > 1:
        parts = label.atoms.unflatten(dim, (len(lengths), lengths[0]))
        call.ledger.same(parts, parts.narrow(dim, 0, 1), call.where)
        count(call, label.atoms.narrow(dim, 0, lengths[0]), dim)
        _listed(call, [Label(label.atoms.narrow(dim, i * lengths[0], lengths[0])) for i in range(len(lengths))], dim)
    return [Label(label.atoms.narrow(dim, start, length), label.zero) for start, length in wanted]


def _uneven(
    call: Call, label: Label, dim: int, lengths: list[int] | None, wanted: Sequence[tuple[int, int]]
) -> list[Label] | None:
    """Parts of which attributes say how long each is; None where they do not. One part may be what is left of a width
    that is counted; a part of another length keeps it."""
    if lengths is None:
        return None
    parts = [Label(label.atoms.narrow(dim, start, length), label.zero) for start, length in wanted]
    if _listed(call, parts, dim):
        return parts
    first: dict[int, Tensor] = {}
    fixed: list[Label] = []
    for part, length in zip(parts, lengths, strict=True):
        if length in first:
            call.ledger.same(first[length], part.atoms, call.where)
        elif not (length in call.attributes.values() and count(call, part.atoms, dim)) and not _near(call, part, dim):
            fixed.append(part)
            continue
        first.setdefault(length, part.atoms)
    if not first:
        return None
    if len(fixed) > 1 or (fixed and not count(call, label.atoms, dim)):
        call.ledger.fix_all(fixed, f"it is cut at a fixed place ({call.where})")
    return parts


def _near(call: Call, part: Label, dim: int) -> bool:
    """Whether an attribute of a module directly in the one that runs may be the length of a part; notes that it may."""
    length = part.atoms.shape[dim]
    found = [at for at, value in call.near().items() if value == length > 1 and not call.narrow]
    call.ledger.axes.extend(Axis(module, name, None, part.atoms, dim, known=False) for module, name in found)
    return bool(found)


def _listed(call: Call, parts: Sequence[Label], dim: int) -> bool:
    """Whether an attribute lists the lengths of these parts; notes that it counts them."""
    lengths = [part.atoms.shape[dim] for part in parts]
    found = [name for name, listed in call.lists().items() if listed == lengths]
    for name in found:
        for position, part in enumerate(parts):
            along = part.atoms.movedim(dim, 0).flatten(1)[:, 0]
            call.size(None, name, along, position)
    return bool(found)


@rule("picks")
def pick(call: Call) -> Sequence[Labels]:
    """x[i]: nothing along this dimension can vanish on its own, if what is picked is used for more than its shape."""
    dim = call.at(1, "dim", 0) % call.x.dim()
    reason = f"it is picked by a fixed index ({call.where})"
    later = Ledger()
    left = later.collapse_all(get(call.x), [dim], reason)
    for t in call.results:
        t._regrow_later = later
    labels = tuple(Label(x.atoms.squeeze(dim), x.zero) for x in left)
    return [labels] * (len(call.out) if isinstance(call.out, (list, tuple)) else 1)


@rule("joins")
def cat(call: Call) -> Sequence[Labels]:
    """Concatenation."""
    tensors = [t for t in call.args[0] if t.dim() > 1 or t.numel()]
    rank = call.out.dim()
    dim = call.at(1, "dim", 0) % rank
    reason = f"it is joined with a tensor of fixed width ({call.where})"
    across = [next((x for x in get(t) if dim in x.dims), None) for t in tensors]
    rest = [(tuple(x for x in get(t) if dim not in x.dims), [*t.shape[:dim], 1, *t.shape[dim + 1 :]]) for t in tensors]
    result = list(combine(call.ledger, rest, rank, "all", reason))
    if any(x is not None for x in across):
        shape = [max(x.atoms.shape[d] for x in across if x is not None) for d in range(rank)]
        parts = []
        for t, label in zip(tensors, across, strict=True):
            shape[dim] = t.shape[dim]
            atoms = t.new_zeros((1,) * rank, dtype=torch.int64) if label is None else label.atoms
            parts.append(atoms.expand(shape))
        zero = all(x is None or x.zero for x in across)
        result.append(Label(compress(torch.cat(parts, dim)), zero))
    return [disjoint(call, tidy(result))]


@rule("stacks")
def stack(call: Call) -> Sequence[Labels]:
    """Concatenation along a new dimension."""
    dim = call.at(1, "dim", 0) % call.out.dim()
    reason = f"it is joined with a tensor of fixed width ({call.where})"
    parts = [
        (tuple(Label(x.atoms.unsqueeze(dim), x.zero) for x in get(t)), t.unsqueeze(dim).shape) for t in call.args[0]
    ]
    return [combine(call.ledger, parts, call.out.dim(), "all", reason)]


@rule("moved entries")
def carry(call: Call) -> Sequence[Labels]:
    """Operations that only move data: they run on the labels."""
    result = []
    for label in get(call.x):
        if label.dims & _indexed(call):
            call.ledger.fix(label.atoms, f"it is picked by fixed indices ({call.where})")
            continue
        if "channel_shuffle" in call.name:
            call.ledger.grids.append(label.atoms.unflatten(1, (int(call.args[1]), -1)))
        if call.name == "constant_pad_nd":
            result.append(_padded(call, label))
            continue
        full = label.atoms.expand(call.x.shape)
        try:
            moved = call.func(full, *call.args[1:], **call.kwargs)
        except (RuntimeError, NotImplementedError):  # not for integers
            moved = call.func(full.double(), *call.args[1:], **call.kwargs).long()
        result.append(Label(compress(moved), label.zero))
    return [disjoint(call, tidy(result))]


def _padded(call: Call, label: Label) -> Label:
    """Padding with a constant: what is added along the channels has no label, along space it has that of its channel,
    and is not zero unless the constant is."""
    amounts = list(call.args[1])
    for i in range(0, len(amounts), 2):
        if label.atoms.shape[-1 - i // 2] == 1:
            amounts[i : i + 2] = [0, 0]
    return Label(torch.constant_pad_nd(label.atoms, amounts, 0), label.zero and not call.at(2, "value", 0))


def _indexed(call: Call) -> set[int]:
    """Dimensions whose order depends on numbers that do not follow when channels go."""
    rank = call.x.dim()
    if call.name == "index":
        return {d for d, index in enumerate(call.args[1]) if index is not None}
    if call.name in ("index_select", "gather"):
        return {call.args[1] % rank}
    if call.name == "roll":
        dims = call.at(2, "dims", ())
        return {d % rank for d in (dims if isinstance(dims, (list, tuple)) else [dims])} if dims else set(range(rank))
    return set(range(rank)) if call.name == "take" else set()


@rule("folds")
def fold(call: Call) -> Sequence[Labels]:
    """Patches put back into an image: each channel has as many rows as the kernel is large."""
    x, out = call.x, call.out
    at = x.dim() - 2
    rows = call.ledger.along(get(x), at, f"it is mixed over space ({call.where})")
    if rows is None:
        return [()]
    grid = rows.reshape(out.shape[-3], -1)
    call.ledger.same(grid, grid[:, :1], f"it is folded ({call.where})")
    zero = all(label.zero for label in get(x))
    return [(Label(axis(grid[:, 0], out.dim() - 3, out.dim()), zero),)]


@rule("patches")
def patches(call: Call) -> Sequence[Labels]:
    """Patches of an image: each channel has as many rows as the kernel is large."""
    at, rank = call.x.dim() - 3, call.out.dim()
    channels = call.ledger.along(get(call.x), at, f"it is mixed over space ({call.where})")
    if channels is None:
        return [()]
    zero = all(label.zero for label in get(call.x))
    return [(Label(axis(channels.repeat_interleave(call.out.shape[at] // channels.numel()), at, rank), zero),)]


@rule("complex views")
def complex_view(call: Call) -> Sequence[Labels]:
    """Real and imaginary parts as a last dimension, or that put together."""
    if call.name == "view_as_real":
        return [tuple(Label(x.atoms.unsqueeze(-1), x.zero) for x in get(call.x))]
    last = call.x.dim() - 1
    left = call.ledger.collapse_all(get(call.x), [last], f"it makes complex numbers ({call.where})")
    return [tuple(Label(x.atoms.squeeze(-1), x.zero) for x in left)]


@rule("fourier")
def fourier(call: Call) -> Sequence[Labels]:
    """Transforms along some dimensions, each channel for itself."""
    dims = [d % call.x.dim() for d in call.args[1]]
    return [call.ledger.collapse_all(get(call.x), dims, f"it is transformed over ({call.where})")]


@rule("embeddings")
def embedding(call: Call) -> Sequence[Labels]:
    """Rows of a table."""
    weight, index = call.args[0], call.args[1]
    reason = TOKENS
    left = call.ledger.collapse_all(get(weight), [0], reason)
    for label in left:
        call.ledger.produced.append(label.atoms.reshape(-1))
        call.size(weight, "embedding_dim", label.atoms.reshape(-1))
    return [tuple(Label(axis(x.atoms.reshape(-1), -1, index.dim() + 1), x.zero) for x in left)]
