"""The training loop behind ``regrow train``: plain PyTorch on Accelerate, with the sparsifier in the optimizer's step.

The position in the data, the learning rate and every random number are pure functions of the recipe and the step, so a
run continues from its last checkpoint bit-identically: step s takes the batches s·accumulate … (s+1)·accumulate − 1.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regrow import atomic, recalibrate, storage
from regrow.data.named import BatchSource
from regrow.errors import UserError
from regrow.training import checkpoint, rundir, trackers
from regrow.training import resume as resume_checks
from regrow.training.evaluation import averaged_weights
from regrow.training.measures import measure_of
from regrow.training.own import label_of
from regrow.training.progress import Interrupted, Progress, StopRequest, Stopwatch
from regrow.training.provenance import sizes
from regrow.training.recipe import Recipe
from regrow.training.results import results, run_entry, structure
from regrow.training.run import Run, model_of
from regrow.training.speed import is_channels, needs_table, read_table
from regrow.training.speed import measured as latency
from regrow.training.stepping import train_step


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    label: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a recipe, or what is left of it.

    Args:
        recipe: what to do
        out: the run directory; it appears once recipe, model and data are known to be good
        resume: continue the run in ``out`` from its last checkpoint; without one it starts from the beginning
        label: name of the run in tables; default: the one it had before, or the method's name
        quiet: show no progress

    Returns:
        The content of ``results.json``.

    Raises:
        UserError: if anything is wrong with the recipe, the model, the data, ``out`` or the checkpoint.
        Interrupted: after SIGINT or SIGTERM, once the checkpoint is written.
    """
    rundir.check_target(out, resume)
    if resume:
        rundir.check_same_recipe(out, recipe)
    saved = checkpoint.load(out, recipe) if resume else None
    table = read_table(out / rundir.LATENCY) if is_channels(recipe) else None
    run = Run(recipe, label or (saved or {}).get("label") or label_of(recipe.method_name), table, quiet)
    if saved is not None:
        resume_checks.check_processes(saved.get("processes"), run.accelerator.num_processes, run.device, out)
        run.load_state(saved)
    if not run.accelerator.is_main_process:
        return Trainer(run, None, None, quiet=True).train()
    rundir.create(out)
    with rundir.locked(out):
        rundir.sweep(out)
        atomic.write_text(out / rundir.RECIPE, recipe.to_yaml())
        if run.table is not None and needs_table(recipe) and table is None:
            run.table.save(out / rundir.LATENCY)
        times = (saved["seconds"], saved.get("train_seconds", 0.0)) if saved else (0.0, 0.0)
        with closing(rundir.Metrics(out / rundir.METRICS, saved["metrics_lines"] if saved else 0)) as metrics:
            found = Trainer(run, out, metrics, times, quiet).train()
        atomic.write_json(out / rundir.RESULTS, found)
    return found


