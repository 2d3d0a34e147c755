"""What is done where a phase ends, as plain values: the engine carries them out on tensors, the plan on counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from regrow.state import Init

How = Literal["random", "criterion"]
Final = Mapping[str, tuple[int, int]]  # parameter → (active, all) of its units once the target is reached


@dataclass(frozen=True)
class Start:
    """Takes the first structure, of this sparsity: at random, or the best by the criterion. Where latent weights train,
    what it leaves out is among them, at its value."""

    sparsity: float
    how: How = "random"


@dataclass(frozen=True)
class Prune:
    """Keeps the most important active units: as many as this sparsity leaves, less the share `churn` of them in every
    layer that is not dense, which a `Grow` is to replace."""

    sparsity: float
    churn: float = 0.0


@dataclass(frozen=True)
class Explore:
    """Brings every removed unit back, to train from this value in a phase that trains ``"removed"``, ``"all"`` or
    ``"latent"``."""

    value: Literal["mru", "zero"] = "mru"


@dataclass(frozen=True)
class Grow:
    """Adds the most important units outside of the active structure, until this sparsity; the rest is removed."""

    sparsity: float
    init: Init = "mru"


@dataclass(frozen=True)
class Select:
    """Ranks all units anew, active or not: the best that this sparsity leaves are the active structure."""

    sparsity: float


Action = Start | Prune | Explore | Grow | Select


def sparsity_of(final: Final) -> float:
    """The share of all units that these (active, all) leave out; 0.0 where there are none."""
    total = sum(size for _, size in final.values())
    return 1 - sum(active for active, _ in final.values()) / total if total else 0.0


def counts_at(final: Final, sparsity: float) -> dict[str, int]:
    """Active units per layer where all layers have gone the same share of the way to their final (active, all)."""
    target = sparsity_of(final)
    progress = 1.0 if target == 0 else min(sparsity / target, 1.0)
    return {name: size - round(progress * (size - active)) for name, (active, size) in final.items()}


def kept(count: int, size: int, churn: float) -> int:
    """How many of `count` active units of a layer an update keeps before it grows; all where the layer is dense."""
    return count if count == size else count - math.floor(churn * count)


def counts_after(action: Action, final: Final, now: Mapping[str, int]) -> dict[str, int]:
    """Active units per layer once an action is carried out.

    Args:
        action: that a method asks for.
        final: (active, all) at the target.
        now: active units before.
    """
    match action:
        case Explore():
            return dict(now)
        case Prune(sparsity, churn):
            return {name: kept(count, final[name][1], churn) for name, count in counts_at(final, sparsity).items()}
        case _:
            return counts_at(final, action.sparsity)
