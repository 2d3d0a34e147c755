"""Makes a model physically thinner and wide again, in place: the same `Parameter` objects, with other data.

Parameters, gradients, buffers and optimizer state are gathered (`shrink`) and scattered (`expand`); what does not fit
into the thin model waits in a `Remainder`. Attributes such as ``out_channels`` and ``num_heads`` follow; a thin model
has a note of them (`note`), so that `regrow.save` and `regrow.load` can make a dense one thin in the same way.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow import names, optim_state
from regrow.errors import UserError
from regrow.groups import Coupling
from regrow.surgery import scale, skip

Index = tuple[tuple[int, Tensor], ...]  # (dimension, int64 indices that stay), for each dimension that loses some
Optimizers = Optimizer | Sequence[Optimizer] | None
Note = dict[str, dict[str, int | tuple[int, ...]]]  # module → attribute → its value in the thin model

NOTE = "regrow_thin"  # the attribute of a thin model that holds its `Note`


@dataclass
class Remainder:
    """The full-size tensors of a model that has been made thin, and how to put the thin ones back into them.

    Attributes:
        index: parameter or buffer name → what stays of it.
        tensors: the full-size values of parameters and buffers.
        gradients: the full-size gradients, of those parameters that had one.
        states: parameter name → state name → the full-size state of the optimizer.
        attributes: (module, attribute) → its value in the full-size model.
        keep: the masks, group id → bool [channels].
        note: the note that the model had before; None if it was not thin.
    """

    index: dict[str, Index] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    states: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    attributes: dict[tuple[str, str], Any] = field(default_factory=dict)
    keep: dict[str, Tensor] = field(default_factory=dict)
    note: Note | None = None


@torch.no_grad()
def shrink(model: nn.Module, coupling: Coupling, keep: Mapping[str, Tensor], optimizer: Optimizers = None) -> Remainder:
    """Removes channels from a model that is whole, in place. Gradients and optimizer state go along, and the model gets
    a `note` until it is expanded.

    Args:
        model: in full size.
        coupling: of this model.
        keep: group id → bool [channels], True for those that stay; groups that are not named stay whole.
        optimizer: whose state of the model's parameters follows; several in a sequence.

    Returns:
        What `expand` needs to put everything back.

    Raises:
        UserError: masks or tensors that do not fit the coupling, optimizer state of unknown shape, or a parameter that
            two optimizers train. Nothing is changed then.
    """
    remainder = Remainder(keep={name: mask.clone() for name, mask in keep.items()})
    optimizers = _unwrapped(optimizer)
    tensors = names.tensors(model)
    kept = coupling.kept(keep)
    _check(coupling, kept, tensors, {part for block in coupling.gone(keep) for part in block.members})
    for name, dims in kept.items():
        index = tuple((d, mask.nonzero().reshape(-1).to(tensors[name].device)) for d, mask in sorted(dims.items()))
        remainder.index[name] = index
    plans = {name: _state_of(optimizers, name, tensors[name]) for name in kept}
    for name, state in plans.items():
        _check_state(name, state, tensors[name])
    for name, index in remainder.index.items():
        tensor = tensors[name]
        remainder.tensors[name] = tensor.data
        full_gradient = tensor.grad
        tensor.grad = None
        shape = tensor.shape
        put(tensor, gather(tensor.data, index))
        if full_gradient is not None:
            remainder.gradients[name] = full_gradient
            tensor.grad = gather(full_gradient, index)
        for key, value in plans[name].items():
            if isinstance(value, Tensor) and (mine := _fitting(index, value, shape)):
                remainder.states.setdefault(name, {})[key] = value
                plans[name][key] = gather(value, mine)
    _resize(model, coupling, keep, remainder)
    remainder.note = copy.deepcopy(vars(names.modules(model)[""]).get(NOTE))
    note(model, remainder)
    return remainder


@torch.no_grad()
def expand(model: nn.Module, remainder: Remainder, optimizer: Optimizers = None) -> None:
    """Puts a thin model back to its full size, in place: what stayed has its present values, everything else the values
    from before `shrink`, bit for bit (cast and moved where the thin ones have been). Gradients and optimizer state that
    came up meanwhile are zero elsewhere.

    Args:
        model: as `shrink` has left it, trained or not.
        remainder: what `shrink` returned; its tensors become those of the model, so use it once.
        optimizer: what was given to `shrink`.

    Raises:
        UserError: the remainder is of another model or has been used.
    """
    optimizers = _unwrapped(optimizer)
    tensors = names.tensors(model)
    for name, index in remainder.index.items():
        tensor, full = tensors.get(name), remainder.tensors.get(name)
        if tensor is None or full is None or tensor.shape != _thin(full.shape, index):
            raise UserError(
                f"{name!r} does not fit what was kept of it; expand a thin model once, with its own remainder"
            )
    for name, index in remainder.index.items():
        tensor, full = tensors[name], remainder.tensors.pop(name)
        index = tuple((dim, stays.to(tensor.device)) for dim, stays in index)
        thin_gradient, thin_shape = tensor.grad, tensor.shape
        tensor.grad = None
        full = scatter(full.to(tensor.data), tensor.data, index)
        put(tensor, full)
        if thin_gradient is not None:
            gradient = remainder.gradients.get(name)
            gradient = torch.zeros_like(full) if gradient is None else gradient.to(thin_gradient)
            tensor.grad = scatter(gradient, thin_gradient, index)
        state = _state_of(optimizers, name, tensor)
        waiting = remainder.states.get(name, {})
        for key, value in state.items():
            if isinstance(value, Tensor) and (mine := _fitting(index, value, thin_shape)):
                whole = waiting.get(key)
                whole = _widened(value, mine, full.shape) if whole is None else whole.to(value)
                state[key] = scatter(whole, value, mine)
    modules = names.modules(model, every_name=True)
    for (module, attribute), value in remainder.attributes.items():
        if attribute == skip.SKIPPED:
            skip.run_again(modules[module])
        elif attribute == scale.SCALED:
            scale.put_back(modules[module], value)
        else:
            setattr(modules[module], attribute, value)
    remainder.gradients.clear()
    remainder.states.clear()
    if remainder.note is None:
        vars(modules[""]).pop(NOTE, None)
    else:
        setattr(modules[""], NOTE, remainder.note)


def compact(
    model: nn.Module, coupling: Coupling, keep: Mapping[str, Tensor], optimizer: Optimizers = None
) -> nn.Module:
    """Removes channels for good, in place; gradients too, and the optimizer's state where it is given. The model gets a
    `note`; compacting again adds to it. Returns the model.

    Raises:
        UserError: as `shrink`; nothing is changed then.
    """
    shrink(model, coupling, keep, optimizer)
    return model


def note(model: nn.Module, remainder: Remainder) -> None:
    """Notes on the model, as ``model.regrow_thin``, which attributes of which modules `shrink` has changed, and what
    they are now: ``{"layer1.0.conv1": {"out_channels": 24}, "norm": {"normalized_shape": (24,)}}``. `shrink` and
    `compact` call it; calling it again changes nothing.

    Buffers that are not saved with the model (``persistent=False``) stand there too if they were cut, with their shape.
    """
    if not remainder.index:
        return
    modules = names.modules(model, every_name=True)
    written: Note = copy.deepcopy(vars(modules[""]).get(NOTE, {}))
    for module, attribute in remainder.attributes:
        written.setdefault(module, {})[attribute] = _plain(getattr(modules[module], attribute))
    for name in remainder.index:
        module, _, attribute = name.rpartition(".")
        owner = modules[module]
        if attribute in owner._non_persistent_buffers_set:
            written.setdefault(module, {})[attribute] = _plain(getattr(owner, attribute))
    setattr(modules[""], NOTE, written)


def noted(model: nn.Module) -> Note | None:
    """The notes of the model and of modules inside it, as one, with the values that the attributes have now.

    Returns:
        Names are those of `regrow.names.modules`; None if nothing in the model has been made thin.
    """
    modules = names.modules(model)
    found: Note | None = None
    for outer, holder in modules.items():
        mine: Note | None = vars(holder).get(NOTE)
        if mine is None:
            continue
        found = {} if found is None else found
        for inner, attributes in mine.items():
            name = ".".join(part for part in (outer, inner) if part)
            for attribute in attributes:
                value = getattr(modules.get(name), attribute, None)  # None where a module has been replaced since
                if value is not None:
                    found.setdefault(name, {})[attribute] = _plain(value)
    return found


def _plain(value: Any) -> int | tuple[int, ...]:
    """A number or numbers; of a tensor, its shape."""
    if isinstance(value, Tensor):
        value = tuple(value.shape)
    return tuple(int(n) for n in value) if isinstance(value, (tuple, list)) else int(value)


@torch.no_grad()
def zero(model: nn.Module, coupling: Coupling, keep: Mapping[str, Tensor], gradients: bool = False) -> None:
    """The masked model: every slice of a removed channel is set to zero in place, running statistics included.

    Args:
        gradients: zero only the gradients instead.
    """
    tensors = names.tensors(model)
    for name, dims in coupling.kept(keep, zeroed=True).items():
        target = tensors[name].grad if gradients else tensors[name]
        if target is None:
            continue
        for dim, mask in dims.items():
            target.index_fill_(dim, (~mask).nonzero().reshape(-1).to(target.device), 0)


def memory_format(tensor: Tensor) -> torch.memory_format:
    """How the tensor lies in memory: channels last, or plain."""
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def put(tensor: Tensor, data: Tensor) -> None:
    """Gives a parameter or buffer other data, of any shape.

    As long as somebody holds the graph of an earlier step (the usual ``loss`` of a loop does), autograd goes on using
    the node that accumulates this parameter's gradient, which knows the old shape. It is made anew where the type
    changes, so the type changes for a moment.
    """
    other = torch.float32 if tensor.dtype == torch.float64 else torch.float64
    if tensor.requires_grad:
        tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = data


def gather(tensor: Tensor, index: Index) -> Tensor:
    """The entries that stay, as a tensor of its own in the same memory format."""
    form = memory_format(tensor)
    for dim, stays in index:
        tensor = tensor.index_select(dim, stays)
    return tensor.contiguous(memory_format=form)


def scatter(full: Tensor, thin: Tensor, index: Index) -> Tensor:
    """Writes the entries that stayed into the full-size tensor, in place, and returns it."""
    *outer, (dim, stays) = index
    parts = [full]
    for d, chosen in outer:
        parts.append(parts[-1].index_select(d, chosen))
    parts[-1].index_copy_(dim, stays, thin.contiguous())
    for (d, chosen), target, source in zip(reversed(outer), reversed(parts[:-1]), reversed(parts[1:]), strict=True):
        target.index_copy_(d, chosen, source)
    return full


def _thin(shape: torch.Size, index: Index) -> torch.Size:
    lengths = list(shape)
    for dim, stays in index:
        lengths[dim] = stays.numel()
    return torch.Size(lengths)


def _unwrapped(given: Optimizers) -> list[Optimizer]:
    """The optimizers that hold the state."""
    if given is None:
        return []
    several = given if isinstance(given, Sequence) else [given]
    return [optim_state.state_owner(optim_state.unwrap(one)) for one in several]


def _state_of(optimizers: Sequence[Optimizer], name: str, tensor: Tensor) -> MutableMapping[str, Any]:
    found = [optimizer.state[tensor] for optimizer in optimizers if tensor in optimizer.state]
    if len(found) > 1:
        raise UserError(f"two optimizers keep state of {name!r}; let one of them train it")
    return found[0] if found else {}


def _fitting(index: Index, state: Tensor, shape: torch.Size) -> Index:
    """What stays of a state tensor: it has the parameter's shape, or length 1 along some dimensions (Adafactor)."""
    if state.dim() != len(shape):
        return ()
    return tuple((dim, stays) for dim, stays in index if state.shape[dim] == shape[dim])


