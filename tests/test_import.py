from __future__ import annotations

import doctest
import importlib
import subprocess
import sys

import pytest
from torch import nn

import regrow

HEAVY = (
    "torchvision",
    "timm",
    "accelerate",
    "plotly",
    "rich",
    "sklearn",
    "scipy",
    "jsonargparse",
    "safetensors",
    "yaml",
    "pydantic",
)


def test_importing_regrow_imports_nothing_heavier_than_torch() -> None:
    code = (
        "import torch, sys; before = set(sys.modules); import regrow; regrow.Sparsifier; "
        f"print([m for m in {HEAVY} if m in set(sys.modules) - before])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_public_names_exist() -> None:
    for name in regrow.__all__:
        assert getattr(regrow, name) is not None
    importlib.import_module("regrow.__main__")


@pytest.mark.parametrize("module", ["regrow", "regrow.schedule", "regrow.selection", "regrow.sparsifier"])
def test_examples_in_docstrings(module) -> None:
    loaded = importlib.import_module(module)
    names = {"Weights": regrow.Weights, "nn": nn}
    result = doctest.testmod(loaded, extraglobs=names)
    assert result.attempted
    assert not result.failed
