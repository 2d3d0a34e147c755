"""How many units of each layer stay active: uniform, ER, ERK, or given by name; exact counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from regrow.errors import UserError

Shapes = Mapping[str, Sequence[int]]


def erdos_renyi(shape: Sequence[int]) -> float:
    """ER's raw density (c_in + c_out) / (c_in · c_out), blind to the kernel's size (Mocanu et al. 2018)."""
    rows, columns = shape[0], shape[1] if len(shape) > 1 else 1
    return (rows + columns) / (rows * columns)


def erdos_renyi_kernel(shape: Sequence[int]) -> float:
    """ERK's raw density, (sum of the shape) / (product of the shape) (Evci et al. 2020)."""
    return sum(shape) / math.prod(shape)


RAW: dict[str, Callable[[Sequence[int]], float]] = {
    "uniform": lambda shape: 1.0,
    "er": erdos_renyi,
    "erk": erdos_renyi_kernel,
}


def densities(shapes: Shapes, density: float, raw: Callable[[Sequence[int]], float]) -> dict[str, float]:
    """Each layer's share, ε·raw(shape) with one ε for all, so that `density` of all entries is active.

    Layers that would go beyond 1 become dense, and ε is solved again for the others.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        wanted = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        mass = sum(raw(shapes[name]) * sizes[name] for name in shapes if name not in dense)
        epsilon = wanted / mass if mass else 0.0
        over = {name for name in shapes if name not in dense and epsilon * raw(shapes[name]) > 1}
        if not over:
            return {name: 1.0 if name in dense else epsilon * raw(shapes[name]) for name in shapes}
        dense |= over


def round_to_total(wanted: Mapping[str, float], sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Whole counts nearest to `wanted` with exactly this total, none below 1 (no layer is cut) or above its size.

    Largest remainder first, ties by order of the layers.

    Raises:
        UserError: where the total leaves a layer without a single unit.
    """
    if total < len(sizes):
        raise UserError(
            f"{total} active units cannot cover {len(sizes)} layers, and a layer without any cuts the network; "
            "lower the sparsity or exclude small layers"
        )
    counts = {name: min(max(math.floor(wanted[name]), 1), sizes[name]) for name in sizes}
    missing = total - sum(counts.values())
    step = 1 if missing > 0 else -1
    while missing:
        # a first round by remainder; further rounds only where layers are at their bounds
        order = sorted(sizes, key=lambda name: step * (counts[name] - wanted[name]))
        room = [name for name in order if 1 <= counts[name] + step <= sizes[name]]
        for name in room[: abs(missing)]:
            counts[name] += step
            missing -= step
    return counts


def active_counts(
    shapes: Shapes, sparsity: float, distribution: str, named: Mapping[str, float] | None = None
) -> dict[str, int]:
    """The number of active entries of each layer at `sparsity`.

    Args:
        shapes: layer name → shape of its weight.
        sparsity: share of all entries (of those not in `named`) that is removed.
        distribution: "uniform", "er" or "erk"; "global" starts from uniform.
        named: layer name → density, for layers that are given by name and take no part in the rest.

    Raises:
        UserError: where no layer could keep a unit.
    """
    named = named or {}
    rest = {name: shape for name, shape in shapes.items() if name not in named}
    sizes = {name: math.prod(shape) for name, shape in rest.items()}
    counts = {name: max(1, round(share * math.prod(shapes[name]))) for name, share in named.items()}
    if rest:
        raw = RAW["uniform" if distribution == "global" else distribution]
        share = densities(rest, 1 - sparsity, raw)
        total = round((1 - sparsity) * sum(sizes.values()))
        counts |= round_to_total({name: share[name] * sizes[name] for name in rest}, sizes, total)
    return {name: counts[name] for name in shapes}
