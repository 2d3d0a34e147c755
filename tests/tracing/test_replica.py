"""Models are copied with whatever their attributes hold after a run."""

from __future__ import annotations

import collections
import tempfile
import threading
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow.tracing.flops import count_flops
from regrow.tracing.replica import replica_of

X = torch.randn(2, 3, 6, 6)


@dataclass
class Kept:
    features: Any = None


class Keeps(nn.Module):
    """Keeps what it has computed, or something that cannot be copied."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.kept: Any = None
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        self.kept = self.what(x) if callable(self.what) else self.what
        return self.b(x)


KINDS = {
    "attribute": lambda x: x,
    "list": lambda x: [x, x * 2],
    "dict": lambda x: {"a": x},
    "nested": lambda x: {"a": [(x, {"b": x * 2})]},
    "namespace": lambda x: SimpleNamespace(x=x),
    "dataclass": lambda x: Kept([x]),
    "deque": lambda x: collections.deque([x]),
    "its own list": lambda x: (one := [x]).append(one) or one,
}
UNIQUE = {
    "lock": lambda: threading.Lock(),
    "lock in a list": lambda: [threading.RLock()],
    "generator": lambda: (i for i in range(3)),
    "iterator of a loader": lambda: iter(torch.utils.data.DataLoader([1])),
    "file": lambda: tempfile.TemporaryFile(),  # noqa: SIM115
    "random numbers": lambda: torch.Generator().manual_seed(3),
}


@pytest.mark.parametrize("kind", [*KINDS, *UNIQUE])
def test_a_model_that_has_run_can_be_attached(kind) -> None:
    model = Keeps(KINDS[kind] if kind in KINDS else UNIQUE[kind]())
    before = model(X)
    kept = model.kept
    copied = replica_of(model)
    assert torch.equal(copied(X), before)
    assert model.kept is kept
    assert count_flops(model, X).by_parameter["a.weight"] == 2 * 16 * 8 * 27
    for pattern in (regrow.Channels(params=0.6, round_to=1, min_channels=1), regrow.Weights(0.5)):
        again = Keeps(model.what)
        again(X)
        sgd = torch.optim.SGD(again.parameters(), 0.1)
        sparsifier = regrow.Sparsifier(again, sgd, pattern=pattern, method="static", total_steps=3, example_inputs=X)
        assert sparsifier.density() < 1


def test_random_numbers_of_a_copy_leave_those_of_the_model() -> None:
    model = Keeps(torch.Generator().manual_seed(3))
    model(X)
    copied = replica_of(model)
    torch.rand(5, generator=copied.kept)
    expected = torch.rand(3, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.rand(3, generator=model.kept), expected)
