"""Prices of widths, against the models that have them."""

import copy
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from channel_models import Parallel, Residual
from priced import IMAGE, MODELS, made_up, priced
from regrow.budgets.pricing import Prices
from regrow.coupling.couple import couple
from regrow.errors import UserError
from regrow.latency.network import Network, network_of
from regrow.surgery import resize
from regrow.tracing.flops import count_flops


def some_counts(prices, number, seed=0):
    rng = np.random.default_rng(seed)
    return [{g: int(rng.integers(1, size + 1)) for g, size in prices.sizes.items()} for _ in range(number)]


def thin(model, coupling, counts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in coupling.groups:
        keep[group.id] = torch.zeros(group.size, dtype=torch.bool)
        keep[group.id][torch.randperm(group.size, generator=generator)[: counts[group.id]]] = True
    return resize.compact(copy.deepcopy(model), coupling, keep)


def total(layers, at, kind):
    tables = [(layer, np.asarray(layer.costs[kind])) for layer in layers if kind in layer.costs]
    return math.fsum(
        float(table[tuple(0 if g is None else at[g] for g in (layer.source, layer.target))]) for layer, table in tables
    )


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_flops_are_those_of_the_compacted_model(name):
    model, coupling, inputs, _, prices = priced(name)
    assert prices.dense["params"] == sum(p.numel() for p in model.parameters())
    assert prices.dense["flops"] == count_flops(model, inputs).total
    for counts in some_counts(prices, 6):
        compact = thin(model, coupling, counts)
        cost = prices.cost(counts)
        assert cost["params"] == sum(p.numel() for p in compact.parameters())
        assert cost["flops"] == pytest.approx(count_flops(compact, inputs).total, rel=1e-14)


DENSE_HEADS = {"qkv": (10, 36), "proj": (12, 10)}


def test_heads_take_their_attention_with_them():
    _, coupling, _, table, prices = priced("heads")
    (heads,) = coupling.ids
    attention = next(unit for unit in table.network.units if unit.key.kind == "attention")
    for count in (1, 2, 3):
        linear = {"qkv": (10, 9 * count), "proj": (3 * count, 10)}
        without = table.model(linear) - table.latency(attention.key, count, count)
        rest = table.model() - table.latency(attention.key, 4, 4)
        change = sum(table.latency(n, *linear[n]) - table.latency(n, *dense) for n, dense in DENSE_HEADS.items())
        assert without == pytest.approx(rest + change, rel=1e-12)
        assert prices.cost({heads: count})["latency"] == table.model(linear)


def test_attention_whose_heads_lose_width_counts_whole():
    model, coupling, inputs, table, prices = priced("heads", heads="width")
    (width,) = coupling.ids
    assert (coupling[width].size, coupling[width].each) == (3, 12)
    for count in (1, 2, 3):
        compact = thin(model, coupling, {width: count})
        linear = {"qkv": (10, 12 * count), "proj": (4 * count, 10)}
        change = sum(table.latency(n, *linear[n]) - table.latency(n, *dense) for n, dense in DENSE_HEADS.items())
        cost = prices.cost({width: count})
        assert cost["latency"] == pytest.approx(table.model() + change, rel=1e-12)
        assert cost["latency"] == pytest.approx(table.predict(network_of(compact, inputs)), rel=1e-12)
        assert cost["flops"] == count_flops(compact, inputs).total


@pytest.mark.parametrize("name", MODELS)
def test_latency_is_that_of_the_compacted_model(name):
    model, coupling, inputs, table, prices = priced(name)
    assert prices.dense["latency"] == table.model()
    for counts in some_counts(prices, 6):
        network = network_of(thin(model, coupling, counts), inputs)
        if all(unit.key in table.grids for unit in network.units) and counts != {"first": 1}:  # one group is no groups
            assert prices.cost(counts)["latency"] == pytest.approx(table.predict(network), rel=1e-14)
        widths = {u.name: (u.c_in, u.c_out) for u in network.units if u.key.kind in ("conv", "linear")}
        assert prices.cost(counts)["latency"] == table.model(widths)


def test_norms_that_stand_alone_go_with_their_block():
    """What is priced without blocks is what the table says of the model without them, but for the first sum, which is
    the tail of a layer that goes."""
    model, coupling, inputs, table, prices = priced("norms")
    assert len(coupling.blocks) == 2
    first, second = (list(block.members) for block in coupling.blocks)
    for gone in ([], first, second, first + second):
        for counts in some_counts(prices, 3):
            counts |= dict.fromkeys(gone, 0)
            network = network_of(thin(model, coupling, counts), inputs)
            *_, last = (unit for unit in network.units if unit.key.kind == "add")
            units = tuple(unit for unit in network.units if unit.key.kind != "add" or unit is last)
            left = table.known(Network(units, {}))
            assert prices.cost(counts)["latency"] == pytest.approx(table.predict(left), rel=1e-14)


def test_a_layer_that_is_not_run_has_no_flops_whatever_is_left_of_it():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 8), Parallel(), nn.Linear(8, 3)), torch.randn(2, 5)
    coupling = couple(model, x, blocks=True)
    (block,) = coupling.blocks
    assert {"1.both", "1.up", "1.mix"} == {*block.skips}
    prices = Prices.of(model, coupling, kinds=["flops", "params"], flops=count_flops(model, x))
    keep = {name: torch.zeros(coupling[name].size, dtype=torch.bool) for name in block.members}
    thin = resize.compact(copy.deepcopy(model), coupling, keep)
    assert prices.cost(dict.fromkeys(keep, 0)) == {
        "flops": count_flops(thin, x).total, "params": sum(p.numel() for p in thin.parameters()),
    }  # fmt: skip
    assert thin[1].both.weight.numel()


