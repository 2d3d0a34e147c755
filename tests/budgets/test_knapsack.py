"""The knapsacks against brute force."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest

from regrow.budgets import knapsack
from regrow.budgets.knapsack import LayerCosts, grouped, joint
from regrow.errors import UserError


def brute(values, costs, budget):
    """(best value, its least cost) over all selections, or None; and the smallest cost of all."""
    value, cost = (functools.reduce(np.add.outer, map(np.asarray, table)).ravel() for table in (values, costs))
    smallest = math.fsum(min(row) for row in costs)
    fits = np.flatnonzero(cost <= budget)
    if not len(fits):
        return None, smallest
    best = max(zip(value[fits].tolist(), (-cost[fits]).tolist(), strict=True))
    return best, smallest


def total(table, levels):
    return math.fsum(row[i] for row, i in zip(table, levels, strict=True))


def quarters(rng, low, high, shape):
    """Their sums are exact; from a part of the range only, so that many are equal."""
    low, high = np.sort(rng.integers(low, high + 1, 2))
    return rng.integers(low, high + 1, shape) / 4


@pytest.mark.parametrize("seeds", [range(start, start + 500) for start in range(0, 2000, 500)], ids=str)
def test_grouped_equals_brute_force(seeds):
    for seed in seeds:
        check_grouped(np.random.default_rng(seed))


def check_grouped(rng):
    """Groups with zero, negative and falling costs."""
    sizes = rng.integers(1, 6, rng.integers(1, 6))
    values, costs = ([quarters(rng, -12, 40, n).tolist() for n in sizes] for _ in "vc")
    top, bottom = (sum(of(row) for row in costs) for of in (max, min))
    budget = float(rng.integers(4 * bottom - 8, 4 * top + 9)) / 4
    best, smallest = brute(values, costs, budget)
    if best is None:
        with pytest.raises(UserError) as error:
            grouped(values, costs, budget)
        named = float(str(error.value).split()[-1])
        assert named >= smallest
        assert named == pytest.approx(smallest, rel=1e-4)
        return
    levels = grouped(values, costs, budget)
    assert (total(values, levels), -total(costs, levels)) == best
    assert grouped(values, costs, budget) == levels


@pytest.mark.parametrize("shape", ["concave", "stairs", "correlated", "wild"])
def test_grouped_equals_brute_force_on_real_numbers(shape):
    for seed in range(400):
        rng = np.random.default_rng(seed)
        values, costs = [], []
        for _ in range(rng.integers(1, 6)):
            n = int(rng.integers(1, 7))
            gains = np.sort(rng.lognormal(0, 1, n))[::-1]
            cost = np.arange(n) * rng.uniform(0.5, 2.0)
            if shape == "stairs":
                cost = np.floor(np.arange(n) / 2) * rng.uniform(0.5, 2.0) + rng.normal(0, 0.05, n)
            if shape == "correlated":
                gains = np.full(n, 1.0)
            value = np.cumsum(gains)
            if shape == "wild":
                value, cost = rng.normal(0, 3, n), rng.normal(0, 3, n)
            values.append(value.tolist())
            costs.append(cost.tolist())
        budget = float(rng.uniform(-0.1, 1.1) * sum(max(c) for c in costs))
        best, smallest = brute(values, costs, budget)
        if best is None:
            with pytest.raises(UserError, match="the smallest that can"):
                grouped(values, costs, budget)
            assert grouped(values, costs, smallest)
            continue
        levels = grouped(values, costs, budget)
        assert total(costs, levels) <= budget
        assert total(values, levels) == pytest.approx(best[0], rel=1e-12, abs=1e-12)


def test_grouped_thinned_is_never_over_budget_and_near_the_best():
    rng = np.random.default_rng(0)
    values = [np.cumsum(np.sort(rng.lognormal(0, 1, 20))[::-1]) for _ in range(20)]
    costs = [v * rng.uniform(0.99, 1.01, 20) for v in values]  # nearly a subset sum: nothing can be excluded by bounds
    budget = 0.4 * sum(c[-1] for c in costs)
    exact = grouped(values, costs, budget, max_states=20_000)
    for states in (1, 2, 10, 300):
        levels = grouped(values, costs, budget, max_states=states)
        assert total(costs, levels) <= budget
        assert 0.8 * total(values, exact) <= total(values, levels) <= total(values, exact) + 1e-9


def test_grouped_takes_everything_when_it_fits_and_follows_worth_not_size():
    assert grouped([[0, 1, 2]], [[0, 1, 2]], 2) == [2]
    assert grouped([[0, 1, 2], [0, 5]], [[0, 1, 2], [0, 2]], 2) == [0, 1]
    assert grouped([[0, 1, 1]], [[0, 3, 1]], 3) == [2]  # more units, no less value, cheaper
    assert grouped([[3, 2, 1]], [[5, 0, -1]], 4) == [1]
    assert grouped([], [], 0.0) == []


def test_grouped_never_takes_a_forbidden_level():
    assert grouped([[0, 9, 1]], [[0, math.inf, 1]], 5) == [2]
    with pytest.raises(UserError, match="no level of group 1 is allowed"):
        grouped([[0], [0]], [[0], [math.inf]], 5)


@pytest.mark.parametrize(
    ("values", "costs", "budget", "message"),
    [
        ([[0, math.nan]], [[0, 1]], 1, "group 0 has a value or cost that is not a finite number"),
        ([[0, 1]], [[0, math.nan]], 1, "group 0 has a value or cost"),
        ([[0, 1]], [[0, 1]], math.nan, "the budget is not a number"),
        ([[0, 1], [0, 1]], [[2, 3], [1.25, 5]], 3, "a budget of 3 cannot be met: the smallest that can is 3.25"),
    ],
)
def test_grouped_refuses_in_one_sentence(values, costs, budget, message):
    with pytest.raises(UserError, match=message):
        grouped(values, costs, budget)


def resnet50_groups(rng):
    """Values and costs of a ResNet-50 in steps of 8 channels: 5 coupled groups and 32 inner ones, real costs."""
    widths = [64, 256, 512, 1024, 2048] + [64] * 6 + [128] * 8 + [256] * 12 + [512] * 6
    values, costs = [], []
    for width in widths:
        n = width // 8
        values.append(np.append(0.0, np.cumsum(np.sort(rng.lognormal(0, 1, n))[::-1])))
        stairs = np.ceil(np.arange(n + 1) / 2) * 2 / n  # hardware prefers multiples of 16
        costs.append(rng.uniform(0.5, 4) * (stairs + rng.normal(0, 0.01, n + 1)))
    return values, costs


@pytest.mark.parametrize("fraction", [0.3, 0.55, 0.8])
def test_grouped_takes_little_work_on_resnet50(fraction, monkeypatch):
    values, costs = resnet50_groups(np.random.default_rng(0))
    budget = fraction * sum(c[-1] for c in costs)
    states = []

    def extend(*given):
        states.append(real(*given))
        return states[-1]

    real = knapsack._Solver._extend
    monkeypatch.setattr(knapsack._Solver, "_extend", extend)
    levels = grouped(values, costs, budget)
    assert total(costs, levels) <= budget
    assert total(costs, levels) >= 0.999 * budget
    assert max(len(front.cost) for front in states) < 1000  # partial selections at a time, of 20,000 allowed


def brute_joint(values, layers, budgets):
    """(best value or None, smallest cost of each budget alone) over all selections."""
    shape = [len(v) for v in values]
    value = functools.reduce(np.add.outer, map(np.asarray, values))
    costs = {name: np.zeros(shape) for name in budgets}
    for layer in layers:
        for name, table in layer.costs.items():
            costs[name] += spread(np.asarray(table, dtype=float), layer.source, layer.target, shape)
    fits = np.logical_and.reduce([costs[name] <= budgets[name] for name in budgets])
    return value[fits].max() if fits.any() else None, {name: costs[name].min() for name in budgets}


def spread(table, source, target, shape):
    """The table of a layer over the levels of all groups."""
    if source is not None and source == target:
        source, table = None, table.diagonal()[None]
    if source is not None and target is not None and source > target:
        source, target, table = target, source, table.T
    wide = [n if g in (source, target) else 1 for g, n in enumerate(shape)]
    return table.reshape(wide)


def costs_of(levels, layers, budgets):
    parts = {name: [] for name in budgets}
    for layer in layers:
        at = tuple(0 if g is None else levels[g] for g in (layer.source, layer.target))
        for name, table in layer.costs.items():
            parts[name].append(float(np.asarray(table)[at]))
    return {name: math.fsum(costs) for name, costs in parts.items()}


@pytest.mark.parametrize("seeds", [range(start, start + 250) for start in range(0, 1000, 250)], ids=str)
def test_joint_equals_brute_force(seeds):
    for seed in seeds:
        check_joint(np.random.default_rng(seed))


def check_joint(rng):
    sizes = rng.integers(1, 5, rng.integers(1, 5)).tolist()
    values = [quarters(rng, -8, 24, n).tolist() for n in sizes]
    names = ["latency", "flops", "params"][: rng.integers(1, 4)]
    layers = []
    for _ in range(rng.integers(0, 6)):
        source, target = (None if g < 0 else int(g) for g in rng.integers(-1, len(sizes), 2))
        shape = [1 if g is None else sizes[g] for g in (source, target)]
        costs = {name: quarters(rng, -8, 24, shape) for name in names if rng.integers(0, 6)}
        layers.append(LayerCosts(source, target, costs))
    at = costs_of([rng.integers(0, n) for n in sizes], layers, names)
    budgets = {name: at[name] + float(rng.integers(-6, 7)) / 4 for name in names}
    best, smallest = brute_joint(values, layers, budgets)
    if best is None:
        with pytest.raises(UserError) as error:
            joint(values, layers, budgets)
        name = str(error.value).split(" for ")[1].split()[0]
        named = float(str(error.value).split()[-1])
        assert named > budgets[name]
        if "while" not in str(error.value):
            assert named == pytest.approx(smallest[name], rel=1e-4)
        return
    found = joint(values, layers, budgets, gap=0.0)
    assert found.value == best == total(values, found.levels)
    assert found.costs == costs_of(found.levels, layers, budgets)
    assert all(found.costs[name] <= limit for name, limit in budgets.items())
    assert found.proven


def test_joint_equals_brute_force_on_real_numbers():
    for seed in range(200):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(1, 5, rng.integers(2, 5))
        values = [np.cumsum(rng.lognormal(0, 1, n)) for n in sizes]
        layers = []
        for _ in range(rng.integers(1, 6)):
            source, target = (None if g < 0 else int(g) for g in rng.integers(-1, len(sizes), 2))
            shape = [1 if g is None else int(sizes[g]) for g in (source, target)]
            layers.append(LayerCosts(source, target, {b: rng.normal(1, 1, shape) for b in ("latency", "flops")}))
        budgets = {name: float(rng.normal(2, 3)) for name in ("latency", "flops")}
        best, _ = brute_joint(values, layers, budgets)
        if best is None:
            with pytest.raises(UserError, match="cannot be met"):
                joint(values, layers, budgets)
            continue
        found = joint(values, layers, budgets, gap=0.0)
        costs = costs_of(found.levels, layers, budgets)
        assert all(costs[name] <= limit for name, limit in budgets.items())
        assert found.value == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("excess", [1e-3, 1e-6, 1e-8, 1e-10, 1e-13])
def test_joint_is_not_over_budget_by_the_solvers_tolerance(excess):
    """The more valuable selection is over budget by less than HiGHS can see."""
    table = {"latency": [[1.0, 2.0, 3.0 * (1 + excess)]]}
    found = joint([[0, 1, 2], [0, 1, 2]], [LayerCosts(None, 0, table), LayerCosts(None, 1, table)], {"latency": 6.0})
    assert found.costs["latency"] <= 6.0
    assert sorted(found.levels) == [1, 2]


def test_joint_says_which_budget_cannot_be_met():
    layers = [LayerCosts(None, 0, {"latency": [[2.0, 1.0]], "flops": [[1.0, 3.0]]})]
    values = [[1.0, 2.0]]
    with pytest.raises(UserError, match=r"^a budget of 0.5 for latency cannot be met: the smallest that can is 1$"):
        joint(values, layers, {"latency": 0.5, "flops": 9})
    with pytest.raises(UserError, match=r"a budget of 1 for flops cannot be met while latency <= 1: .* can is 3$"):
        joint(values, layers, {"latency": 1, "flops": 1})
    assert joint(values, layers, {"latency": 2, "flops": 1}).levels == [0]


def test_joint_says_when_it_was_allowed_too_little_work():
    values, layers = resnet50_layers(12)
    budgets = costs_of([4] * len(values), layers, dict.fromkeys(["latency", "flops", "params"], 0.0))
    with pytest.raises(UserError, match=r"no channel selection was found within 0 nodes: allow more"):
        joint(values, layers, budgets, nodes=0)


def test_joint_prices_pairs_where_fixed_inputs_mislead():
    """Halving one side of a product is as cheap as halving the other; halving both is cheaper than it looks."""
    width = np.array([4.0, 8.0])
    layers = [LayerCosts(0, 1, {"flops": np.outer(width, width)}), LayerCosts(1, 0, {"flops": np.outer(width, width)})]
    values = [[0, 1], [0, 1.5]]
    assert joint(values, layers, {"flops": 64.0}).levels == [0, 1]
    assert joint(values, layers, {"flops": 63.0}).levels == [0, 0]
    assert joint(values, layers, {"flops": 128.0}).costs == {"flops": 128.0}


def test_joint_prices_a_concatenation_part_by_part():
    """(c0 + c1) × c2 FLOPs as two layers, one for each part of the input."""
    width = np.array([2.0, 4.0, 6.0])
    parts = [LayerCosts(0, 2, {"flops": np.outer(width, width)}), LayerCosts(1, 2, {"flops": np.outer(width, width)})]
    found = joint([[0, 3, 4], [0, 1, 5], [0, 2, 4]], parts, {"flops": 40.0}, gap=0.0)
    levels = found.levels
    assert found.costs["flops"] == (width[levels[0]] + width[levels[1]]) * width[levels[2]]
    options = itertools.product(range(3), repeat=3)
    worth = {o: [0, 3, 4][o[0]] + [0, 1, 5][o[1]] + [0, 2, 4][o[2]] for o in options}
    fitting = [o for o in worth if (width[o[0]] + width[o[1]]) * width[o[2]] <= 40.0]
    assert found.value == max(worth[o] for o in fitting)


@pytest.mark.parametrize(
    ("values", "layers", "budgets", "message"),
    [
        ([[]], [], {}, "group 0 has no level"),
        ([[0, math.nan]], [], {}, "group 0 has a value that is not"),
        ([[0, 1]], [("inf",)], {"b": 1}, "layer 0 has a cost of 'b' that is not a finite number"),
        ([[0, 1]], [], {"b": math.nan}, "the budget b is not a number"),
    ],
)
def test_joint_refuses_in_one_sentence(values, layers, budgets, message):
    made = [LayerCosts(None, 0, {"b": [[0.0, math.inf]]}) for _ in layers]
    with pytest.raises(UserError, match=message):
        joint(values, made, budgets)


def resnet50_layers(levels):
    """A ResNet-50 at 224 × 224 with as many levels a group: values, layers with FLOPs, parameters and a latency."""
    rng = np.random.default_rng(0)
    widths = [64, 256, 512, 1024, 2048]
    convs = [(None, 0, 3, 49, 112)]
    previous, size = 0, 56
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            first, second = len(widths), len(widths) + 1
            widths += [64 * 2**stage] * 2
            after = size // 2 if stage and not block else size
            convs += [(previous, first, 0, 1, size), (first, second, 0, 9, after), (second, stage + 1, 0, 1, after)]
            if not block:
                convs.append((previous, stage + 1, 0, 1, after))
            previous, size = stage + 1, after
    convs.append((4, None, 1000, 1, 1))
    channels = [np.linspace(w / levels, w, levels) for w in widths]
    layers = []
    for source, target, fixed, kernel, side in convs:
        a = np.array([fixed or 3.0]) if source is None else channels[source]
        b = np.array([float(fixed)]) if target is None else channels[target]
        weights = np.outer(a, b) * kernel
        latency = weights * side**2 / 1e9 + (a[:, None] + b) * side**2 / 3e7
        latency = latency * rng.uniform(0.95, 1.05, latency.shape)
        layers.append(LayerCosts(source, target, {"latency": latency, "flops": weights * side**2, "params": weights}))
    values = [np.cumsum(np.sort(rng.lognormal(0, 1, levels))[::-1]) for _ in widths]
    return values, layers


@pytest.mark.parametrize("fraction", [0.3, 0.55])
def test_joint_takes_few_nodes_on_resnet50(fraction):
    values, layers = resnet50_layers(6)
    dense = costs_of([5] * len(values), layers, {"latency": 0, "flops": 0, "params": 0})
    budgets = {"latency": fraction * dense["latency"], "params": 0.5 * dense["params"]}
    layers = [LayerCosts(x.source, x.target, {name: x.costs[name] for name in budgets}) for x in layers]
    found = joint(values, layers, budgets, nodes=2000)  # it needs 50 to 120
    assert found.proven
    assert found.gap <= 1e-5
    assert all(found.costs[name] <= limit for name, limit in budgets.items())
