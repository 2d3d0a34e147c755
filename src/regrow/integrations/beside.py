"""A sparsifier's state in a file of its own, beside the weights that somebody else saves."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regrow import atomic
from regrow.errors import UserError


def write(path: Path, state: dict[str, Any], model: nn.Module) -> None:
    """Writes a state, and which weights it belongs to; the file appears whole or not at all.

    Args:
        state: a `Sparsifier.state_dict`.
        model: as it is saved beside it.
    """
    with atomic.writing(path) as file:
        torch.save({"state": state, "weights": digest_of(model)}, file)


def read(path: Path, model: nn.Module) -> dict[str, Any]:
    """The state in a file.

    Args:
        model: whose weights have been loaded from the same checkpoint.

    Raises:
        UserError: where there is no such file, it is damaged, or it was written with other weights.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is not there, so masks cannot go on with the weights: resume from a checkpoint of a run with this "
            "callback, and say RegrowCallback(resume_from=...) where it is not in output_dir"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state, weights = content["state"], content["weights"]
    except Exception as error:  # torch.load has no common base for what a damaged file can raise
        raise UserError(f"{path} is damaged; resume from another checkpoint") from error
    if weights != digest_of(model):
        raise UserError(
            f"{path} belongs to other weights than were loaded: say RegrowCallback(resume_from=...) with the folder "
            "that training is resumed from"
        )
    return state


def digest_of(model: nn.Module) -> str:
    """Of all parameters."""
    digest = hashlib.blake2b(digest_size=16)
    for _, param in model.named_parameters():
        digest.update(param.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
