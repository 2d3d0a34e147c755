"""Rules for normalisations and what else has parameters for each channel."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from regrow.coupling.labels import Label, Labels, combine
from regrow.coupling.rules import Call, elementwise, get, rule, tie


@rule("batch norms")
def batch_norm(call: Call) -> Sequence[Labels]:
    """Each channel for itself, with affine parameters and running statistics. Of a standardised weight, a channel is a
    row, and what it takes vanishes together."""
    x = call.x
    reason = f"it is normalised together with others ({call.where})"
    others = [d for d in range(x.dim()) if d != 1]
    left = []
    for label in get(x):
        if label.dims <= set(others):  # as under a layer norm; without what is removed, there are zeros in its place
            call.ledger.fix(label.atoms, reason, soft=True)
            left.append(label)
    given = call.ledger.collapse_all(tuple(y for y in get(x) if 1 in y.dims), others, reason, soft=True)
    channels = call.ledger.along(given, 1, reason)
    for owner in [t for t in call.args[1:5] if isinstance(t, Tensor)]:
        tie(call, channels, call.ledger.along(get(owner), 0, reason))
    call.size(None, "num_features", _once(channels, call.attributes.get("num_features", 0)))
    return [(*left, *(Label(y.atoms) for y in given)), (), ()]


def _once(channels: Tensor | None, width: int) -> Tensor | None:
    """Channels without their repetition for every image of the batch (instance norm)."""
    if channels is None or not width or channels.numel() % width:
        return channels
    first = channels[:width]
    return first if bool((channels.reshape(-1, width) == first).all()) else channels


@rule("layer norms")
def layer_norm(call: Call) -> Sequence[Labels]:
    """What is normalised together vanishes together."""
    x, shape = call.x, call.args[1]
    dims = range(x.dim() - len(shape), x.dim())
    reason = f"its channels are normalised together, so removing some changes the others ({call.where})"
    left = []
    for label in get(x):
        if label.dims <= set(dims):  # whole: it cannot vanish unless a user insists, and is followed in case
            call.ledger.fix(label.atoms, reason, soft=True)
            left.append(label)
            call.size(None, "normalized_shape", label.atoms.reshape(-1) if len(shape) == 1 else None, 0)
        elif call.narrow and label.dims & set(dims):  # heads, of which none goes whole
            call.ledger.fix(label.atoms, reason)
        else:
            left.extend(call.ledger.collapse_all((label,), dims, reason))
    for owner in call.args[2:4]:
        if isinstance(owner, Tensor):
            _insist(call, x, owner, len(shape), reason)
    return [tuple(Label(y.atoms) for y in left), (), ()]


def _insist(call: Call, x: Tensor, owner: Tensor, rank: int, reason: str) -> None:
    """Affine parameters follow the channels that a user insists on."""
    channels = next((y.atoms.reshape(-1) for y in get(x) if y.dims == {x.dim() - 1}), None) if rank == 1 else None
    own = call.ledger.along(get(owner), 0, reason) if rank == 1 else None
    if channels is None or own is None:
        call.ledger.fix_all(get(owner), reason)
        return
    call.ledger.same(channels, own, reason)
    call.size(owner, "normalized_shape", channels, 0)


@rule("group norms")
def group_norm(call: Call) -> Sequence[Labels]:
    """Whole groups of the norm vanish."""
    x, groups = call.x, int(call.args[6])
    reason = f"its channels are normalised together, so removing some changes the others ({call.where})"
    given = call.ledger.collapse_all(get(x), [d for d in range(x.dim()) if d != 1], reason, soft=True)
    channels = call.ledger.along(given, 1, reason)
    owners = [t for t in call.args[1:3] if isinstance(t, Tensor)]
    for owner in owners:
        tie(call, channels, call.ledger.along(get(owner), 0, reason))
        call.size(owner, "num_channels", channels)
    if channels is None:
        return [(), (), ()]
    grid = channels.reshape(groups, -1)
    if groups == 1:
        call.ledger.fix(channels, reason, soft=True)
    else:
        call.ledger.same(grid, grid[:, :1], reason)
        for owner in owners:
            call.size(owner, "num_groups", grid[:, 0])
    return [tuple(Label(y.atoms) for y in given), (), ()]


@rule("slopes")
def prelu(call: Call) -> Sequence[Labels]:
    """One slope, or one for each channel."""
    x, slope = call.args[:2]
    if slope.dim() == x.dim():
        return elementwise(call)
    if slope.numel() > 1:
        reason = f"it meets a tensor of fixed width ({call.where})"
        channels = call.ledger.along(get(x), 1, reason)
        tie(call, channels, call.ledger.along(get(slope), 0, reason))
        call.size(slope, "num_parameters", channels)
    return [tuple(Label(y.atoms) for y in get(x))]


@rule("weight norms")
def weight_norm(call: Call) -> Sequence[Labels]:
    """A direction, divided by its length along all dimensions but one, times a gain. Zeros do not change the length,
    but a row of zeros has none: of a removed row only the gain is zero."""
    direction, gain = call.args[:2]
    reason = f"it meets a tensor of fixed width ({call.where})"
    rows = {d for d, n in enumerate(gain.shape) if n > 1}
    inner = [label for label in get(direction) if not label.dims & rows and not label.zero]
    call.ledger.fix_all(inner, f"it changes the length of its row ({call.where})")
    call.ledger.lasting.extend(label.atoms.reshape(-1) for label in get(direction) if label.dims & rows)
    pairs = [(get(direction), direction.shape), (get(gain), gain.shape)]
    return [combine(call.ledger, pairs, direction.dim(), "first", reason), ()]
