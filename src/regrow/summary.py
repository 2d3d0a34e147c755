"""What a sparsifier does to a model, in words and numbers: nobody has to guess what was skipped."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regrow.sparsifier import Sparsifier

MUCH = 0.1  # of the parameters; more that no pattern sees is worth a warning


@dataclass(frozen=True)
class Layer:
    """One sparsified parameter.

    Attributes:
        name: canonical.
        shape: in the dense model.
        active: entries in use.
    """

    name: str
    shape: tuple[int, ...]
    active: int

    @property
    def total(self) -> int:
        """All its entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Reason:
    """Parameters that stay dense for one reason.

    Attributes:
        why: the reason.
        names: the parameters, the largest first.
        entries: of all of them.
    """

    why: str
    names: tuple[str, ...]
    entries: int


@dataclass(frozen=True)
class Summary:
    """A picture of a sparsifier at one step; ``str()`` or ``print()`` shows it as text.

    Attributes:
        method, pattern, criterion: as they were given.
        steps: (done, in all).
        phase: of the coming step.
        updates: how many there are.
        cycle: the phases of one update, (name, steps).
        layers: what is sparsified.
        widths: group of channels → (active, all); empty for other patterns.
        budgets: kind of cost → (now, at the end), as shares of the dense model's.
        dense: what stays dense, the most first.
        parameters: of the whole model, when dense.
        flops: of a forward pass for one example, (now, dense); None where no batch has been seen.
        notes: what else there is to say.
    """

    method: str
    pattern: str
    criterion: str
    steps: tuple[int, int]
    phase: str
    updates: int
    cycle: tuple[tuple[str, int], ...]
    layers: tuple[Layer, ...]
    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    budgets: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    dense: tuple[Reason, ...] = ()
    parameters: int = 0
    flops: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()

    @property
    def density(self) -> float:
        """Active / all sparsified entries."""
        total = sum(layer.total for layer in self.layers)
        return sum(layer.active for layer in self.layers) / total if total else 1.0

    def head(self) -> str:
        """A few lines: what, how far, when, and what it costs."""
        lines = [f"{self.method} on {self.pattern}, criterion {self.criterion}"]
        total = sum(layer.total for layer in self.layers)
        if self.layers:
            shares = [layer.active / layer.total for layer in self.layers]
            lines.append(
                f"sparsified: {total:,} of {self.parameters:,} parameters in {len(self.layers)} tensors; density "
                f"{self.density:.2%} now, {min(shares):.1%} to {max(shares):.1%} each"
            )
        if self.budgets:
            said = (f"{kind} {now:.1%} now, {end:.1%} at the end" for kind, (now, end) in self.budgets.items())
            lines.append(f"budgets, of the dense model: {'; '.join(said)}")
        done, steps = self.steps
        cycle = " + ".join(f"{n} {name}" for name, n in self.cycle)
        lines.append(f"step {done:,} of {steps:,}, phase {self.phase}; {self.updates} updates of {cycle or 'no'} steps")
        if self.flops is not None:
            now, dense = self.flops
            lines.append(f"FLOPs of a forward pass: {now:.4g} of {dense:.4g} ({now / dense if dense else 1:.1%})")
        return "\n".join(lines)

    def __str__(self) -> str:
        lines = [self.head()]
        if self.widths:
            lines += ["", "group                                     channels"]
            lines += [f"{name:<40}  {kept:>5} of {size}" for name, (kept, size) in self.widths.items()]
        elif self.layers:
            lines += ["", "layer                                     shape               density"]
            lines += [
                f"{one.name:<40}  {'×'.join(map(str, one.shape)):<18}  {one.active / one.total:7.2%}"
                for one in self.layers
            ]
        if self.dense:
            lines += ["", "keeps all outputs:" if self.widths else "stays dense:"]
            for reason in self.dense:
                share = reason.entries / self.parameters if self.parameters else 0.0
                lines.append(f"  {share:6.1%} of the parameters, as {reason.why}: {_shown(reason.names, 4)}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def of(sparsifier: Sparsifier) -> Summary:
    """The picture of a sparsifier as it is now."""
    units, timeline = sparsifier._units, sparsifier._timeline
    shapes = sparsifier.dense_shapes()
    layers = tuple(Layer(name, shapes[name], int(mask.sum())) for name, mask in sparsifier.masks.items())
    flops = sparsifier._accounts.flops()
    now = None if flops is None else flops.inference(sparsifier.layer_density())
    return Summary(
        method=repr(sparsifier.method), pattern=repr(sparsifier.pattern) if layers else "nothing",
        criterion=sparsifier.criterion.name, steps=(sparsifier.step_count, sparsifier.total_steps),
        phase=sparsifier.phase, updates=timeline.updates,
        cycle=tuple((phase.name, phase.steps) for phase in timeline.cycle if phase.steps),
        layers=layers, widths=units.widths(), budgets=units.costs(),
        dense=reasons(units.dense, {name: math.prod(shape) for name, shape in shapes.items()}),
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        flops=None if flops is None or now is None else (now, flops.total),
        notes=(units.note,) if units.note else (),
    )  # fmt: skip


def reasons(dense: Mapping[str, str], entries: Mapping[str, int]) -> tuple[Reason, ...]:
    """What stays dense, by reason, the most first.

    Args:
        dense: parameter → why.
        entries: parameter → how many entries of it stay dense for that.
    """
    by_reason: dict[str, list[str]] = {}
    for name, why in dense.items():
        by_reason.setdefault(why, []).append(name)
    found = [
        Reason(why, tuple(sorted(names, key=lambda name: -entries.get(name, 0))), sum(entries.get(n, 0) for n in names))
        for why, names in by_reason.items()
    ]
    return tuple(sorted(found, key=lambda one: -one.entries))


def unseen(dense: Iterable[Reason], parameters: int, decided: Collection[str]) -> str:
    """A warning where much of a model is left out without anybody having decided so; "" where it is not.

    Args:
        dense: what stays dense.
        parameters: of the whole model.
        decided: reasons that somebody has decided for.
    """
    left = [one for one in dense if one.why not in decided]
    share = sum(one.entries for one in left) / parameters if parameters else 0.0
    if share <= MUCH:
        return ""
    said = "; ".join(f"{_shown(one.names, 1)}, as {one.why}" for one in left[:2])
    return (
        f"{share:.0%} of the model's parameters stay dense although nobody has excluded them ({said}); see "
        "sparsifier.summary(), and exclude= what is meant to stay"
    )


def _shown(names: tuple[str, ...], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
