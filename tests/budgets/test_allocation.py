"""Allocation of channels, against brute force over all legal counts."""

import functools
import itertools
import math
import re

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from priced import priced
from regrow.budgets import allocation, knapsack
from regrow.budgets.allocation import allocate, uniform
from regrow.budgets.knapsack import LayerCosts
from regrow.budgets.pricing import Prices
from regrow.budgets.rows import rows_of
from regrow.budgets.terms import Extent, Products
from regrow.errors import UserError

KINDS = ("latency", "flops", "params")
EXACT = ["residual", "flatten", "stream", "grouped", "depthwise"]


@functools.cache
def prices_of(name, wild=False):
    return priced(name, wild=wild)[-1]


def legal(low, high, step):
    return [n for n in range(low, high + 1) if n in (low, high) or n % step == 0]


def worth(values, counts):
    return math.fsum(float(x) for g, n in counts.items() for x in values[g][:n])


def brute(prices, values, between, budgets, round_to):
    """The best value within the budgets, or None, and the least cost of each kind."""
    best, least = None, dict.fromkeys(budgets, math.inf)
    for chosen in itertools.product(*(legal(*between[g], round_to) for g in between)):
        counts = dict(zip(between, chosen, strict=True))
        cost = prices.cost(counts)
        least = {kind: min(least[kind], cost[kind]) for kind in budgets}
        if all(cost[kind] <= budgets[kind] for kind in budgets):
            best = max(worth(values, counts), -1.0 if best is None else best)
    return best, least


@st.composite
def cases(draw, names):
    name = draw(st.sampled_from(names))
    prices = prices_of(name)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    between, values, now = {}, {}, {}
    for group, size in prices.sizes.items():
        low = draw(st.integers(1, size))
        between[group] = (low, draw(st.integers(low, size)))
        values[group] = np.sort(rng.lognormal(0, 1, size))[::-1]
        now[group] = draw(st.integers(1, size))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3, unique=True))
    budgets = {}
    for kind in kinds:
        low = prices.cost({g: b[0] for g, b in between.items()})[kind]
        high = prices.cost({g: b[1] for g, b in between.items()})[kind]
        if draw(st.booleans()):
            budgets[kind] = low + draw(st.floats(-0.1, 1.1)) * (high - low)
        else:  # exactly the cost of something
            at = {g: draw(st.sampled_from(legal(*b, 1))) for g, b in between.items()}
            budgets[kind] = prices.cost(at)[kind]
    return prices, values, between, budgets, now, draw(st.integers(1, 4))


def check_legal(found, between, round_to):
    assert found.keys() == between.keys()
    assert all(found[g] in legal(*between[g], round_to) for g in between)


@settings(max_examples=150, deadline=None)
@given(cases(EXACT))
def test_joint_equals_brute_force(case):
    prices, values, between, budgets, now, round_to = case
    best, least = brute(prices, values, between, budgets, round_to)
    if best is None:
        with pytest.raises(UserError, match=r"budget of .* cannot be met: the smallest that can is") as error:
            allocate(prices, values, between, budgets, now=now, round_to=round_to)
        kind = str(error.value).split()[1]
        assert least[kind] > budgets[kind]
        named = re.search(r"can is (\S+) \S+ \((\S+) of dense\)", str(error.value))
        assert least[kind] <= float(named[1]) <= least[kind] * (1 + 1e-4)
        assert least[kind] <= float(named[2]) * prices.dense[kind] * (1 + 1e-12)
        return
    found = allocate(prices, values, between, budgets, now=now, round_to=round_to)
    check_legal(found, between, round_to)
    assert all(prices.cost(found)[kind] <= budgets[kind] for kind in budgets)
    assert best * (1 - allocation._GAP) <= worth(values, found) <= best + 1e-9
    assert allocate(prices, values, between, budgets, now=now, round_to=round_to) == found


