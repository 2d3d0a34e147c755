"""What a runtime has to be able to do for its latency to be measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from torch import nn

from regrow.inputs import Inputs
from regrow.latency.clock import Clock

if TYPE_CHECKING:
    from regrow.latency.network import Key


class Runtime(Protocol):
    """What executes units and models."""

    batch: int
    threads: int
    clock: Clock

    def sample(self, key: Key, c_in: int, c_out: int, repeats: int) -> list[float]:
        """Seconds of so many executions of a unit."""

    def whole(self, model: nn.Module, inputs: Inputs) -> Callable[[], object]:
        """A forward pass of a model."""

    def reference(self) -> Callable[[], object]:
        """A small piece of work that never changes, to follow the machine's speed by."""
