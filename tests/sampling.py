"""Which of a product of parameters the marker `sampled` keeps."""

from __future__ import annotations

from collections.abc import Sequence


def positions(number: int, lengths: Sequence[int]) -> list[int]:
    """Where a combination of a product of lists, counted as pytest does, is in each of them; the last changes first."""
    found = []
    for length in reversed(lengths):
        number, position = divmod(number, length)
        found.insert(0, position)
    assert number == 0
    return found
