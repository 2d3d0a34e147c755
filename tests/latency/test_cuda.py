"""Timing on a GPU, with events and a device that are made up; what needs a real one is skipped without."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from regrow.errors import UserError
from regrow.inputs import Inputs
from regrow.latency import cuda, machine
from regrow.latency.clock import Timing
from regrow.latency.cuda import CompiledCuda, CudaClock, EagerCuda, TensorRT
from regrow.latency.machine import ON_CUDA, Machine
from regrow.latency.measure import RUNTIMES, measure
from regrow.latency.network import Key

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


class Device:
    """A GPU: what it is given is done in order, and events say when, in milliseconds."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, []

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def Event(self, *, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        event = SimpleNamespace(at=None)

        def record() -> None:
            self.log.append("record")
            event.at = self.now

        event.record, event.synchronize = record, lambda: self.log.append("wait")
        event.elapsed_time = lambda later: later.at - event.at
        return event

    def work(self) -> None:
        self.log.append("work")
        self.now += 2.5


@pytest.fixture
def device(monkeypatch) -> Device:
    """In place of a GPU the CPU, whose work takes no time."""
    made = Device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Made-up 100")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=1000))
    monkeypatch.setattr(EagerCuda, "device", torch.device("cpu"))
    monkeypatch.setattr(cuda, "CudaClock", lambda: CudaClock(made))
    return made


def test_the_clock_waits_before_and_after_and_counts_in_seconds(device):
    clock = CudaClock(device)
    assert clock.timed(device.work) == Timing(0.0025)
    assert device.log == ["synchronize", "record", "work", "record", "wait"]
    assert clock.samples(lambda: device.work, 2, "a") == [0.0025, 0.0025]


def test_units_start_from_an_empty_cache_and_a_warm_device(device, monkeypatch):
    warmed = []
    monkeypatch.setattr(EagerCuda, "reference", lambda _: lambda: warmed.append(1))
    runner = EagerCuda(2, 1)
    assert len(warmed) == 50
    assert runner._flush.numel() == 2000
    runner._flush.fill_(1)
    assert runner.sample(Key("conv", (4, 4), (1, 1), (1, 1), (0, 0), (1, 1)), 4, 8, 3) == [0.0] * 3
    assert not runner._flush.any()
    assert device.log.count("wait") == 4


def test_a_copy_of_the_model_runs_there(device):
    model = nn.Linear(3, 3)
    seen = []
    model.register_forward_hook(lambda *_: seen.append(1))
    runner = EagerCuda(2, 1)
    runner.whole(model, Inputs.of(torch.ones(2, 3)))()
    assert seen == [1]
    assert model.training  # a copy was set to evaluate


def test_what_is_compiled_and_by_what(device, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: asked.append(options) or model)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", ModuleType("torch_tensorrt"))
    for kind in (CompiledCuda, TensorRT):
        kind(2, 1).whole(nn.Linear(3, 3), Inputs.of(torch.ones(2, 3)))()
    assert asked == [{"backend": name, "dynamic": False} for name in ("inductor", "tensorrt")]


def test_what_is_missing_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(UserError, match="the runtime eager-cuda needs an NVIDIA GPU, and PyTorch sees none: take"):
        measure(nn.Linear(3, 3), torch.ones(2, 3), runtime="eager-cuda")
    with pytest.raises(UserError, match="the runtime compile-cuda needs an NVIDIA GPU"):
        CompiledCuda(2, 1)
    with pytest.raises(UserError, match="the runtime tensorrt needs Torch-TensorRT: pip install torch-tensorrt"):
        TensorRT(2, 1)


def test_a_table_of_a_gpu_holds_for_that_gpu(device, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    here = Machine.here("eager-cuda")
    assert (here.gpu, here.runtime_version) == ("Made-up 100", "13.0")
    assert Machine.here("eager").gpu == ""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Other")
    assert Machine.here("eager-cuda").differences(here) == ["gpu Made-up 100, here Other"]
    monkeypatch.setattr(machine, "import_module", lambda name: SimpleNamespace(__version__=f"{name} 10"))
    assert Machine.here("tensorrt").runtime_version == "tensorrt 10"


def test_every_runtime_is_known_by_its_name():
    assert all(kind.name == name for name, kind in RUNTIMES.items())
    assert {name for name, kind in RUNTIMES.items() if issubclass(kind, EagerCuda)} == ON_CUDA


@needs_gpu
@pytest.mark.parametrize("runtime", sorted(ON_CUDA))
def test_a_real_gpu_is_measured(runtime):
    if runtime == "tensorrt":
        pytest.importorskip("torch_tensorrt")
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(32 * 144, 4))
    table = measure(model, torch.randn(2, 3, 16, 16), runtime=runtime, time_limit=5, progress=False)
    assert table.model() > 0
