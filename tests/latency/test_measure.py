"""Measuring: with a clock that is made up, then for real on tiny nets."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from regrow.errors import UserError
from regrow.latency import measure as module
from regrow.latency import points
from regrow.latency.clock import Clock
from regrow.latency.eager import Eager
from regrow.latency.measure import measure, verify
from regrow.latency.network import Key, Unit, network_of
from regrow.latency.points import axes


def net(width: int = 32, last: int = 64) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
        nn.Conv2d(width, last, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(last, 10),
    )  # fmt: skip


EXAMPLE = torch.randn(2, 3, 16, 16)


class MadeUp:
    """Bilinear in the widths rounded up to 16, and 25% slower with every second call: as if something disturbed it."""

    def __init__(self, batch: int, threads: int) -> None:
        self.batch, self.threads, self.calls = batch, threads, 0
        self.clock = self

    def price(self, key: Key, c_in: int, c_out: int) -> float:
        a, b = (c if c < 16 else math.ceil(c / 16) * 16 for c in (c_in, c_out))
        return 1e-6 * (a * b + 10 * b) if key.kind == "conv" else 1e-6 * c_in

    def sample(self, key: Key, c_in: int, c_out: int, repeats: int) -> list[float]:
        self.calls += 1
        return [self.price(key, c_in, c_out) * (1.25 if i % 2 else 1.0) for i in range(repeats)]

    def whole(self, model: nn.Module, example: torch.Tensor):
        units = network_of(model, example).units
        return lambda: 1.1 * sum(self.price(u.key, u.c_in, u.c_out) for u in units) + 5e-4

    def reference(self):
        return lambda: 1e-4

    def seconds(self, work, of=None) -> float:
        return work()


@pytest.fixture
def made_up(monkeypatch):
    monkeypatch.setitem(module.RUNTIMES, "eager", MadeUp)
    monkeypatch.setattr(module, "typical", min)


def test_measure_recovers_a_machine_that_follows_its_model(made_up):
    thin = [net(16, 32), net(24, 48)]
    table = measure(net(), EXAMPLE, thin=thin, progress=False)
    assert table.correction == pytest.approx(1.1)
    assert table.other == pytest.approx(5e-4)
    conv = next(key for key in table.grids if key.kind == "conv" and "batch_norm" not in key.tail)
    assert table.grids[conv].stairs == (1.0, 1.0)
    for predicted, measured in verify(table, [net(16, 16), net(24, 40), net(32, 56), net()], EXAMPLE, rounds=2):
        assert predicted == pytest.approx(measured, rel=0.02)


def test_one_whole_model_sets_a_factor(made_up):
    table = measure(net(), EXAMPLE, progress=False)
    assert table.other == 0.0
    assert table.model() == pytest.approx(table.measured)


def test_grids_become_coarser_when_time_is_short(made_up, monkeypatch):
    fine = measure(net(256, 256), EXAMPLE, progress=False)
    monkeypatch.setattr(points, "visit_seconds", lambda *_: 0.1)
    coarse = measure(net(256, 256), EXAMPLE, progress=False, time_limit=10)
    sizes = [sum(grid.seconds.size for grid in table.grids.values()) for table in (fine, coarse)]
    assert sizes[1] < sizes[0] / 2
    for table in (fine, coarse):  # the dense model's own widths are always there
        assert all(u.c_in in table.grids[u.key].c_in for u in table.network.units)


def test_after_the_time_is_over_every_point_has_been_visited_once(made_up):
    table = measure(net(), EXAMPLE, progress=False, time_limit=0.0)
    assert all((grid.seconds > 0).all() for grid in table.grids.values())


def test_axes_keep_fixed_widths_fixed_and_include_the_dense_ones():
    key = Key("conv", (8, 8), (3, 3), (1, 1), (1, 1), (1, 1))
    first = Unit("a", key, 3, 64, own=True)
    assert axes([first], 4).c_in == (3,)
    assert axes([first], 4).c_out == (16, 32, 48, 64)
    assert axes([replace(first, c_in=64, own=False)], 2).c_in == (16, 32, 64)  # its sources are not known, yet may go
    two = axes([Unit("a", key, 64, 100, ("x",)), Unit("b", key, 128, 64, ("x",), True)], 2)
    assert two.c_in == (16, 64, 128)
    assert two.c_out == (16, 48, 64, 100)
    grouped = Key("conv", (8, 8), (3, 3), (1, 1), (1, 1), (1, 1), groups=24)
    assert all(c % 24 == 0 for c in axes([Unit("a", grouped, 192, 192, ("x",))], 4).c_in)
    depthwise = axes([Unit("a", Key("conv", (8, 8), (3, 3), groups=0), 64, 64, ("x",))], 2)
    assert depthwise.points() == [(16, 16), (32, 32), (64, 64)]


def test_bad_input_is_one_sentence():
    with pytest.raises(UserError, match="there is no runtime 'onnxruntim'; did you mean 'onnxruntime'"):
        measure(net(), EXAMPLE, runtime="onnxruntim", progress=False)
    with pytest.raises(UserError, match=r"does not run on inputs of shape \(2, 5, 16, 16\)"):
        measure(net(), torch.randn(2, 5, 16, 16), progress=False)


def test_verify_wants_the_tables_batch_and_units(made_up):
    table = measure(net(), EXAMPLE, progress=False)
    with pytest.raises(UserError, match="batches of 2, the example has 3"):
        verify(table, [net()], torch.randn(3, 3, 16, 16))
    with pytest.raises(UserError, match="has no unit conv 32x32"):
        verify(table, [net()], torch.randn(2, 3, 32, 32))


def test_verify_leaves_the_modes_of_the_models(made_up):
    table = measure(net(), EXAMPLE, progress=False)
    model = net().train()
    model[1].eval()
    verify(table, [model], EXAMPLE, rounds=1)
    assert [module.training for module in model] == [True, False] + [True] * 7


def test_measuring_counts_what_comes_before_the_units_as_time(made_up, monkeypatch):
    seen: list[float] = []
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter))
    made = module.points_of
    monkeypatch.setattr(
        module, "points_of", lambda network, runner, limit: seen.append(limit) or made(network, runner, 1)
    )
    monkeypatch.setattr(module, "prepared", lambda *_: now.__setitem__(0, now[0] + 0.25) or [lambda: 1.0])
    measure(net(), EXAMPLE, progress=False, time_limit=10)
    assert seen == [9.75]


def test_a_model_without_units_is_refused():
    with pytest.raises(UserError, match="has no layers whose latency could be measured"):
        measure(nn.Softmax(1), EXAMPLE, progress=False)


def test_the_clock_is_that_of_the_thread_where_there_is_one_and_of_the_wall_otherwise():
    assert Clock(1)._read is time.thread_time
    assert Clock(2)._read is time.perf_counter


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
def test_real_runtimes_measure_every_kind_of_unit(runtime):
    pytest.importorskip("onnxruntime")
    runner = module.RUNTIMES[runtime](2, 1)
    window = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}
    tails = [("batch_norm", "relu_"), ("batch_norm", "add_", "relu_"), ("silu",), ("hardtanh_",), ("add", "hardswish")]
    keys = [Key("conv", (8, 8), dilation=(1, 1), tail=tail, **window) for tail in tails]
    keys += [Key("conv", (8, 8), dilation=(1, 1), groups=groups, bias=True, **window) for groups in (0, 4)]
    keys += [
        Key("linear", bias=True),
        Key("linear", (5,), bias=False, tail=("gelu",)),
        Key("max_pool2d", (8, 8), **window),
    ]
    keys += [Key("avg_pool2d", (8, 8), **window), Key("adaptive_avg_pool2d", (8, 8), (1, 1))]
    keys += [Key("adaptive_avg_pool2d", (8, 8), (2, 2)), Key("mean", (8, 8)), Key("mean", (8,))]
    keys += [Key("attention", (7, 4), (5, 6)), Key("layer_norm", (5,)), Key("layer_norm")]
    keys += [Key(kind, (8, 8)) for kind in ("cat", "add", "mul", "batch_norm", "sigmoid", "leaky_relu")]
    for key in keys:
        for channels in (12, 16, 32):
            seconds = runner.sample(key, channels, channels, 2)
            assert len(seconds) == 2, key
            assert all(0 <= s < math.inf for s in seconds), key


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
def test_a_real_table_is_kept_and_predicts(runtime, tmp_path):
    """How well is what `regrow profile` and benchmarks/latency.py say; a busy machine may distort it."""
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    model = net(64, 64).train()
    table = measure(model, EXAMPLE, runtime=runtime, time_limit=5, progress=False)
    assert model.training
    table.save(tmp_path / "table.json")
    table = table.load(tmp_path / "table.json")
    pairs = verify(table, [net(64, 64), net(16, 16)], EXAMPLE, rounds=5)
    assert (np.array(pairs) > 0).all()
    assert np.isfinite(pairs).all()


def test_eager_reads_weights_from_changing_places():
    runner = Eager(2, 1)
    places = {runner._take((64, 64)).data_ptr() for _ in range(10)}
    assert len(places) > 5
    assert runner._take((2**13, 2**12)).shape == (2**13, 2**12)  # larger than the pool