@settings(max_examples=60, deadline=None)
@given(cases(["concatenation", "three widths"]))
def test_joint_with_concatenations_is_never_over_budget_and_nearly_the_best(case):
    prices, values, between, budgets, now, round_to = case
    best, _ = brute(prices, values, between, budgets, round_to)
    if best is None:
        return
    found = allocate(prices, values, between, budgets, now=now, round_to=round_to)
    check_legal(found, between, round_to)
    assert all(prices.cost(found)[kind] <= budgets[kind] for kind in budgets)
    if "latency" not in budgets:
        assert worth(values, found) >= best * (1 - allocation._GAP)
    assert best * 0.8 <= worth(values, found) <= best + 1e-9


@settings(max_examples=150, deadline=None)
@given(cases([*EXACT, "three widths"]))
def test_grouped_is_never_over_budget(case):
    prices, values, between, budgets, now, round_to = case
    budgets = dict([next(iter(budgets.items()))])
    best, _ = brute(prices, values, between, budgets, round_to)
    if best is None:
        with pytest.raises(UserError, match="cannot be met"):
            allocate(prices, values, between, budgets, now=now, round_to=round_to, solver="grouped")
        return
    found = allocate(prices, values, between, budgets, now=now, round_to=round_to, solver="grouped")
    check_legal(found, between, round_to)
    assert all(prices.cost(found)[kind] <= budgets[kind] for kind in budgets)
    assert worth(values, found) <= best + 1e-9


@functools.cache
def with_blocks():
    _, coupling, _, _, prices = priced("blocks")
    return prices, [block.members for block in coupling.blocks]


@pytest.mark.parametrize("solver", ["joint", "grouped"])
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=2, unique=True),
    data=st.data(),
)
def test_blocks_equal_brute_force(solver, seed, kinds, data):
    kinds = kinds[:1] if solver == "grouped" else kinds
    prices, rows = with_blocks()
    assert [len(row) for row in rows] == [2, 3]
    rng = np.random.default_rng(seed)
    round_to = data.draw(st.integers(1, 2))
    gone = [data.draw(st.booleans()) for _ in rows]  # at present
    absent = {group for row, away in zip(rows, gone, strict=True) if away for group in row}
    values = {g: np.sort(rng.lognormal(0, 1, size))[::-1] for g, size in prices.sizes.items()}
    between = {g: (data.draw(st.integers(1, size)), size) for g, size in prices.sizes.items()}
    now = {g: 0 if g in absent else size for g, size in prices.sizes.items()}
    choices = []
    for counts in itertools.product(*([0, *legal(*between[g], round_to)] for g in between)):
        chosen = dict(zip(between, counts, strict=True))
        tied = {g for row in rows for g in row}
        if all(len({chosen[g] == 0 for g in row}) == 1 for row in rows) and all(
            chosen[g] for g in between.keys() - tied
        ):
            choices.append((chosen, prices.cost(chosen)))
    budgets = {kind: data.draw(st.sampled_from(choices))[1][kind] * data.draw(st.floats(0.8, 1.2)) for kind in kinds}
    fitting = [chosen for chosen, cost in choices if all(cost[kind] <= budgets[kind] for kind in kinds)]
    if not fitting:
        with pytest.raises(UserError, match="cannot be met"):
            allocate(prices, values, between, budgets, now=now, round_to=round_to, together=rows, solver=solver)
        return
    found = allocate(prices, values, between, budgets, now=now, round_to=round_to, together=rows, solver=solver)
    assert found in [chosen for chosen, _ in choices]
    assert all(prices.cost(found)[kind] <= budgets[kind] for kind in kinds)
    best = max(worth(values, chosen) for chosen in fitting)
    gap = allocation._GAP if solver == "joint" else 1.0
    assert best * (1 - gap) <= worth(values, found) <= best + 1e-9


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32), st.sampled_from(KINDS), st.lists(st.booleans(), min_size=2, max_size=2), st.floats(0, 1.1)
)
def test_grouped_takes_the_best_of_whole_blocks(seed, kind, gone, share):
    """Where nothing else may change, the prices of blocks are the real ones, whether they are there now or not."""
    prices, rows = with_blocks()
    rng = np.random.default_rng(seed)
    values = {g: np.sort(rng.lognormal(0, 1, size))[::-1] for g, size in prices.sizes.items()}
    absent = [g for row, away in zip(rows, gone, strict=True) if away for g in row]
    now = {**prices.sizes, **dict.fromkeys(absent, 0)}
    choices = [{**prices.sizes, **dict.fromkeys(a + b, 0)} for a in ((), rows[0]) for b in ((), rows[1])]
    least = min(prices.cost(chosen)[kind] for chosen in choices)
    budget = least + share * (prices.dense[kind] - least)
    between = {g: (size, size) for g, size in prices.sizes.items()}
    found = allocate(prices, values, between, {kind: budget}, now=now, round_to=1, solver="grouped", together=rows)
    fitting = [chosen for chosen in choices if prices.cost(chosen)[kind] <= budget]
    assert worth(values, found) == pytest.approx(max(worth(values, chosen) for chosen in fitting))
    assert found in fitting


