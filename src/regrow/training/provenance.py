"""What ``results.json`` says of a run beside its accuracy and its costs: how large the network is, what builds it, and
where it was trained."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regrow import storage
from regrow.zoo.models import on_its_own

if TYPE_CHECKING:
    from regrow.data.named import DataSet
    from regrow.training.recipe import Recipe


def size(model: nn.Module) -> dict[str, int]:
    """``parameters``: how many numbers are trained; ``bytes``: of all its tensors, as `torch.save` writes them, zeros
    and buffers too. What is shared counts once."""
    stored = {_place(t): t.numel() * t.element_size() for t in model.state_dict().values() if isinstance(t, Tensor)}
    return {"parameters": sum(p.numel() for p in model.parameters()), "bytes": sum(stored.values())}


def sizes(
    dense: Mapping[str, int], model: nn.Module, masks: Mapping[str, Tensor], saved: Path | None
) -> dict[str, int | None]:
    """What ``results.json`` says of a network's size.

    Args:
        dense: the `size` of the dense network
        model: as it is saved, thin if it lost channels
        masks: of the single weights that were kept
        saved: the directory that `regrow.save` has written it to, if there is one
    """
    own = size(model)
    return {
        "parameters": own["parameters"] - sum(int((~mask).sum()) for mask in masks.values()),
        "dense_parameters": dense["parameters"],
        "bytes": own["bytes"],
        "dense_bytes": dense["bytes"],
        "saved_bytes": (saved / storage.WEIGHTS).stat().st_size if saved is not None else None,
    }


def builder(recipe: Recipe, data: DataSet) -> dict[str, Any]:
    """What `regrow.zoo.models.build` must be told, so that `regrow.load` fits, also where a folder that the recipe's
    model came from is no longer there; and what images are normalised by:
    ``mean`` and ``std`` of each channel, of pixel values as the data set has them (0…255), where that is known."""
    name, options = on_its_own(recipe.model.name, recipe.model.options)
    statistics = data.test.normalisation()
    return {
        "name": name,
        "options": options,
        "classes": data.num_classes,
        "shape": list(data.shape),
        **({} if statistics is None else {"mean": statistics[0].tolist(), "std": statistics[1].tolist()}),
    }


def environment(device: torch.device, processes: int, precision: str) -> dict[str, Any]:
    """Versions, hardware and threads of this process."""
    from regrow.latency.machine import cpu_model
    from regrow.version import __version__

    on_gpu = device.type == "cuda"
    return {
        "regrow": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "precision": precision,
    }


def now() -> str:
    """The time in UTC, to the second, as ISO 8601 writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _place(tensor: Tensor) -> tuple[object, ...]:
    return (tensor.data_ptr(), tensor.shape, tensor.dtype) if tensor.numel() else (id(tensor),)
