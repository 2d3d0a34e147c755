"""Rules for operations that write one tensor into places of another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regrow.coupling.labels import Label, Labels, combine
from regrow.coupling.rules import Call, get, is_blank, rule, unknown


@rule("writes")
def write(call: Call) -> Sequence[Labels]:
    """x[i, j] = y: what is written has the channels of the tensor, along the dimensions that are not indexed."""
    x, indices, y = call.x, call.args[1], call.args[2]
    picked = [d for d, index in enumerate(indices) if index is not None]
    together = picked == list(range(picked[0], picked[0] + len(picked)))
    mask = indices[picked[0]] if indices[picked[0]].dtype in (torch.bool, torch.uint8) else None
    if not together or any(indices[d].dtype in (torch.bool, torch.uint8) for d in picked[1:]):
        return unknown(call)
    if mask is not None:  # it stands for as many dimensions as it has
        picked = [*range(picked[0], picked[0] + mask.dim()), *(d + mask.dim() - 1 for d in picked[1:])]
    behind = x.dim() - picked[-1] - 1  # dimensions after those that are indexed
    if mask is not None and len(picked) == mask.dim() and all(n == 1 for n in y.shape[: y.dim() - behind]):
        return _where(call, mask, picked[0], behind)
    if y.dim() < behind:
        return unknown(call)
    places = f"it is written to fixed places ({call.where})"
    for index in indices:
        call.ledger.fix_all(get(index), places)
    left = call.ledger.collapse_all(get(x), picked, places)
    given = call.ledger.collapse_all(get(y), range(y.dim() - behind), f"it is written apart ({call.where})")
    if picked[0]:  # dimensions before the indexed ones
        call.ledger.fix_all([a for a in left if min(a.dims) < picked[0]], places)
        left = tuple(a for a in left if min(a.dims) > picked[-1])
    moved = _lifted(given, y, x.dim())
    source = [1 if d < x.dim() - behind else n for d, n in enumerate(x.shape)]
    if is_blank(x):
        x._regrow_blank = False  # type: ignore[attr-defined]
        return [moved]
    reason = f"it meets a tensor of fixed width ({call.where})"
    return [combine(call.ledger, [(left, x.shape), (moved, source)], x.dim(), "all", reason)]


def _where(call: Call, mask: Tensor, first: int, behind: int) -> Sequence[Labels]:
    """x[mask] = y, where y is the same at all places: it works on each entry for itself."""
    x, y = call.x, call.args[2]
    before, after = (1,) * first, (1,) * behind
    masked = tuple(Label(m.atoms.reshape(*before, *m.atoms.shape, *after), m.zero) for m in get(mask))
    source = [1] * (x.dim() - y.dim()) + list(y.shape) if y.dim() <= x.dim() else list(y.shape[-x.dim() :])
    operands = [(get(x), x.shape), (masked, [*before, *mask.shape, *after]), (_lifted(get(y), y, x.dim()), source)]
    zero = "first" if y.dim() and all(label.zero for label in get(y)) and get(y) else "none"
    return [combine(call.ledger, operands, x.dim(), zero, f"it meets a tensor of fixed width ({call.where})")]


def _lifted(labels: Labels, y: Tensor, rank: int) -> Labels:
    """Labels of the last dimensions of a tensor that is broadcast to another of this rank."""
    result = []
    for label in labels:
        lengths = [1] * rank
        for d in label.dims:
            lengths[d - y.dim()] = y.shape[d]
        result.append(Label(label.atoms.reshape(lengths), label.zero))
    return tuple(result)


@rule("writes along a dimension")
def write_along(call: Call) -> Sequence[Labels]:
    """Another tensor, or a number, in places along one dimension, which cannot vanish on their own."""
    x, scattered = call.x, call.name.endswith(("select_scatter", "slice_scatter"))
    dim = (call.at(2, "dim", 0) if scattered else call.at(1, "dim")) % x.dim()
    source = call.at(1, "src") if scattered else call.args[3] if len(call.args) > 3 else None
    places = f"it is written to fixed places ({call.where})"
    pairs = [(call.ledger.collapse_all(get(x), [dim], places), x.shape)]
    if isinstance(source, Tensor) and source.dim():
        if "select" in call.name:
            given = tuple(Label(y.atoms.unsqueeze(dim), y.zero) for y in get(source))
        else:
            given = call.ledger.collapse_all(get(source), [dim], places)
        lengths = [1 if d == dim else n for d, n in enumerate(x.shape)]
        pairs.append((given, torch.Size(lengths)))
    zero = "all" if len(pairs) > 1 else "none"
    if is_blank(x):
        x._regrow_blank = False  # type: ignore[attr-defined]
        pairs = pairs[1:]
    return [combine(call.ledger, pairs, x.dim(), zero, f"it meets a tensor of fixed width ({call.where})")]