@given(st.integers(0, 2**32), st.integers(0, 2))
def test_rows_of_a_block_have_all_that_no_other_beats(seed, away):
    prices, together = with_blocks()
    together = together[1:]  # of three groups
    (members,) = together
    rng = np.random.default_rng(seed)
    gains = {g: np.append(0.0, np.cumsum(rng.lognormal(0, 1, size))) for g, size in prices.sizes.items()}
    legal = {g: np.arange(size + 1) if g in members else np.arange(1, size + 1) for g, size in prices.sizes.items()}
    full = {**prices.sizes, **(dict.fromkeys(members, 0) if away else {})}
    found, own = rows_of(prices, full, legal, gains, together, "params")
    (row,) = (row for row in found if len(row.groups) > 1)
    inside = {**full, **{g: full[g] or 1 for g in members}}
    steps = [range(1, prices.sizes[g] + 1) for g in row.groups]
    costs = [prices.grouped_costs(inside, {g: list(s)}, "params")[0] for g, s in zip(row.groups, steps, strict=True)]
    for counts in itertools.product(*steps):
        value = math.fsum(gains[g][n] for g, n in zip(row.groups, counts, strict=True))
        cost = math.fsum(of[n - 1] for of, n in zip(costs, counts, strict=True))
        assert any((row.values >= value - 1e-9) & (row.costs <= cost + 1e-9))
    for level, counts in enumerate(row.counts):
        there = all(counts)
        assert there or not any(counts)
        assert row.at(level) == dict(zip(row.groups, counts, strict=True))
        expected = math.fsum(gains[g][n] for g, n in zip(row.groups, counts, strict=True))
        assert row.values[level] == pytest.approx(expected)
        if not there:  # the real difference to the present, or to the least that can be there
            saved = prices.cost(inside)["params"] - prices.cost({**full, **dict.fromkeys(members, 0)})["params"]
            present = math.fsum(of[inside[g] - 1] for of, g in zip(costs, row.groups, strict=True))
            assert row.costs[level] == pytest.approx(present - saved)
    alone = [(g, row) for row in found if len(row.groups) == 1 for g in row.groups]
    mine = row.costs[0] if away else present
    assert own == pytest.approx(mine + math.fsum(float(one.costs[-1]) for _, one in alone))


@pytest.mark.parametrize("solver", ["joint", "grouped"])
def test_times_that_fall_with_more_channels_are_not_over_budget_either(solver):
    prices = prices_of("residual", wild=True)
    between = {g: (1, size) for g, size in prices.sizes.items()}
    rng = np.random.default_rng(0)
    solved = 0
    for seed in range(40):
        values = {g: np.sort(rng.lognormal(0, 1, size))[::-1] for g, size in prices.sizes.items()}
        budgets = {"latency": prices.dense["latency"] * float(rng.uniform(0.4, 1.0))}
        best, _ = brute(prices, values, between, budgets, 1)
        now = {g: int(rng.integers(1, size + 1)) for g, size in prices.sizes.items()}
        if best is None:
            with pytest.raises(UserError, match="cannot be met"):
                allocate(prices, values, between, budgets, now=now, round_to=1, solver=solver)
            continue
        found = allocate(prices, values, between, budgets, now=now, round_to=1, solver=solver)
        assert prices.cost(found)["latency"] <= budgets["latency"], seed
        if solver == "joint":
            assert worth(values, found) >= best * (1 - allocation._GAP)
        solved += 1
    assert 5 < solved < 40


