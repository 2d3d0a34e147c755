"""Rules for operations that sum over channels: matrix products, convolutions, attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from torch.utils._pytree import tree_map_only

from regrow.coupling.labels import Label, Labels, axis, combine, without
from regrow.coupling.rules import Call, disjoint, get, rule, tie
from regrow.tracing.ops import ADDED, FORMULAS

ALIGNED = 8  # widths of grouped products are multiples of it: 16 bytes in half precision


@rule("matrix products", "products")
def product(call: Call) -> Sequence[Labels]:
    """Matrix products: linear layers, and products of activations."""
    labels = _product(call, *_factors(call))
    added = ADDED.get(call.func._overloadpacket)
    if added is None or not call.args[added].dim():
        return [labels]
    bias = call.args[added]
    reason = f"it meets a tensor of fixed width ({call.where})"
    rank = call.out.dim()
    return [combine(call.ledger, [(labels, call.out.shape), (get(bias), bias.shape)], rank, "all", reason)]


def _product(call: Call, a: Tensor, b: Tensor) -> Labels:
    rank = a.dim()
    ka, kb = a.dim() - 1, max(b.dim() - 2, 0)
    left, right = get(a), get(b)
    inner_a = next((x for x in left if ka in x.dims), None)
    inner_b = next((x for x in right if kb in x.dims), None)
    left, right = without(left, [ka]), without(right, [kb])
    weight = b if _is_weight(b) else a if _is_weight(a) else None
    if weight is None and call.narrow:
        found = _narrowed(call, a, b, (inner_a, inner_b), (*left, *right))
        return tuple(Label(x.atoms.squeeze(ka), x.zero) for x in found) if b.dim() == 1 else found
    rows = _inner(call, a, b, inner_a, inner_b)
    if weight is not None:
        _linear_sizes(call, weight, inner_a if weight is b else inner_b, right if weight is b else left)
    if b.dim() == 1:
        return tuple(Label(x.atoms.squeeze(ka), x.zero) for x in left)
    if rank > 2:  # batches of products: heads
        found = _batched(call, left, right, rows, rank)
        _attend(call, found)
        return found
    return (*left, *right)


def _is_weight(tensor: Tensor) -> bool:
    """Whether it is computed from parameters alone, and is the same for the whole batch."""
    return not getattr(tensor, "_regrow_live", False) and not any(min(x.dims) < tensor.dim() - 2 for x in get(tensor))


def _inner(call: Call, a: Tensor, b: Tensor, x: Label | None, y: Label | None) -> Labels:
    """The summed dimension. Returns what is left of its labels along the batch."""
    reason = f"it is multiplied with a tensor of fixed width ({call.where})"
    if x is None or y is None:
        n = a.shape[-1]
        if n > 1:
            lone = x or y
            left = None if lone is None else call.ledger.collapse(lone, [*range(a.dim() - 2, a.dim())], reason)
            return () if left is None else (left,)
        return ()
    if _is_weight(a) or _is_weight(b):
        w = y if _is_weight(b) else x
        kx, ky = a.dim() - 1, max(b.dim() - 2, 0)
        flat_x = call.ledger.along((x,), kx, reason)
        flat_y = call.ledger.along((y,), ky, reason)
        if flat_x is not None and flat_y is not None:
            call.ledger.same(flat_x, flat_y, "it comes from a tensor of fixed width")
            if not w.zero:
                call.ledger.fix(flat_x, f"the weight is computed from other weights ({call.where})")
        else:
            call.ledger.fix_all([x, y], reason)
        return ()
    # a product of activations does not vanish with a channel: only whole matrices can
    reason = f"a product of activations sums over it ({call.where})"
    done = [call.ledger.collapse(label, [*range(t.dim() - 2, t.dim())], reason) for label, t in ((x, a), (y, b))]
    if done[0] is None or done[1] is None:
        call.ledger.fix_all([label for label in done if label is not None], reason)
        return ()
    return (done[0], done[1])


def _batched(call: Call, left: Labels, right: Labels, rows: Labels, rank: int) -> Labels:
    """Labels of a batch of products: where they vary along the batch, a whole matrix vanishes at once."""
    matrix = {rank - 2, rank - 1}
    reason = f"a batch of products mixes it ({call.where})"
    batch = [x for x in (*left, *right, *rows) if x.dims - matrix]
    free = [x for x in (*left, *right) if not x.dims - matrix]
    whole: Label | None = None
    for label in batch:
        flat = call.ledger.collapse(label, matrix, reason)
        if flat is not None:
            if whole is not None:
                call.ledger.same(whole.atoms, flat.atoms, reason)
            whole = flat
    # an operand that is as long but has no labels along the batch cannot follow
    sides = [any(x.dims - matrix for x in get(t)) for t in _factors(call)]
    if whole is not None and not all(sides):
        call.ledger.fix(whole.atoms, reason)
        whole = None
    return (*free, *(() if whole is None else (Label(whole.atoms),)))


def _attend(call: Call, labels: Labels) -> None:
    """Notes what the products of all heads cost together."""
    whole = next((label for label in labels if min(label.dims) < call.out.dim() - 2), None)
    if whole is not None:
        lengths = [n if d in whole.dims else 1 for d, n in enumerate(call.out.shape)]
        _costs(call, whole.atoms.expand(lengths).reshape(-1))


def _costs(call: Call, parts: Tensor) -> None:
    """Notes what a product of activations costs, a share of it for each of these atoms."""
    args, out = tree_map_only(Tensor, lambda t: t.shape, (call.args, call.out))
    call.ledger.attended.append((float(FORMULAS[call.func._overloadpacket](*args, out_val=out)), parts))


def _narrowed(call: Call, a: Tensor, b: Tensor, inner: tuple[Label | None, Label | None], outer: Labels) -> Labels:
    """A product of activations where heads lose width: what it sums over vanishes index by index, on both sides and in
    all heads alike, and so do the rows and columns of its result. What makes no zeros there would change the sums."""
    reason = f"a product of activations sums over it ({call.where})"
    sides = zip(inner, (a.dim() - 1, max(b.dim() - 2, 0)), strict=True)
    given = [call.ledger.along((label,), dim, reason) for label, dim in sides if label is not None]
    summed = [atoms for atoms in given if atoms is not None]
    if len(summed) == 2 and any(label is not None and label.zero for label in inner):
        call.ledger.same(summed[0], summed[1], reason)
    else:
        for atoms in summed:
            call.ledger.fix(atoms, reason)
    heads = f"heads lose width, and none goes whole ({call.where})"
    free = tuple(
        kept
        for label in outer
        if (kept := call.ledger.collapse(label, label.dims - {a.dim() - 2, a.dim() - 1}, heads)) is not None
    )
    parts = [*summed[:1], *(label.atoms.reshape(-1) for label in free)]
    if len(parts) == 1:
        _costs(call, parts[0])
    return free


def _factors(call: Call) -> tuple[Tensor, Tensor]:
    added = ADDED.get(call.func._overloadpacket)
    a, b = [t for i, t in enumerate(call.args) if i != added][:2]
    return a, b


def _linear_sizes(call: Call, weight: Tensor, inner: Label | None, outer: Labels) -> None:
    """Notes the widths of a linear layer, by the names of torch's and of transformers' Conv1D."""
    if inner is not None:
        for attribute in ("in_features", "nx"):
            call.size(weight, attribute, inner.atoms.reshape(-1))
    for label in outer:
        call.ledger.produced.append(label.atoms.reshape(-1))
        for attribute in ("out_features", "nf"):
            call.size(weight, attribute, label.atoms.reshape(-1))


@rule("grouped products")
def experts(call: Call) -> Sequence[Labels]:
    """Rows of one matrix times one of a stack of matrices (experts): all of these lose the same channels."""
    a, b = call.args[:2]
    reason = f"it is multiplied by a stack of matrices ({call.where})"
    if a.dim() != 2 or b.dim() != 3:
        for t in (a, b):
            call.ledger.fix_all(get(t), reason)
        return [()]
    call.ledger.fix_all([x for x in get(b) if 0 in x.dims], "a whole expert is no channel")
    right = without(get(b), [0])
    inner = call.ledger.along(right, 1, reason)
    tie(call, call.ledger.along(get(a), 1, reason), inner)
    if not all(label.zero for label in right):
        call.ledger.fix_all(right, f"the weight is computed from other weights ({call.where})")
    out = call.ledger.along(right, 2, reason)
    if out is None:
        return [()]
    call.ledger.produced.append(out)
    call.ledger.multiples.extend((atoms, ALIGNED) for atoms in (inner, out) if atoms is not None)
    zero = all(label.zero for label in right if 2 in label.dims)
    return [(Label(axis(out, 1, 2), zero), *without(get(a), [1]))]


@rule("convolutions")
def convolution(call: Call) -> Sequence[Labels]:
    """Convolutions of any rank: dense, grouped, depthwise, transposed."""
    x, weight, bias = call.args[:3]
    transposed, groups = bool(call.args[6]), int(call.args[8])
    batched = x.dim() == weight.dim()
    c = 1 if batched else 0
    space = range(c + 1, x.dim())
    given = call.ledger.collapse_all(get(x), space, f"it is mixed over space ({call.where})")
    channels = call.ledger.along(given, c, f"it is mixed by {call.where}")
    kernel = call.ledger.collapse_all(get(weight), range(2, weight.dim()), "it is a kernel's space, not a channel")
    w = [call.ledger.along(kernel, d, f"it is mixed by {call.where}") for d in (0, 1)]
    takes = 0 if transposed and groups == 1 else 1
    if not all(label.zero for label in get(weight) if takes in label.dims):
        call.ledger.fix_all(get(weight), f"the weight is computed from other weights ({call.where})")
    if groups == 1:
        w_in, w_out = (w[0], w[1]) if transposed else (w[1], w[0])
        tie(call, channels, w_in)
        call.size(weight, "in_channels", channels)
    else:
        w_out = _grouped(call, x.shape[c], call.out.shape[c], groups, channels, w, transposed)
    if w_out is None:
        out: Labels = ()
    else:
        call.ledger.produced.append(w_out)
        call.size(weight, "out_channels", w_out)
        zero = all(label.zero for label in get(weight))
        out = (Label(axis(w_out, c, call.out.dim()), zero),)
    if bias is not None:
        shape = (-1,) + (1,) * (call.out.dim() - c - 1)
        added = tuple(Label(y.atoms.reshape(shape), y.zero) for y in get(bias))
        reason = f"it meets a tensor of fixed width ({call.where})"
        operands = [(out, call.out.shape), (added, bias.reshape(shape).shape)]
        out = combine(call.ledger, operands, call.out.dim(), "all", reason)
    keep = without(given, [c])
    return [disjoint(call, (*out, *keep))]


@rule("deformable convolutions")
def deformable(call: Call) -> Sequence[Labels]:
    """A convolution that reads at places which are computed for each group of its channels: these stay as many, and all
    lose the same positions."""
    x, weight, *places, bias = call.args[:5]
    for t in places:
        call.ledger.fix_all(get(t), f"it says where {call.where} reads")
    many = int(call.args[12])
    for label in [label for label in get(x) if 1 in label.dims and many > 1]:
        grid = label.atoms.unflatten(1, (many, -1))
        call.ledger.same(grid, grid[:, :1], f"{call.where} reads it in groups")
    stride, padding, dilation = (list(call.args[i : i + 2]) for i in (5, 7, 9))
    plain = (x, weight, bias, stride, padding, dilation, False, [0, 0], int(call.args[11]))
    return convolution(replace(call, args=plain))


def _grouped(
    call: Call, c_in: int, c_out: int, groups: int, channels: Tensor | None, w: list[Tensor | None], transposed: bool
) -> Tensor | None:
    """Grouped convolutions stay legal in one of two ways, whichever leaves more units: whole groups vanish with all
    their inputs and outputs, or all groups lose the same positions."""
    a, b = c_in // groups, c_out // groups
    rows, columns = w  # [c_out], [a]; transposed [c_in], [b]
    ledger, where = call.ledger, f"a grouped {call.where} takes it beside a tensor of fixed width"
    if channels is not None and rows is not None and (groups >= a or min(a, b) == 1):
        first = channels.reshape(groups, a)[:, :1]
        ledger.same(first, channels.reshape(groups, a), where)
        ledger.same(first, rows.reshape(groups, -1), where)
        if columns is not None:
            ledger.fix(columns, "it is inside a group of channels")
        out = first.expand(groups, b).reshape(-1)
        call.size(call.args[1], "groups", first.reshape(-1))
        call.size(call.args[1], "in_channels", channels)
        return out
    inner = rows if transposed else columns
    tiled = None if inner is None else inner if transposed else inner.repeat(groups)
    if tiled is not None and channels is not None:
        ledger.same(channels, tiled, where)
    else:
        tie(call, channels, tiled)
    call.size(call.args[1], "in_channels", channels)
    for atoms in (channels, rows):
        if atoms is not None:
            grid = atoms.reshape(groups, -1)
            ledger.same(grid, grid[:1], where)
    if transposed:
        return None if columns is None else columns.repeat(groups)
    return rows
