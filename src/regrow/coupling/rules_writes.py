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
    masks = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
    if not together or masks or y.dim() < x.dim() - picked[-1] - 1:
        return unknown(call)
    places = f"it is written to fixed places ({call.where})"
    left = call.ledger.collapse_all(get(x), picked, places)
    behind = x.dim() - picked[-1] - 1  # dimensions after those that are indexed
    lift = y.dim() - x.dim()
    free = range(y.dim() - behind, y.dim())
    given = call.ledger.collapse_all(get(y), set(range(y.dim())) - set(free), f"it is written apart ({call.where})")
    if picked[0]:  # dimensions before the indexed ones
        call.ledger.fix_all([a for a in left if min(a.dims) < picked[0]], places)
        left = tuple(a for a in left if min(a.dims) > picked[-1])
    shape = [1] * x.dim()
    moved = []
    for label in given:
        lengths = list(shape)
        for d in label.dims:
            lengths[d - lift] = y.shape[d]
        moved.append(Label(label.atoms.reshape(lengths), label.zero))
    source = [1 if d < x.dim() - behind else n for d, n in enumerate(x.shape)]
    if is_blank(x):
        x._regrow_blank = False  # type: ignore[attr-defined]
        return [tuple(moved)]
    reason = f"it meets a tensor of fixed width ({call.where})"
    return [combine(call.ledger, [(left, x.shape), (tuple(moved), source)], x.dim(), "all", reason)]


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
