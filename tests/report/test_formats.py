"""Numbers as people read them."""

from __future__ import annotations

import pytest

from regrow.methods import METHODS
from regrow.report import formats


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (formats.accuracy, 0.8842, "88.4%"),
        (formats.accuracy, 1.0, "100.0%"),
        (formats.accuracy, None, "–"),
        (formats.name, "iee, sparsity 0.9 (x, y)", "IEE, sparsity 0.9 (x, y)"),
        (formats.name, "gmp (runs, 2)", "GMP (runs, 2)"),
        (formats.name, "iee-paper", "iee-paper"),
        (formats.name, "", ""),
        (formats.share, 1.0, "100%"),
        (formats.share, 0.05, "5%"),
        (formats.share, 0.1234, "12.3%"),
        (formats.share, 0.00123, "0.12%"),
        (formats.share, 0.0, "0%"),
        (formats.megabytes, 102_400_000, "102 MB"),
        (formats.megabytes, 99_600_000, "100 MB"),
        (formats.megabytes, 3_210_000, "3.2 MB"),
        (formats.megabytes, 26_848, "0.027 MB"),
        (formats.megabytes, None, "–"),
        (formats.signed, 0.0061, "+0.6"),
        (formats.signed, -0.0132, "−1.3"),
        (formats.signed, 0.0004, "+0.04"),
        (formats.signed, -0.00001, "0.0"),
        (formats.signed, 0.0, "0.0"),
        (formats.signed, None, "–"),
        (formats.points, -0.0061, "0.6 points"),
        (formats.points, 0.01, "1.0 points"),
        (formats.times, 0.134, "0.13×"),
        (formats.times, 0.0123, "0.012×"),
        (formats.times, 1.0, "1.00×"),
        (formats.times, 12.34, "12.3×"),
        (formats.times, 0.0, "0.00×"),
        (formats.seconds, 12.34, "12.3 s"),
        (formats.seconds, 59.96, "1 min 00 s"),
        (formats.seconds, 75, "1 min 15 s"),
        (formats.seconds, 7300, "2 h 02 min"),
        (formats.seconds, None, "–"),
        (formats.count, 12345, "12,345"),
        (formats.name, "iee", "IEE"),
        (formats.name, "dense", "Dense"),
        (formats.name, "granet, sparsity 0.95", "GraNet, sparsity 0.95"),
        (formats.name, "iee-h50", "iee-h50"),
        (formats.listing, ["a"], "a"),
        (formats.listing, ["a", "b", "c"], "a, b and c"),
    ],
)
def test_formats(function, value, text) -> None:
    assert function(value) == text


def test_every_method_has_a_name_of_its_own() -> None:
    names = [formats.name(method) for method in METHODS]
    assert [name for name in names if not name[0].isupper()] == []
    assert len(set(names)) == len(names)


def test_plural() -> None:
    assert formats.plural(1, "run") == "1 run"
    assert formats.plural(1200, "run") == "1,200 runs"
