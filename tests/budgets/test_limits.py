"""Budgets put to a model: what they say where they limit nothing."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch

import fixed_latency
import regrow
from channel_engine import DATA, network
from regrow.budgets.amounts import written

EXAMPLE = DATA[0][0]


def said(**options: Any) -> list[str]:
    """The warnings when attaching."""
    model = network()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        regrow.Sparsifier(
            model, torch.optim.SGD(model.parameters(), 0.1), pattern=regrow.Channels(round_to=1, **options),
            method=regrow.Uniform(), total_steps=9, example_inputs=EXAMPLE,
        )  # fmt: skip
    assert all(one.filename == __file__ for one in caught)
    return [str(one.message) for one in caught]


def test_a_budget_that_the_dense_model_meets_is_a_warning() -> None:
    table = fixed_latency.table_of(network(), EXAMPLE)
    dense = table.model()
    nothing = "nothing is removed; ask for a share below 1, or for less"
    params = sum(p.numel() for p in network().parameters())
    assert said(params=params - 1) == []
    assert said(params=params) == [
        f"params={params} limits nothing, as the dense model takes {params / 1e3:.3g} k: {nothing}"
    ]
    assert said(flops="100%") == [f"flops='100%' limits nothing, as the dense model takes 165 k: {nothing}"]
    assert said(latency="50 ms", table=table) == [
        f"latency='50 ms' limits nothing, as the dense model takes {1e6 * dense:.3g} us: {nothing}"
    ]


def test_so_is_one_of_several() -> None:
    only = "only the other budgets count; ask for a share below 1, or for less"
    assert said(params=0.7, flops="2 M") == [f"flops='2 M' limits nothing, as the dense model takes 165 k: {only}"]
    assert len(said(params=1.0, flops="2 M")) == 2
    assert said(params=0.7, flops=0.7) == []


@pytest.mark.parametrize("budget", [{"flops": 0.5}, {"params": 0.5, "flops": 0.5}])
def test_a_table_without_a_budget_of_latency_is_refused(budget: dict[str, float]) -> None:
    with pytest.raises(regrow.UserError) as caught:
        said(**budget, table="table.json")
    assert str(caught.value) == "table= prices latency, which is no budget here: add latency=, or leave table= out"


@pytest.mark.parametrize(("per_unit", "still"), [(0.0, None), (1e-4, "87")])
def test_a_budget_below_the_smallest_network_says_what_can_be_met_and_what_no_width_saves(
    monkeypatch: pytest.MonkeyPatch, per_unit: float, still: str | None
) -> None:
    monkeypatch.setattr(fixed_latency, "_PER_UNIT", per_unit)
    table = fixed_latency.table_of(network(), EXAMPLE)
    dense = re.escape(written("latency", table.model()))
    with pytest.raises(regrow.UserError) as caught:
        said(latency=1e-3, table=table, min_channels=0.5)
    found = re.fullmatch(
        r"latency=0\.001 cannot be met: with min_channels=0\.5 and round_to=1 the smallest that can is (\S+) of the "
        rf"dense model's {dense}; ask for more, or lower these(; with one channel in each group it would still take "
        r"(\d+)%)?",
        str(caught.value),
    )
    assert found is not None
    assert found[3] == still
    least = float(found[1])
    assert said(latency=least, table=table, min_channels=0.5) == []
    with pytest.raises(regrow.UserError, match="cannot be met"):
        said(latency=least - 1e-4, table=table, min_channels=0.5)
