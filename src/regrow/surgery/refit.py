"""Gives a freshly built model the widths of a saved thin one: in place, and only after everything has been checked."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from regrow import names
from regrow.errors import UserError
from regrow.surgery import resize, scale, skip

Number = int | tuple[int, ...]


def to_manifest(note: resize.Note) -> dict[str, dict[str, int | list[int]]]:
    """A note in JSON's terms."""
    return {
        module: {name: list(value) if isinstance(value, tuple) else value for name, value in attributes.items()}
        for module, attributes in note.items()
    }


def from_manifest(given: object, path: object) -> resize.Note | None:
    """The note in a manifest; None if the saved model is not thin.

    Raises:
        UserError: it is not of the form that `to_manifest` gives, or a number is not positive.
    """
    if given is None:
        return None
    damaged = UserError(f"{path} is damaged: it does not describe the widths of its thin model")
    if not isinstance(given, dict):
        raise damaged
    note: resize.Note = {}
    # of a branch that is not run nothing is left
    least = 0 if any(isinstance(one, dict) and skip.SKIPPED in one for one in given.values()) else 1
    for module, attributes in given.items():
        if not isinstance(attributes, dict):
            raise damaged
        for name, value in attributes.items():
            numbers = value if isinstance(value, list) else [value]
            if not numbers or not all(type(n) is int and n >= least for n in numbers):
                raise UserError(
                    f"{path} is damaged: {_called(module, name)} is {str(value)[:40]}, which is no positive number"
                )
            note.setdefault(module, {})[name] = tuple(value) if isinstance(value, list) else value
    return note


@dataclass(frozen=True)
class Refit:
    """How to make a model thin as a file says.

    Attributes:
        note: what the model will be like.
        buffers: names of cut buffers that are not part of the model's ``state_dict()``.
    """

    note: resize.Note
    buffers: tuple[str, ...]

    def set_attributes(self, model: nn.Module) -> None:
        """Sets the attributes and leaves the note."""
        modules = names.modules(model, every_name=True)
        for module, attributes in self.note.items():
            owner = modules[module]
            for name, value in attributes.items():
                if name == skip.SKIPPED:
                    assert isinstance(value, int)
                    skip.skip(owner, value)
                elif name == scale.SCALED:
                    assert isinstance(value, int)
                    scale.hold(owner, value)
                elif name not in owner._buffers:
                    if isinstance(value, tuple) and isinstance(getattr(owner, name), list):
                        setattr(owner, name, list(value))
                    else:
                        setattr(owner, name, value)
        setattr(modules[""], resize.NOTE, {module: dict(attributes) for module, attributes in self.note.items()})


def plan(model: nn.Module, note: resize.Note, source: object) -> Refit:
    """Checks that each module and attribute is there, is a number or numbers, and would not grow.

    Args:
        source: where the note comes from, for messages.

    Raises:
        UserError: for the first that does not fit, or if the model is thin in another way.
    """
    modules = names.modules(model, every_name=True)
    buffers = []
    for module, attributes in note.items():
        owner = modules.get(module)
        if owner is None:
            raise UserError(
                f"{source} changes the width of a module {module[:200]!r}, which the model does not have: "
                f"it was saved from another model"
            )
        for name, thin in attributes.items():
            if name == skip.SKIPPED:
                if not _skippable(owner, thin, module, note):
                    raise UserError(
                        f"{source} does not run the module {module[:200]!r}, which is no layer that can be skipped: "
                        "it was saved from another model"
                    )
                continue
            if name == scale.SCALED:
                if not isinstance(thin, int) or not scale.can_hold(owner):
                    raise UserError(
                        f"{source} gives the module {module[:200]!r} a scale of attention that it cannot have: it was "
                        "saved from another model, or something has replaced the module's forward here"
                    )
                continue
            dense = _present(owner, name)
            if dense is None:
                raise UserError(
                    f"{source} changes {_called(module, name)}, which is no number in the model: "
                    f"it was saved from another model"
                )
            if not _thinner(thin, dense):
                raise UserError(
                    f"{_called(module, name)} is {_short(thin)} in {source}, which is no thinner form of the "
                    f"{_short(dense)} in the model: it was saved from another model"
                )
            if name in owner._buffers:
                buffers.append(f"{module}.{name}" if module else name)
    mine = resize.noted(model)
    if mine is not None and mine != note:
        raise UserError(f"the model is already thin, in another way than {source}: build it anew")
    return Refit(note, tuple(buffers))


def _skippable(owner: nn.Module, how: Number, name: str, note: resize.Note) -> bool:
    """Whether a module can be skipped so; passed through only where some of its layers are skipped."""
    if how not in skip.HOLDERS:
        return how in skip.WAYS and skip.can_skip(owner)
    inside = (module for module, attributes in note.items() if skip.SKIPPED in attributes)
    return skip.can_pass(owner) and any(module.startswith(f"{name}.") for module in inside)