def test_layers_sum_to_the_cost_without_blocks_too():
    _, coupling, *_, prices = priced("norms")
    levels = {g: sorted({0, 1, size} if g != "stem" else {1, size}) for g, size in prices.sizes.items()}
    places = [(g, block.members) for block in coupling.blocks for g in block.members]
    layers = prices.layers(prices.sizes, levels)
    for at in itertools.product(*(range(len(steps)) for steps in levels.values())):
        counts = {g: steps[i] for (g, steps), i in zip(levels.items(), at, strict=True)}
        if all(len({counts[m] == 0 for m in members}) == 1 for _, members in places):
            assert total(layers, at, "latency") == pytest.approx(prices.cost(counts)["latency"], rel=1e-12)


def test_groups_that_are_not_named_are_whole():
    *_, prices = priced("residual")
    first, *rest = prices.sizes
    assert prices.cost({first: 3}) == prices.cost({first: 3, **{g: prices.sizes[g] for g in rest}})
    assert prices.cost({}) == prices.dense == prices.smallest(prices.sizes)
    assert prices.kinds == ("latency", "flops", "params")


@pytest.mark.parametrize("name", ["residual", "flatten", "stream", "grouped", "depthwise", "transposed"])
def test_layers_sum_to_the_cost_at_every_selection(name):
    *_, prices = priced(name)
    levels = {g: sorted({1, 2, size // 2, size}) for g, size in prices.sizes.items()}
    (counts,) = some_counts(prices, 1, seed=3)
    layers = prices.layers(counts, levels)
    for at in itertools.product(*(range(len(steps)) for steps in levels.values())):
        cost = prices.cost({g: steps[i] for (g, steps), i in zip(levels.items(), at, strict=True)})
        for kind in prices.kinds:
            assert total(layers, at, kind) == pytest.approx(cost[kind], rel=1e-12)


@pytest.mark.parametrize("name", ["concatenation", "three widths", "heads"])
def test_layers_of_concatenations_are_exact_for_products_and_nearby_for_latency(name):
    *_, prices = priced(name)
    levels = {g: list(range(1, size + 1)) for g, size in prices.sizes.items()}
    for counts in some_counts(prices, 3):
        layers = prices.layers(counts, levels)
        here = {g: counts[g] - 1 for g in levels}
        for kind, cost in prices.cost(counts).items():
            assert total(layers, list(here.values()), kind) == pytest.approx(cost, rel=1e-12)
        for i, group in enumerate(levels):  # one group alone may go anywhere
            at = list(here.values())
            at[i] = 0
            for kind, cost in prices.cost({**counts, group: 1}).items():
                assert total(layers, at, kind) == pytest.approx(cost, rel=1e-12)
    for other in some_counts(prices, 3, seed=1):
        at = [other[g] - 1 for g in levels]
        for kind in ("flops", "params"):
            assert total(layers, at, kind) == prices.cost(other)[kind]


def test_groups_without_levels_stay_and_weak_pairs_can_be_left_out():
    *_, prices = priced("three widths")
    counts = dict.fromkeys(prices.sizes, 3)
    first = next(iter(prices.sizes))
    layers = prices.layers(counts, {first: [1, 2, 3]})
    for i, n in enumerate([1, 2, 3]):
        for kind, cost in prices.cost({**counts, first: n}).items():
            assert total(layers, [i], kind) == pytest.approx(cost, rel=1e-12)
    levels = {g: [1, 3] for g in prices.sizes}
    pairs = [x for x in prices.layers(counts, levels) if x.source is not None]
    kept = [x for x in prices.layers(counts, levels, most=8) if x.source is not None]
    assert len(kept) == 2 < len(pairs)

    def strength(layer):
        return max(np.abs(t).max() / prices.dense[k] for k, t in layer.costs.items())

    assert sorted(map(strength, kept)) == sorted(map(strength, pairs))[-2:]
    assert total(prices.layers(counts, levels, most=0), [1] * 4, "flops") == prices.cost(counts)["flops"]


def test_changes_are_differences_of_costs():
    *_, prices = priced("three widths")
    (counts,) = some_counts(prices, 1)
    levels = {g: list(range(1, size + 1)) for g, size in prices.sizes.items()}
    changes = prices.changes(counts, levels)
    for i, (group, steps) in enumerate(levels.items()):
        for j, n in enumerate(steps):
            for kind in prices.kinds:
                difference = prices.cost({**counts, group: n})[kind] - prices.cost(counts)[kind]
                assert changes[kind][i][j] == pytest.approx(difference, rel=1e-9, abs=1e-12 * prices.dense[kind])


def test_grouped_costs_hold_the_inputs():
    """conv1 of the residual block costs T(input held, c_out); what conv2 would save is not in it."""
    _, _, _, table, prices = priced("residual")
    counts = {"stem": 6, "conv1": 10}
    assert list(prices.sizes) == ["stem", "conv1"]
    stem, inner = prices.grouped_costs(counts, {"stem": [4, 6], "conv1": [2, 10]}, "params")
    assert inner == [n * 6 * 9 + 2 * n for n in (2, 10)]
    assert stem == [n * (27 + 1) + n * 10 * 9 + 2 * n for n in (4, 6)]
    seconds = {unit.name: unit.key for unit in table.network.units}
    (inner,) = prices.grouped_costs(counts, {"conv1": [2, 10]}, "latency")
    assert inner == pytest.approx([table.latency(seconds["conv1"], 6, n) for n in (2, 10)])
    (stem,) = prices.grouped_costs(counts, {"stem": [4]}, "latency")
    own = [("stem", 3), ("conv2", 10)]
    pool = next(unit for unit in table.network.units if unit.key.kind == "mean")
    expected = sum(table.latency(seconds[n], c, 4) for n, c in own) + table.latency(pool.key, 4, 4)
    assert stem == pytest.approx([expected])


def test_a_group_on_both_sides_of_a_weight_is_held_on_one():
    *_, prices = priced("stream")
    (costs,) = prices.grouped_costs({"embed": 6}, {"embed": [3, 6]}, "params")
    assert costs == [n * 7 + n * 6 + n for n in (3, 6)]
    assert prices.cost({"embed": 3})["params"] == 3 * 7 + 3 * 3 + 3 + 3 * 5 + 5


def test_what_does_not_fit_is_refused_in_one_sentence():
    model, coupling, _, table, prices = priced("residual")
    with pytest.raises(UserError, match=r"no group 'conv7'; did you mean 'conv1'"):
        prices.cost({"conv7": 1})
    with pytest.raises(UserError, match=r"a latency budget needs a latency table: measure one with `regrow profile`"):
        Prices.of(model, coupling, kinds=["latency"])
    with pytest.raises(UserError, match="needs the FLOPs of the model: give example inputs"):
        Prices.of(model, coupling, kinds=["flops"])
    with pytest.raises(UserError, match="the FLOPs were counted for another model"):
        Prices.of(model, coupling, kinds=["flops"], flops=count_flops(nn.Linear(3, 2), torch.ones(1, 3)))
    with pytest.raises(UserError, match=r"there is no cost 'flop'; did you mean 'flops'\?"):
        Prices.of(model, coupling, kinds=["flop"])
    units = table.network.units
    for changed, why in [
        (tuple(replace(u, name="conv9") if u.name == "conv1" else u for u in units), "this one has no layer 'conv9'"),
        (
            tuple(replace(u, c_in=9) if u.name == "conv1" else u for u in units),
            "the weight of 'conv1' does not fit 9 → 12 channels",
        ),
        (tuple(u for u in units if u.name != "conv1"), "it has no layer 'conv1'"),
    ]:
        other = replace(table, network=Network(changed, {}))
        with pytest.raises(UserError, match=f"^the latency table was measured for another model: {why}; measure this"):
            Prices.of(model, coupling, kinds=["latency"], table=other)


def test_a_weight_used_twice_is_two_units_with_one_width():
    class Twice(Residual):
        def forward(self, x):
            return super().forward(x) + super().forward(nn.functional.avg_pool2d(x, 2))

    model = Twice()
    coupling = couple(model, IMAGE)
    table = made_up(model, IMAGE)
    prices = Prices.of(model, coupling, kinds=["latency", "flops"], flops=count_flops(model, IMAGE), table=table)
    compact = thin(model, coupling, {"stem": 5, "conv1": 7})
    assert prices.cost({"stem": 5, "conv1": 7}) == {
        "latency": pytest.approx(table.predict(network_of(compact, IMAGE)), rel=1e-14),
        "flops": count_flops(compact, IMAGE).total,
    }
