"""One optimizer step of a run: what is trained, and what is timed, is the same."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from regrow.training.run import Run, seed_step
from regrow.training.tasks.task import Batch


def train_step(run: Run, batches: Iterator[Batch]) -> None:
    """Trains one step.

    Args:
        run: counts the step, and its loss.
        batches: ``train.accumulate`` of them are taken.
    """
    settings = run.recipe.train
    run.wrap()
    seed_step(run.recipe.seed, run.step, run.accelerator.process_index)
    factor = run.recipe.schedule.factor(run.step, run.total_steps, run.steps_per_epoch)
    for group, peak in zip(run.optimizer.param_groups, run.peak_lr, strict=True):
        group["lr"] = peak * factor
    for _ in range(settings.accumulate):
        batch = next(batches)
        with run.accelerator.accumulate(run.prepared):
            loss = run.task.loss(run.forward, batch, run.device, settings, run.teach)
            run.accelerator.backward(loss)
            run.loss_sum += loss.detach()
            run.loss_count += 1
            if run.accelerator.sync_gradients and settings.clip_norm is not None:
                run.accelerator.unscale_gradients()
                run.sparsifier.prepare_step()
                nn.utils.clip_grad_norm_(run.model.parameters(), settings.clip_norm)
            run.optimizer.step()
            run.optimizer.zero_grad()
    run.step += 1
    if run.ema is not None:
        run.ema.update()
