from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow.distribution import RAW, active_counts, densities, erdos_renyi, erdos_renyi_kernel, round_to_total
from regrow.errors import UserError


def test_raw_densities() -> None:
    assert erdos_renyi((64, 32, 3, 3)) == (64 + 32) / (64 * 32)
    assert erdos_renyi_kernel((64, 32, 3, 3)) == (64 + 32 + 3 + 3) / (64 * 32 * 9)


def test_erk_makes_small_layers_dense_and_solves_again() -> None:
    shapes = {"small": (4, 3, 3, 3), "a": (64, 64, 3, 3), "b": (128, 64, 3, 3)}
    share = densities(shapes, 0.1, erdos_renyi_kernel)
    assert share["small"] == 1.0
    assert share["a"] / share["b"] == pytest.approx(erdos_renyi_kernel(shapes["a"]) / erdos_renyi_kernel(shapes["b"]))
    total = sum(math.prod(s) for s in shapes.values())
    assert sum(share[k] * math.prod(s) for k, s in shapes.items()) == pytest.approx(0.1 * total)


def test_named_layers_take_no_part_in_the_rest() -> None:
    shapes = {"a": (10, 10), "b": (20, 10), "c": (20, 20)}
    assert active_counts(shapes, 0.9, "uniform", {"b": 0.5}) == {"a": 10, "b": 100, "c": 40}


def test_uniform_by_hand() -> None:
    # 7.5 and 2.5 wanted, 10 in all: the remainders tie, and the first layer gets the half
    assert active_counts({"a": (5, 6), "b": (5, 2)}, 0.75, "uniform") == {"a": 8, "b": 2}


def test_too_sparse_for_one_unit_a_layer() -> None:
    with pytest.raises(UserError, match="1 active units cannot cover 2 layers"):
        active_counts({"a": (10, 10), "b": (10, 10)}, 0.995, "uniform")


shapes_ = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.tuples(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3]), st.sampled_from([1, 3])),
    ),
    min_size=1,
    max_size=8,
)


@given(shapes_, st.floats(0, 0.999), st.sampled_from(sorted(RAW)))
def test_counts_are_exact_and_within_bounds(shapes, sparsity, kind) -> None:
    named = {f"l{i}": shape for i, shape in enumerate(shapes)}
    total = round((1 - sparsity) * sum(math.prod(s) for s in shapes))
    if total < len(shapes):
        with pytest.raises(UserError, match="cannot cover"):
            active_counts(named, sparsity, kind)
        return
    counts = active_counts(named, sparsity, kind)
    assert sum(counts.values()) == total
    assert all(1 <= counts[name] <= math.prod(shape) for name, shape in named.items())


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.data())
def test_rounding_stays_within_one_where_no_bound_is_hit(sizes, data) -> None:
    total = data.draw(st.integers(len(sizes), sum(sizes)))
    names = {f"l{i}": n for i, n in enumerate(sizes)}
    wanted = {name: n * total / sum(sizes) for name, n in names.items()}
    counts = round_to_total(wanted, names, total)
    assert sum(counts.values()) == total
    if all(w >= 1 for w in wanted.values()):
        assert all(abs(counts[name] - wanted[name]) < 1 for name in names)
