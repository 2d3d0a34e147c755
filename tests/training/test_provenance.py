"""What ``results.json`` says of a run's size, of what builds its network, and of where it was trained."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny_recipe as tiny
from regrow import storage
from regrow.training import loop
from regrow.training import provenance as facts
from regrow.training.recipe import load
from regrow.zoo.models import build


def trained(tmp_path: Path, *words: str) -> dict[str, Any]:
    recipe = load(tiny.write(tmp_path), list(words))
    found = loop.train(recipe, tmp_path / "run", quiet=True)
    entry: dict[str, Any] = found["runs"][0]
    assert entry == json.loads((tmp_path / "run" / "results.json").read_text())["runs"][0]
    return entry


def rebuilt(entry: dict[str, Any]) -> nn.Module:
    """The model that the entry says how to build."""
    told = entry["model"]
    return build(told["name"], told["classes"], told["shape"][0], **told["options"])


def nonzeros(model: nn.Module) -> int:
    return sum(int((p != 0).sum()) for p in model.parameters())


def test_sizes_of_single_weights(tmp_path: Path) -> None:
    entry = trained(tmp_path)
    model = rebuilt(entry)
    assert entry["dense_parameters"] == sum(p.numel() for p in model.parameters())
    assert entry["bytes"] == entry["dense_bytes"] == sum(t.nbytes for t in model.state_dict().values())
    storage.load(model, tmp_path / "run" / "model")
    assert entry["parameters"] == nonzeros(model) < 0.3 * entry["dense_parameters"]
    assert entry["saved_bytes"] == (tmp_path / "run" / "model" / storage.WEIGHTS).stat().st_size < entry["bytes"]


def test_sizes_of_channels(tmp_path: Path) -> None:
    entry = trained(tmp_path, *tiny.CHANNELS)
    model = rebuilt(entry)
    assert entry["dense_parameters"] == sum(p.numel() for p in model.parameters())
    assert entry["dense_bytes"] == sum(t.nbytes for t in model.state_dict().values())
    storage.load(model, tmp_path / "run" / "model")
    assert entry["parameters"] == sum(p.numel() for p in model.parameters()) < entry["dense_parameters"]
    assert entry["bytes"] == sum(t.nbytes for t in model.state_dict().values()) < entry["dense_bytes"]


@pytest.mark.parametrize("method", ["dense", "static", "rigl"])
def test_dense_gradients_are_a_part_of_their_phase(tmp_path: Path, method: str) -> None:
    entry = trained(tmp_path, "--method.name", method, *(["--method.interval", "5"] if method == "rigl" else []))
    assert entry["dense_parameters"] >= entry["parameters"]
    assert set(entry["dense_gradients"]) <= set(entry["by_phase"])
    for phase, part in entry["dense_gradients"].items():
        assert 0 <= part < entry["by_phase"][phase] or entry["by_phase"][phase] == part == 0
    assert (sum(entry["dense_gradients"].values()) > 0) == (method == "rigl")


def test_most_of_a_preview_in_memory_is_dense_gradients(tmp_path: Path) -> None:
    entry = trained(tmp_path, "--method.q", "0", "--pattern.sparsity", "0.95")
    assert entry["explore_steps"] == 0
    assert sum(entry["dense_gradients"].values()) > 0.5 * entry["training_cost"]


def test_where_and_when(tmp_path: Path) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    entry = trained(tmp_path)
    assert before <= datetime.fromisoformat(entry["finished"]) <= datetime.now(UTC)
    where = entry["environment"]
    assert (where["torch"], where["threads"], where["processes"]) == (torch.__version__, 1, 1)
    assert re.fullmatch(r"3\.\d+\.\d+\S*", where["python"])
    assert where["cpu"]
    data = loop.Run(load(tiny.write(tmp_path)), "x").data
    mean, std = data.train.normalisation()
    assert (entry["model"]["mean"], entry["model"]["std"]) == (mean.tolist(), std.tolist())
    raw = data.train.images[data.train.indices].double()
    assert mean.tolist() == pytest.approx(raw.mean((0, 2, 3)).tolist(), rel=1e-5)
    assert entry["test_images"] == sum(len(labels) for _, labels in data.test.epoch(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_size_counts_what_is_shared_once(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7)).to(dtype)
    own = facts.size(model)
    width = torch.finfo(dtype).bits // 8
    assert own == {"parameters": 35 + 35 + 14, "bytes": (35 + 35 + 28) * width + 8}  # batch norm counts its batches
    model[1].weight = model[0].weight
    assert facts.size(model) == {"parameters": 35 + 14, "bytes": (35 + 28) * width + 8}
