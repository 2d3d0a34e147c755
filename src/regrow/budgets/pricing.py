"""What a model costs when its groups keep so many channels: latency, FLOPs and parameters.

Parameters and FLOPs are products of widths, so all of them together are one quadratic form in the channel counts;
latency looks every unit up in the table.

For a solver the whole is expanded around present counts: what one group changes by itself, and what two groups that
meet as input and output of a layer change beside that. This is exact for products, and for a latency whose inputs and
outputs belong to one group each; where several are concatenated it is exact at the present counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from regrow import names
from regrow.budgets.program import LayerCosts
from regrow.budgets.terms import Counts, Extent, Floats, Ints, Pair, Price, Products, Times
from regrow.errors import UserError, nearest
from regrow.groups import Attended, Coupling
from regrow.latency.network import ATTENTION, LAYERS, Unit
from regrow.latency.table import LatencyTable
from regrow.tracing.flops import ModelFlops

KINDS = ("latency", "flops", "params")


class Prices:
    """Latency, FLOPs and parameters of a model as functions of how many channels each group keeps.

    Attributes:
        kinds: what is priced, of "latency" (seconds per batch), "flops" (per sample) and "params" (number of
            parameters)
        sizes: group id → its number of channels
        dense: kind → cost of the model at full width
    """

    def __init__(self, sizes: Mapping[str, int], prices: Mapping[str, Price]) -> None:
        self.sizes = dict(sizes)
        self.kinds: tuple[str, ...] = tuple(prices)
        self._prices = dict(prices)
        self._index = {group: i for i, group in enumerate(self.sizes)}
        self.dense: dict[str, float] = self.cost({})

    @classmethod
    def of(
        cls,
        model: nn.Module,
        coupling: Coupling,
        *,
        kinds: Sequence[str],
        flops: ModelFlops | None = None,
        table: LatencyTable | None = None,
        gated: Mapping[str, str] = MappingProxyType({}),
    ) -> Prices:
        """The prices of a model at full width.

        Args:
            model: in full size, on any device.
            coupling: of this model.
            kinds: what to price.
            flops: from `regrow.tracing.flops.count_flops`; needed for "flops". Of its part that no parameter has,
                products of attention follow the heads, and all else counts as constant.
            table: measured for this model; needed for "latency". Where a unit's weight is not a parameter as it is,
                its output width counts as constant.
            gated: name of a unit of the table → the block without which it is not run, beside its layers.

        Raises:
            UserError: something needed is missing, or is of another model.
        """
        parts = _Parts(model, coupling)
        prices: dict[str, Price] = {}
        for kind in kinds:
            if kind == "params":
                prices[kind] = parts.products({name: float(p.numel()) for name, p in parts.parameters.items()})
            elif kind == "flops":
                if flops is None:
                    raise UserError("a budget of FLOPs needs the FLOPs of the model: give example inputs")
                if flops.by_parameter.keys() != parts.parameters.keys():
                    raise UserError("the FLOPs were counted for another model: count those of this one")
                prices[kind] = parts.products(
                    flops.by_parameter, flops.other, coupling.attended, flops.batch, parts.skipped
                )
            elif kind == "latency":
                if table is None:
                    raise UserError("a latency budget needs a latency table: measure one with `regrow profile`")
                prices[kind] = parts.times(table, gated)
            else:
                raise UserError(f"there is no cost {kind!r}{nearest(kind, KINDS)}")
        return cls({group.id: group.size for group in coupling.groups}, prices)

    def cost(self, counts: Mapping[str, int]) -> dict[str, float]:
        """What the whole model costs.

        FLOPs and parameters are those of the compacted model where every channel has an equal share of every slice;
        latency equals `LatencyTable.model` at the thin widths, but for attention whose heads lose width, which counts
        whole.

        Args:
            counts: group id → channels kept; groups that are not named are whole.

        Returns:
            kind → cost (seconds per batch, FLOPs per sample, number of parameters).

        Raises:
            UserError: there is no such group.
        """
        full = self._counts(counts)
        return {kind: price.cost(full) for kind, price in self._prices.items()}

    def smallest(self, floor: Mapping[str, int]) -> dict[str, float]:
        """The costs with every group at its floor (group id → channels); groups that are not named are whole."""
        return self.cost(floor)

    def changes(self, counts: Mapping[str, int], levels: Mapping[str, Sequence[int]]) -> dict[str, list[Floats]]:
        """What the whole model costs more (or less) if one group alone goes from ``counts`` to each of its levels.

        Returns:
            kind → for each group of ``levels`` (levels,).
        """
        full = self._counts(counts)
        moves = [(self._at(group), np.asarray(steps, dtype=np.int64)) for group, steps in levels.items()]
        return {k: [price.change(full, g, steps) for g, steps in moves] for k, price in self._prices.items()}

    def layers(
        self, counts: Mapping[str, int], levels: Mapping[str, Sequence[int]], *, most: int | None = None
    ) -> list[LayerCosts]:
        """The cost tables over the levels of the groups for `regrow.budgets.knapsack.joint`.

        Their sum is the cost, expanded around ``counts``: see the head of the module for where that is exact.

        Args:
            counts: present counts; groups without levels stay there (whole if they are not named).
            levels: group id → counts to choose from; the order is that of the groups in the result.
            most: how many entries the tables of pairs may have together; the pairs that matter least are left out
                beyond (default: all are there).

        Raises:
            UserError: there is no such group.
        """
        full = self._counts(counts)
        steps = {self._at(group): np.asarray(chosen, dtype=np.int64) for group, chosen in levels.items()}
        place = {group: i for i, group in enumerate(steps)}
        layers = [LayerCosts(None, None, {kind: [[price.cost(full)]] for kind, price in self._prices.items()})]
        changes = self.changes(counts, levels)
        layers += [LayerCosts(None, i, {k: rows[i][None, :] for k, rows in changes.items()}) for i in range(len(steps))]
        for pair, kinds in self._strongest(full, steps, most):
            a, b = pair
            tables: dict[str, Floats] = {k: self._prices[k].meeting(full, pair, steps[a], steps[b]) for k in kinds}
            layers.append(LayerCosts(place[a], place[b], tables))
        return layers

    def grouped_costs(
        self, counts: Mapping[str, int], levels: Mapping[str, Sequence[int]], kind: str
    ) -> list[list[float]]:
        """For each group the cost of its own layers at each level, with all input widths as they are at ``counts``:
        what the consumers of its channels save is not seen.

        Args:
            counts: present counts; groups that are not named are whole.
            levels: group id → counts to choose from.
            kind: of cost, one of `kinds`.

        Raises:
            UserError: there is no such group.
        """
        full = self._counts(counts)
        price = self._prices[kind]
        return [
            price.output(full, self._at(group), np.asarray(steps, dtype=np.int64)).tolist()
            for group, steps in levels.items()
        ]

    def _at(self, group: str) -> int:
        if group not in self._index:
            raise UserError(f"there is no group {group!r}{nearest(group, self.sizes)}")
        return self._index[group]

    def _counts(self, counts: Mapping[str, int]) -> Counts:
        full = list(self.sizes.values())
        for group, count in counts.items():
            full[self._at(group)] = int(count)
        return full

    def _strongest(self, full: Counts, steps: Mapping[int, Ints], most: int | None) -> list[tuple[Pair, list[str]]]:
        """The pairs of groups that have levels and meet somewhere, with the kinds of cost that see it."""
        kinds: dict[Pair, list[str]] = {}
        for kind, price in self._prices.items():
            for pair in price.pairs():
                if pair[0] in steps and pair[1] in steps:
                    kinds.setdefault(pair, []).append(kind)
        sizes = {(a, b): len(steps[a]) * len(steps[b]) for a, b in kinds}
        if most is None or sum(sizes.values()) <= most:
            return sorted(kinds.items())

        def strength(pair: Pair) -> float:
            ends = [steps[g][[0, -1]] for g in pair]
            tables = {kind: self._prices[kind].meeting(full, pair, *ends) for kind in kinds[pair]}
            return max(float(np.abs(t).max()) / (self.dense[kind] or 1.0) for kind, t in tables.items())

        chosen, room = [], most
        for pair in sorted(kinds, key=lambda pair: (-strength(pair), pair)):
            if (room := room - sizes[pair]) < 0:
                break
            chosen.append((pair, kinds[pair]))
        return sorted(chosen)


class _Parts:
    """Reads the widths of a model's parameters and units off its coupling."""

    def __init__(self, model: nn.Module, coupling: Coupling) -> None:
        self.modules = names.modules(model)
        self.parameters = names.parameters(model)
        self.narrow = coupling.heads == "width"
        self.groups = len(coupling.groups)
        self.widths: dict[tuple[str, int], Extent] = {}
        self.inputs: dict[str, Extent] = {}  # module → its in_channels
        dims: dict[tuple[str, int], dict[int, torch.Tensor]] = {}
        inner: dict[str, dict[int, torch.Tensor]] = {}
        of_blocks = {block.id for block in coupling.blocks}
        self.gates: dict[str, Extent] = {}  # parameter → whether the block is there that it goes with
        for index, group in enumerate(coupling.groups):
            for part in group.slices:
                if group.id in of_blocks:  # beside the groups that its channels belong to
                    self.gates[part.name] = Extent(0, {index: 1})
                elif part.name in self.parameters:
                    dims.setdefault((part.name, part.dim), {})[index] = part.channel
            for size in group.sizes:
                if size.attribute == "in_channels":
                    inner.setdefault(size.module, {})[index] = size.channel
        self.skipped: dict[str, Extent] = {}  # parameter of a layer of a block → whether that is there, and runs
        places = {group.id: index for index, group in enumerate(coupling.groups)}
        for block in coupling.blocks:
            inside = tuple(f"{module}." for module in block.skips)
            named = (name for name in self.parameters if name.startswith(inside))
            self.skipped |= dict.fromkeys(named, Extent(0, {places[block.id]: 1}))
        self.sizes = [group.size for group in coupling.groups]
        self.index = places
        self.inner = {self.index[name] for block in coupling.blocks for name in block.inner}
        self.widths = {key: self._width(owners) for key, owners in dims.items()}
        self.inputs = {module: self._width(owners) for module, owners in inner.items()}

    def _width(self, owners: Mapping[int, torch.Tensor]) -> Extent:
        length = next(iter(owners.values())).numel()
        taken = {group: int((channel >= 0).sum()) for group, channel in owners.items()}
        parts = {g: n // self.sizes[g] if n % self.sizes[g] == 0 else n / self.sizes[g] for g, n in taken.items() if n}
        return Extent(length - sum(taken.values()), parts)

    def products(
        self,
        costs: Mapping[str, float],
        other: float = 0.0,
        attended: Sequence[Attended] = (),
        batch: int = 1,
        skipped: Mapping[str, Extent] = MappingProxyType({}),
    ) -> Products:
        """The given costs of the whole parameters, in proportion to the entries that stay, none without the block in
        which those of `skipped` are run; of all else, in proportion to the heads that do."""
        gates = {**self.gates, **skipped}
        result = Products(self.groups)
        for product in attended if sum(product.flops for product in attended) / batch <= other * (1 + 1e-9) else ():
            heads = self._width({self.index[group]: channel for group, channel in product.channel.items()})
            whole = product.flops / batch
            other -= whole
            parts = sum(channel.numel() for channel in list(product.channel.values())[:1])
            result.add(whole / parts, [heads], [])
        result.const += other
        for name, parameter in self.parameters.items():
            if not costs[name]:
                continue
            owned = {dim: self.widths[name, dim] for dim in range(parameter.dim()) if (name, dim) in self.widths}
            factor = costs[name] / math.prod(parameter.shape[dim] for dim in owned)
            side = 0 if self._transposed(name) else 1
            inputs = [width for dim, width in owned.items() if dim == side and parameter.dim() > 1]
            outputs = [width for dim, width in owned.items() if not (dim == side and parameter.dim() > 1)]
            gate = [gates[name]] if name in gates and not self._empties(owned) else []
            result.add(factor, inputs, outputs + gate)
        return result.finish()

    def _empties(self, owned: Mapping[int, Extent]) -> bool:
        """Whether nothing of a parameter is left without the inner groups of its block."""
        return any(not width.const and self.inner.issuperset(width.parts) for width in owned.values())

    def _transposed(self, name: str) -> bool:
        module = self.modules.get(name.rpartition(".")[0])
        return isinstance(module, nn.modules.conv._ConvTransposeNd) and name.endswith("weight")

    def times(self, table: LatencyTable, gated: Mapping[str, str]) -> Times:
        """The units of the table, with their widths, and the blocks without which some are not run.

        Raises:
            UserError: the table is of another model.
        """
        layers = {unit.name: self._layer(unit) for unit in table.network.units if unit.key.kind in LAYERS}
        self._check_complete(table, layers)
        dense = {unit.name: unit.c_out for unit in table.network.units}
        widths: list[tuple[Extent | None, Extent]] = []
        for unit in table.network.units:
            if unit.name in layers:
                source, target = layers[unit.name]
                widths.append((source, target) if unit.key.two_sided else (None, source))
            elif (
                self._follows(unit)
                and all(s in layers for s in unit.sources)
                and unit.follows(fed := sum(dense[s] for s in unit.sources))
            ):
                # as in `LatencyTable.model`: what the layers that feed it put out, or their heads
                widths.append((None, _joined([layers[s][1] for s in unit.sources], unit.c_in / fed)))
            else:
                widths.append((None, Extent(unit.c_out, {})))
        return Times(table, widths, self.groups, {unit: self.index[block] for unit, block in gated.items()})

    def _follows(self, unit: Unit) -> bool:
        """Whether a unit without channels of its own may follow others; where heads lose width, attention, which the
        table has at numbers of heads, does not."""
        return not (self.narrow and unit.key.kind == ATTENTION)

    def _layer(self, unit: Unit) -> tuple[Extent, Extent]:
        """Input and output width of a convolution or linear layer."""
        fixed = Extent(unit.c_in, {}), Extent(unit.c_out, {})
        if ":" in unit.name:  # its weight is not a parameter as it is
            return fixed
        if unit.name not in self.modules:
            raise _foreign(f"this one has no layer {unit.name!r}")
        name = f"{unit.name}.weight"
        if name not in self.parameters:
            return fixed
        shape = tuple(self.parameters[name].shape[:2])
        groups = unit.key.groups_at(unit.c_in) if unit.key.kind == "conv" else 1
        straight, turned = (unit.c_out, unit.c_in // groups), (unit.c_in, unit.c_out)
        if shape != straight and (shape != turned or groups > 1):
            raise _foreign(f"the weight of {unit.name!r} does not fit {unit.c_in} → {unit.c_out} channels")
        source, target = (1, 0) if shape == straight else (0, 1)
        out = self.widths.get((name, target), fixed[1])
        if groups > 1:  # one of the dimensions has the channels of one group only
            return self.inputs.get(unit.name, fixed[0]), out
        return self.widths.get((name, source), fixed[0]), out

    def _check_complete(self, table: LatencyTable, layers: Mapping[str, Any]) -> None:
        kinds: tuple[type[nn.Module], ...] = (nn.Conv2d,)
        if not table.network.unpriced:  # linear layers may be inside an operation that has no price
            kinds += (nn.Linear,)
        for name, _ in self.widths:
            module, _, last = name.rpartition(".")
            if last == "weight" and module not in layers and isinstance(self.modules[module], kinds):
                raise _foreign(f"it has no layer {module!r}")


def _joined(widths: Sequence[Extent], share: float = 1) -> Extent:
    """Their sum, or this share of it: heads have several channels each."""
    parts: dict[int, float] = {}
    for width in widths:
        for group, each in width.parts.items():
            parts[group] = parts.get(group, 0) + each * share
    return Extent(round(sum(width.const for width in widths) * share), parts)


def _foreign(why: str) -> UserError:
    return UserError(f"the latency table was measured for another model: {why}; measure this one with `regrow profile`")
