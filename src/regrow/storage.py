"""Saving and loading models: safetensors beside a JSON manifest, never a pickle.

A tensor with enough zeros is stored as one bit for each entry and the values of the others, which is exact to the bit
(an entry is left out only if all of its bits are zero, so -0.0 and NaN survive) and shrinks the file with the density.
Of a model that has lost channels, the manifest also has the widths of its modules (`regrow.surgery.refit`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Set
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from regrow import bitmask, names, saved
from regrow.errors import UserError
from regrow.shards import is_sharded
from regrow.surgery import refit, resize, skip
from regrow.watch import OnTrial

MANIFEST = saved.MANIFEST
WEIGHTS = saved.WEIGHTS
_EXTRA = "_extra_state"  # what torch calls the state that modules have beside their tensors
_WRAPPED = "module."  # before the names of what AveragedModel, or DistributedDataParallel, has wrapped
_ATTEMPTS = 20  # to read what others replace meanwhile

M = TypeVar("M", bound=nn.Module)


def save(model: nn.Module, directory: str | os.PathLike[str], extra: Mapping[str, Any] | None = None) -> None:
    """Save a model's parameters and buffers as ``model.safetensors`` and ``manifest.json``.

    During exploration save inside ``with sparsifier.sparse():``, so that the active structure is what is saved. A thin
    model is saved with the widths of its modules, so that `load` can make a dense one thin.

    Args:
        model: any module whose state is made of tensors; tied tensors are stored once. Of what DistributedDataParallel
            or torch.compile has wrapped, the model inside is saved
        directory: created, or an earlier save in it replaced: whoever reads meanwhile, or after a kill at any moment,
            finds the old model or the new one
        extra: anything JSON can hold, kept in the manifest under ``"extra"``

    Raises:
        UserError: if the model has state that is no tensor, ``directory`` holds something else than a saved model, or
            it cannot be written; an earlier save stays as it is then.
    """
    _check_model(model)
    OnTrial.warn(model)
    target = Path(directory)
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / MANIFEST).is_file())):
        raise UserError(f"{target} holds something else than a saved model: choose another directory")
    stored, content = contents(names.unwrap(model), extra)
    try:
        saved.write(target, stored, content)
    except OSError as error:
        raise UserError(f"the model cannot be saved in {target}: {error.strerror or error}") from error


def _check_model(given: object) -> None:
    if not isinstance(given, nn.Module):
        raise UserError(f"model must be a torch.nn.Module, not {type(given).__name__}; the directory comes second")


def contents(
    model: nn.Module, extra: Mapping[str, Any] | None = None, dense: bool = False, signed_zeros: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What is stored of a model, and its manifest.

    Args:
        extra: as in `save`
        dense: store all tensors whole, under their own names
        signed_zeros: as in `regrow.bitmask.encode`

    Raises:
        UserError: as `save`.
    """
    from regrow import manifest
    from regrow.version import __version__

    note = resize.noted(model)
    state, tied = _state(model, _unsaved_buffers(model, note))
    stored: dict[str, Tensor] = {}
    entries: dict[str, Any] = {}
    for name, tensor in state.items():
        # a tensor may be called as another one's bits would be
        whole = dense or any(name + part in state for part in (bitmask.BITS, bitmask.VALUES))
        entries[name], parts = bitmask.encode(name, tensor, whole, signed_zeros)
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
    return stored, content


def _plain(extra: Mapping[str, Any]) -> Any:
    try:
        return json.loads(json.dumps(dict(extra)))
    except (TypeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"extra cannot be kept in a manifest, as JSON cannot hold it: {reason}") from error


