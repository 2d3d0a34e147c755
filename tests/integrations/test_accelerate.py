"""Accelerate's own checkpoints and trackers, and what timm's training script is made of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from timm.models import resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver, NativeScaler
from torch import nn

import host_job
import regrow
from engine import loss_of, network
from host_job import CLIP, CRITERIA, DATA, EXPLORING, OPTIONS, STEPS, State
from test_code_in_documents import blocks, readers_own

BUFFER = re.compile(r"running|tracked")  # which see every batch


class Kept(GeneralTracker):
    """A tracker that keeps what it gets."""

    name, requires_logging_directory = "kept", False

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []

    @property
    def tracker(self) -> Kept:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        pass

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.lines.append({"step": step, **values})


def train(
    folder: Path, criterion: str = "taylor", *, save: int | None = None, resume: bool = False, options: Any = OPTIONS,
    twice: bool = False,
) -> tuple[list[State], Kept]:  # fmt: skip
    tracker = Kept()
    accelerator = Accelerator(cpu=True, log_with=tracker, gradient_accumulation_steps=2 if twice else 1)
    accelerator.init_trackers("job")
    model = network()
    model, optimizer = accelerator.prepare(model, host_job.sgd(model))
    sparsifier = regrow.Sparsifier(model, optimizer, **options, criterion=criterion, total_steps=STEPS)
    accelerator.register_for_checkpointing(sparsifier)
    if resume:
        with sparsifier.full_width():
            accelerator.load_state(str(folder))
    seen = []
    for x, y in DATA[sparsifier.step_count :]:
        for _ in range(2 if twice else 1):
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model, (x, y)))
                if accelerator.sync_gradients:
                    accelerator.unscale_gradients()
                    sparsifier.prepare_step()
                    accelerator.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                optimizer.zero_grad()
        seen.append(host_job.state_of(model, sparsifier))
        accelerator.log(sparsifier.metrics(), step=sparsifier.step_count)
        if sparsifier.step_count == save:
            with sparsifier.full_width():
                accelerator.save_state(str(folder))
    return seen, tracker


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_step_is_that_of_a_plain_loop(criterion: str, tmp_path: Path) -> None:
    states, tracker = train(tmp_path, criterion)
    assert host_job.same_states(states, host_job.plain(criterion))
    assert [line["step"] for line in tracker.lines] == [*range(1, STEPS + 1)]
    assert [line["step"] for line in tracker.lines if line["regrow/phase_explore"]] == [
        *range(9, 12), *range(21, 24), *range(33, 36),
    ]  # fmt: skip


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    """The mean of twice the same is the same."""
    states, _ = train(tmp_path, twice=True)
    expected = [{name: value for name, value in state.items() if not BUFFER.search(name)} for state in states]
    plain = [{name: state[name] for name in expected[0]} for state in host_job.plain("taylor")]
    assert host_job.same_states(expected, plain)


@pytest.mark.parametrize("every", [EXPLORING, 23])
def test_interrupted_and_resumed_equals_unbroken(every: int, tmp_path: Path) -> None:
    train(tmp_path, save=every)
    states, _ = train(tmp_path, resume=True)
    assert host_job.same_states(states, host_job.plain("taylor")[every:])
    content = torch.load(tmp_path / "custom_checkpoint_0.pkl", weights_only=True)
    assert content["step"] == every


def test_channels_that_train_thin_are_saved_and_resumed(tmp_path: Path) -> None:
    expected, _ = train(tmp_path, "magnitude", save=7, options=host_job.CHANNELS)
    states, _ = train(tmp_path, "magnitude", resume=True, options=host_job.CHANNELS)
    assert host_job.same_states(states, expected[7:])


def prepared(model: nn.Module, sparsifier: regrow.Sparsifier) -> Iterator[nn.Parameter]:
    """Parameters for timm's scaler, which looks at them between unscaling and clipping."""
    sparsifier.prepare_step()
    yield from model.parameters()


@pytest.mark.parametrize("step", [None, EXPLORING])
def test_what_timms_script_is_made_of(step: int | None, tmp_path: Path) -> None:
    """Its scaler, its clipping, its saver and its way to resume: weights and masks of a plain loop."""

    def begin() -> tuple[nn.Module, torch.optim.Optimizer, regrow.Sparsifier, Any]:
        model = network()
        optimizer = create_optimizer_v2(
            model, "momentum", lr=0.05, momentum=0.9, weight_decay=0.0, filter_bias_and_bn=False
        )
        sparsifier = regrow.Sparsifier(model, optimizer, **OPTIONS, criterion="taylor", total_steps=STEPS)
        return model, optimizer, sparsifier, NativeScaler(device="cpu")

    def go(first: int, last: int) -> list[State]:
        seen = []
        for batch in DATA[first:last]:
            optimizer.zero_grad()
            scaler(loss_of(model, batch), optimizer, clip_grad=CLIP, parameters=prepared(model, sparsifier))
            seen.append(host_job.state_of(model, sparsifier))
        return seen

    model, optimizer, sparsifier, scaler = begin()
    states = go(0, step or STEPS)
    if step is not None:
        saver = CheckpointSaver(
            model, optimizer, amp_scaler=scaler, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path)
        )
        saver.save_checkpoint(0)
        torch.save(sparsifier.state_dict(), tmp_path / "regrow.pt")
        model, optimizer, sparsifier, scaler = begin()
        resume_checkpoint(model, str(tmp_path / "checkpoint-0.pth.tar"), optimizer, scaler)
        sparsifier.load_state_dict(torch.load(tmp_path / "regrow.pt", weights_only=True))
        states += go(step, STEPS)
    assert host_job.same_states(states, host_job.plain("taylor"))


def test_the_pages_about_accelerate_and_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = readers_own() | {"trackers": Kept()}
    for heading in ("Accelerate", "timm's training script"):
        for block in blocks("docs/integrations.md", heading):
            exec(block, names)
    assert names["sparsifier"].step_count == len(names["loader"]) + 1
    assert [line["step"] for line in names["trackers"].lines] == [*range(100, 701, 100)]
    assert (tmp_path / "checkpoint" / "custom_checkpoint_0.pkl").exists()


@pytest.mark.parametrize("step", [None, EXPLORING])
def test_what_torchvisions_script_does(step: int | None, tmp_path: Path) -> None:
    """Its loop and its checkpoint, with the three lines of the page."""

    def begin() -> tuple[nn.Module, torch.optim.Optimizer, regrow.Sparsifier]:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.0, nesterov=False)
        return model, optimizer, regrow.Sparsifier(model, optimizer, **OPTIONS, criterion="taylor", total_steps=STEPS)

    def train_one_epoch(first: int, last: int) -> list[State]:
        seen = []
        model.train()
        for batch in DATA[first:last]:
            loss = loss_of(model, batch)
            optimizer.zero_grad()
            loss.backward()
            sparsifier.prepare_step()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            seen.append(host_job.state_of(model, sparsifier))
        return seen

    model, optimizer, sparsifier = begin()
    states = train_one_epoch(0, step or STEPS)
    if step is not None:
        parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 0}
        torch.save(parts | {"sparsifier": sparsifier.state_dict()}, tmp_path / "checkpoint.pth")
        model, optimizer, sparsifier = begin()
        checkpoint = torch.load(tmp_path / "checkpoint.pth", map_location="cpu", weights_only=True)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        sparsifier.load_state_dict(checkpoint["sparsifier"])
        states += train_one_epoch(step, STEPS)
    assert host_job.same_states(states, host_job.plain("taylor"))
