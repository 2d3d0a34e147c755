"""Chase: RigL that ranks all layers together, and grows before it drops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from regrow.methods.mest import SoftBound
from regrow.methods.method import register


@register
@dataclass(frozen=True)
class Chase(SoftBound):
    """Chase (Yin et al. 2023, arXiv:2305.19454) without its removal of whole channels: global parameter exploration
    (all layers are ranked together, for dropping by the criterion and for growing by gradient) with a soft memory
    bound.

    The gradient of the step at which it updates is computed densely, as in RigL.
    """

    name: ClassVar[str] = "chase"
    shares_out: ClassVar[bool] = True
    growth: ClassVar[str] = "gradient"
    layers: ClassVar[Literal["fixed", "all"]] = "all"
