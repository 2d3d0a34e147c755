"""Patterns of the user's own that give something else than they are asked for are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import regrow
from engine import batches, network, train
from regrow.patterns import EntryPattern
from regrow.patterns.layers import select
from regrow.selection import top_k


def exact(scores: Tensor, k: int, candidates: Tensor) -> Tensor:
    return top_k(scores, k, candidates)


def half(parameters: Any) -> dict[str, Any]:
    return {name: (p.numel() // 2, p.numel()) for name, p in parameters.items()}


@dataclass(frozen=True)
class Own(EntryPattern):
    """Half of the entries, unless it is told otherwise."""

    name: ClassVar[str] = "own"

    chooses: Callable[[Tensor, int, Tensor], Any] = exact
    gives: Callable[[Any], Any] = half
    unit: int = 1

    @property
    def unit_size(self) -> int:  # type: ignore[override]
        return self.unit

    def select(self, model: torch.nn.Module, example_inputs: Any = None) -> Any:
        return select(model, example_inputs)

    def counts_of(self, parameters: Any) -> Any:
        return self.gives(parameters)

    def best(self, scores: Tensor, k: int, candidates: Tensor, occupied: Tensor) -> Tensor:
        return self.chooses(scores, k, candidates)


def run(pattern: EntryPattern) -> regrow.Sparsifier:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    sparsifier = regrow.Sparsifier(model, optimizer, pattern=pattern, method=regrow.RigL(interval=2), total_steps=12)
    train(model, optimizer, batches(12))
    return sparsifier


def test_what_is_asked_for() -> None:
    sparsifier = run(Own())
    assert all(int(mask.sum()) == mask.numel() // 2 for mask in sparsifier.masks.values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"chooses": lambda s, k, c: c}, "Own chooses 36 entries of '0.weight' where 18 are wanted"),
        ({"chooses": lambda s, k, c: exact(s, max(0, k - 1), c)}, "Own chooses 17 entries of '0.weight' where 18 are"),
        ({"chooses": lambda s, k, c: exact(-s, k, torch.ones_like(c))}, "of '0.weight' that are not among the candid"),
        (
            {"chooses": lambda s, k, c: exact(s, k, c).float()},
            "gives no mask for '0.weight': .* a bool tensor of shape",
        ),
        ({"chooses": lambda s, k, c: exact(s, k, c).flatten()}, r"a bool tensor of shape \(4, 1, 3, 3\)"),
        ({"chooses": lambda s, k, c: None}, "gives no mask for '0.weight'"),
        ({"gives": lambda ps: {n: (p.numel() + 1, p.numel()) for n, p in ps.items()}}, r"counts \(37, 36\) for '0.w"),
        ({"gives": lambda ps: {n: (0, p.numel()) for n, p in ps.items()}}, r"counts \(0, 36\).* leave some active"),
        ({"gives": lambda ps: {n: (p.numel() / 2, p.numel()) for n, p in ps.items()}}, r"counts \(18.0, 36\)"),
        ({"gives": lambda ps: dict.fromkeys(ps, 3)}, "gives the counts 3 for '0.weight'"),
        ({"gives": lambda ps: {n: c for n, c in half(ps).items() if n != "0.weight"}}, "gives no counts of '0.weight'"),
        ({"gives": lambda ps: half(ps) | {"x": (1, 2)}}, "gives counts of what it has not selected: 'x'"),
        ({"unit": 2}, r"counts \(18, 36\) for '0.weight', of 36 weights in units of 2"),
    ],
)
def test_anything_else(options: dict[str, Any], said: str) -> None:
    with pytest.raises(regrow.UserError, match=said):
        run(Own(**options))


@dataclass(frozen=True)
class Together(Own):
    """Ranks all layers together, by a choice of its own."""

    more: int = 0

    def choose(self, scores: Any, counts: Any, candidates: Any, occupied: Any, ranks: Any = None) -> dict[str, Tensor]:
        name = max(counts, key=lambda name: int(candidates[name].sum()))
        others = {n: k // 2 for n, k in counts.items()}
        rest = sum(counts.values()) - sum(k for n, k in others.items() if n != name) + self.more
        return {n: top_k(scores(n), rest if n == name else k, candidates[n]) for n, k in others.items()}


def test_only_the_sum_counts_where_a_choice_is_made_in_all_layers() -> None:
    with pytest.raises(regrow.UserError, match=r"Together chooses \d+ entries of 'all layers' where 186 are wanted"):
        run(Together(more=-1))
