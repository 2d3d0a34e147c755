"""What actions make of counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from regrow.actions import Grow, Prune, counts_after, shared, with_more


@given(st.data(), st.integers(1, 6))
def test_shared_out_to_the_last_unit_in_proportion_where_there_is_room(data: st.DataObject, layers: int) -> None:
    names = [str(i) for i in range(layers)]
    room = {name: data.draw(st.integers(0, 50)) for name in names}
    weights = {name: data.draw(st.floats(0, 1e6)) for name in names}
    total = data.draw(st.integers(0, sum(room.values())))
    given_out = shared(total, weights, room)
    assert sum(given_out.values()) == total
    assert all(0 <= given_out[name] <= room[name] for name in names)
    whole = sum(weights.values())
    if whole > 1e-3 and all(total * weights[name] / whole + 1 <= room[name] for name in names):
        assert all(abs(given_out[name] - total * weights[name] / whole) <= 1 for name in names)


def test_shared_by_hand() -> None:
    assert shared(10, {"a": 3, "b": 1, "c": 1}, {"a": 99, "b": 99, "c": 99}) == {"a": 6, "b": 2, "c": 2}
    assert shared(10, {"a": 3, "b": 1, "c": 1}, {"a": 2, "b": 99, "c": 99}) == {"a": 2, "b": 4, "c": 4}
    assert shared(3, {"a": 0, "b": 0}, {"a": 5, "b": 5}) == {"a": 2, "b": 1}
    assert shared(2, {"a": 5, "b": 0}, {"a": 1, "b": 5}) == {"a": 1, "b": 1}
    assert shared(0, {"a": 1}, {"a": 0}) == {"a": 0}


def test_counts_beyond_the_target_and_from_what_layers_have_come_to() -> None:
    final = {"a": (40, 100), "b": (10, 10)}
    assert counts_after(Grow(0.6, beyond=0.3), final, {"a": 40, "b": 10}) == {"a": 52, "b": 10}
    assert with_more(9, 10, 0.5) == 10
    sparsity = 1 - 50 / 110
    assert counts_after(Prune(sparsity, 0.1), final, {"a": 52, "b": 10}) == {"a": 36, "b": 10}
    assert counts_after(Prune(sparsity, 0.1, layers="now"), final, {"a": 50, "b": 8}) == {"a": 45, "b": 8}
    assert counts_after(Prune(sparsity, 0.1, layers="all"), final, {"a": 50, "b": 8}) == {"a": 36, "b": 10}
