"""One file from which a run continues bit-identically: tensors, numbers, text, lists and mappings; nothing pickled."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from regrow.errors import UserError
from regrow.training.recipe import Recipe
from regrow.training.rundir import check_recipe

FORMAT = "regrow-checkpoint"
VERSION = 1
_NEEDED = {"recipe", "step", "seconds", "metrics_lines", "model", "optimizer", "sparsifier", "start_active", "loss"}


def path_in(directory: Path) -> Path:
    """Where the checkpoint of a run directory is."""
    return directory / "checkpoint" / "state.pt"


def save(directory: Path, state: dict[str, Any]) -> None:
    """Write the checkpoint of a run directory, atomically."""
    path = path_in(directory)
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(".state.pt.tmp")
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, "version": VERSION, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(directory: Path, recipe: Recipe) -> dict[str, Any] | None:
    """Read the checkpoint of a run directory; None if the run has not written one yet.

    Raises:
        UserError: if the file is damaged, is no checkpoint, or belongs to another recipe.
    """
    path = path_in(directory)
    if not path.exists():
        return None
    damaged = f"{path} is damaged or no checkpoint of regrow: start anew with another --out"
    if not zipfile.is_zipfile(path):  # torch would go on to read it as a pickle
        raise UserError(damaged)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no common base for what a damaged file can raise
        raise UserError(damaged) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or not state.keys() >= _NEEDED:
        raise UserError(f"{path} is not a checkpoint of regrow: start anew with another --out")
    if state.get("version") != VERSION:
        raise UserError(f"{path} has format version {state.get('version')}, this regrow reads {VERSION}: update regrow")
    check_recipe(state["recipe"], recipe, directory)
    return state
