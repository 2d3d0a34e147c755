"""One file from which a run continues bit-identically: tensors, numbers, text, lists and mappings; nothing pickled."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from regrow import atomic
from regrow.errors import UserError
from regrow.training.recipe import Recipe
from regrow.training.rundir import CHECKPOINT, check_recipe

FORMAT = "regrow-checkpoint"
VERSION = 1
_NEEDED = {"recipe", "step", "seconds", "metrics_lines", "model", "optimizer", "sparsifier", "start_active", "loss"}


def path_in(directory: Path) -> Path:
    """Where the checkpoint of a run directory is."""
    return directory / CHECKPOINT


def save(directory: Path, state: dict[str, Any]) -> None:
    """Write the checkpoint of a run directory, atomically.

    Raises:
        UserError: if it cannot be written, e.g. as the disk is full; an earlier checkpoint stays as it is.
    """
    path = path_in(directory)
    try:
        with atomic.writing(path) as file:
            torch.save({"format": FORMAT, "version": VERSION, **state}, file)
    except (OSError, RuntimeError) as error:  # torch.save makes the latter of the former
        cause = error if isinstance(error, OSError) else error.__context__
        reason = cause.strerror if isinstance(cause, OSError) else " ".join(str(error).split())[:200]
        raise UserError(f"the checkpoint {path} cannot be written: {reason}") from error


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
