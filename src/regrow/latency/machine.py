"""The machine that a latency holds for."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

ON_CUDA = frozenset({"eager-cuda", "compile-cuda", "tensorrt"})  # runtimes


@dataclass(frozen=True)
class Machine:
    """What a latency holds for.

    Attributes:
        cpu: model name
        cores: that the system reports
        torch: version
        runtime: its name, as in `regrow.latency.measure.RUNTIMES`
        runtime_version: of ONNX Runtime, CUDA or TensorRT; PyTorch's own for "eager" and "compile"
        gpu: model name, where the runtime uses one
    """

    cpu: str
    cores: int
    torch: str
    runtime: str
    runtime_version: str
    gpu: str = ""

    @classmethod
    def here(cls, runtime: str) -> Machine:
        """This machine."""
        import torch

        version: str = torch.__version__
        if runtime == "onnxruntime":
            import onnxruntime

            version = onnxruntime.__version__
        elif runtime == "tensorrt":
            version = import_module("tensorrt").__version__
        elif runtime in ON_CUDA:
            version = torch.version.cuda or ""
        gpu = torch.cuda.get_device_name() if runtime in ON_CUDA and torch.cuda.is_available() else ""
        return cls(_cpu_name(), os.cpu_count() or 1, torch.__version__, runtime, version, gpu)

    def differences(self, other: Machine) -> list[str]:
        """What differs, in words."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{name.replace('_', ' ')} {theirs[name]}, here {mine[name]}" for name in mine if mine[name] != theirs[name]
        ]


def _cpu_name() -> str:
    facts = _cpu_facts()
    numbers = [facts[key] for key in ("cpu family", "model", "stepping") if key in facts and "model name" in facts]
    return " ".join([cpu_model(), *numbers])


def cpu_model() -> str:
    """What the maker of this machine's processor calls it, as far as the system knows."""
    return _cpu_facts().get("model name") or platform.processor() or platform.machine()


def _cpu_facts() -> dict[str, str]:
    """The first value of each line of what Linux says of the processor; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    facts: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    return facts
