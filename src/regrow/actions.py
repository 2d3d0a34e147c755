"""What is done where a phase ends, as plain values: the engine carries them out on tensors, the plan on counts.

All of them refuse options outside of their range with a `UserError` that names them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from regrow import hints
from regrow.errors import UserError
from regrow.state import Init

Share = Literal["fixed", "survivors", "scores", "all"]
How = Literal["random", "criterion"]
Final = Mapping[str, tuple[int, int]]  # parameter → (active, all) of its units once the target is reached


def _check_share(action: object, option: str, most: float = 1.0) -> None:
    """Refuses what is no number of at least 0, up to `most`."""
    value = getattr(action, option)
    if not isinstance(value, int | float) or not 0 <= value <= most:
        wanted = "a finite number, at least 0" if most > 1 else "a share from 0 to 1"
        raise UserError(f"{option} of {type(action).__name__} is {hints.show(value)}, but must be {wanted}")


def _check_words(action: Any) -> None:
    """Refuses words that the annotations do not name."""
    for option, hint in hints.options(action.__class__).items():
        if hints.is_literal(hint):
            hints.check_value(f"{option} of {type(action).__name__}", getattr(action, option), hint)


@dataclass(frozen=True)
class Start:
    """Takes the first structure, of this sparsity: at random, or the best by the criterion. Where latent weights train,
    what it leaves out is among them, at its value."""

    sparsity: float
    how: How = "random"

    def __post_init__(self) -> None:
        _check_share(self, "sparsity")
        _check_words(self)


@dataclass(frozen=True)
class Prune:
    """Keeps the most important active units: as many as this sparsity leaves, less the share `churn` of them in every
    layer that is not dense, which a `Grow` is to replace.

    `layers` says how many each layer keeps: ``"fixed"`` what the pattern gives it; ``"now"`` what it has come to, where
    growing shares out anew; ``"all"`` what is among the best of all layers ranked together."""

    sparsity: float
    churn: float = 0.0
    layers: Literal["fixed", "now", "all"] = "fixed"

    def __post_init__(self) -> None:
        _check_share(self, "sparsity")
        _check_share(self, "churn")
        if self.churn == 1:
            raise UserError("churn of Prune is 1, but must be below 1: every layer keeps something")
        _check_words(self)


@dataclass(frozen=True)
class Explore:
    """Brings every removed unit back, to train from this value in a phase that trains ``"removed"``, ``"all"`` or
    ``"latent"``."""

    value: Literal["mru", "zero"] = "mru"

    def __post_init__(self) -> None:
        _check_words(self)


@dataclass(frozen=True)
class Grow:
    """Adds the most important units outside of the active structure, until this sparsity; the rest is removed.

    `beyond` adds that share of each layer's units more, which the next `Prune` takes back (MEST's soft memory bound).
    `layers` says where units are added: ``"fixed"`` as the pattern gives each layer; in proportion to each layer's
    ``"survivors"`` (DSR), or to the mean score of its active units (SNFS); or the best of ``"all"`` layers."""

    sparsity: float
    init: Init = "mru"
    beyond: float = 0.0
    layers: Share = "fixed"

    def __post_init__(self) -> None:
        _check_share(self, "sparsity")
        _check_share(self, "beyond", hints.LARGEST)
        _check_words(self)


@dataclass(frozen=True)
class Fill:
    """Brings back every unit of one part of the layers, which are split in their order into `parts` parts as even as
    can be; the other layers stay as they are."""

    part: int
    parts: int
    init: Init = "zero"

    def __post_init__(self) -> None:
        _check_words(self)
        if not 0 <= self.part < self.parts:
            raise UserError(f"part of Fill is {self.part!r}, but must be one of {self.parts!r} parts, counted from 0")

    def layers(self, names: Sequence[str]) -> Sequence[str]:
        """Those of the part, of all layers in their order."""
        return names[len(names) * self.part // self.parts : len(names) * (self.part + 1) // self.parts]


@dataclass(frozen=True)
class Select:
    """Ranks all units anew, active or not: the best that this sparsity leaves are the active structure."""

    sparsity: float

    def __post_init__(self) -> None:
        _check_share(self, "sparsity")


Action = Start | Prune | Explore | Grow | Fill | Select


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


def with_more(count: int, size: int, beyond: float) -> int:
    """How many units a layer of `count` active ones has with this share of them more."""
    return min(size, count + math.floor(beyond * count))


def shared(total: int, weights: Mapping[str, float], room: Mapping[str, int]) -> dict[str, int]:
    """Shares units out among layers in proportion to weights, none getting more than it has room for: whole parts
    first, then one each by the largest remainders; what does not fit goes to the others, in proportion again.

    Args:
        total: at most all the room there is.
        weights: of each layer, not negative; where none of those with room left has any, all count the same.
        room: of each layer.
    """
    given = dict.fromkeys(weights, 0)
    while total > 0:
        free = {name: room[name] - given[name] for name in weights if room[name] > given[name]}
        whole = sum(weights[name] for name in free)
        part = {name: total * (weights[name] / whole if whole > 0 else 1 / len(free)) for name in free}
        more = {name: min(math.floor(part[name]), free[name]) for name in free}
        if all(more[name] == math.floor(part[name]) for name in free):  # whoever is full leaves the others more
            open_ = [name for name in free if more[name] < free[name]]
            for name in sorted(open_, key=lambda name: more[name] - part[name])[: total - sum(more.values())]:
                more[name] += 1
        for name, count in more.items():
            given[name] += count
        total -= sum(more.values())
    return given


def counts_after(action: Action, final: Final, now: Mapping[str, int]) -> dict[str, int]:
    """Active units per layer once an action is carried out; where layers are ranked together or share anew, as if they
    kept the pattern's counts.

    Args:
        action: that a method asks for.
        final: (active, all) at the target.
        now: active units before.
    """
    match action:
        case Explore():
            return dict(now)
        case Fill():
            return {**now, **{name: final[name][1] for name in action.layers(list(final))}}
        case Prune(sparsity, churn, layers):
            before = now if layers == "now" else counts_at(final, sparsity)
            return {name: kept(count, final[name][1], churn) for name, count in before.items()}
        case Grow(sparsity, _, beyond):
            return {name: with_more(n, final[name][1], beyond) for name, n in counts_at(final, sparsity).items()}
        case _:
            return counts_at(final, action.sparsity)
