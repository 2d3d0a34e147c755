"""Runs units and models on a GPU, in PyTorch, compiled, or in TensorRT. Not tried on a GPU yet."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from regrow.errors import UserError
from regrow.inputs import Inputs
from regrow.latency.clock import Clock, Timing
from regrow.latency.compiled import compiled, first_run
from regrow.latency.eager import Eager, Work

_WARM = 50  # runs of the reference, after which the clock rate has risen and libraries are loaded
_FLUSH = 2  # times the cache that is written to empty it
_CACHE_BYTES = 64 * 2**20  # where the device does not say


class CudaClock(Clock):
    """Seconds between two events on the GPU: from when the work is given to the idle device to when it is done.

    Args:
        cuda: `torch.cuda`, or what stands in its place
    """

    def __init__(self, cuda: Any = torch.cuda) -> None:
        super().__init__(1)
        self._cuda = cuda

    def timed(self, work: Callable[[], object], of: Hashable = None) -> Timing:
        """One execution; what was given to the device before does not count."""
        start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        self._cuda.synchronize()
        start.record()
        work()
        end.record()
        end.synchronize()
        return Timing(start.elapsed_time(end) * 1e-3)


class EagerCuda(Eager):
    """Times units and whole models in PyTorch on the GPU, without gradients.

    Args:
        batch: examples at a time
        threads: of the CPU, which only gives the work to the device
        clock: what times it; default: events of the device

    Raises:
        UserError: if PyTorch sees no GPU.
    """

    name = "eager-cuda"
    device = torch.device("cuda")

    def __init__(self, batch: int, threads: int, clock: Clock | None = None) -> None:
        if not torch.cuda.is_available():
            raise UserError(f"the runtime {self.name} needs an NVIDIA GPU, and PyTorch sees none: take runtime='eager'")
        super().__init__(batch, threads, clock or CudaClock())
        size = getattr(torch.cuda.get_device_properties(self.device), "L2_cache_size", 0) or _CACHE_BYTES
        self._flush = torch.empty(_FLUSH * size, dtype=torch.uint8, device=self.device)
        warm = self.reference()
        for _ in range(_WARM):
            warm()

    def whole(self, model: nn.Module, inputs: Inputs) -> Work:
        """One forward pass of a copy of the model on the GPU."""
        return super().whole(self._made(copy.deepcopy(model).to(self.device)), inputs.map(lambda t: t.to(self.device)))

    def _made(self, model: nn.Module) -> nn.Module:
        """What is run in place of a model on the GPU."""
        return model

    def _forget(self) -> None:
        self._flush.zero_()


class CompiledCuda(EagerCuda):
    """Times whole models as `torch.compile` makes them on the GPU; units as `Compiled`."""

    name = "compile-cuda"
    backend = "inductor"

    def whole(self, model: nn.Module, inputs: Inputs) -> Work:
        """One forward pass of a compiled model; it is compiled here.

        Raises:
            UserError: if it cannot be compiled.
        """
        return first_run(super().whole(model, inputs))

    def _made(self, model: nn.Module) -> nn.Module:
        return compiled(model, self.backend)


class TensorRT(CompiledCuda):
    """Times whole models in TensorRT, by Torch-TensorRT; units as `Compiled`.

    Raises:
        UserError: if PyTorch sees no GPU, or Torch-TensorRT is not installed.
    """

    name = "tensorrt"
    backend = "tensorrt"

    def __init__(self, batch: int, threads: int, clock: Clock | None = None) -> None:
        try:
            import_module("torch_tensorrt")  # registers the backend
        except ImportError as error:
            raise UserError("the runtime tensorrt needs Torch-TensorRT: pip install torch-tensorrt") from error
        super().__init__(batch, threads, clock)