def test_grouped_is_the_knapsack_with_inputs_held():
    """The selection that its own costs allow, although the consumers' savings would allow more."""
    prices = prices_of("residual")
    now = {"stem": 8, "conv1": 12}
    values = {"stem": np.linspace(2, 1, 8), "conv1": np.linspace(1, 0.5, 12)}
    between = {"stem": (1, 8), "conv1": (1, 12)}
    budget = 0.7 * prices.dense["params"]
    found = allocate(prices, values, between, {"params": budget}, now=now, round_to=1, solver="grouped")
    stem, inner = prices.grouped_costs(now, {"stem": range(1, 9), "conv1": range(1, 13)}, "params")
    rest = prices.dense["params"] - stem[-1] - inner[-1]
    fitting = [(a, b) for a in range(8) for b in range(12) if stem[a] + inner[b] + rest <= budget]
    best = max(fitting, key=lambda ab: worth(values, {"stem": ab[0] + 1, "conv1": ab[1] + 1}))
    assert found == {"stem": best[0] + 1, "conv1": best[1] + 1}
    assert worth(values, found) < worth(
        values, allocate(prices, values, between, {"params": budget}, now=now, round_to=1)
    )


def test_everything_is_kept_when_it_fits_and_other_groups_stay():
    prices = prices_of("three widths")
    values = {g: np.zeros(size) for g, size in prices.sizes.items()}
    between = {g: (1, size) for g, size in prices.sizes.items()}
    assert allocate(prices, values, between, dict(prices.dense), now=prices.sizes) == prices.sizes
    values.pop("b")
    now = dict.fromkeys(prices.sizes, 2)
    found = allocate(prices, values, between, {"flops": 0.5 * prices.dense["flops"]}, now=now, round_to=1)
    assert found["b"] == 2
    assert prices.cost(found)["flops"] <= 0.5 * prices.dense["flops"]


def test_several_budgets_need_joint():
    prices = prices_of("residual")
    values = {g: np.ones(size) for g, size in prices.sizes.items()}
    between = {g: (1, size) for g, size in prices.sizes.items()}
    budgets = {"flops": 1e3, "params": 1e2}
    with pytest.raises(
        UserError, match=r'^solver="grouped" takes one budget, not flops and params; use solver="joint"'
    ):
        allocate(prices, values, between, budgets, now=prices.sizes, solver="grouped")


def test_impossible_budgets_name_the_smallest_in_both_units():
    prices = prices_of("residual")
    values = {g: np.ones(size) for g, size in prices.sizes.items()}
    between = {g: (4, size) for g, size in prices.sizes.items()}
    least = prices.smallest({"stem": 4, "conv1": 4})["params"]
    assert least == 4 * 28 + 4 * 36 + 8 + 4 * 36 + 8 + 25
    text = f"a params budget of 100 parameters .* cannot be met: the smallest that can is {least:g} parameters "
    for solver in ("joint", "grouped"):
        with pytest.raises(UserError, match=text):
            allocate(prices, values, between, {"params": 100.0}, now=prices.sizes, solver=solver)
    with pytest.raises(UserError, match=text) as error:
        uniform(prices, {"stem": 4, "conv1": 4}, 1, {"flops": 1e9, "params": 100.0})
    share = float(re.search(r"\((\S+) of dense\)$", str(error.value))[1])
    asked = {"params": share * prices.dense["params"]}
    assert uniform(prices, {"stem": 4, "conv1": 4}, 1, asked) == {"stem": 4, "conv1": 4}
    assert allocate(prices, values, between, asked, now=prices.sizes) == {"stem": 4, "conv1": 4}


