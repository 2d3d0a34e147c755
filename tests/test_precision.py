"""Mixed precision, other kernels, recomputed activations and synchronised norms; the rows of the table of
docs/own-loop.md that no other test holds, and the table itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import regrow
from engine import attach, batches, network, same, snapshot
from regrow.errors import UserError

ROOT = Path(__file__).parent.parent


def run(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, dtype: torch.dtype | None = None, scaled: bool = False,
    forward: Callable[[nn.Module, Tensor], Tensor] = nn.Module.__call__, steps: int = 50, **options: Any,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # fmt: skip
    """Trains, and holds what must hold in every step: zeros where pruned, frozen bits where others are explored.

    Returns:
        The weights and masks of the end.
    """
    sparsifier = attach(model, optimizer, **({"criterion": "taylor"} | options))
    scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**8)
    explored = 0
    for x, y in batches(steps):
        exploring, before, masks = sparsifier.phase == "explore", snapshot(model), sparsifier.masks
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss = nn.functional.cross_entropy(forward(model, x).float(), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        sparsifier.prepare_step()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        for name, mask in masks.items():
            p = model.get_parameter(name).detach()
            if exploring:
                explored += 1
                assert torch.equal(p[mask], before[name][mask])
        for name, mask in sparsifier.masks.items():
            if sparsifier.phase != "explore":
                assert (model.get_parameter(name)[~mask] == 0).all()
    assert sparsifier.step_count == steps
    assert explored
    assert len(sparsifier.history) == 3
    return snapshot(model), sparsifier.masks


def sgd(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, **options)


def adamw(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 0.01, **options)


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize(("dtype", "scaled"), [(torch.bfloat16, False), (torch.float16, True)], ids=["bf16", "fp16"])
def test_autocast(dtype: torch.dtype, scaled: bool, make: Callable[..., torch.optim.Optimizer]) -> None:
    """Weights stay in fp32 and what is frozen stays to the bit; a scale, a power of two, changes nothing in bf16."""
    model = network()
    weights, masks = run(model, make(model), dtype=dtype, scaled=scaled)
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}
    assert sum(int(mask.sum()) for mask in masks.values()) == 112
    if dtype is torch.bfloat16:
        twin = network()
        other = run(twin, make(twin), dtype=dtype, scaled=True)
        assert same(weights, other[0])
        assert same(masks, other[1])


@pytest.mark.parametrize("kernels", [{"foreach": True}, {"fused": True}], ids=["foreach", "fused"])
@pytest.mark.parametrize("make", [sgd, adamw])
def test_foreach_and_fused_kernels(make: Callable[..., torch.optim.Optimizer], kernels: dict[str, bool]) -> None:
    """The same masks as one parameter after the other, and the same weights but for how sums are rounded."""

    def double(model: nn.Module, x: Tensor) -> Tensor:
        return model(x.double())

    plain, model = network().double(), network().double()
    expected = run(plain, make(plain, foreach=False), forward=double)
    found = run(model, make(model, **kernels), forward=double)
    assert same(expected[1], found[1])
    for name in expected[0]:
        if not name.endswith("bias"):  # before a norm, it only has noise for a gradient, which Adam blows up
            torch.testing.assert_close(expected[0][name], found[0][name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    """Activations that are computed twice, in the same masks, make the same run."""

    def in_parts(model: nn.Sequential, x: Tensor) -> Tensor:
        x.requires_grad_()
        for part in (model[:3], model[3:6]):
            x = checkpoint(part, x, use_reentrant=reentrant)
        return model[6:](x)

    def frozen_norms(model: nn.Module) -> nn.Module:  # which else see each batch twice
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return model

    plain, model = frozen_norms(network()), frozen_norms(network())
    expected, found = run(plain, sgd(plain)), run(model, sgd(model), forward=in_parts)
    assert same(expected[0], found[0])
    assert same(expected[1], found[1])


def test_synchronised_batch_norm() -> None:
    """In one process it is batch norm; its statistics are kept and come back as those of any other."""
    plain, model = network(), nn.SyncBatchNorm.convert_sync_batchnorm(network())
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in model) == 2
    expected, found = run(plain, sgd(plain)), run(model, sgd(model))
    assert same(expected[0], found[0])
    assert same(expected[1], found[1])
    regrow.recalibrate(model, batches(4), batches=4)
    regrow.recalibrate(plain, batches(4), batches=4)
    assert same(snapshot(plain), snapshot(model))


def test_an_optimizer_that_autograd_records_is_refused() -> None:
    model = network()
    with pytest.raises(UserError, match="SGD has differentiable=True, but autograd cannot record a step"):
        attach(model, torch.optim.SGD(model.parameters(), 0.05, differentiable=True))


def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", ["docs/own-loop.md", "docs/symptoms.md"])
def test_tests_that_a_page_names_are_there(page: str) -> None:
    """Every row of its tables names one, as `file.py::function`."""
    rows = [row for row in (ROOT / page).read_text(encoding="utf-8").splitlines() if row.startswith("| ")]
    named = [re.findall(r"`([\w/]+\.py)::(\w+)`", row) for row in rows]
    assert sum(bool(tests) for tests in named) >= 10
    for file, function in [test for tests in named for test in tests]:
        assert function in functions(ROOT / "tests" / file), f"{file}::{function}"
    if page == "docs/symptoms.md":
        unheld = {row for row, tests in zip(rows, named, strict=True) if not tests}
        assert unheld == {"| symptom | what regrow does | held by |"}
