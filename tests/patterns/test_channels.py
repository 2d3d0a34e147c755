"""Options of the pattern."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from regrow import Channels
from regrow.errors import UserError
from regrow.groups import Group, Slice
from regrow.patterns.channels import amount


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("latency", 0.5, 4.0), ("latency", "0.5", 4.0), ("latency", "12 ms", 0.012), ("latency", "3s", 3.0),
        ("latency", "250 us", 0.00025), ("flops", 1.0, 8.0), ("flops", "1.1 G", 1.1e9), ("flops", 2e9, 2e9),
        ("params", "5M", 5e6), ("params", "200k", 2e5), ("params", "0.25", 2.0),
    ],
)  # fmt: skip
def test_amounts(kind: str, value: float | str, expected: float) -> None:
    assert amount(kind, value, 8.0) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs a budget"),
        ({"latency": 0.0}, "latency is 0.0"),
        ({"latency": 12}, "latency is 12"),
        ({"latency": "12 parsecs"}, "'parsecs' is no unit"),
        ({"flops": "many"}, "flops is 'many'"),
        ({"flops": -3}, "flops is -3"),
        ({"params": float("inf")}, "params is inf"),
        ({"flops": 0.5, "round_to": 0}, "round_to is 0"),
        ({"flops": 0.5, "min_channels": 0}, "min_channels is 0"),
        ({"flops": 0.5, "exclude": "head"}, "exclude is 'head', but must be a list of names"),
        ({"flops": 0.5, "distribution": "erk"}, "distribution 'erk'"),
        ({"flops": 0.5, "solver": "magic"}, "solver 'magic'"),
        ({"flops": 0.5, "params": 0.5, "solver": "grouped"}, "one budget only"),
        ({"flops": 0.5, "time_limit": 0.0}, "time_limit is 0.0"),
    ],
)
def test_bad_options(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Channels(**options)  # type: ignore[arg-type]


def test_least_and_steps_of_a_group() -> None:
    pattern = Channels(flops=0.5, round_to={"layer1.*": 4}, min_channels=0.1)
    assert pattern.step_of(_group("layer1.0.conv1")) == 4
    assert pattern.step_of(_group("layer2.0.conv1")) == 8
    assert pattern.floor_of(_group("layer1.0.conv1")) == 8
    assert pattern.floor_of(_group("layer2.0.conv1")) == 8
    assert pattern.floor_of(_group("layer2.0.conv1", size=6)) == 6
    assert Channels(flops=0.5, round_to=8, min_channels=20).floor_of(_group("x")) == 24


def test_what_is_normalised_together_keeps_two_numbers() -> None:
    pattern = Channels(flops=0.5, round_to=1, min_channels=1)
    assert pattern.floor_of(_group("x")) == 1
    assert pattern.floor_of(replace(_group("x"), exact=False)) == 2
    assert pattern.floor_of(replace(_group("x", size=4, each=4), exact=False)) == 1


@pytest.mark.parametrize(("each", "step"), [(1, 8), (2, 4), (64, 1), (12, 2), (49, 8)])
def test_what_whole_heads_have_together_is_rounded(each: int, step: int) -> None:
    assert Channels(flops=0.5).step_of(_group("query", size=3, each=each)) == step
    assert Channels(flops=0.5, round_to=4).step_of(_group("experts", each=1, multiple=8)) == 8


def _group(name: str, size: int = 64, each: int = 1, multiple: int = 1) -> Group:
    rows = torch.arange(size).repeat_interleave(each)
    return Group(name, size, (Slice(f"{name}.weight", 0, rows),), multiple=multiple)