def test_without_any_work_the_answer_is_still_within_budget(monkeypatch):
    monkeypatch.setattr(allocation, "_NODES", 0)
    prices = prices_of("three widths")
    values = {g: np.linspace(2, 1, size) for g, size in prices.sizes.items()}
    between = {g: (1, size) for g, size in prices.sizes.items()}
    budgets = {kind: 0.5 * dense for kind, dense in prices.dense.items()}
    found = allocate(prices, values, between, budgets, now=prices.sizes, round_to=1)
    assert all(prices.cost(found)[kind] <= budgets[kind] for kind in budgets)
    assert worth(values, found) >= 0.85 * brute(prices, values, between, budgets, 1)[0]


@pytest.mark.parametrize("budgets", [["params"], ["flops", "latency"], ["params", "flops", "latency"]])
@pytest.mark.parametrize("name", ["residual", "concatenation", "three widths"])
def test_what_limits_the_solver_is_work_and_never_time(name, budgets, monkeypatch):
    """So that a busy machine gives the same widths."""
    prices = prices_of(name)
    values = {g: np.linspace(2, 1, size) for g, size in prices.sizes.items()}
    between = {g: (1, size) for g, size in prices.sizes.items()}
    limits = {kind: 0.6 * prices.dense[kind] for kind in budgets}
    given, real = [], scipy.optimize.milp
    monkeypatch.setattr(scipy.optimize, "milp", lambda *a, **k: given.append(set(k["options"])) or real(*a, **k))
    allocate(prices, values, between, limits, now=prices.sizes, round_to=1)
    assert given
    assert all(options == {"mip_rel_gap", "node_limit"} for options in given)


def test_where_no_search_finds_anything_the_budget_is_met_step_by_step(monkeypatch):
    """Also where all groups at their lowest counts would be over it, as measured times fall with more channels."""

    def nothing(*_, **__):
        raise UserError("nothing found")

    prices = prices_of("residual", wild=True)
    values = {g: np.linspace(2, 1, size) for g, size in prices.sizes.items()}
    between = {g: (1, size) for g, size in prices.sizes.items()}
    monkeypatch.setattr(knapsack, "joint", nothing)
    solved = 0
    for share in np.linspace(0.75, 0.99, 25):
        budgets = {"latency": share * prices.dense["latency"]}
        best, _ = brute(prices, values, between, budgets, 1)
        if best is not None:
            found = allocate(prices, values, between, budgets, now=prices.sizes, round_to=1)
            check_legal(found, between, 1)
            assert prices.cost(found)["latency"] <= budgets["latency"]
            solved += 1
    assert solved > 5


def priced_apart(sizes):
    """Every group has one layer in and one out, both of fixed width on their other side."""
    products = Products(len(sizes))
    for i in range(len(sizes)):
        products.add(1.0 + i, [Extent(0, {i: 1})], [Extent(5 + i, {})])
    return Prices(sizes, {"params": products.finish()})


@pytest.mark.parametrize("sizes", [{"a": 6}, {"a": 12, "b": 9}, {"a": 7, "b": 5, "c": 8}, dict.fromkeys("abcd", 6)])
def test_groups_that_never_meet_get_the_best_of_all_counts_without_a_search(sizes, monkeypatch):
    monkeypatch.setattr(knapsack, "joint", lambda *_, **__: pytest.fail("a search, where a knapsack is exact"))
    prices = priced_apart(sizes)
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = {g: np.sort(rng.lognormal(0, 1, n))[::-1] for g, n in sizes.items()}
        between = {g: (1, n) for g, n in sizes.items()}
        at = {g: int(rng.integers(1, n + 1)) for g, n in sizes.items()}
        budgets = prices.cost(at)  # exactly that of something
        found = allocate(prices, values, between, budgets, now=sizes, round_to=2)
        check_legal(found, between, 2)
        assert prices.cost(found)["params"] <= budgets["params"]
        best, _ = brute(prices, values, between, budgets, 2)
        assert worth(values, found) == pytest.approx(best, rel=1e-12)


