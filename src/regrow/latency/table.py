"""Tables of latency: measured points of each kind of unit, interpolated, stored with the machine's fingerprint."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from regrow import atomic, regular
from regrow.errors import UserError
from regrow.latency.machine import Machine
from regrow.latency.network import LAYERS, SINCE_3, Key, Network, Unit
from regrow.latency.spread import Spread

if TYPE_CHECKING:
    from regrow.latency.form import KeyForm, TableForm

FORMAT = "regrow-latency"
VERSION = 3
READS = (1, 2, 3)


@dataclass(frozen=True)
class Grid:
    """Measured seconds of one kind of unit.

    Attributes:
        c_in, c_out: strictly increasing channel counts; ``c_out`` is (0,) where the output is as wide as the input
        seconds: (len(c_in), len(c_out)), for a whole batch
        step: kernels handle so many channels at a time
        stairs: for input and output how much of a started step is paid: 0 as many channels as there are, 1 all of it
        error: relative standard error of the seconds, by their repeats
    """

    c_in: tuple[int, ...]
    c_out: tuple[int, ...]
    seconds: NDArray[np.float64]
    step: int = 16
    stairs: tuple[float, float] = (0.0, 0.0)
    error: float = 0.0

    def at(self, c_in: int, c_out: int) -> float:
        """Seconds by bilinear interpolation: exact at measured points, held constant below the smallest one."""
        row, up = _place(self.c_in, c_in, self.step, self.stairs[0])
        column, right = (0, 0.0) if len(self.c_out) == 1 else _place(self.c_out, c_out, self.step, self.stairs[1])
        rows = self.seconds[row : row + 2, column : column + 2]
        across = rows[:, 0] if right == 0.0 else rows[:, 0] * (1 - right) + rows[:, 1] * right
        return float(across[0] if up == 0.0 else across[0] * (1 - up) + across[1] * up)


def _place(points: tuple[int, ...], channels: int, step: int, stairs: float) -> tuple[int, float]:
    """Index of the point at or below, and the fraction of the way to the next (above 1 beyond the last)."""
    if len(points) == 1 or channels <= points[0]:
        return 0, 0.0
    index = min(int(np.searchsorted(points, channels, side="right")) - 1, len(points) - 2)
    low, high = points[index], points[index + 1]
    rounded = math.ceil(channels / step) * step
    if channels < high:  # points end a step too, so that they stay exact
        rounded = channels if channels == low else min(rounded, high)
    c = channels + stairs * (rounded - channels)
    return index, (c - low) / (high - low)


@dataclass(frozen=True)
class LatencyTable:
    """What the units of a model cost on a machine, in seconds per batch.

    Attributes:
        machine: where it was measured
        batch: examples at a time
        threads: that were used
        network: the units of the model it was measured for
        grids: measured points by kind of unit
        correction: factor on the units' own times, as they run a little differently among others than by themselves
        other: seconds of the whole that do not depend on widths
        measured: seconds of the whole dense model
        spread: how far predictions may be off; None in tables that do not say (of version 1, or made up)
    """

    machine: Machine
    batch: int
    threads: int
    network: Network
    grids: Mapping[Key, Grid]
    correction: float = 1.0
    other: float = 0.0
    measured: float = 0.0
    spread: Spread | None = None
    _units: dict[str, Unit] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._units.update({unit.name: unit for unit in self.network.units})

    def latency(self, key: Key | str, c_in: int, c_out: int) -> float:
        """Seconds per batch of one unit at these widths.

        Args:
            key: a kind of unit, or the name of one of the model's units ("layer1.0.conv1")
            c_in, c_out: channels; for units with one width ``c_in`` counts. A unit without channels takes no time

        Raises:
            UserError: if the table has no such unit.
        """
        found = key if isinstance(key, Key) else self._units[key].key if key in self._units else None
        if found is None or found not in self.grids:
            raise UserError(f"the latency table has no unit {key!s}: measure it with the model that has it")
        if not c_in or (not c_out and found.two_sided):  # it is not run
            return 0.0
        return self.correction * self.grids[found].at(c_in, c_out)

    def model(self, widths: Mapping[str, tuple[int, int]] | None = None) -> float:
        """Seconds per batch of the whole model at given widths.

        Args:
            widths: name of a layer → its (c_in, c_out); layers that are not named are dense. Pools, norms and the like
                have as many channels as the layers that feed them.

        Raises:
            UserError: if a name is not a layer of the model.
        """
        return sum((self.latency(*place) for place in self._at(widths)), self.other)  # in the order of `Prices.cost`

    def _at(self, widths: Mapping[str, tuple[int, int]] | None) -> list[tuple[Key, int, int]]:
        """The kind and the widths of each unit."""
        widths = dict(widths or {})
        if unknown := [name for name in widths if name not in self._units]:
            raise UserError(f"the latency table has no layer {unknown[0]}: it was measured for another model")
        return [(unit.key, *self._widths(unit, widths)) for unit in self.network.units]

    def _widths(self, unit: Unit, widths: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
        if unit.name in widths:
            return widths[unit.name]
        if unit.key.two_sided or not unit.sources or not all(s in self._units for s in unit.sources):
            return unit.c_in, unit.c_out
        dense = sum(self._units[s].c_out for s in unit.sources)
        if not unit.follows(dense):
            return unit.c_in, unit.c_out
        total = sum(widths[s][1] if s in widths else self._units[s].c_out for s in unit.sources)
        return (total * unit.c_in // dense,) * 2

    def predict(self, network: Network) -> float:
        """Seconds per batch of another model that is made of the same kinds of units, thin ones for example.

        Raises:
            UserError: if it has a unit that the table does not know.
        """
        return self.other + sum(self.latency(*place) for place in self._of(network))

    def known(self, network: Network) -> Network:
        """What of a model without some blocks this table can price: what is left of a sum or activation whose layer is
        not run has no price of its own, and a layer that takes them over is as it was.

        Args:
            network: of the model
        """
        units = []
        for unit in network.units:
            dense = self._units.get(unit.name)
            if known_key(unit, self._units, self.grids) in self.grids:
                units.append(unit)
            elif unit.key.kind in LAYERS and dense is not None and dense.key.kind == unit.key.kind:
                units.append(replace(unit, key=dense.key))
        return replace(network, units=tuple(units))

    def _of(self, network: Network) -> list[tuple[Key, int, int]]:
        kinds = {key.kind for key in self.grids}
        units = [unit for unit in network.units if unit.key.kind in kinds or unit.key.kind not in SINCE_3]
        return [(known_key(unit, self._units, self.grids), unit.c_in, unit.c_out) for unit in units]

    def interval(self, of: Network | Mapping[str, tuple[int, int]] | None = None) -> tuple[float, float] | None:
        """Between which seconds per batch the latency lies in nine of ten cases; `model` or `predict` is the middle.

        It has in it how far the repeats of the units lay apart, what the reference kernel and the dense model say of
        the machine, and how far the whole models that the table was fitted to lay from it.

        Args:
            of: widths as for `model`, or a network as for `predict`

        Returns:
            (low, high), or None where the table does not say how it was measured.

        Raises:
            UserError: as `model` and `predict`.
        """
        if self.spread is None:
            return None
        places = self._of(of) if isinstance(of, Network) else self._at(of)
        middle = self.other + sum(self.latency(*place) for place in places)
        half = middle * self.spread.margin(self._error(places, middle))
        return max(0.0, middle - half), middle + half

    def margin(self) -> float | None:
        """Half of the dense model's `interval`, relative to what is predicted; None where there is none."""
        return None if self.spread is None else self.spread.margin(self.error())

    def error(self) -> float:
        """Relative standard error of the sum of the dense model's units, by their repeats."""
        return self._error(self._at(None), self.model())

    def _error(self, places: Sequence[tuple[Key, int, int]], total: float) -> float:
        """Units of a kind are off alike, those of different kinds independently."""
        off: dict[Key, float] = {}
        for key, c_in, c_out in places:
            off[key] = off.get(key, 0.0) + self.grids[key].error * self.latency(key, c_in, c_out)
        return math.hypot(*off.values()) / total if total > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """All of it as numbers, strings, lists and dicts, to be stored inside something else; see `from_json`."""
        content: dict[str, Any] = json.loads(json.dumps(_as_json(self)))
        return content

    @classmethod
    def from_json(cls, content: Any, *, name: str = "") -> LatencyTable:
        """What `to_json` gave. Whether it was measured here is not looked at; `check_machine` does that.

        Args:
            content: as read from JSON
            name: of the file it comes from, for messages

        Raises:
            UserError: if it is damaged, no latency table, or of another version of the format.
        """
        from regrow import schema
        from regrow.latency.form import TableForm

        table = f"the latency table {name}".rstrip()
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"{name or 'this'} is not a latency table: make one with `regrow profile`")
        version = schema.shown(str(content.get("version")))
        if content.get("version") not in READS or isinstance(content["version"], bool):
            reads = ", ".join(map(str, READS))
            raise UserError(f"{table} has format version {version}, this regrow reads {reads}: measure it again")
        form = schema.check(TableForm, content, table, "measure it again")
        schema.check_seal(content, table, f'measure it again, or delete its key "{schema.CHECKSUM}" if you edited it')
        return _of_form(form)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, atomically, with a checksum.

        Raises:
            UserError: if it cannot be written there; what was there before stays.
        """
        from regrow.schema import seal

        try:
            atomic.write_json(path, seal(_as_json(self)))
        except OSError as error:
            raise UserError(f"the latency table cannot be written to {path} ({error.strerror})") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, allow_other_machine: bool = False) -> LatencyTable:
        """Read what `save` wrote.

        Args:
            allow_other_machine: take a table from another machine or version, with a warning

        Raises:
            UserError: if the file cannot be read, is damaged or no latency table, or was measured elsewhere.
        """
        from regrow.schema import parse_json

        try:
            text = regular.read_bytes(path)
        except OSError as error:
            raise UserError(
                f"the latency table {path} cannot be read ({error.strerror}); `regrow profile` writes one, and "
                "without table= latency is measured when attaching"
            ) from error
        content = parse_json(text, f"the latency table {path}", "measure it again")
        table = cls.from_json(content, name=str(path))
        table.check_machine(str(path), allow_other_machine)
        return table

    def check_machine(self, name: str, allow: bool) -> None:
        """Warns, or raises a UserError unless ``allow``, if this table was measured elsewhere.

        Args:
            name: of the table in the message, such as its path
        """
        try:
            differences = Machine.here(self.machine.runtime).differences(self.machine)
        except ImportError:
            differences = [f"runtime {self.machine.runtime}, here not installed"]
        if differences:
            sentence = f"the latency table {name} was measured elsewhere ({'; '.join(differences)})"
            if not allow:
                raise UserError(f"{sentence}: measure it here with `regrow profile`, or set allow_other_machine")
            warnings.warn(sentence, stacklevel=3)


def known_key(unit: Unit, units: Mapping[str, Unit], keys: Container[Key]) -> Key:
    """The key of a unit, or of the dense unit of its name where they differ only in what thinning may change.

    Args:
        units: those of the dense model, by name
        keys: that have a price
    """
    dense = units.get(unit.name)
    if unit.key in keys or dense is None:
        return unit.key
    if unit.key.kind == dense.key.kind and unit.key.kind not in LAYERS:  # its places may be channels of others
        return dense.key
    regrouped = replace(unit.key, groups=dense.key.groups, per_group=dense.key.per_group)
    return dense.key if regrouped == dense.key else unit.key


def _as_json(table: LatencyTable) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "machine": asdict(table.machine),
        "batch": table.batch,
        "threads": table.threads,
        "measured": table.measured,
        "correction": table.correction,
        "other": table.other,
        "spread": None if table.spread is None else asdict(table.spread),
        "unpriced": table.network.unpriced,
        "units": [{**asdict(unit), "key": asdict(unit.key)} for unit in table.network.units],
        "grids": [
            {
                "key": asdict(key), "c_in": grid.c_in, "c_out": grid.c_out, "step": grid.step, "stairs": grid.stairs,
                "seconds": grid.seconds.tolist(), "error": grid.error,
            }
            for key, grid in table.grids.items()
        ],
    }  # fmt: skip


def _of_form(form: TableForm) -> LatencyTable:
    def key(fields: KeyForm) -> Key:
        given = fields.model_dump()
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
        return Key(**plain)

    units = [
        Unit(unit.name, key(unit.key), unit.c_in, unit.c_out, tuple(unit.sources), unit.fixed, unit.own)
        for unit in form.units
    ]
    grids = {
        key(grid.key): Grid(
            tuple(grid.c_in), tuple(grid.c_out), np.array(grid.seconds, dtype=np.float64), grid.step,
            (grid.stairs[0], grid.stairs[1]), grid.error,
        )
        for grid in form.grids
    }  # fmt: skip
    return LatencyTable(
        Machine(**form.machine.model_dump()), form.batch, form.threads, Network(tuple(units), form.unpriced), grids,
        form.correction, form.other, form.measured, None if form.spread is None else Spread(**form.spread.model_dump()),
    )  # fmt: skip
