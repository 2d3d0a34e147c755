"""A saved model as a single safetensors file, whose header holds the manifest.

Any tool that reads safetensors finds the tensors. Those that are stored dense bear the model's own names; what shares a
dense tensor is in the header as ``safetensors.torch.save_model`` writes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrow import manifest, saved, schema
from regrow.errors import UserError

_KEY = "regrow"
_DIGEST_BYTES = 16


def write(path: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Writes a file.

    Args:
        tensors: on the CPU, contiguous, none of them sharing memory
        content: of the manifest, which gets the checksums too

    Raises:
        OSError: if it cannot be written.
        UserError: if such a file cannot hold one of the tensors.
    """
    sealed = schema.seal({**content, "weights": _digest(tensors)})
    header = {**content["tied"], "format": "pt", _KEY: json.dumps(sealed, separators=(",", ":"))}
    saved.write_tensors(path, tensors, header)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The manifest of a file, and its tensors as they are stored.

    Raises:
        UserError: if it is no such file, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is damaged or no safetensors file: {reason}") from error
    if _KEY not in header:
        raise UserError(f"{path} holds tensors alone, and was not written by regrow: read it with safetensors")
    content = manifest.parse(header[_KEY], path)
    if content.get("weights") != _digest(tensors):
        raise UserError(f"{path} is damaged: its tensors are not those that were written: {manifest.WAY_OUT}")
    return content, tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
