"""What a sparsifier does to a model, in words and numbers: nobody has to guess what was skipped."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import FunctionType

from regrow.actions import sparsity_of
from regrow.budgets.amounts import written
from regrow.engine import Engine
from regrow.errors import UserError
from regrow.patterns.pattern import Pattern
from regrow.plan import planned_cost

_KINDS = {"latency": "latency", "flops": "FLOPs", "params": "parameters"}
_LONGEST = 60  # characters of an option's value
_MOST = 10_000  # updates; the cost of more takes longer to foresee than a print may last
MUCH = 0.1  # of the parameters; more that no pattern sees is worth a warning


@dataclass(frozen=True)
class LayerSummary:
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

    def line(self, shown: str, parameters: int) -> str:
        """A sentence: what (as `shown` names it) stays dense, why, and how much of all parameters that is."""
        share = self.entries / parameters if parameters else 0.0
        much = f"{share:.1%}" if share >= 0.0005 or not share else "less than 0.1%"
        return f"{shown}: {self.why} ({much} of the parameters)"


@dataclass(frozen=True)
class Summary:
    """A picture of a sparsifier at one step; ``str()`` or ``print()`` shows it as text.

    Attributes:
        method, pattern, criterion: by name, with the options that differ from the defaults.
        steps: (done, in all).
        phase: of the coming step.
        updates: how many there are.
        cycle: the phases of one update, (name, steps).
        layers: what is sparsified.
        targets: layer → its density once the target is reached; for channels as they are now.
        target: the density of all of them then.
        widths: group of channels → (active, all); empty for other patterns.
        blocks: those of them that stand for a block, which goes whole.
        budgets: kind of cost → (now, at the end), as shares of the dense model's.
        latency_margin: half of the interval of the dense model's predicted latency, relative to it; None without a
            table that says so.
        dense: what stays dense, the most first.
        parameters: of the whole model, when dense.
        flops: of a forward pass for one example, (now, dense); None where no batch has been seen.
        expected_cost: training FLOPs of the whole run × those of dense training; None once it is over, and where nobody
            can know.
        spent_cost: of the steps so far × those of as many dense ones; None before the first, and without FLOPs.
        notes: what else there is to say.
    """

    method: str
    pattern: str
    criterion: str
    steps: tuple[int, int]
    phase: str
    updates: int
    cycle: tuple[tuple[str, int], ...]
    layers: tuple[LayerSummary, ...]
    targets: Mapping[str, float] = field(default_factory=dict)
    target: float = 1.0
    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    budgets: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    latency_margin: float | None = None
    dense: tuple[Reason, ...] = ()
    parameters: int = 0
    flops: tuple[float, float] | None = None
    expected_cost: float | None = None
    spent_cost: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def density(self) -> float:
        """Active / all sparsified entries."""
        total = sum(layer.total for layer in self.layers)
        return sum(layer.active for layer in self.layers) / total if total else 1.0

    def head(self) -> str:
        """A few lines: what becomes how sparse, when, what that costs, and by which options."""
        return "\n".join([self._what(), self._when(), self._cost(), self._how()])

    def _what(self) -> str:
        if not self.layers:
            return f"nothing is sparsified; all {self.parameters:,} parameters train dense"
        if self.widths:
            groups = {name: width for name, width in self.widths.items() if name not in self.blocks}
            active, size = (sum(column) for column in zip(*groups.values(), strict=True))
            shares = [kept / size for kept, size in groups.values()]
            gone = sum(not self.widths[name][0] for name in self.blocks)
            whole = f"; {gone} of {_several(len(self.blocks), 'block')} gone" if self.blocks else ""
            margins = {"latency": "" if self.latency_margin is None else f", ± {self.latency_margin:.1%} of that"}
            ends = ", ".join(
                f"{_KINDS[kind]} to {end:.1%} (now {now:.1%}{margins.get(kind, '')})"
                for kind, (now, end) in self.budgets.items()
            )
            return (
                f"{ends} of the dense model's; {active:,} of {size:,} channels, in "
                f"{_several(len(groups), 'group')}, are active now, {_range(shares, 0)} of each{whole}"
            )
        total = sum(layer.total for layer in self.layers)
        return (
            f"{total:,} of {self.parameters:,} parameters, in {_several(len(self.layers), 'tensor')}, to density "
            f"{self.target:.2%}, {_range(list(self.targets.values()), 1)} per layer (now {self.density:.2%})"
        )

    def _when(self) -> str:
        done, steps = self.steps
        cycle = " + ".join(f"{n} {name}" for name, n in self.cycle)
        one = "step" if sum(n for _, n in self.cycle) == 1 else "steps"
        updates = f"{_several(self.updates, 'update')} of {cycle} {one}" if self.updates else "no updates"
        return f"{updates}; step {done:,} of {steps:,}, phase {self.phase}"

    def _cost(self) -> str:
        if self.flops is None:
            return "training cost and FLOPs: known once the model has seen a batch, or with example_inputs="
        now, dense = self.flops
        share = f"{now / dense if dense else 1:.1%}"
        cost = "" if self.expected_cost is None else f"expected training cost {self.expected_cost:.2f} × dense"
        if self.spent_cost is not None:
            cost = f"{cost}, {self.spent_cost:.2f} so far" if cost else f"training cost {self.spent_cost:.2f} × dense"
        flops = f"{written('flops', now)} of {written('flops', dense)}"
        return f"{cost}{'; ' if cost else ''}FLOPs of a forward pass now {flops} ({share})"

    def _how(self) -> str:
        return f"by {self.method} on {self.pattern}, criterion {self.criterion}"

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
            lines += [f"  {reason.line(_shown(reason.names, 4), self.parameters)}" for reason in self.dense]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def of(engine: Engine, pattern: Pattern | None, shapes: Mapping[str, tuple[int, ...]]) -> Summary:
    """The picture of a run as it is now.

    Args:
        engine: of the run.
        pattern: what it sparsifies.
        shapes: of all parameters in the dense model, by canonical name.
    """
    units, timeline = engine.units, engine.timeline
    layers = tuple(LayerSummary(name, shapes[name], s.active_count) for name, s in engine.states.items())
    flops = None
    with suppress(UserError):  # training_cost() says why they cannot be counted; here they are left out
        flops = engine.accounts.flops()
    now = None if flops is None else flops.inference(engine.densities())
    final, cost = units.planned(), None
    done, steps = engine.step_count, timeline.total_steps
    over = engine.finished or done >= steps
    if flops is not None and final is not None and not over and timeline.updates <= _MOST:
        cost = planned_cost(engine.method, engine.criterion, final, flops, steps) / steps
    return Summary(
        method=options_of(engine.method), pattern=options_of(pattern) if layers else "nothing",
        criterion=engine.criterion.name, steps=(done, steps),
        phase=engine.span.phase, updates=timeline.updates,
        cycle=tuple((phase.name, phase.steps) for phase in timeline.cycle if phase.steps),
        layers=layers, targets={name: active / size for name, (active, size) in (final or {}).items()},
        target=1 - sparsity_of(final or {}), widths=units.widths(), blocks=units.blocks, budgets=units.costs(),
        latency_margin=units.table.margin() if units.table else None,
        dense=reasons(units.dense, {name: math.prod(shape) for name, shape in shapes.items()}),
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        flops=None if flops is None or now is None else (now, flops.total), expected_cost=cost,
        spent_cost=engine.training_cost()["total"] if flops is not None and done else None,
        notes=tuple(units.note.splitlines()),
    )  # fmt: skip


def options_of(instance: object) -> str:
    """A dataclass as what makes it, without the options that are at their defaults; anything else by its class.

    >>> from regrow import IEE
    >>> options_of(IEE(h=20))
    'IEE(h=20)'
    >>> options_of(options_of)
    'options_of'
    """
    if not dataclasses.is_dataclass(instance):
        if isinstance(instance, FunctionType):  # whose address nobody wants to see
            return instance.__name__
        text = repr(instance)
        return text if len(text) <= _LONGEST else f"{type(instance).__name__}(…)"
    given = []
    for one in dataclasses.fields(instance):
        value = getattr(instance, one.name)
        default = one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
        if one.init and (type(value) is not type(default) or value != default):
            given.append(f"{one.name}={options_of(value)}")
    return f"{type(instance).__name__}({', '.join(given)})"


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


def _several(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _range(shares: Sequence[float], digits: int) -> str:
    low, high = f"{min(shares):.{digits}%}", f"{max(shares):.{digits}%}"
    return low if low == high else f"{low} to {high}"


def _shown(names: tuple[str, ...], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
