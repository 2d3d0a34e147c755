"""Where `regrow train` and `compare` compute."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from regrow.errors import UserError
from regrow.study import pool
from regrow.training import run


def device() -> torch.device:
    settings = SimpleNamespace(train=SimpleNamespace(precision="fp32", accumulate=1))
    return run._accelerator(settings).device


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine that says that it has two."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


@pytest.mark.parametrize("name", ["nonsense", "meta", "privateuseone", "cuda:99", ""])
def test_a_device_where_nothing_can_be_computed_is_refused_by_name(name, monkeypatch):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", name)
    with pytest.raises(UserError, match=f"^ACCELERATE_TORCH_DEVICE is '{name}', but nothing can be computed there"):
        device()
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE")
    assert device() == torch.device("cpu") or torch.cuda.is_available()


def test_a_gpu_is_taken_where_there_is_one_unless_the_environment_says_otherwise(two_gpus, monkeypatch):
    assert device() == torch.device("cuda")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert device() == torch.device("cpu")
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    assert device() == torch.device("cpu")


def test_the_runs_of_a_comparison_take_turns_on_the_gpus_that_are_visible(two_gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    visible = [slot["CUDA_VISIBLE_DEVICES"] for slot in pool.slots_of(None, 1, 9)]
    assert visible == ["5", "7"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in pool.slots_of(3, 1, 9)] == ["5", "7", "5"]


def test_processes_that_do_not_train_together_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^2 processes were started \(WORLD_SIZE\), but Accelerate trains in 1 as it"):
        device()
