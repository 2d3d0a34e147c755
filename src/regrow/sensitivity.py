"""What a scan has found: how much each layer can lose before the loss moves, its file, and densities that follow.

`regrow.scanning` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from typing import Annotated, Literal

from pydantic import Field, model_validator

from regrow import atomic, regular, schema
from regrow.distribution import round_to_total
from regrow.errors import UserError, percent
from regrow.schema import Form
from regrow.version import __version__

FORMAT = "regrow-scan"
VERSION = 1
_WAY_OUT = "scan again with regrow scan"

Count = Annotated[int, Field(ge=1, le=2**53)]  # more than any model has, and exact as a float
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class LayerScan:
    """One layer, or one group of channels, by itself.

    Attributes:
        name: of the parameter, canonical, or of the group.
        shape: of the parameter; (channels,) of a group.
        units: how many weights, blocks or channels it has.
        kept: how many of them stayed, for each sparsity of the scan.
        loss: the network's mean loss then; infinite where it was not finite.
        accuracy: likewise, a fraction; empty where it was not measured.
    """

    name: str
    shape: tuple[int, ...]
    units: int
    kept: tuple[int, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...] = ()


@dataclass(frozen=True)
class Scan:
    """How a network's loss grows as each of its layers by itself is pruned at once; see `regrow.scan`.

    Attributes:
        pattern: what was removed: "weights", "nm", "blocks", "channels", or the name of a pattern of one's own.
        criterion: that ranked it.
        sparsities: the shares that were removed, increasing.
        loss: mean loss of the whole network.
        accuracy: of the whole network, a fraction; None where it was not measured.
        batches, examples: that each loss is the mean over.
        recalibrated: whether statistics of batch norms were re-estimated before each measurement.
        layers: in the model's order.
        model: what was scanned, in words.
    """

    pattern: str
    criterion: str
    sparsities: tuple[float, ...]
    loss: float
    accuracy: float | None
    batches: int
    examples: int
    recalibrated: bool
    layers: tuple[LayerScan, ...]
    model: str = ""

    def increase(self, layer: LayerScan) -> tuple[float, ...]:
        """What the loss grows by at each sparsity; below zero where it falls."""
        return tuple(loss - self.loss for loss in layer.loss)

    def counts(self, sparsity: float, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
        """How many units of each layer to keep so that the predicted loss grows least.

        The prediction is the sum of what the layers do by themselves. A layer's increase is taken as it was measured,
        nothing where it is negative and never less than at a lower sparsity; between two sparsities it is interpolated,
        and where a curve is not convex its lower convex hull counts. Of such curves the minimum under an exact total is
        found by a greedy choice: pieces of the curves are removed in the order of their slopes, which for convex curves
        is also an order in which they can be. Pieces of equal slope (as those that cost nothing) give the same share
        each. No layer becomes sparser than it was scanned, none loses all it has.

        Args:
            sparsity: share of all units to remove, from 0 up to but not including 1.
            sizes: layer → units, to choose for these alone; they must be what was scanned. Default: all.

        Returns:
            layer → units that stay, in all exactly ``round((1 − sparsity) · units)``.

        Raises:
            UserError: for a sparsity beyond what was scanned, or layers that were not.
        """
        if not 0 <= sparsity < 1:
            raise UserError(f"sparsity is {sparsity!r}, but must lie in [0, 1){percent(sparsity)}")
        layers = self._scanned(sizes)
        sizes = {layer.name: layer.units for layer in layers}
        remove = sum(sizes.values()) - round((1 - sparsity) * sum(sizes.values()))
        curves = {layer.name: _hull(self._points(layer)) for layer in layers}
        room = {name: curve[-1][0] for name, curve in curves.items()}
        if remove > sum(room.values()):
            most = sum(room.values()) / sum(sizes.values())
            raise UserError(
                f"sparsity {sparsity} is more than what was scanned, which reaches {math.floor(1e4 * most) / 1e4:g} of "
                f"these layers together (up to {self.sparsities[-1]:g} of each): scan higher sparsities"
            )
        removed = _cheapest(curves, remove)
        return {name: size - removed[name] for name, size in sizes.items()}

    def distribution(self, sparsity: float) -> dict[str, float]:
        """`counts` as densities, for ``Weights(sparsity, distribution=...)``, which keeps exactly these counts.

        Args:
            sparsity: share of all scanned units to remove.

        Returns:
            layer → share that stays, above 0 and up to 1.

        Raises:
            UserError: as `counts`.
        """
        sizes = {layer.name: layer.units for layer in self.layers}
        return {name: kept / sizes[name] for name, kept in self.counts(sparsity).items()}

    def predicted(self, counts: Mapping[str, int]) -> float:
        """What the loss is predicted to grow by with these counts, as `counts` predicts it; units beyond what was
        scanned count as if the curves went on as they ended."""
        by_name = {layer.name: layer for layer in self.layers}
        return sum(_at(_hull(self._points(by_name[name])), by_name[name].units - kept) for name, kept in counts.items())

    def _scanned(self, sizes: Mapping[str, int] | None) -> list[LayerScan]:
        by_name = {layer.name: layer for layer in self.layers}
        for name, size in (sizes or {}).items():
            if name not in by_name:
                raise UserError(
                    f"layer {name!r} is not in the scan, which is of another model or fewer layers: scan it"
                )
            if by_name[name].units != size:
                raise UserError(
                    f"layer {name!r} has {size:,} units, but {by_name[name].units:,} in the scan, which is of another "
                    "model or pattern: scan this one"
                )
        return [layer for layer in self.layers if sizes is None or layer.name in sizes]

    def _points(self, layer: LayerScan) -> list[tuple[int, float]]:
        """(units removed, increase), from (0, 0) on, increasing in both; up to the first that is not finite."""
        points = [(0, 0.0)]
        for kept, grown in sorted(zip(layer.kept, self.increase(layer), strict=True), reverse=True):
            if not math.isfinite(grown):
                break
            grown = max(grown, points[-1][1])
            if layer.units - kept == points[-1][0]:
                points[-1] = (points[-1][0], grown if len(points) > 1 else 0.0)
            else:
                points.append((layer.units - kept, grown))
        return points

    # -- the file ----------------------------------------------------------------------------------------------------

    def save(self, path: str | PathLike[str]) -> None:
        """Writes it as JSON, at once or not at all.

        Raises:
            OSError: if it cannot be written.
        """
        layers = [
            {
                "name": one.name, "shape": list(one.shape), "units": one.units, "kept": list(one.kept),
                "loss": [value if math.isfinite(value) else None for value in one.loss],
                "accuracy": list(one.accuracy) if self.accuracy is not None else None,
            }
            for one in self.layers
        ]  # fmt: skip
        content = {
            "format": FORMAT, "version": VERSION, "regrow": __version__, "model": self.model, "pattern": self.pattern,
            "criterion": self.criterion, "sparsities": list(self.sparsities), "loss": self.loss,
            "accuracy": self.accuracy, "batches": self.batches, "examples": self.examples,
            "recalibrated": self.recalibrated, "layers": layers,
        }  # fmt: skip
        atomic.write_json(path, schema.seal(content))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Scan:
        """Reads what `save`, or ``regrow scan``, has written.

        Raises:
            UserError: there is no such file, or it is damaged or something else.
        """
        try:
            text = regular.read_bytes(path)
        except OSError as error:
            raise UserError(f"the scan {path} cannot be read ({error.strerror}): regrow scan writes one") from error
        content = schema.parse_json(text, path, _WAY_OUT)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"{path} is not a file that regrow scan wrote")
        if content.get("version") != VERSION:
            raise UserError(f"{path} has another version of the format than {VERSION}: {_WAY_OUT}")
        form = schema.check(ScanForm, content, path, _WAY_OUT)
        schema.check_seal(content, path, _WAY_OUT)
        return form.scan()


class ScannedForm(Form):
    """A layer, as the file has it; null stands for a loss that is not finite."""

    name: str
    shape: list[Annotated[int, Field(ge=0, le=2**53)]]
    units: Count
    kept: list[Count]
    loss: list[float | None]
    accuracy: list[Share] | None


class ScanForm(Form):
    """All of the file."""

    format: Literal["regrow-scan"]
    version: Literal[1]
    regrow: str
    model: str
    pattern: str
    criterion: str
    sparsities: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)]
    loss: float
    accuracy: Share | None
    batches: Count
    examples: Count
    recalibrated: bool
    layers: Annotated[list[ScannedForm], Field(min_length=1)]
    checksum: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]

    @model_validator(mode="after")
    def _fits_together(self) -> ScanForm:
        if any(a >= b for a, b in pairwise(self.sparsities)):
            raise ValueError("its sparsities do not increase")
        if len({layer.name for layer in self.layers}) < len(self.layers):
            raise ValueError("it has a layer twice")
        for layer in self.layers:
            accuracies = len(self.sparsities) if self.accuracy is not None else 0
            if [len(layer.kept), len(layer.loss), len(layer.accuracy or [])] != [len(self.sparsities)] * 2 + [
                accuracies
            ]:
                raise ValueError(f"layer {layer.name!r} has not one number for each sparsity")
            if max(layer.kept) > layer.units or any(a < b for a, b in pairwise(layer.kept)):
                raise ValueError(f"layer {layer.name!r} keeps more than it has, or more at a higher sparsity")
        return self

    def scan(self) -> Scan:
        """What it says."""
        layers = tuple(
            LayerScan(
                one.name, tuple(one.shape), one.units, tuple(one.kept),
                tuple(math.inf if value is None else value for value in one.loss), tuple(one.accuracy or ()),
            )
            for one in self.layers
        )  # fmt: skip
        return Scan(
            self.pattern, self.criterion, tuple(self.sparsities), self.loss, self.accuracy, self.batches, self.examples,
            self.recalibrated, layers, self.model,
        )  # fmt: skip


# ---- convex curves ----

Curve = Sequence[tuple[int, float]]  # (units removed, increase of the loss), both increasing, from (0, 0) on


def _hull(points: Curve) -> list[tuple[int, float]]:
    """The lower convex hull: the points whose slopes increase from one to the next."""
    hull: list[tuple[int, float]] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-1], point) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull


def _slope(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def _pieces(curve: Curve) -> Iterator[tuple[float, int]]:
    """(slope, units) of each piece of a curve."""
    for a, b in pairwise(curve):
        yield _slope(a, b), b[0] - a[0]


def _at(curve: Curve, removed: int) -> float:
    """A convex curve at a number of removed units; beyond its end as it ends."""
    total = last = 0.0
    for slope, units in _pieces(curve):
        here = min(units, removed)
        total, removed, last = total + slope * here, removed - here, slope
    return total + last * removed


def _cheapest(curves: Mapping[str, Curve], remove: int) -> dict[str, int]:
    """How much each convex curve gives, ``remove`` in all, for the smallest sum."""
    by_slope: dict[float, dict[str, int]] = {}
    for name, curve in curves.items():
        for slope, units in _pieces(curve):
            by_slope.setdefault(slope, {})[name] = units
    removed = dict.fromkeys(curves, 0)
    for slope in sorted(by_slope):
        offered = by_slope[slope]
        share = min(1.0, remove / sum(offered.values()))
        for name, units in (offered if share == 1 else _shared(offered, remove)).items():
            removed[name] += units
            remove -= units
        if share < 1 or not remove:
            break
    return removed


def _shared(offered: Mapping[str, int], total: int) -> dict[str, int]:
    """The same share of each, as nearly as whole numbers allow, ``total`` in all."""
    if total < len(offered):  # one of each of the first
        return {name: int(place < total) for place, name in enumerate(offered)}
    share = total / sum(offered.values())
    return round_to_total({name: share * units for name, units in offered.items()}, offered, total)
