"""The Python of the documents runs as it is written: each page from top to bottom, like a session of a reader's."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import fixed_latency
import regrow

ROOT = Path(__file__).parent.parent
STEPS = 700  # of the reader's run: enough for an update of the longest cycle that a page names


def blocks(page: str, heading: str = "") -> list[str]:
    """The Python of a page, or of one section of it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if heading:
        text = text[text.index(f"\n## {heading}\n") + 1 :].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 4)
    )  # fmt: skip


class Loader:
    """Goes through an epoch, like a DataLoader, and does nothing else that a list does."""

    def __init__(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return itertools.repeat(self.batch, STEPS)

    def __len__(self) -> int:
        return STEPS


def readers_own() -> dict[str, Any]:
    """What the blocks of docs/ take for granted: a model and a loop around it."""
    torch.manual_seed(0)
    model = network()
    batch = (torch.randn(2, 1, 6, 6), torch.tensor([0, 1]))
    return {
        "torch": torch,
        "timm": timm,
        "regrow": regrow,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        "loader": Loader(batch),
        "epochs": 1,
        "total_steps": STEPS,
        "loss_fn": nn.functional.cross_entropy,
        "evaluate": lambda model: model(batch[0]),
        "build_dense_model": network,
        "scaler": torch.amp.GradScaler("cpu"),
        "path": "checkpoint.pt",
    }


def before_channels(names: dict[str, Any]) -> None:
    fixed_latency.table_of(names["model"], names["loader"].batch[0]).save("table.json")


def before_latency(names: dict[str, Any]) -> None:
    fixed_latency.table_of(torchvision.models.resnet18(), torch.randn(1, 3, 32, 32)).save("latency.json")


def before_clipping(names: dict[str, Any]) -> None:
    """The loop into which the block about clipping goes: its loss is there, a sparsifier is attached."""
    x, y = names["loader"].batch
    names["loss"] = names["loss_fn"](names["model"](x), y)


def before_shards(names: dict[str, Any]) -> None:
    """What torchrun has set up."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)


BEFORE: dict[tuple[str, int], Callable[[dict[str, Any]], None]] = {
    ("docs/channels.md", 0): before_channels,
    ("docs/latency.md", 0): before_latency,
    ("docs/own-loop.md", 1): before_clipping,
    ("docs/scale.md", 0): before_shards,
}
PAGES = [
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
]


HOSTS = "docs/integrations.md"  # whose sections run where the host is imported anyway: tests/integrations


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page) and page != HOSTS])
def test_python_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    request.addfinalizer(lambda: torch.distributed.is_initialized() and torch.distributed.destroy_process_group())
    names = {} if page == "README.md" else readers_own()
    with warnings.catch_warnings():
        if page == "README.md":  # nobody who copies it is warned of anything
            warnings.simplefilter("error", UserWarning)
        for number, block in enumerate(blocks(page)):
            BEFORE.get((page, number), lambda names: None)(names)
            exec(compile(block, f"{page}, block {number}", "exec"), names)
            if page == "README.md" and number == 0:
                shown = (ROOT / "docs" / "own-loop.md").read_text(encoding="utf-8")
                assert f"```\n{names['sparsifier']}\n```" in shown
    if page == "README.md":
        dense, thin = (sum(p.numel() for p in each.parameters()) for each in (names["build"](), names["again"]))
        assert thin < 0.7 * dense


def test_a_method_and_a_pattern_of_ones_own() -> None:
    """As CONTRIBUTING.md shows them, in few lines, and without a line of the engine."""
    names, page = readers_own(), blocks("CONTRIBUTING.md")
    for block, most in zip(page, (40, 60, 5), strict=True):
        assert len(block.splitlines()) < most
        exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    sparsifier, model, optimizer = names["sparsifier"], names["model"], names["optimizer"]
    first = sparsifier.masks
    for x, y in itertools.islice(names["loader"], 50):
        names["loss_fn"](model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sparsifier.density() == 0.5
    for name, mask in sparsifier.masks.items():
        runs = mask.movedim(1, -1).reshape(-1, 4)
        assert (runs.all(1) | ~runs.any(1)).all()
        assert (model.get_parameter(name)[~mask] == 0).all()
        assert not torch.equal(mask, first[name])
    assert [record["pruned"] > 0 for record in sparsifier.history] == [True] * 5


def test_each_section_about_a_host_runs_in_its_own_test() -> None:
    text = (ROOT / HOSTS).read_text(encoding="utf-8")
    sections = [heading for heading in re.findall(r"^## (.*)$", text, re.MULTILINE) if blocks(HOSTS, heading)]
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "integrations").glob("*.py"))
    assert len(sections) == 4
    assert [heading for heading in sections if f'"{heading}"' not in tests] == []


def test_pages_with_python_are_found() -> None:
    assert {page for page in PAGES if blocks(page)} >= {"README.md", "docs/channels.md", "docs/own-loop.md"}
