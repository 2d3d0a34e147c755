from __future__ import annotations

import ast
import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import regrow

HEAVY = (
    "lightning",
    "transformers",
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
    names = {"Weights": regrow.Weights, "nn": nn, "torch": torch}
    result = doctest.testmod(loaded, extraglobs=names)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "src", "tests"])
def test_what_is_imported_from_regrow_is_there(folder: str) -> None:
    """Also inside of functions, where no other test may come."""
    for path in (Path(__file__).parents[1] / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "regrow" and not node.level:
                module = importlib.import_module(str(node.module))
                missing = [one.name for one in node.names if not hasattr(module, one.name)]
                assert not missing, f"{path.name}: {node.module} has no {missing}"