class Trainer:
    """Trains a `Run` to its end: steps, metrics, evaluations, checkpoints.

    Args:
        run: what is trained
        out: the run directory; None on all processes but the main one
        metrics: its ``metrics.jsonl``
        times: seconds that earlier sessions of this run have taken, in all and in training steps
        quiet: show no progress
    """

    def __init__(
        self, run: Run, out: Path | None, metrics: rundir.Metrics | None, times: tuple[float, float] = (0.0, 0.0),
        quiet: bool = False,
    ) -> None:  # fmt: skip
        self.run, self.out, self.metrics = run, out, metrics
        self.settings = run.recipe.train
        self.started = time.monotonic() - times[0]
        self.training = Stopwatch(times[1])
        self.progress = Progress(run.total_steps, run.step, quiet)
        self.last_checkpoint = time.monotonic()
        self.trackers: list[trackers.Tracker] = []
        if out is not None:
            named = self.settings.all_trackers
            name = f"{run.label} seed {run.recipe.seed}"
            self.trackers = trackers.start(named, out, run.step, name, run.recipe.resolved())

    def train(self) -> dict[str, Any]:
        """All steps that are left, then the final evaluation; returns the content of ``results.json``."""
        run = self.run
        with ExitStack() as stack:
            for tracker in self.trackers:
                stack.callback(tracker.close)
            stack.enter_context(self.progress)
            stop = stack.enter_context(StopRequest(launched="LOCAL_RANK" in os.environ))
            batches = run.stream.starting_at(run.step * self.settings.accumulate)
            run.forward.train()
            while run.step < run.total_steps:
                with self.training:
                    train_step(run, batches)
                    self.progress.step(run.step)
                self._log()
                if self._stop_wanted(stop):
                    self._save_checkpoint()
                    raise Interrupted(f"stopped after step {run.step} of {run.total_steps}")
                if self._checkpoint_due():
                    self._save_checkpoint()
            return self._finish()

    def _log(self) -> None:
        """Metrics, where they are due. Only here the loss is read, which waits for the device."""
        run, last = self.run, self.run.step == self.run.total_steps
        evaluate = len(run.data.val) > 0 and (last or self._crossed(self.settings.eval_every * run.steps_per_epoch))
        if not evaluate and not last and run.step % self.settings.log_every:
            return
        with self.training:  # this waits for the steps that the device still has to do
            loss = float(run.accelerator.reduce(run.loss_sum, "mean")) / run.loss_count
        run.loss_sum.zero_()
        run.loss_count, run.last_loss = 0, loss
        if not math.isfinite(loss):
            raise UserError(
                f"training diverged: the loss is {loss} before step {run.step}; "
                f"try a lower optimizer.lr, or clip gradients with train.clip_norm{self._where_to_go_on()}"
            )
        record = self._record(loss)
        if evaluate and not last:  # the last one follows at the very end, on the model as it is saved
            with self._evaluated_model() as model:
                record |= {**self._evaluated(model, run.data.val), "split": "val"}
        self._write(record)

    def _where_to_go_on(self) -> str:
        if self.out is None:
            return ""
        if checkpoint.path_in(self.out).exists():  # of this recipe
            return f", with another --out than {self.out}"
        return f", again with --out {self.out}"

    def _record(self, loss: float) -> dict[str, Any]:
        """A line of the metrics: the loss since the line before it, and the phase of the step just done."""
        run = self.run
        return {
            "step": run.step,
            "epoch": run.step / run.steps_per_epoch,
            "phase": run.timeline.phase_at(run.step - 1).phase,
            "loss": loss,
            "lr": run.learning_rate(run.step - 1),
            "density": run.sparsifier.density(),
            "cost": run.cost()["total"],
            "seconds": time.monotonic() - self.started,
        }

    def _write(self, record: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.append(record)
        self.progress.logged(record)
        if self.trackers:
            split, values = record.get("split"), self.run.sparsifier.metrics()
            for key in ("loss", "lr", "density", "cost", "accuracy"):
                if key in record:
                    name = f"{split}/{measure_of([record]).name}" if key == "accuracy" else f"train/{key}"
                    values[name] = record[key]
            for tracker in self.trackers:
                tracker.log(values, record["step"])

    def _crossed(self, every: float) -> bool:
        """Whether this step passed a multiple of ``every`` steps."""
        if every <= 1:
            return every > 0
        return int((self.run.step + 1e-6) // every) > int((self.run.step - 1 + 1e-6) // every)

    @contextmanager
    def _evaluated_model(self) -> Iterator[nn.Module]:
        """The model whose accuracy counts, as its active structure: the average of the weights where there is one."""
        run = self.run
        shown = run.sparsifier.sparse() if run.ema is None else run.ema.shown()
        with averaged_weights(run.optimizer.optimizer), shown:
            yield run.model

    @contextmanager
    def _final_model(self) -> Iterator[nn.Module]:
        """The model that is saved: thin for good, if it lost channels. Nothing is trained any more after it."""
        run = self.run
        if not run.sparsifier.widths():
            with self._evaluated_model() as model:
                yield model
            return
        with averaged_weights(run.optimizer.optimizer, back=False):
            if run.ema is not None:
                run.ema.apply()
            yield run.sparsifier.compact()

    def _evaluated(self, model: nn.Module, source: BatchSource) -> dict[str, Any]:
        run = self.run
        run.share_buffers(model)
        with run.accelerator.autocast():
            return run.task.evaluate(model, source.epoch(0), run.device, run.accelerator)

    def _stop_wanted(self, stop: StopRequest) -> bool:
        return self._any(stop.wanted)

    def _any(self, wanted: bool) -> bool:
        """Whether any process wants something that all of them must agree on."""
        if self.run.accelerator.num_processes == 1:
            return wanted
        if self.run.step % self.settings.log_every:  # asking costs time
            return False
        votes = torch.tensor(float(wanted), device=self.run.device)
        return bool(self.run.accelerator.reduce(votes, "sum") > 0)

    def _checkpoint_due(self) -> bool:
        settings, step = self.settings, self.run.step
        if step == self.run.total_steps:
            return True
        if settings.checkpoint_steps and step % settings.checkpoint_steps == 0:
            return True
        waited = time.monotonic() - self.last_checkpoint
        return self._any(settings.checkpoint_minutes > 0 and waited >= 60 * settings.checkpoint_minutes)

    def _save_checkpoint(self) -> None:
        state = self.run.state()  # all processes take part
        for tracker in self.trackers:
            tracker.flush()
        if self.out is not None and self.metrics is not None:
            spent = {"seconds": time.monotonic() - self.started, "train_seconds": self.training.seconds}
            checkpoint.save(self.out, {**state, **spent, "metrics_lines": self.metrics.lines})
        self.last_checkpoint = time.monotonic()

    def _write_pictures(self, model: nn.Module) -> None:
        """What the page shows of the model at work, where there is anything to see of its task."""
        if self.out is not None and (shown := self.run.task.pictures(model, self.run.data, self.run.device)):
            atomic.write_json(self.out / rundir.PICTURES, shown)

    def _finish(self) -> dict[str, Any]:
        """The exact target, fresh statistics, the one look at the test split, and the saved model."""
        run = self.run
        run.sparsifier.finalize()
        cost = run.cost()
        measured: dict[str, Any] = {}
        found: dict[str, dict[str, Any]] = {}
        with self._final_model() as model:
            if self.settings.recalibrate:
                with run.accelerator.autocast():
                    recalibrate(model, run.data.train.epoch(0), self.settings.recalibrate)
            for split, source in (("val", run.data.val), ("test", run.data.test)):
                if split == "test" or len(source):
                    found[split] = self._evaluated(model, source)
            measured |= {"validation_accuracy": found.get("val", {}).get("accuracy"), **found["test"]}
            if self.out is not None:
                self._write_pictures(model)
                extra = {"recipe": run.recipe.resolved(), "accuracy": measured["accuracy"], **run.task.measure.entry}
                storage.save(model, self.out / "model", extra=extra)
                atomic.write_json(self.out / rundir.STRUCTURE, structure(run, cost))
            masks = {} if run.sparsifier.widths() else run.sparsifier.masks
            measured |= sizes(run.dense_size, model, masks, None if self.out is None else self.out / "model")
        record = self._record(run.last_loss)
        for split, numbers in found.items():
            self._write({**record, **numbers, "split": split})
        if self.out is not None and is_channels(run.recipe):
            dense = model_of(run.recipe, run.data)
            measured |= latency(run.recipe, model, dense, run.data.shape, run.table)
            measured["train_seconds"] = self.training.seconds
        spans = run.timeline.spans()
        measured |= {
            "seconds": time.monotonic() - self.started,
            "steps": run.total_steps,
            "explore_steps": sum(span.end - span.start for span in spans if span.explores),
            "run": ".",
        }
        return results(run.recipe, [run_entry(run, cost, **measured)])