def test_few_levels_around_the_present_count():
    steps = np.arange(8, 2049, 8)
    levels = allocation._spread(steps, 2048)
    assert len(levels) <= 14
    assert {8, 2040, 2048} <= set(levels.tolist())
    middle = allocation._spread(steps, 1024)
    assert len(middle) <= 14
    assert {8, 1016, 1024, 1032, 2048} <= set(middle.tolist())
    near = allocation._spread(steps, 1024, allocation._reach(np.array([8, 992, 1024, 1032, 2048]), 1024, steps))
    assert len(near) <= 14
    assert {8, 960, 1016, 1024, 1032, 1040, 2048} <= set(near.tolist())
    assert allocation._spread(np.arange(14), 3).tolist() == list(range(14))


def wide():
    """Prices of a chain of wide layers with the costs of matrices."""

    sizes = {f"layer{i}": 1024 for i in range(8)}
    products = Products(8)
    for i in range(7):
        products.add(1.0, [Extent(0, {i: 1})], [Extent(0, {i + 1: 1})])
    return Prices(sizes, {"params": products.finish()})


def test_many_levels_are_refined_around_the_answer():
    """1024 channels in steps of 8: far from the present counts, yet close to the best relaxation."""
    prices = wide()
    rng = np.random.default_rng(0)
    values = {g: np.sort(rng.lognormal(0, 1, n))[::-1] for g, n in prices.sizes.items()}
    between = {g: (8, n) for g, n in prices.sizes.items()}
    budget = {"params": 0.3 * prices.dense["params"]}
    found = allocate(prices, values, between, budget, now=prices.sizes)
    cost = prices.cost(found)["params"]
    assert 0.99 * budget["params"] <= cost <= budget["params"]
    fine = {g: list(range(8, n + 1, 32)) for g, n in prices.sizes.items()}
    layers = prices.layers(found, fine)
    worths = [[float(values[g][:n].sum()) for n in steps] for g, steps in fine.items()]
    coarse = knapsack.joint(worths, [LayerCosts(x.source, x.target, x.costs) for x in layers], budget, gap=1e-3)
    assert worth(values, found) >= coarse.value * (1 - 2e-3)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_uniform_equals_a_scan(data):
    prices = prices_of(data.draw(st.sampled_from([*EXACT, "three widths"])), wild=data.draw(st.booleans()))
    round_to = data.draw(st.integers(1, 5))
    floor = {g: data.draw(st.integers(1, size)) for g, size in prices.sizes.items()}
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3, unique=True))
    budgets = {kind: data.draw(st.floats(0.1, 1.1)) * prices.dense[kind] for kind in kinds}

    def counts_at(share):
        return {
            g: size if share >= 1 else max(floor[g], min(size, math.floor(share * size / round_to + 0.5) * round_to))
            for g, size in prices.sizes.items()
        }

    expected = None
    for share in np.arange(1, -1e-9, -1 / 240):
        cost = prices.cost(counts_at(share + 1e-9))
        if all(cost[kind] <= budgets[kind] for kind in kinds):
            expected = counts_at(share + 1e-9)
            break
    if expected is None:
        with pytest.raises(UserError, match="cannot be met: the smallest that can is"):
            uniform(prices, floor, round_to, budgets)
    else:
        assert uniform(prices, floor, round_to, budgets) == expected


def test_uniform_takes_steps_and_floors_by_group():
    prices = prices_of("residual")
    half = {"params": 0.5 * prices.dense["params"]}
    found = uniform(prices, {"stem": 2, "conv1": 9}, {"stem": 4}, half)
    assert found["stem"] in (2, 4, 8)
    assert found["conv1"] >= 9
    assert prices.cost(found)["params"] <= half["params"]
    assert uniform(prices, {"stem": 1}, 1, {"flops": prices.dense["flops"]}) == {"stem": 8}
    only = uniform(prices, {"stem": 1}, 1, {"params": 0.7 * prices.dense["params"]})
    assert prices.cost({**only, "stem": only["stem"] + 1})["params"] > 0.7 * prices.dense["params"]
