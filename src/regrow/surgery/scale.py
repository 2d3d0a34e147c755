"""Attention that divides by the root of the width that its heads had before they lost some of it.

``scaled_dot_product_attention`` without ``scale=`` takes its scale from the width of the queries, so that a thin
network would compute something else than the masked one. In the place of the module's ``forward`` stands an `AtWidth`
meanwhile, which passes on the scale of the full width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

SCALED = "regrow_scaled"  # the attribute of such a module, the width; and its word in the note of a thin model


def takes_scale(func: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether this call is of attention that takes its scale from the width of the queries."""
    return func is scaled_dot_product_attention and kwargs.get("scale") is None


def can_hold(module: nn.Module) -> bool:
    """Whether its scale can be held, or is: nobody else has replaced its ``forward``."""
    return "forward" not in vars(module) or is_held(module)


def is_held(module: nn.Module) -> bool:
    """Whether its scale is that of another width than its own."""
    return SCALED in vars(module)


def hold(module: nn.Module, width: int) -> None:
    """Lets a module divide by the root of this width; once more changes nothing."""
    if not is_held(module):
        setattr(module, SCALED, width)
        module.forward = AtWidth(module)


def let_go(module: nn.Module) -> None:
    """Takes `hold` back."""
    if is_held(module):
        delattr(module, SCALED)
        del module.forward


def put_back(module: nn.Module, before: int | None) -> None:
    """Holds the scale of this width, or none, as before."""
    if before is None:
        let_go(module)
    else:
        hold(module, before)


class AtWidth:
    """In the place of a module's ``forward``: that of its class, in which attention has the scale of a width.

    Args:
        module: which has the width as its attribute.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returns."""
        with _Scale(getattr(self.module, SCALED) ** -0.5):
            return type(self.module).forward(self.module, *args, **kwargs)


class _Scale(TorchFunctionMode):
    """Attention that says nothing of its scale has this one."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if takes_scale(func, kwargs):
            kwargs = {**kwargs, "scale": self.scale}
        return func(*args, **kwargs)
