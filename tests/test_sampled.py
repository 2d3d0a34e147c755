"""What the marker `sampled` keeps of a product of parameters: n-ths of it, with every value of every parameter."""

from __future__ import annotations

import pytest
from _pytest.fixtures import FixtureRequest

from sampling import positions


@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("letter", ["a", "b", "c", "d"])
def test_kept(letter: str, number: int) -> None:
    assert letter
    assert number


def test_every_value_is_met_in_half_of_the_product(request: FixtureRequest) -> None:
    items = [item for item in request.session.items if item.nodeid.startswith("tests/test_sampled.py::test_kept")]
    kept = [(item.callspec.params["letter"], item.callspec.params["number"]) for item in items]  # type: ignore[attr-defined]
    everything = [(letter, number) for letter in "abcd" for number in (1, 2, 3)]
    half = [(a, n) for a, n in everything if ("abcd".index(a) + n - 1) % 2 == 0]
    assert sorted(kept) == sorted(everything if request.config.getoption("thorough") else half)


def test_positions() -> None:
    assert [positions(i, [2, 3]) for i in range(6)] == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
