"""regrow in the Trainer of transformers: ``trainer.add_callback(RegrowCallback(trainer, pattern, method))``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from regrow.criteria import Criterion
from regrow.errors import UserError
from regrow.extras import require
from regrow.integrations import beside
from regrow.losses import Loss
from regrow.methods import Method
from regrow.patterns.pattern import Pattern
from regrow.sparsifier import Sparsifier

require("integrations", "regrow.integrations.transformers", "transformers", "accelerate")

from transformers import Trainer, TrainerCallback  # noqa: E402

FILE = "sparsifier.pt"  # in a checkpoint's folder


class RegrowCallback(TrainerCallback):
    """Makes a model sparse while transformers' Trainer trains it.

    The sparsifier's state is a file in each of the Trainer's checkpoints. Evaluations compute with the active
    structure. What the Trainer reports to gets `Sparsifier.metrics` beside each loss. When training ends, the exact
    target is reached, and the model is a plain one with its zeros; where the Trainer brings back the best checkpoint,
    it is the structure of that one.

    Args:
        trainer: that it is added to, for its log and its gradient clipping.
        pattern, method, criterion, seed, example_inputs, batches, loss: as for `regrow.Sparsifier`.
        total_steps: optimizer steps of the whole run; default: the Trainer's ``max_steps``, or what its epochs make.
        resume_from: the folder of the checkpoint that is resumed from, where that is neither
            ``args.resume_from_checkpoint`` nor the Trainer's own in its ``output_dir``.

    Attributes:
        sparsifier: once training has begun; None before.

    Raises:
        UserError: when training begins, for what `regrow.Sparsifier` refuses, for sharded parameters, and for a
            checkpoint without the file, or with that of other weights.
    """

    def __init__(
        self, trainer: Trainer, pattern: Pattern | None = None, method: Method | str | None = None, *,
        criterion: str | Criterion | Callable[..., Tensor] = "magnitude", total_steps: int | None = None, seed: int = 0,
        example_inputs: Any = None, batches: Iterable[Any] | None = None, loss: Loss | None = None,
        resume_from: str | Path | None = None,
    ) -> None:  # fmt: skip
        self.sparsifier: Sparsifier | None = None
        self._trainer, self._total_steps, self._resume_from = trainer, total_steps, resume_from
        self._options: dict[str, Any] = {"pattern": pattern, "method": method, "criterion": criterion, "seed": seed}
        self._options |= {"example_inputs": example_inputs, "batches": batches, "loss": loss}
        self._wide, self._shown = ExitStack(), ExitStack()
        self._ends = False  # the last epoch has ended

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Attaches: model and optimizer are there, and loaded."""
        self._ends = False
        trainer, resumed = self._trainer, state.global_step > 0
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise UserError(
                "DeepSpeed and FSDP keep parameters in pieces, which this callback cannot sparsify: train with DDP, or "
                "in a loop of your own"
            )
        saved = beside.read(self._folder(args, state) / FILE, trainer.model) if resumed else None
        if self.sparsifier is not None and not resumed:
            self._leave()  # an earlier training that failed
        if self.sparsifier is None or not self._attached:
            steps = self._total_steps if self._total_steps is not None else state.max_steps
            self.sparsifier = Sparsifier(trainer.model_wrapped, trainer.optimizer, total_steps=steps, **self._options)
            self._clip_prepared(trainer.accelerator)
        if saved is not None:
            self.sparsifier.load_state_dict(saved)

    def _folder(self, args: Any, state: Any) -> Path:
        if self._resume_from is not None:
            return Path(self._resume_from)
        if isinstance(args.resume_from_checkpoint, str):
            return Path(args.resume_from_checkpoint)
        return Path(args.output_dir) / f"checkpoint-{state.global_step}"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Prepares what the Trainer does next: checkpoints at full width, evaluations of the active structure."""
        if self.sparsifier is not None and control.should_save:
            self._wide.enter_context(self.sparsifier.full_width())
        if self.sparsifier is not None and control.should_evaluate:
            self._shown.enter_context(self.sparsifier.sparse())

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The same; of the last epoch, at full width until training ends, as the Trainer loads the best checkpoint."""
        self.on_step_end(args, state, control)
        ends = control.should_training_stop or state.global_step >= state.max_steps
        self._ends = ends and args.load_best_model_at_end
        if self.sparsifier is not None and self._ends and not control.should_save:
            self._wide.enter_context(self.sparsifier.full_width())

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What is explored comes back."""
        self._shown.close()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Adds to a log of the loss another of its own."""
        if self.sparsifier is not None and "loss" in (logs or {}):
            self._trainer.log(self.sparsifier.metrics())

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Writes the file, beside what the Trainer has just written."""
        if self.sparsifier is not None and state.is_world_process_zero:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / FILE
            beside.write(path, self.sparsifier.state_dict(), self._trainer.model)
        if not self._ends:
            self._wide.close()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The exact target, also where training was stopped early, and also of the best checkpoint."""
        if self.sparsifier is None:
            return
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self.sparsifier.load_state_dict(beside.read(Path(state.best_model_checkpoint) / FILE, self._trainer.model))
        self._leave()

    # -- before clipping ---------------------------------------------------------------------------------------------

    @property
    def _attached(self) -> bool:
        return "unscale_gradients" in vars(self._trainer.accelerator)

    def _clip_prepared(self, accelerator: Any) -> None:
        """The Trainer has no event between unscaling gradients and clipping them, so unscaling prepares them, too."""
        unscale = accelerator.unscale_gradients

        def unscale_and_prepare(optimizer: Any = None) -> None:
            unscale(optimizer)
            if self.sparsifier is not None:
                self.sparsifier.prepare_step()

        accelerator.unscale_gradients = unscale_and_prepare

    def _leave(self) -> None:
        self._shown.close()
        self._wide.close()
        vars(self._trainer.accelerator).pop("unscale_gradients", None)
        if self.sparsifier is not None:
            self.sparsifier.detach()