def load(model: M, directory: str | os.PathLike[str]) -> M:
    """Load what `save` or `regrow.export` wrote into a freshly built model of the same architecture, exactly.

    If a thin model was saved, the dense one is made thin in place: its `Parameter` objects stay and get smaller data,
    and attributes such as ``out_channels`` follow. Make the optimizer afterwards, as its state would not follow.

    Args:
        model: its parameters and buffers must have the saved names, dtypes and shapes, or of a thin model no smaller
            shapes; it may be on any device
        directory: what `save` wrote, or a file that `regrow.export` wrote as ``safetensors`` or ``compressed``

    Returns:
        ``model`` itself, now with the saved values.

    Raises:
        UserError: if nothing can be read, or for the first thing that does not fit; ``model`` is unchanged then.
    """
    from regrow import manifest

    _check_model(model)
    source = Path(directory)
    if source.is_file():
        from regrow import packed

        content, stored = packed.read(source)
        _load(_inside(model, content), content, source, source, lambda: stored)
        return model
    for _ in range(_ATTEMPTS):
        content, before = manifest.read(source)
        try:
            tensors = partial(saved.read_tensors, source, content.get("weights"))
            _load(_inside(model, content), content, source, source / WEIGHTS, tensors)
            return model
        except UserError:
            if manifest.read(source)[1] == before:
                raise
    raise UserError(f"{source} is replaced again and again while it is read: try again when it is not")


def load_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a model that `save` or `regrow.export` wrote, all of them dense and exact, without the model.

    Of a thin model they have their thin shapes. ``model.load_state_dict`` takes them.

    Args:
        path: a directory that `save` wrote, or a file that `regrow.export` wrote as ``safetensors`` or ``compressed``

    Raises:
        UserError: if it is neither, or damaged.
    """
    from regrow import manifest, packed

    source = Path(path)
    if source.is_file():
        file = source
        content, stored = packed.read(source)
    else:
        file = source / WEIGHTS
        content, _ = manifest.read(source)
        stored = saved.read_tensors(source, content.get("weights"))
    found = {name: bitmask.decode(name, entry, stored, file) for name, entry in content["tensors"].items()}
    for alias, name in content["tied"].items():
        if name not in found:
            raise UserError(f"{file} is damaged: {alias!r} is tied to {name!r}, which is not there")
        found[alias] = found[name]
    return found


def _inside(model: nn.Module, manifest: Mapping[str, Any]) -> nn.Module:
    """What is loaded into: the model inside of wrappers, which is what `save` saves."""
    saved_names = manifest["tensors"]
    whole = saved_names and all(name.startswith(_WRAPPED) for name in saved_names)  # as before, by the wrapper's names
    return model if whole else names.unwrap(model)


def _load(
    model: nn.Module, manifest: Mapping[str, Any], source: Path, file: Path, tensors: Callable[[], dict[str, Tensor]]
) -> None:
    note = refit.from_manifest(manifest.get("thin"), file if file == source else source / MANIFEST)
    change = None if note is None else refit.plan(model, note, source)
    state, tied = _state(model, () if change is None else change.buffers)
    least = None if note is None else 0 if any(skip.SKIPPED in attributes for attributes in note.values()) else 1
    _check_fit(manifest, state, tied, source, least)
    if change is not None:
        shapes = {name: entry["shape"] for name, entry in manifest["tensors"].items()}
        shapes |= {alias: shapes[name] for alias, name in tied.items()}
        refit.check_shapes(model, change, shapes, source)
    stored = tensors()
    values = {name: bitmask.decode(name, manifest["tensors"][name], stored, file) for name in state}
    with torch.no_grad():
        if change is not None:
            smaller = {name: value for name, value in values.items() if value.shape != state[name].shape}
            refit.reallocate(model, smaller, tied)
            change.set_attributes(model)
            values = {name: value for name, value in values.items() if name not in smaller}
        for name, value in values.items():
            state[name].copy_(value)
    modules = names.modules(model, every_name=True)
    for name in values:
        module, _, last = name.rpartition(".")
        if last == _EXTRA:  # the tensor may be a copy of what it is in the module
            modules[module].set_extra_state(values[name])


def read_manifest(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a saved model.

    Raises:
        UserError: if there is none, or it cannot be read.
    """
    from regrow import manifest

    return manifest.read(Path(directory))[0]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """What is stored of a model, under every name.

    Raises:
        UserError: as `save`.
    """
    state, tied = _state(model, _unsaved_buffers(model, resize.noted(model)))
    return {**state, **{alias: state[name] for alias, name in tied.items()}}


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
    _check_lazy(model)
    held = {t.data_ptr() for t in names.tensors(model, every_name=True).values() if not is_sharded(t)}
    own = {names.canonical(name): value for name, value in model.state_dict().items()}
    for name, value in (own | {name: buffers[name] for name in further}).items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"the model's state {name!r} is no tensor but {type(value).__name__}, which cannot be saved"
            )
        if is_sharded(value):
            raise UserError(
                f"{name!r} is sharded over processes: save a plain model that holds what torch.distributed.checkpoint."
                "state_dict.get_model_state_dict gives with StateDictOptions(full_state_dict=True)"
            )
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise UserError(f"the tensor {name!r} is not a plain dense tensor, which cannot be saved")
        _check_own(name, value, held)
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else (name,)
        if key in seen:
            tied[name] = seen[key]
        else:
            seen[key] = name
            state[name] = value
    return state, tied