def check_shapes(model: nn.Module, refit: Refit, shapes: Mapping[str, list[int]], source: object) -> None:
    """Checks that a layer's attributes and tensors, where they agree in the model, agree in the file too.

    Args:
        shapes: tensor name → its shape in the file, of tied tensors under every name. Modules that hold others are
            left out.

    Raises:
        UserError: for the first tensor that does not go with its layer.
    """
    for module, layer in names.modules(model).items():
        if skip.SKIPPED in refit.note.get(module, {}):  # its tensors have no entries
            continue
        try:
            before = dict(_implied(layer, {}))
        except (AttributeError, TypeError):  # of one of these classes, but with a life of its own
            continue
        after = dict(_implied(layer, refit.note.get(module, {})))
        held = {name: layer._parameters.get(name, layer._buffers.get(name)) for name in before}
        called = {name: f"{module}.{name}" if module else name for name, tensor in held.items() if tensor is not None}
        if not all(name in shapes for name in called.values()):
            continue
        for key, name in called.items():
            tensor, length = held[key], len(before[key])
            agreed = tensor is not None and list(tensor.shape)[:length] == before[key]
            if agreed and shapes[name][:length] != after[key]:
                raise UserError(
                    f"the tensor {name!r} has shape {shapes[name]} in {source}, which does not go with the widths of "
                    f"its module there: the file is damaged"
                )


@torch.no_grad()
def reallocate(model: nn.Module, values: Mapping[str, Tensor], tied: Mapping[str, str]) -> None:
    """Gives parameters and buffers other data, of any shape, on the device and in the memory format they have.

    Args:
        values: name → the new value.
        tied: further name → name; these tensors get the same data.

    Raises:
        UserError: a name is no parameter or buffer of the model; nothing is changed then.
    """
    objects = names.tensors(model, every_name=True)
    aliases: dict[str, list[str]] = {}
    for alias, name in tied.items():
        aliases.setdefault(name, []).append(alias)
    fresh = {}
    for name, value in values.items():
        if name not in objects:
            raise UserError(f"{name!r} is no parameter or buffer of the model, so it cannot be made thinner")
        old = objects[name]
        fresh[name] = value.to(old.device, copy=True).contiguous(memory_format=resize.memory_format(old))
    for name, value in fresh.items():
        for alias in (name, *aliases.get(name, ())):
            objects[alias].grad = None  # of the old shape
            resize.put(objects[alias], value)


def _implied(layer: nn.Module, changed: Mapping[str, Number]) -> Iterator[tuple[str, list[int]]]:
    """The first lengths of a layer's tensors, as its attributes and the changed ones have them; -1 for nonsense."""

    def of(name: str) -> Any:
        return changed[name] if name in changed else getattr(layer, name)

    def share(whole: int, parts: int) -> int:
        return whole // parts if parts and whole % parts == 0 else -1

    if isinstance(layer, _ConvTransposeNd):
        yield "weight", [of("in_channels"), share(of("out_channels"), of("groups"))]
        yield "bias", [of("out_channels")]
    elif isinstance(layer, _ConvNd):
        inside = share(of("in_channels"), of("groups"))
        yield "weight", [of("out_channels") if share(of("out_channels"), of("groups")) > 0 else -1, inside]
        yield "bias", [of("out_channels")]
    elif isinstance(layer, nn.Linear):
        yield "weight", [of("out_features"), of("in_features")]
        yield "bias", [of("out_features")]
    elif isinstance(layer, _NormBase):
        for name in ("weight", "bias", "running_mean", "running_var"):
            yield name, [of("num_features")]
    elif isinstance(layer, nn.GroupNorm):
        whole = of("num_channels") if share(of("num_channels"), of("num_groups")) > 0 else -1
        yield from (("weight", [whole]), ("bias", [whole]))
    elif isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        yield from (("weight", list(of("normalized_shape"))), ("bias", list(of("normalized_shape"))))
    elif isinstance(layer, nn.Embedding):
        yield "weight", [of("num_embeddings"), of("embedding_dim")]


def _present(owner: nn.Module, name: str) -> Number | None:
    """The number or numbers that a module has under this name (of a buffer that is not saved, its shape)."""
    if name in owner._non_persistent_buffers_set:
        buffer = owner._buffers.get(name)
        return None if buffer is None else tuple(buffer.shape)
    value = inspect.getattr_static(owner, name, None)  # runs no property of the model
    if type(value) is int:
        return value
    if isinstance(value, (tuple, list)) and value and all(type(n) is int for n in value):
        return tuple(value)
    return None


def _thinner(thin: Number, dense: Number) -> bool:
    if isinstance(thin, int) or isinstance(dense, int):
        return isinstance(thin, int) and isinstance(dense, int) and thin <= dense
    return len(thin) == len(dense) and all(a <= b for a, b in zip(thin, dense, strict=True))


def _called(module: str, name: str) -> str:
    where = f"{module}.{name}" if module else name
    return repr(where if len(where) <= 200 else where[:200] + "...")


def _short(value: Number) -> str:
    text = str(value if isinstance(value, int) else list(value))
    return text if len(text) <= 60 else text[:60] + "..."
