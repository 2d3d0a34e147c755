"""One file from which a run continues bit-identically: tensors, numbers, text, lists and mappings; nothing pickled.

It has a checksum of all that it holds, so that a flipped bit or an edit is noticed.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regrow import atomic
from regrow.errors import UserError
from regrow.training.recipe import Recipe
from regrow.training.rundir import CHECKPOINT, check_recipe

if TYPE_CHECKING:
    from hashlib import blake2b

FORMAT = "regrow-checkpoint"
VERSION = 2  # 1 had no checksum, and did not know its number of processes
CHECKSUM = "checksum"
_WAY_OUT = "start anew with another --out"


def path_in(directory: Path) -> Path:
    """Where the checkpoint of a run directory is."""
    return directory / CHECKPOINT


def save(directory: Path, state: dict[str, Any]) -> None:
    """Write the checkpoint of a run directory, atomically.

    Raises:
        UserError: if it cannot be written, e.g. as the disk is full; an earlier checkpoint stays as it is.
    """
    path = path_in(directory)
    content = {"format": FORMAT, "version": VERSION, **state}
    try:
        with atomic.writing(path) as file:
            torch.save({**content, CHECKSUM: checksum(content)}, file)
    except (OSError, RuntimeError) as error:  # torch.save makes the latter of the former
        cause = error if isinstance(error, OSError) else error.__context__
        reason = cause.strerror if isinstance(cause, OSError) else " ".join(str(error).split())[:200]
        raise UserError(f"the checkpoint {path} cannot be written: {reason}") from error


def load(directory: Path, recipe: Recipe) -> dict[str, Any] | None:
    """Read the checkpoint of a run directory; None if the run has not written one yet.

    Raises:
        UserError: if the file is damaged, is no checkpoint, or belongs to another recipe.
    """
    from regrow import schema
    from regrow.training.forms import CheckpointForm

    path = path_in(directory)
    if not path.exists():
        return None
    damaged = f"{path} is damaged or no checkpoint of regrow: {_WAY_OUT}"
    if not path.is_file() or not zipfile.is_zipfile(path):  # torch would go on to read it as a pickle
        raise UserError(damaged)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no common base for what a damaged file can raise
        raise UserError(damaged) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of regrow: {_WAY_OUT}")
    if state.get("version") not in (1, VERSION):
        version = schema.shown(str(state.get("version")))
        raise UserError(f"{path} has format version {version}, this regrow reads 1 and {VERSION}: update regrow")
    schema.check(CheckpointForm, state, path, _WAY_OUT)
    if CHECKSUM in state and not _intact(state):
        raise UserError(f"{path} is damaged, or was edited: its checksum differs: {_WAY_OUT}")
    check_recipe(state["recipe"], recipe, directory)
    return state


def checksum(content: Mapping[str, Any]) -> str:
    """Of all keys, types, numbers and bytes of tensors in nested mappings and lists, but for the checksum itself.

    Raises:
        TypeError: if there is anything else in it.
    """
    digest = hashlib.blake2b(digest_size=16)
    _add({key: value for key, value in content.items() if key != CHECKSUM}, digest)
    return digest.hexdigest()


def _intact(state: Mapping[str, Any]) -> bool:
    try:
        return checksum(state) == state[CHECKSUM]
    except (TypeError, RuntimeError, RecursionError):
        return False


def _add(value: Any, digest: blake2b) -> None:
    if isinstance(value, Mapping):
        digest.update(b"{%d" % len(value))
        for key, item in value.items():
            _add(key, digest)
            _add(item, digest)
    elif isinstance(value, list | tuple):
        digest.update(b"[%d" % len(value))
        for item in value:
            _add(item, digest)
    elif isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous().flatten()
        digest.update(repr((str(value.dtype), tuple(value.shape))).encode())
        digest.update(plain.view(torch.uint8).numpy().data)
    elif value is None or isinstance(value, bool | int | float | str):
        text = repr((type(value).__name__, value)).encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(text) + text)
    else:
        raise TypeError(f"a checkpoint cannot hold {type(value).__name__}")