def _widened(value: Tensor, index: Index, shape: torch.Size) -> Tensor:
    lengths = list(value.shape)
    for dim, _ in index:
        lengths[dim] = shape[dim]
    return value.new_zeros(lengths)


def _check(
    coupling: Coupling, kept: Mapping[str, Mapping[int, Tensor]], tensors: Mapping[str, Tensor], gone: set[str]
) -> None:
    without = {part.name for group in coupling.groups if group.id in gone for part in group.slices}
    for name, dims in kept.items():
        if name not in tensors:
            raise UserError(f"the model has no {name!r}: the coupling is of another model")
        for dim, mask in dims.items():
            if dim >= tensors[name].dim() or tensors[name].shape[dim] != mask.numel():
                raise UserError(
                    f"{name!r} has the shape {tuple(tensors[name].shape)} but the coupling expects {mask.numel()} "
                    f"along dimension {dim}: expand the model first, or couple it anew"
                )
            if not bool(mask.any()) and name not in without:
                raise UserError(f"{name!r} would lose everything along dimension {dim}; keep more channels")


def _check_state(name: str, state: Mapping[str, Any], tensor: Tensor) -> None:
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.numel() == 1:
            continue
        fits = value.dim() == tensor.dim() and all(
            n in (1, full) for n, full in zip(value.shape, tensor.shape, strict=True)
        )
        if not fits:
            raise UserError(
                f"the optimizer's state {key!r} of {name!r} has the shape {tuple(value.shape)}, which cannot be cut "
                f"with the parameter's {tuple(tensor.shape)}; use an optimizer with state for each entry, such as AdamW"
            )


