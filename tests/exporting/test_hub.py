"""The directory for a hub: its card is read by the hub's own library, and loads the model as it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub import ModelCard
from torch import nn

import regrow
from exported import same_bits, sparse
from regrow.exporting.hub import card
from regrow.zoo.models import build

RUN: dict[str, Any] = {  # as results.json has it
    "method": "iee", "label": "iee", "seed": 3, "accuracy": 0.9142, "density": 0.05, "training_cost": 0.377,
    "inference_flops": 123456.0, "dense_flops": 2345678.0, "parameters": 900, "dense_parameters": 17000, "steps": 300,
    "model": {"name": "digits-cnn", "options": {"width": 8}, "classes": 10, "shape": [1, 8, 8]}, "test_images": 297,
    "environment": {"regrow": "0.1.0", "torch": "2.14.1", "device": "cpu", "cpu": "one | two", "threads": 1},
    "finished": "2026-01-02T03:04:05Z", "data": "digits",
}  # fmt: skip
IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def written(directory: Path, about: dict[str, Any] | None = RUN) -> nn.Module:
    model = sparse(build("digits-cnn", 10, 1, seed=0, width=8), 0.05).eval()
    regrow.export(model, directory, "hub", IMAGES, about=about)
    return model


def run_code(directory: Path, monkeypatch: pytest.MonkeyPatch, **names: Any) -> nn.Module:
    """The model that the card's own code loads, in its directory."""
    monkeypatch.chdir(directory)
    (code,) = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    exec(code, names)
    model: nn.Module = names["model"]
    return model


def test_the_card_has_the_numbers_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = written(tmp_path / "hub")
    assert sorted(file.name for file in (tmp_path / "hub").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    data = ModelCard.load(tmp_path / "hub" / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("regrow", "image-classification")
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("digits", "accuracy", 0.9142)
    text = (tmp_path / "hub" / "README.md").read_text()
    kept = sum(int(p.count_nonzero()) for p in model.parameters())
    total = sum(p.numel() for p in model.parameters())
    for row in (
        f"parameters | {total:,}, of which {kept:,} are not zero", "parameters of the dense model | 17,000",
        "accuracy on 297 test images | 91.42%", "density of what was sparsified | 5.0%",
        "training FLOPs, × dense training | 0.38", "method | iee", "data | digits", "seed | 3",
        "trained with | regrow 0.1.0, torch 2.14.1, device cpu, cpu one \\| two",
    ):  # fmt: skip
        assert f"| {row} |\n" in text
    assert "batch norms" not in text
    assert "It takes images of 1 × 8 × 8 (channels, height, width) as float32, as the data set of the run gives" in text
    loaded = run_code(tmp_path / "hub", monkeypatch)
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), model(IMAGES))


def test_the_configuration_and_the_tensors(tmp_path: Path) -> None:
    model = written(tmp_path / "hub")
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["model"] == RUN["model"]
    assert (config["method"], config["seed"], config["density"], config["data"]) == ("iee", 3, 0.05, "digits")
    assert config["nonzero"] < config["parameters"] == sum(p.numel() for p in model.parameters())
    assert same_bits(safetensors.torch.load_file(tmp_path / "hub" / "model.safetensors"), model.state_dict())


def test_a_model_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = written(tmp_path / "hub", None)
    data = ModelCard.load(tmp_path / "hub" / "README.md").data
    assert data.eval_results is None
    assert data.pipeline_tag is None
    loaded = run_code(tmp_path / "hub", monkeypatch, build=lambda: build("digits-cnn", 10, 1, width=8))
    assert same_bits(loaded.state_dict(), model.state_dict())


COUNTS = {"parameters": 2, "nonzero": 1}


def test_a_card_says_how_images_are_normalised() -> None:
    built = {**RUN["model"], "mean": [123.675, 4.0], "std": [58.395, 1.5]}
    said = "for each channel: (pixel value from 0 to 255 - mean) / std, with mean 123.675, 4 and std 58.395, 1.5."
    assert said in card({**RUN, "model": built}, COUNTS)


def test_a_card_says_that_statistics_are_newer_than_the_accuracy() -> None:
    said = "After the accuracy was measured, batch norms got new statistics from 7 training batches."
    assert said in card({**RUN, "recalibrated": 7}, COUNTS)


@pytest.mark.parametrize("name", ["a\n---\nlicense: mit", '"}], "x": [', "`|<b>`" * 40])
def test_no_name_becomes_anything_else(name: str) -> None:
    about = {**RUN, "method": name, "data": name, "model": {**RUN["model"], "name": name}}
    found = ModelCard(card(about, COUNTS))
    assert found.data.license is None
    assert found.data.eval_results[0].dataset_name == name
    assert len(re.findall(r"^\| ", found.text, re.MULTILINE)) == len(
        re.findall(r"^\| ", card(RUN, COUNTS), re.MULTILINE)
    )
