"""A module that adds a branch to its input computes nothing any more once the branch is gone; and which modules do."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow.coupling.couple import couple
from regrow.errors import UserError
from regrow.groups import Coupling
from regrow.inputs import Inputs
from regrow.surgery import resize, skip
from regrow.tracing.trace import record

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))

Sum = Callable[[Any, Tensor], Any]


class Block(nn.Module):
    """A branch, and what is made of it and the input."""

    def __init__(self, function: Sum) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


def residual(self: Any, x: Tensor) -> Tensor:
    return x + self.branch(x)


def turned(self: Any, x: Tensor) -> Tensor:
    return self.branch(x) + x


def post(self: Any, x: Tensor) -> Tensor:
    out = self.branch(x)
    out += x
    return self.relu(out)


def functional(self: Any, x: Tensor) -> Tensor:
    return torch.relu(x + self.branch(x))


class Net(nn.Module):
    """A stem, two blocks, and a head."""

    def __init__(self, function: Sum, call: Any = lambda block, x: block(x)) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        self.a, self.b = Block(function), Block(function)
        self.head = nn.Linear(8, 5)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.call(self.b, self.call(self.a, x))
        return self.head(x.mean((2, 3)))


def built(function: Sum, call: Any = None, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = Net(function) if call is None else Net(function, call)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    model(X)
    return model.eval()


def without(model: nn.Module, coupling: Coupling, blocks: slice = slice(None)) -> nn.Module:
    gone = {member for block in coupling.blocks[blocks] for member in block.members}
    keep = {g.id: torch.full((g.size,), g.id not in gone) for g in coupling.groups}
    return resize.compact(model, coupling, keep)


@torch.no_grad()
def masked(model: nn.Module) -> Tensor:
    """What the model computes with both branches at zero, at full width."""
    model = copy.deepcopy(model)
    for block in (model.a, model.b):
        block.bn2.weight.zero_()
        block.bn2.bias.zero_()
    return model(X)


@torch.no_grad()
def computed(model: nn.Module) -> list[str]:
    return [operation.name.rstrip("_") for operation in record(model, Inputs.of(X)).operations]


@pytest.mark.parametrize(("function", "activated"), [(residual, 0), (turned, 0), (post, 1), (functional, 1)])
def test_nothing_is_computed_for_a_block_that_is_gone(function: Sum, activated: int) -> None:
    model = built(function)
    coupling = couple(model, X, blocks=True)
    assert [(block.holder, block.activated) for block in coupling.blocks] == [("a", activated), ("b", activated)]
    expected = masked(model)
    thin = without(model, coupling)
    with torch.no_grad():
        assert torch.equal(thin(X), expected)
    names = computed(thin)
    assert names.count("convolution") == 1
    assert not {"add", "new_zeros", "zeros", "full"} & {*names}
    assert names.count("relu") == 2 * activated


def test_in_training_its_own_code_runs() -> None:
    model = built(post)
    thin = without(model, couple(model, X, blocks=True), slice(1))
    plain = copy.deepcopy(thin)
    skip.run_again(plain.a)
    for mode in (True, False):
        losses = []
        for each in (thin, plain):
            each.train(mode).zero_grad()
            loss = each(X).square().mean()
            loss.backward()
            losses.append(loss)
        assert torch.equal(*losses)
        for p, q in zip(thin.parameters(), plain.parameters(), strict=True):
            assert p.grad is not None
            assert torch.equal(p.grad, q.grad)


def test_what_comes_back_is_run_again() -> None:
    model = built(residual)
    coupling = couple(model, X, blocks=True)
    with torch.no_grad():
        expected = model(X)
    keep = {g.id: torch.zeros(g.size, dtype=torch.bool) for g in coupling.groups if g.id != "stem.0"}
    remainder = resize.shrink(model, coupling, keep)
    assert skip.is_skipped(model.a)
    resize.expand(model, remainder)
    assert not any("forward" in vars(module) for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(X), expected)


def test_a_module_whose_scale_is_held_is_run() -> None:
    model = built(residual)
    found = couple(model, X, blocks=True)
    groups = tuple(replace(group, scaled={"a": 6} if group.id == "a.conv1" else {}) for group in found.groups)
    coupling = replace(found, groups=groups)
    keep = {g.id: torch.zeros(g.size, dtype=torch.bool) for g in coupling.groups if g.id != "stem.0"}
    expected = masked(model)
    remainder = resize.shrink(model, coupling, keep)
    assert [skip.is_skipped(block) for block in (model.a, model.b)] == [False, True]
    with torch.no_grad():
        assert torch.equal(model(X), expected)
    resize.expand(model, remainder)
    assert not any("forward" in vars(module) for module in model.modules())


def test_save_load_copies_and_exports(tmp_path: Path) -> None:
    model = built(post)
    thin = without(model, couple(model, X, blocks=True)).eval()
    assert thin.regrow_thin["a"] == {skip.SKIPPED: skip.ACTIVATED}
    with torch.no_grad():
        expected = thin(X)
        copied = copy.deepcopy(thin)
        assert torch.equal(copied(X), expected)
        assert copied.a.forward.module is copied.a
        regrow.save(thin, tmp_path / "thin")
        loaded = regrow.load(built(post, seed=1), tmp_path / "thin")
        assert torch.equal(loaded(X), expected)
        assert computed(loaded) == computed(thin)
        assert loaded.regrow_thin == thin.regrow_thin
    for name in ("model.onnx", "model.pt2", "model.safetensors"):
        regrow.export(thin, tmp_path / name, example_inputs=X)  # which compares what the file computes
    twin = pickle.loads(pickle.dumps(without(built(residual), couple(built(residual), X, blocks=True)).a.conv1))
    assert skip.is_skipped(twin)


def test_a_note_that_passes_through_what_has_no_skipped_layer_is_refused(tmp_path: Path) -> None:
    model = built(residual)
    thin = without(model, couple(model, X, blocks=True), slice(1))
    thin.regrow_thin["stem"] = {skip.SKIPPED: skip.THROUGH}
    setattr(thin.stem, skip.SKIPPED, skip.THROUGH)
    regrow.save(thin, tmp_path / "thin")
    assert json.loads((tmp_path / "thin" / "manifest.json").read_text())["thin"]["stem"] == {skip.SKIPPED: skip.THROUGH}
    with pytest.raises(UserError, match="does not run the module 'stem', which is no layer that can be skipped"):
        regrow.load(built(residual), tmp_path / "thin")


def more(self: Any, x: Tensor) -> Tensor:
    return (x + self.branch(x)) * 2


def weighted(self: Any, x: Tensor) -> Tensor:
    return torch.add(self.branch(x), x, alpha=2)


def listed(self: Any, x: Tensor) -> Any:
    return x + self.branch(x), None


def inside(self: Any, x: Tensor) -> Tensor:
    x = x.sigmoid()
    return x + self.branch(x)


def of_two(self: Any, x: Tensor, scale: Tensor) -> Tensor:
    return x + self.branch(x)


def also_before(block: Any, x: Tensor) -> Tensor:
    return block(x) + x  # what comes after could write to what is read here


NOT: list[tuple[Sum, Any]] = [
    (more, None), (weighted, None), (listed, lambda block, x: block(x)[0]), (inside, None),
    (of_two, lambda block, x: block(x, torch.ones(1))), (residual, also_before), (residual, lambda b, x: b(b(x))),
]  # fmt: skip


@pytest.mark.parametrize(("function", "call"), NOT)
def test_modules_that_do_more_are_run(function: Sum, call: Any) -> None:
    model = built(function, call)
    coupling = couple(model, X, blocks=True)
    assert [block.holder for block in coupling.blocks] == [""] * len(coupling.blocks)
    if coupling.blocks:
        expected = masked(model)
        with torch.no_grad():
            assert torch.allclose(without(model, coupling)(X), expected, atol=1e-6)


def test_an_input_is_not_handed_on() -> None:
    """Who gets it could write to it."""
    torch.manual_seed(0)
    model = nn.Sequential(Block(residual), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1)).eval()
    x = torch.randn(2, 8, 5, 5)
    coupling = couple(model, x, blocks=True)
    assert [block.holder for block in coupling.blocks] in ([], [""])
