"""Whole models are timed in turns, and left as they were."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from regrow.latency import whole

EXAMPLE = torch.zeros(2, 3)


class FakeRuntime:
    """A model takes the seconds that are given for its passes, the last of them ever after."""

    batch, threads = 2, 1

    def __init__(self, monkeypatch, *seconds):
        self.order = []
        self.models = [nn.Sequential(nn.Linear(3, 3)) for _ in seconds]
        self.seconds = dict(zip(self.models, (list(times) for times in seconds), strict=True))
        self.clock = SimpleNamespace(seconds=lambda work: work())
        self.now = 0.0
        monkeypatch.setattr(whole.time, "monotonic", lambda: self.now)

    def whole(self, model, example):
        assert not model.training
        times = self.seconds[model]

        def run():
            self.order.append(self.models.index(model))
            self.now += times[0]
            return times.pop(0) if len(times) > 1 else times[0]

        return run


def test_the_lower_quartile_of_turns_after_a_first_one(monkeypatch):
    runner = FakeRuntime(monkeypatch, [9, 5, 1, 2, 3, 4], [90, 30, 10, 50, 20, 40])
    assert whole.in_turns(runner, runner.models, EXAMPLE, rounds=5) == [2, 20]
    assert runner.order == [0, 1] * 6


def test_a_small_model_is_timed_at_its_fourth_pass(monkeypatch):
    runner = FakeRuntime(monkeypatch, [0.01, 0.01, 0.01, 0.005, 0.01, 0.01, 0.01, 0.006], [1])
    assert whole.in_turns(runner, runner.models, EXAMPLE, rounds=1) == [0.006, 1]
    assert runner.order == [0, 0, 0, 0, 1] * 2


@pytest.mark.parametrize(("limit", "turns"), [(None, 20), (0.0, 5), (5.0, 5), (8.5, 8), (1e9, 20)])
def test_a_time_limit_ends_it_after_five_turns(monkeypatch, limit, turns):
    runner = FakeRuntime(monkeypatch, [1])
    whole.in_turns(runner, runner.models, EXAMPLE, rounds=20, time_limit=limit)
    assert len(runner.order) == 1 + turns


def test_modes_and_threads_are_put_back(monkeypatch):
    runner = FakeRuntime(monkeypatch, [1], [1])
    runner.models[0][0].eval()
    before = torch.get_num_threads()
    whole.in_turns(runner, runner.models, EXAMPLE, rounds=1)
    modes = [[module.training for module in model.modules()] for model in runner.models]
    assert modes == [[True, False], [True, True]]
    assert torch.get_num_threads() == before