def _resize(model: nn.Module, coupling: Coupling, keep: Mapping[str, Tensor], remainder: Remainder) -> None:
    modules = names.modules(model, every_name=True)
    for block in coupling.gone(keep):
        for name in block.skips:
            skip.skip(modules[name], skip.how(modules[name], name, block))
            remainder.attributes[name, skip.SKIPPED] = None
        if block.holder and not any(
            block.holder in group.scaled for group in coupling.groups
        ):  # one forward, one place
            skip.skip(modules[block.holder], skip.ACTIVATED if block.activated else skip.THROUGH)
            remainder.attributes[block.holder, skip.SKIPPED] = None
    for group in coupling.groups:
        lost = group.id in keep and not bool(keep[group.id].all())
        for name, width in group.scaled.items() if lost else ():
            if not scale.is_held(modules[name]):
                scale.hold(modules[name], width)
                remainder.attributes[name, scale.SCALED] = None
    for (module, attribute, position), removed in coupling.widths(keep).items():
        owner = modules[module]
        value = getattr(owner, attribute)
        remainder.attributes.setdefault((module, attribute), value)
        if position is None:
            setattr(owner, attribute, value - removed)
        else:
            changed = (*value[:position], value[position] - removed, *value[position + 1 :])
            setattr(owner, attribute, type(value)(changed))
