"""Saving and loading models: safetensors beside a JSON manifest, never a pickle.

A tensor with enough zeros is stored as one bit for each entry and the values of the others, which is exact to the bit
(an entry is left out only if all of its bits are zero, so -0.0 and NaN survive) and shrinks the file with the density.
Of a model that has lost channels, the manifest also has the widths of its modules (`regrow.surgery.refit`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from regrow import names, saved
from regrow.errors import UserError
from regrow.surgery import refit, resize

MANIFEST = saved.MANIFEST
WEIGHTS = saved.WEIGHTS
_ATTEMPTS = 20  # to read what others replace meanwhile
_BITS = "::bits"
_VALUES = "::values"
_INTEGER_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

M = TypeVar("M", bound=nn.Module)


def save(model: nn.Module, directory: str | os.PathLike[str], extra: Mapping[str, Any] | None = None) -> None:
    """Save a model's parameters and buffers as ``model.safetensors`` and ``manifest.json``.

    During exploration save inside ``with sparsifier.sparse():``, so that the active structure is what is saved. A thin
    model is saved with the widths of its modules, so that `load` can make a dense one thin.

    Args:
        model: any module whose state is made of tensors; tied tensors are stored once
        directory: created, or an earlier save in it replaced: whoever reads meanwhile, or after a kill at any moment,
            finds the old model or the new one
        extra: anything JSON can hold, kept in the manifest under ``"extra"``

    Raises:
        UserError: if the model has state that is no tensor, ``directory`` holds something else than a saved model, or
            it cannot be written; an earlier save stays as it is then.
    """
    from regrow import manifest
    from regrow.version import __version__

    target = Path(directory)
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / MANIFEST).is_file())):
        raise UserError(f"{target} holds something else than a saved model: choose another directory")
    note = resize.noted(model)
    state, tied = _state(model, _unsaved_buffers(model, note))
    stored: dict[str, Tensor] = {}
    entries: dict[str, Any] = {}
    for name, tensor in state.items():
        entries[name], parts = _encode(name, tensor)
        stored.update(parts)
    content = {
        "format": manifest.FORMAT,
        "version": manifest.VERSION,
        "regrow": __version__,
        "tensors": entries,
        "tied": tied,
        **({} if note is None else {"thin": refit.to_manifest(note)}),
        "extra": _plain(extra or {}),
    }
    try:
        saved.write(target, stored, content)
    except OSError as error:
        raise UserError(f"the model cannot be saved in {target}: {error.strerror or error}") from error


def _plain(extra: Mapping[str, Any]) -> Any:
    try:
        return json.loads(json.dumps(dict(extra)))
    except (TypeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"extra cannot be kept in a manifest, as JSON cannot hold it: {reason}") from error


def load(model: M, directory: str | os.PathLike[str]) -> M:
    """Load what `save` wrote into a freshly built model of the same architecture, exactly.

    If a thin model was saved, the dense one is made thin in place: its `Parameter` objects stay and get smaller data,
    and attributes such as ``out_channels`` follow. Make the optimizer afterwards, as its state would not follow.

    Args:
        model: its parameters and buffers must have the saved names, dtypes and shapes, or of a thin model no smaller
            shapes; it may be on any device

    Returns:
        ``model`` itself, now with the saved values.

    Raises:
        UserError: if nothing can be read, or for the first thing that does not fit; ``model`` is unchanged then.
    """
    from regrow import manifest

    source = Path(directory)
    for _ in range(_ATTEMPTS):
        content, before = manifest.read(source)
        try:
            return _load(model, content, source)
        except UserError:
            if manifest.read(source)[1] == before:
                raise
    raise UserError(f"{source} is replaced again and again while it is read: try again when it is not")


def _load(model: M, manifest: Mapping[str, Any], source: Path) -> M:
    note = refit.from_manifest(manifest.get("thin"), source / MANIFEST)
    change = None if note is None else refit.plan(model, note, source)
    state, tied = _state(model, () if change is None else change.buffers)
    _check_fit(manifest, state, tied, source, thin=change is not None)
    if change is not None:
        shapes = {name: entry["shape"] for name, entry in manifest["tensors"].items()}
        shapes |= {alias: shapes[name] for alias, name in tied.items()}
        refit.check_shapes(model, change, shapes, source)
    stored = saved.read_tensors(source, manifest.get("weights"))
    values = {name: _decode(name, manifest["tensors"][name], stored, source) for name in state}
    with torch.no_grad():
        if change is not None:
            smaller = {name: value for name, value in values.items() if value.shape != state[name].shape}
            refit.reallocate(model, smaller, tied)
            change.set_attributes(model)
            values = {name: value for name, value in values.items() if name not in smaller}
        for name, value in values.items():
            state[name].copy_(value)
    return model


def read_manifest(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a saved model.

    Raises:
        UserError: if there is none, or it cannot be read.
    """
    from regrow import manifest

    return manifest.read(Path(directory))[0]


