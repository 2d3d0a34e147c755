"""Where a run is, as numbers."""

from __future__ import annotations

import torch

import regrow
from channel_engine import DATA
from channel_engine import IEE as OF_CHANNELS
from channel_engine import network as wide
from engine import attach, batches, network, train

PHASES = {"regrow/phase_estimate", "regrow/phase_explore", "regrow/phase_improve", "regrow/phase_fixed"}


def test_numbers_of_every_step() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    sparsifier = attach(model, optimizer)
    assert set(sparsifier.metrics()) == {*PHASES, "regrow/density", "regrow/updates", "regrow/budget"}
    for step, batch in enumerate(batches(60), 1):
        train(model, optimizer, [batch])
        found = sparsifier.metrics()
        assert {name for name in PHASES if found[name]} == {f"regrow/phase_{sparsifier.phase}"}
        assert found["regrow/density"] == sparsifier.density()
        assert found["regrow/updates"] == min(step // 12, 3)
        decayed = regrow.Budget("cosine", 0.3).fraction(step, 45)
        assert found["regrow/budget"] == (decayed if step < 36 else 0.0)
        assert found.get("regrow/iou") == (sparsifier.history[-1]["iou"] if step >= 12 else None)
        assert found.get("regrow/survival") == (sparsifier.history[-1]["survival"] if step >= 12 else None)
        assert all(type(value) is float for value in found.values())


def test_of_a_dense_run_and_of_channels() -> None:
    model = network()
    dense = attach(model, torch.optim.SGD(model.parameters(), 0.05), method="dense")
    assert dense.metrics() == {"regrow/density": 1.0, "regrow/updates": 0.0, "regrow/phase_fixed": 1.0}
    model = wide()
    channels = regrow.Sparsifier(
        model, torch.optim.SGD(model.parameters(), 0.05), pattern=regrow.Channels(flops=0.4, round_to=2),
        method=OF_CHANNELS, total_steps=60, example_inputs=DATA[0][0],
    )  # fmt: skip
    assert channels.metrics()["regrow/flops"] == channels.summary().budgets["flops"][0] <= 0.4
    before = channels.metrics()["regrow/flops"]
    channels.compact()
    assert channels.metrics() == {**channels.metrics(), "regrow/flops": before, "regrow/phase_fixed": 1.0}
