"""The weights that a recipe's model starts from: a model that regrow has saved, or a file of plain tensors.

Files of tensors are what ``torch.save(model.state_dict(), ...)`` and safetensors write, also where a checkpoint holds
them beside other things. Nothing in them is executed: torch reads them with ``weights_only=True``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from regrow import names, storage
from regrow.errors import UserError

INSIDE = ("model", "state_dict", "model_state_dict")  # where checkpoints keep the model's tensors
_WRAPPER = "module."  # which DistributedDataParallel puts before every name
_DETECTOR = "net."  # before the names of what a `regrow.zoo.detectors.Detector` holds, e.g. a detector of torchvision
_COUNTER = "num_batches_tracked"  # of batch norms; older files lack it


def start_from(model: nn.Module, source: str, classes: int) -> None:
    """Put weights into a freshly built model.

    Args:
        model: stays as it is if there is an error
        source: a directory that `regrow.save` wrote, a run directory that holds one, or a file of tensors
        classes: of the data; a head of other classes is named as what it is

    Raises:
        UserError: if there is nothing of the kind, or for the first tensor that does not fit.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(f"{path} does not exist: give a run directory, a model saved by regrow, or a file of tensors")
    if not path.is_dir() and not path.is_file():
        raise UserError(
            f"{path} is no regular file: give a run directory, a model saved by regrow, or a file of tensors"
        )
    if not path.is_dir():
        _load_tensors(model, read_tensors(path), path, classes)
        return
    inside = path / "model"
    directory = inside if (inside / storage.MANIFEST).is_file() else path
    entries = storage.read_manifest(directory)["tensors"]
    _check_head(model, {name: tuple(entry["shape"]) for name, entry in entries.items()}, directory, classes)
    storage.load(model, directory)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by the names that they have in the model.

    Args:
        path: of safetensors, or of ``torch.save``: a mapping of tensors, or one that holds it under a key of `INSIDE`

    Raises:
        UserError: if it is neither.
    """
    found = _content(path)
    for key in INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{path} holds no tensors by name: save model.state_dict(), and give that file")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path} holds a {type(value).__name__} under {str(name)[:60]!r}, where a tensor of the model was "
                f"expected: save model.state_dict(), by itself or under one of {', '.join(INSIDE)}"
            )
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise UserError(f"{path} holds {name!r} as something else than a plain dense tensor")
    tensors = {names.canonical(name): value for name, value in found.items()}
    if all(name.startswith(_WRAPPER) for name in tensors):
        tensors = {name.removeprefix(_WRAPPER): value for name, value in tensors.items()}
    return tensors


def _content(path: Path) -> Any:
    damaged = f"{path} is damaged, or neither a file of tensors by torch.save nor one of safetensors"
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():  # about how safe files are read, which concerns their authors
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch.load has no common base for what a damaged file can raise
        if isinstance(error, UnpicklingError):
            damaged = (
                f"{path} holds other Python objects than tensors, which are not read, as they can run any code: save "
                "model.state_dict() alone"
            )
        raise UserError(damaged) from error


def _load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, classes: int) -> None:
    own = {names.canonical(name): value for name, value in model.state_dict().items()}
    if all(name.startswith(_DETECTOR) for name in own) and not any(name.startswith(_DETECTOR) for name in tensors):
        tensors = {_DETECTOR + name: value for name, value in tensors.items()}
    _check_head(model, {name: tuple(value.shape) for name, value in tensors.items()}, path, classes)
    for name, value in own.items():
        if name not in tensors and not name.endswith(_COUNTER):
            raise UserError(f"{path} has no tensor {name!r}, which the model has: it is of another model")
        if name in tensors and tensors[name].shape != value.shape:
            raise UserError(
                f"the tensor {name!r} has shape {tuple(tensors[name].shape)} in {path}, but {tuple(value.shape)} in "
                "the model"
            )
    for name in tensors:
        if name not in own:
            raise UserError(f"{path} has a tensor {name!r}, which the model does not have: it is of another model")
    with torch.no_grad():
        for name, value in own.items():
            if name in tensors:
                value.copy_(tensors[name])


def _check_head(model: nn.Module, saved: Mapping[str, tuple[int, ...]], source: Path, classes: int) -> None:
    """Refuse weights of a model with another number of classes; thin models have the outputs of dense ones."""
    heads = [(name, p) for name, p in names.parameters(model).items() if p.dim() > 1 and p.shape[0] == classes]
    if not heads:
        return
    name, head = heads[-1]
    shape = saved.get(name)
    if shape is not None and len(shape) == head.dim() and shape[0] != classes:
        raise UserError(
            f"{source} is of a model with {shape[0]} classes, but the data has {classes}: the head {name!r} has shape "
            f"{shape} there, and {tuple(head.shape)} in this model"
        )
