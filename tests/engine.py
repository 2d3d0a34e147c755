"""What the engine's tests share: a small network, its batches, and a loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

import regrow

IEE = regrow.IEE(h=5, j=4, q=3)


def network(seed: int = 3) -> nn.Module:
    """Convolutions with batch norm, and a linear layer, for 1×6×6 inputs and 5 classes."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


def batches(n: int, seed: int = 5) -> list[tuple[Tensor, Tensor]]:
    source = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, 1, 6, 6, generator=source), torch.randint(0, 5, (8,), generator=source)) for _ in range(n)]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Iterable[tuple[Tensor, Tensor]],
    each: Callable[[], None] | None = None,
) -> None:
    for batch in data:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        if each:
            each()


def attach(model: nn.Module, optimizer: torch.optim.Optimizer, **options: object) -> regrow.Sparsifier:
    defaults = {"pattern": regrow.Weights(0.7, "erk"), "method": IEE, "total_steps": 60}
    return regrow.Sparsifier(model, optimizer, **(defaults | options))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)