def _check_lazy(model: nn.Module) -> None:
    lazy = next((name for name, t in names.tensors(model).items() if nn.parameter.is_lazy(t)), None)
    if lazy is not None:
        raise UserError(f"{lazy!r} has no shape yet, as no batch has run through its lazy module: run one first")


def _check_own(name: str, value: Tensor, held: Set[int]) -> None:
    """Refuses what could be written, but not be put back.

    Args:
        held: where in memory the model's parameters and buffers are.
    """
    if value.numel() and name.rpartition(".")[2] != _EXTRA and value.data_ptr() not in held:
        raise UserError(
            f"the model's state {name!r} is no parameter or buffer, but made by a hook of its state_dict(), "
            "so that no load could put it back: save the model without that hook"
        )
    if any(step == 0 and length > 1 for step, length in zip(value.stride(), value.shape, strict=True)):
        raise UserError(
            f"entries of the tensor {name!r} share their memory, as expand() leaves them: make it with .contiguous()"
        )


def _check_fit(
    manifest: Mapping[str, Any], state: Mapping[str, Tensor], tied: Mapping[str, str], source: Path, least: int | None
) -> None:
    """Raise for the first tensor of the model or of the file that the other does not have in the same form, or, if the
    saved model is thin, in a larger form.

    Args:
        least: what a length may be in a thin model: 0 where a branch is not run, otherwise 1; None: it is not thin.
    """
    thin = least is not None
    entries = manifest["tensors"]
    saved_names, own_names = {*entries, *manifest["tied"]}, {*state, *tied}
    inside = {name.removeprefix(_WRAPPED) for name in saved_names if name.startswith(_WRAPPED)} - saved_names
    if inside and own_names <= inside:
        raise UserError(f"{source} was saved with a wrapper around the model: save the model inside, wrapper.module")
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
        fits = len(shape) == len(own_shape) and all(
            n == whole or (thin and (least or 0) <= n < whole) for n, whole in zip(shape, own_shape, strict=True)
        )
        if thin and not fits:
            raise UserError(
                f"the tensor {name!r} has shape {shape} in {source}, which is no thinner form of the {own_shape} in "
                f"the model"
            )
        if not thin and own_shape != shape:
            raise UserError(f"the tensor {name!r} has shape {shape} in {source}, but {own_shape} in the model")
        if bitmask.dtype_name(tensor.dtype) != dtype:
            own = bitmask.dtype_name(tensor.dtype)
            raise UserError(
                f"the tensor {name!r} is {dtype} in {source}, but {own} in the model: convert the model first"
            )
