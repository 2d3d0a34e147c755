"""Lightning's own Trainer, loggers and checkpoints."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

import host_job
import regrow
from engine import network
from host_job import CLIP, CRITERIA, EXAMPLE, EXPLORING, OPTIONS, STEPS, State, Stop
from regrow.errors import UserError
from regrow.integrations.lightning import RegrowCallback
from test_code_in_documents import blocks, readers_own


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.validated: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, _: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        self.validated.append(self.net(batch[0]))
        self.log("loss_of_validation", nn.functional.cross_entropy(self.validated[-1], batch[1]))

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return host_job.sgd(self)


class Seen(Callback):
    """The state after each step, by the names of the plain network."""

    def __init__(self, regrown: RegrowCallback, stop: int | None) -> None:
        self.regrown, self.stop, self.states = regrown, host_job.stop_at(stop), []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        state = host_job.state_of(pl_module, self.regrown.sparsifier)
        self.states.append({name.replace("net.", ""): value for name, value in state.items()})
        self.stop(trainer.global_step)


class Loader:
    """Goes on in the middle of an epoch, as Lightning asks of a loader that is to be resumed."""

    def __init__(self, steps: int = STEPS) -> None:
        self.steps, self.next = steps, 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while self.next < self.steps:
            self.next += 1
            yield host_job.DATA[self.next - 1]
        self.next = 0

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


def fit(
    folder: Path, regrown: RegrowCallback, *, stop: int | None = None, every: int = 1000, resume: Path | None = None,
    validate: bool = False, **options: Any,
) -> tuple[Trainer, list[State]]:  # fmt: skip
    seen = Seen(regrown, stop)
    saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1)
    defaults = {
        "max_epochs": 1,
        "logger": False,
        "gradient_clip_val": CLIP,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 1,
    }
    trainer = Trainer(
        default_root_dir=folder, callbacks=[seen, regrown, saving], accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, **(defaults | options),
    )  # fmt: skip
    try:
        trainer.fit(
            Module(),
            Loader(),
            DataLoader(host_job.dataset(), batch_size=8) if validate else None,
            ckpt_path=resume,
            weights_only=bool(resume),
        )
    except Stop:
        assert stop is not None
    return trainer, seen.states


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_step_is_that_of_a_plain_loop(criterion: str, tmp_path: Path) -> None:
    regrown = RegrowCallback(**OPTIONS, criterion=criterion)
    trainer, states = fit(tmp_path, regrown, validate=True, val_check_interval=EXPLORING, num_sanity_val_steps=1)
    assert host_job.same_states(states, host_job.plain(criterion))
    assert regrown.sparsifier.total_steps == regrown.sparsifier.step_count == STEPS
    module = trainer.lightning_module
    assert len(module.validated) == 1 + STEPS // EXPLORING
    shown = network().eval()
    shown.load_state_dict({n: v for n, v in states[EXPLORING - 1].items() if not n.startswith("mask")})
    assert not torch.equal(module.validated[1], shown(EXAMPLE))  # not what is explored
    shown.load_state_dict(module.net.state_dict())
    assert torch.equal(module.validated[-1], shown(EXAMPLE))


@pytest.mark.parametrize("every", [EXPLORING, 23])
def test_interrupted_and_resumed_equals_unbroken(every: int, tmp_path: Path) -> None:
    fit(tmp_path, RegrowCallback(**OPTIONS, criterion="taylor"), stop=every + 3, every=every)
    saved = tmp_path / f"step={every}.ckpt"
    _, states = fit(tmp_path / "again", RegrowCallback(**OPTIONS, criterion="taylor"), resume=saved)
    assert host_job.same_states(states, host_job.plain("taylor")[every:])


def test_channels_that_train_thin_are_saved_and_resumed(tmp_path: Path) -> None:
    trainer, expected = fit(tmp_path, RegrowCallback(**host_job.CHANNELS), every=7)  # thin, before an exploration
    kept = trainer.lightning_module.net[0].out_channels
    _, states = fit(tmp_path / "again", RegrowCallback(**host_job.CHANNELS), resume=tmp_path / "step=7.ckpt")
    assert host_job.same_states(states, expected[7:])
    assert kept < network()[0].out_channels


def quiet_trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **(quiet | options))


def test_a_checkpoint_is_evaluated_as_its_active_structure(tmp_path: Path) -> None:
    """By a callback that has fitted nothing, and by one whose fit has ended."""
    fit(tmp_path, RegrowCallback(**OPTIONS, criterion="taylor"), every=EXPLORING, stop=EXPLORING + 1)
    saved = tmp_path / f"step={EXPLORING}.ckpt"
    for fitted in (False, True):
        regrown = RegrowCallback(**OPTIONS, criterion="taylor")
        trainer = (
            fit(tmp_path / "again", regrown)[0] if fitted else quiet_trainer(tmp_path, regrown, limit_test_batches=1)
        )
        module = trainer.lightning_module if fitted else Module()
        loader = DataLoader(host_job.dataset(), batch_size=8)
        trainer.test(module, loader, ckpt_path=saved, weights_only=True, verbose=False)
        assert torch.equal(module.validated[0], host_job.shown("taylor"))


def test_a_fit_that_ends_early_ends_at_the_target_and_another_may_follow(tmp_path: Path) -> None:
    regrown = RegrowCallback(**OPTIONS, total_steps=STEPS)
    trainer, states = fit(tmp_path, regrown, max_steps=EXPLORING)
    assert host_job.same_states(states, host_job.plain("magnitude")[:EXPLORING])
    net = trainer.lightning_module.net
    for name, mask in regrown.sparsifier.masks.items():
        assert (net.get_parameter(name.removeprefix("net."))[~mask] == 0).all()
    assert regrown.sparsifier.phase == "fixed"
    assert regrown.sparsifier.density() == 112 / 372
    first = regrown.sparsifier
    _, states = fit(tmp_path, regrown)
    assert regrown.sparsifier is not first
    assert host_job.same_states(states, host_job.plain("magnitude"))


def test_loggers_get_where_the_run_is(tmp_path: Path) -> None:
    regrown = RegrowCallback(**OPTIONS)
    trainer, _ = fit(tmp_path, regrown, logger=CSVLogger(tmp_path, name="", version=""), log_every_n_steps=EXPLORING)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [*range(EXPLORING, STEPS + 1, EXPLORING)]
    assert [float(row["regrow/phase_explore"]) for row in rows] == [1, 0, 0, 0, 0, 0]
    assert [float(row["regrow/updates"]) for row in rows] == [0, 1, 2, 3, 3, 3]
    record = regrown.sparsifier.history[-1]
    assert {key: float(rows[-1][f"regrow/{key}"]) for key in ("iou", "survival", "density", "budget")} == {
        "iou": record["iou"], "survival": record["survival"], "density": record["density"], "budget": 0.0,
    }  # fmt: skip
    assert float(rows[1]["regrow/budget"]) == regrow.Budget("cosine", 0.3).fraction(2 * EXPLORING, 45)
    assert trainer.callback_metrics["regrow/density"] == torch.tensor(record["density"])


def test_what_cannot_be_is_refused_when_the_fit_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="the trainer has no end; give it max_steps or max_epochs"):
        fit(tmp_path, RegrowCallback(**OPTIONS), max_epochs=-1)
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(Module(), Loader(3))
    trainer.save_checkpoint(tmp_path / "dense.ckpt")
    with pytest.raises(UserError, match="training goes on at step 3, but without a state of regrow"):
        fit(tmp_path, RegrowCallback(**OPTIONS), resume=tmp_path / "dense.ckpt", max_epochs=2)
    monkeypatch.setattr("lightning.pytorch.strategies.SingleDeviceStrategy.restore_checkpoint_after_setup", True)
    with pytest.raises(UserError, match="SingleDeviceStrategy shards parameters"):
        fit(tmp_path, RegrowCallback(**OPTIONS))


def test_the_page_about_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names = readers_own() | {"module": Module(), "loader": DataLoader(host_job.dataset(), batch_size=8), "epochs": 2}
    for block in blocks("docs/integrations.md", "Lightning"):
        exec(block, names)
    assert names["regrown"].sparsifier.step_count == 2 * STEPS
    assert "to density 9.95%" in capsys.readouterr().out


def test_averages_of_its_own_are_refused_for_thin_channels_and_warned_of_otherwise(tmp_path: Path) -> None:
    loader = DataLoader(host_job.dataset(), batch_size=8)

    def trained(regrown: RegrowCallback, other: Callback) -> Module:
        module = Module()
        quiet_trainer(tmp_path, regrown, other, max_epochs=1).fit(module, loader)
        return module

    average = EMAWeightAveraging(decay=0.9)
    for other in (average, StochasticWeightAveraging(0.1)):
        with pytest.raises(UserError, match=f"{type(other).__name__} averages weights of one shape, and channels"):
            trained(RegrowCallback(**host_job.CHANNELS), other)
    regrown = RegrowCallback(**OPTIONS)
    with pytest.warns(UserWarning, match="EMAWeightAveraging evaluates and saves an average in which removed weights"):
        module = trained(regrown, average)
    for name, mask in regrown.sparsifier.masks.items():
        assert int(module.get_parameter(name).count_nonzero()) == int(mask.sum()) < mask.numel()


def test_channels_are_found_while_a_loader_of_torch_is_read(tmp_path: Path) -> None:
    """The module holds its trainer, and this an iterator that cannot be copied."""
    module = Module()
    regrown = RegrowCallback(**host_job.CHANNELS)
    loader = DataLoader(host_job.dataset(), batch_size=8)
    quiet_trainer(tmp_path, regrown, max_epochs=1).fit(module, loader)
    assert any(kept < width for kept, width in regrown.sparsifier.widths().values())