def _unsaved_buffers(model: nn.Module, note: resize.Note | None) -> list[str]:
    """Names of buffers that have been cut and are in no ``state_dict()``: a fresh model could not know their values."""
    modules = names.modules(model)
    return [
        f"{module}.{name}" if module else name
        for module, attributes in (note or {}).items()
        for name in attributes
        if name in modules[module]._non_persistent_buffers_set
    ]


def _state(model: nn.Module, further: Iterable[str] = ()) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The model's tensors, each once, and which other names they have (alias → name).

    Args:
        further: names of buffers outside of its ``state_dict()``.
    """
    state: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    buffers = names.buffers(model, every_name=True)
    own = {names.canonical(name): value for name, value in model.state_dict().items()}
    for name, value in (own | {name: buffers[name] for name in further}).items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"the model's state {name!r} is no tensor but {type(value).__name__}, which cannot be saved"
            )
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise UserError(f"the tensor {name!r} is not a plain dense tensor, which cannot be saved")
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else (name,)
        if key in seen:
            tied[name] = seen[key]
        else:
            seen[key] = name
            state[name] = value
    return state, tied


def _encode(name: str, tensor: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A tensor's entry in the manifest and what is stored of it."""
    tensor = tensor.detach().cpu().contiguous()
    entry: dict[str, Any] = {"shape": list(tensor.shape), "dtype": _dtype_name(tensor.dtype), "encoding": "dense"}
    if not tensor.is_floating_point() or tensor.dim() < 2:
        return entry, {name: tensor.clone()}
    flat = tensor.flatten()
    present = flat.view(_INTEGER_OF_SIZE[flat.element_size()]) != 0
    kept = int(present.sum())
    entry["density"] = kept / max(flat.numel(), 1)
    if kept * flat.element_size() + flat.numel() // 8 + 1 >= flat.numel() * flat.element_size():
        return entry, {name: tensor.clone()}
    entry["encoding"] = "bitmask"
    return entry, {name + _BITS: _pack(present), name + _VALUES: flat[present]}


def _decode(name: str, entry: Mapping[str, Any], stored: Mapping[str, Tensor], source: Path) -> Tensor:
    damaged = UserError(f"{source / WEIGHTS} is damaged: the tensor {name!r} does not match the manifest")
    shape, encoding = entry["shape"], entry["encoding"]
    if encoding == "dense":
        if name not in stored or list(stored[name].shape) != shape or _dtype_name(stored[name].dtype) != entry["dtype"]:
            raise damaged
        return stored[name]
    size = torch.Size(shape).numel()
    bits, values = stored.get(name + _BITS), stored.get(name + _VALUES)
    if encoding != "bitmask" or bits is None or values is None or _dtype_name(values.dtype) != entry["dtype"]:
        raise damaged
    if bits.dtype != torch.uint8 or bits.shape != ((size + 7) // 8,):
        raise damaged
    present = _unpack(bits, size)
    if int(present.sum()) != values.numel():
        raise damaged
    flat = torch.zeros(size, dtype=values.dtype)
    flat[present] = values
    return flat.view(shape)


def _pack(mask: Tensor) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.packbits(mask.numpy(), bitorder="little"))


def _unpack(bits: Tensor, size: int) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.unpackbits(bits.numpy(), count=size, bitorder="little")).bool()


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_fit(
    manifest: Mapping[str, Any], state: Mapping[str, Tensor], tied: Mapping[str, str], source: Path, thin: bool
) -> None:
    """Raise for the first tensor of the model or of the file that the other does not have in the same form, or, if the
    saved model is `thin`, in a larger form."""
    entries = manifest["tensors"]
    saved_names, own_names = {*entries, *manifest["tied"]}, {*state, *tied}
    if missing := sorted(own_names - saved_names):
        raise UserError(f"{source} has no tensor {missing[0]!r}: it was saved from another model")
    if unexpected := sorted(saved_names - own_names):
        raise UserError(
            f"the model has no tensor {unexpected[0]!r}, but {source} does: it was saved from another model"
        )
    if different := sorted(set(manifest["tied"].items()) ^ set(tied.items())):
        raise UserError(f"the tensor {different[0][0]!r} is tied in only one of {source} and the model")
    for name, tensor in state.items():
        shape, dtype = entries[name]["shape"], entries[name]["dtype"]
        own_shape = list(tensor.shape)
        if thin and not (len(shape) == len(own_shape) and all(map(_is_part, shape, own_shape))):
            raise UserError(
                f"the tensor {name!r} has shape {shape} in {source}, which is no thinner form of the {own_shape} in "
                f"the model"
            )
        if not thin and own_shape != shape:
            raise UserError(f"the tensor {name!r} has shape {shape} in {source}, but {own_shape} in the model")
        if _dtype_name(tensor.dtype) != dtype:
            own = _dtype_name(tensor.dtype)
            raise UserError(
                f"the tensor {name!r} is {dtype} in {source}, but {own} in the model: convert the model first"
            )


def _is_part(length: int, whole: int) -> bool:
    return length == whole or 0 < length < whole
