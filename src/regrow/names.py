"""Names of a model's parts that hold whether parts of it are compiled or not.

``model.layer1 = torch.compile(model.layer1)`` puts ``_orig_mod.`` into every name inside of it. Whatever is kept, shown
or saved under a name has the canonical one, without these marks: so masks, tables and files of a compiled model fit the
plain one, and parts may be compiled after attaching.
"""

from __future__ import annotations

from torch import Tensor, nn

_MARK = "_orig_mod"


def canonical(name: str) -> str:
    """A parameter's or module's name without the marks of compiled submodules."""
    return ".".join(part for part in name.split(".") if part != _MARK)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's and DistributedDataParallel's wrappers."""
    while True:
        inner = getattr(model, _MARK, None)
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def modules(model: nn.Module, every_name: bool = False) -> dict[str, nn.Module]:
    """Canonical name → module, as in ``model.named_modules()``; for a compiled one, the module that was compiled.
    What stands in several places is there once, or under every name."""
    found = model.named_modules(remove_duplicate=not every_name)
    return {canonical(name): module for name, module in found}  # a wrapper comes before what it wraps


def parameters(model: nn.Module, every_name: bool = False) -> dict[str, nn.Parameter]:
    """Canonical name → parameter, as in ``model.named_parameters()``."""
    return {canonical(name): p for name, p in model.named_parameters(remove_duplicate=not every_name)}


def buffers(model: nn.Module, every_name: bool = False) -> dict[str, Tensor]:
    """The same for ``model.named_buffers()``."""
    return {canonical(name): b for name, b in model.named_buffers(remove_duplicate=not every_name)}


def tensors(model: nn.Module, every_name: bool = False) -> dict[str, Tensor]:
    """Parameters and buffers together."""
    return {**parameters(model, every_name), **buffers(model, every_name)}
