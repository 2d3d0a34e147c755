"""The Trainer of transformers, its reports and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

import host_job
from engine import network
from host_job import CLIP, CRITERIA, EXAMPLE, EXPLORING, OPTIONS, STEPS, Stop
from regrow.errors import UserError
from regrow.integrations.transformers import FILE, RegrowCallback
from test_code_in_documents import blocks, readers_own


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.evaluated: list[Tensor] = []

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        if not self.training:
            self.evaluated.append(logits)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Dataset(torch.utils.data.Dataset):
    def __init__(self, steps: int = STEPS) -> None:
        self.rows, self.steps = host_job.dataset(), steps

    def __len__(self) -> int:
        return 8 * self.steps

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, labels = self.rows[index]
        return {"x": x, "labels": labels}


class InOrder(Trainer):
    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, batch_size=8)


class Seen(TrainerCallback):
    """The state before each step and at the end, by the names of the plain network; and what is reported."""

    def __init__(self, regrown: RegrowCallback, stop: int | None) -> None:
        self.regrown, self.stop, self.states, self.reports = regrown, host_job.stop_at(stop), [], []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        self.note(state, model)
        self.stop(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        self.note(state, model)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        self.reports.append((state.global_step, dict(logs)))

    def note(self, state: Any, model: nn.Module) -> None:
        if state.global_step and self.regrown.sparsifier.step_count == state.global_step:
            found = host_job.state_of(model, self.regrown.sparsifier)
            self.states.append({name.replace("net.", ""): value for name, value in found.items()})


def trainer_in(folder: Path, seen: Any = None, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "use_cpu": True, "num_train_epochs": 1, "max_grad_norm": CLIP, "report_to": [], "disable_tqdm": True,
        "save_strategy": "no", "logging_strategy": "no", "per_device_eval_batch_size": 8,
    }  # fmt: skip
    model = Model()
    optimizer = host_job.sgd(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    arguments = TrainingArguments(str(folder), **(defaults | options))
    return InOrder(model, arguments, train_dataset=Dataset(), eval_dataset=Dataset(1), optimizers=(optimizer, schedule))


def train(
    folder: Path, *, stop: int | None = None, resume: Path | bool | None = None, regrown: dict[str, Any] = OPTIONS,
    criterion: str = "taylor", **options: Any,
) -> tuple[Trainer, RegrowCallback, Seen]:  # fmt: skip
    trainer = trainer_in(folder, **options)
    callback = RegrowCallback(trainer, **regrown, criterion=criterion)
    trainer.add_callback(callback)
    seen = Seen(callback, stop)
    trainer.add_callback(seen)
    go(trainer, stop, resume)
    return trainer, callback, seen


def go(trainer: Trainer, stop: int | None = None, resume: Path | bool | None = None) -> None:
    try:
        trainer.train(resume_from_checkpoint=str(resume) if isinstance(resume, Path) else resume)
    except Stop:
        assert stop is not None


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_step_is_that_of_a_plain_loop(criterion: str, tmp_path: Path) -> None:
    trainer, callback, seen = train(tmp_path, criterion=criterion, eval_strategy="steps", eval_steps=EXPLORING)
    assert host_job.same_states(seen.states, host_job.plain(criterion))
    assert callback.sparsifier.total_steps == callback.sparsifier.step_count == STEPS
    assert len(trainer.model.evaluated) == STEPS // EXPLORING
    assert torch.equal(trainer.model.evaluated[0], host_job.shown(criterion))
    assert "unscale_gradients" not in vars(trainer.accelerator)  # it is left as it was
    with torch.no_grad():
        assert torch.equal(trainer.model.evaluated[-1], trainer.model.net.eval()(EXAMPLE))


@pytest.mark.parametrize("every", [EXPLORING, 23])
def test_interrupted_and_resumed_equals_unbroken(every: int, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": every, "eval_strategy": "steps", "eval_steps": every}
    trainer, _, seen = train(tmp_path, stop=every + 3, **saving)
    assert host_job.same_states(seen.states, host_job.plain("taylor")[: every + 3])
    torch.load(tmp_path / f"checkpoint-{every}" / FILE, weights_only=True)
    seen.states.clear()
    seen.stop = host_job.stop_at(None)
    go(trainer, resume=True)  # in the process that failed
    assert host_job.same_states(seen.states, host_job.plain("taylor")[every - 1 :])
    _, _, seen = train(tmp_path, resume=tmp_path / f"checkpoint-{every}", **saving)
    assert host_job.same_states(seen.states, host_job.plain("taylor")[every - 1 :])


def test_channels_that_train_thin_are_saved_and_resumed(tmp_path: Path) -> None:
    channels = {**host_job.CHANNELS, "example_inputs": {"x": EXAMPLE, "labels": host_job.DATA[0][1]}}
    job = {"regrown": channels, "criterion": "magnitude", "save_strategy": "steps", "save_steps": 7}
    trainer, _, seen = train(tmp_path, **job)
    _, _, again = train(tmp_path, resume=tmp_path / "checkpoint-7", **job)  # thin, before an exploration
    assert host_job.same_states(again.states, seen.states[6:])
    assert trainer.model.net[0].out_channels < network()[0].out_channels


@pytest.mark.parametrize("every", [7, 30])  # the last steps are saved, or not
def test_the_best_of_channels_that_train_thin_comes_back(every: int, tmp_path: Path) -> None:
    channels = {**host_job.CHANNELS, "example_inputs": {"x": EXAMPLE, "labels": host_job.DATA[0][1]}}
    job = {
        f"{what}_{key}": value for what in ("save", "eval") for key, value in (("strategy", "steps"), ("steps", every))
    }
    trainer, callback, _ = train(
        tmp_path, regrown=channels, criterion="magnitude", load_best_model_at_end=True, metric_for_best_model="loss",
        greater_is_better=True, **job,
    )  # fmt: skip
    model = trainer.model.net
    assert model[0].weight.shape[0] == model[0].out_channels < network()[0].out_channels
    assert {kept for kept, _ in callback.sparsifier.widths().values()} >= {model[0].out_channels}
    best = Path(trainer.state.best_model_checkpoint)
    bias = load_file(best / "model.safetensors")["net.7.bias"]
    assert torch.equal(model[7].bias, bias)  # which no channel is cut from


def test_trackers_get_where_the_run_is(tmp_path: Path) -> None:
    trainer, callback, seen = train(tmp_path, logging_strategy="steps", logging_steps=EXPLORING)
    found = [(step, logs) for step, logs in seen.reports if "regrow/density" in logs]
    assert [step for step, _ in found] == [*range(EXPLORING, STEPS + 1, EXPLORING)]
    assert [logs["regrow/phase_explore"] for _, logs in found] == [1, 0, 0, 0, 0, 0]
    assert [logs["regrow/updates"] for _, logs in found] == [0, 1, 2, 3, 3, 3]
    record = callback.sparsifier.history[-1]
    assert {key: found[-1][1][f"regrow/{key}"] for key in ("iou", "survival", "density", "budget")} == {
        "iou": record["iou"], "survival": record["survival"], "density": record["density"], "budget": 0.0,
    }  # fmt: skip
    assert [line["step"] for line in trainer.state.log_history if "loss" in line] == [step for step, _ in found]
    json.dumps(trainer.state.log_history)


def test_the_best_checkpoint_comes_back_with_its_own_structure(tmp_path: Path) -> None:
    """Here it is of the middle of an exploration, of which nothing is left: it ends with the structure before."""
    saving = {"save_strategy": "steps", "save_steps": EXPLORING, "eval_strategy": "steps", "eval_steps": EXPLORING}
    trainer = trainer_in(
        tmp_path, **saving, load_best_model_at_end=True, metric_for_best_model="age", greater_is_better=False
    )
    trainer.compute_metrics = lambda _: {"age": float(len(trainer.model.evaluated))}  # the first is the best
    callback = RegrowCallback(trainer, **OPTIONS, criterion="taylor")
    trainer.add_callback(callback)
    trainer.train()
    _, early, stopped = train(tmp_path / "early", regrown={**OPTIONS, "total_steps": STEPS}, max_steps=EXPLORING)
    expected = stopped.states[-1:]
    assert early.sparsifier.density() == 112 / 372
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{EXPLORING}")
    found = host_job.state_of(trainer.model, callback.sparsifier)
    assert host_job.same_states([{name.replace("net.", ""): value for name, value in found.items()}], expected)


def test_training_that_is_stopped_early_ends_at_the_target(tmp_path: Path) -> None:
    trainer, callback, _ = train(tmp_path, regrown={**OPTIONS, "total_steps": STEPS}, max_steps=EXPLORING)
    assert callback.sparsifier.phase == "fixed"
    assert callback.sparsifier.density() == 112 / 372
    for name, mask in callback.sparsifier.masks.items():
        assert (trainer.model.get_parameter(name)[~mask] == 0).all()


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": EXPLORING}
    train(tmp_path / "one", stop=EXPLORING + 1, **saving)
    train(tmp_path / "two", stop=EXPLORING + 1, criterion="magnitude", **saving)
    one, two = (tmp_path / name / f"checkpoint-{EXPLORING}" for name in ("one", "two"))
    with pytest.raises(UserError, match=r"checkpoint-10/sparsifier.pt belongs to other weights than were loaded: say"):
        train(tmp_path / "one", resume=two)  # whose masks would be those of "one"
    _, _, seen = train(tmp_path / "one", resume=two, regrown={**OPTIONS, "resume_from": two}, criterion="magnitude")
    assert host_job.same_states(seen.states, host_job.plain("magnitude")[EXPLORING - 1 :])
    (one / FILE).write_bytes((one / FILE).read_bytes()[:100])
    with pytest.raises(UserError, match=r"sparsifier.pt is damaged; resume from another checkpoint"):
        train(tmp_path / "one", resume=one)
    (one / FILE).unlink()
    with pytest.raises(UserError, match=r"sparsifier.pt is not there, so masks cannot go on with the weights"):
        train(tmp_path / "one", resume=one)
    trainer = trainer_in(tmp_path)
    trainer.is_fsdp_enabled = True
    with pytest.raises(UserError, match="DeepSpeed and FSDP keep parameters in pieces"):
        RegrowCallback(trainer, **OPTIONS).on_train_begin(trainer.args, trainer.state, trainer.control)


def test_the_page_about_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = readers_own() | {"model": Model(), "dataset": Dataset(), "total_steps": 200}
    for block in blocks("docs/integrations.md", "The Trainer of transformers"):
        exec(block, names)
    weight = names["model"].net[7].weight
    assert ((weight.reshape(-1, 4) != 0).sum(1) == 2).all()
    assert [line["step"] for line in names["trainer"].state.log_history if "regrow/iou" in line] == [100, 200]
