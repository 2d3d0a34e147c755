"""Whole models are compiled, as often as there are copies of them, and before they are timed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regrow.errors import UserError
from regrow.inputs import Inputs
from regrow.latency.compiled import Compiled, first_run
from regrow.latency.eager import Eager

EXAMPLE = Inputs.of(torch.ones(2, 3))


def test_more_copies_of_a_model_are_compiled_than_the_compiler_keeps_by_itself(monkeypatch):
    graphs = []
    backend = lambda graph, _: graphs.append(graph) or graph.forward  # noqa: E731
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: compiler(model, **options | {"backend": backend}))
    runner = Compiled(2, 1)
    runs = [runner.whole(Thin(width), EXAMPLE) for width in range(1, 11)]
    assert len(graphs) == 10
    for run in runs:
        run()
    assert len(graphs) == 10  # nothing is compiled while it is timed


class Thin(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def test_units_are_timed_as_they_run_eagerly():
    assert Compiled.sample is Eager.sample


def test_a_model_that_cannot_be_compiled_is_one_sentence():
    def broken(*_):
        raise RuntimeError("no compiler\nat all")

    with pytest.raises(UserError, match=r"^the model cannot be compiled: no compiler; --runtime eager \(runtime='eag"):
        first_run(broken)
