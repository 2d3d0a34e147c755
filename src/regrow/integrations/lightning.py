"""regrow in Lightning's Trainer: ``Trainer(callbacks=[RegrowCallback(pattern, method)])``."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from regrow.criteria import Criterion
from regrow.errors import UserError
from regrow.extras import require
from regrow.losses import Loss
from regrow.methods import Method
from regrow.patterns.pattern import Pattern
from regrow.sparsifier import Sparsifier

require("integrations", "regrow.integrations.lightning", "lightning")

from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402

KEY = "regrow"  # in checkpoints
_AVERAGE, _AT_THE_END = "WeightAveraging", "StochasticWeightAveraging"  # by name, as older Lightnings lack one


class RegrowCallback(Callback):
    """Makes a LightningModule sparse while Lightning trains it.

    The sparsifier's state is in Lightning's own checkpoints. Validation, tests and predictions compute with the active
    structure. Loggers get `Sparsifier.metrics` every ``log_every_n_steps``. When the fit ends, the exact target is
    reached, and the module is a plain one with its zeros.

    Args:
        pattern, method, criterion, seed, example_inputs, batches, loss: as for `regrow.Sparsifier`.
        total_steps: optimizer steps of the whole run; default: what the trainer estimates from its epochs.

    Attributes:
        sparsifier: from the start of the fit on; None before.

    Raises:
        UserError: when the fit starts, for what `regrow.Sparsifier` refuses, for strategies that shard parameters,
            for Lightning's averages of channels that train thin, and for a checkpoint of a run without this callback.
    """

    def __init__(
        self, pattern: Pattern | None = None, method: Method | str | None = None, *,
        criterion: str | Criterion | Callable[..., Tensor] = "magnitude", total_steps: int | None = None, seed: int = 0,
        example_inputs: Any = None, batches: Iterable[Any] | None = None, loss: Loss | None = None,
    ) -> None:  # fmt: skip
        self.sparsifier: Sparsifier | None = None
        self._total_steps = total_steps
        self._options: dict[str, Any] = {"pattern": pattern, "method": method, "criterion": criterion, "seed": seed}
        self._options |= {"example_inputs": example_inputs, "batches": batches, "loss": loss}
        self._loaded: dict[str, Any] | None = None  # of a checkpoint, until there is something to load it into
        self._shown = ExitStack()

    # -- a fit -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves what an earlier fit held, before weights are loaded."""
        if stage == "fit" and self.sparsifier is not None:
            self.sparsifier.detach()
            self.sparsifier = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attaches: model, optimizers, loops and data are there, and loaded."""
        if trainer.strategy.restore_checkpoint_after_setup:
            raise UserError(
                f"{type(trainer.strategy).__name__} shards parameters, which this callback cannot sparsify: use "
                "strategy='ddp', or a loop of your own"
            )
        if trainer.global_step and self._loaded is None:
            raise UserError(
                f"training goes on at step {trainer.global_step}, but without a state of regrow: use the checkpoint of "
                "a run with this callback, or begin a fit of its own with load_from_checkpoint() and a new trainer"
            )
        self._check_averages(trainer)
        # before this moment, to estimate them would keep Lightning from loading where its data goes on
        steps = self._total_steps if self._total_steps is not None else trainer.estimated_stepping_batches
        if steps == math.inf:
            raise UserError("the trainer has no end; give it max_steps or max_epochs, or RegrowCallback total_steps=")
        self.sparsifier = Sparsifier(trainer.model, trainer.optimizers, total_steps=int(steps), **self._options)
        if self._loaded is not None:
            self.sparsifier.load_state_dict(self._loaded)
            self._loaded = None

    def _check_averages(self, trainer: Trainer) -> None:
        """Lightning's own averages know nothing of structures."""
        for kind in {type(one) for one in trainer.callbacks}:
            above = {one.__name__ for one in kind.__mro__}
            if getattr(self._options["pattern"], "thin", False) and above & {_AVERAGE, _AT_THE_END}:
                raise UserError(
                    f"{kind.__name__} averages weights of one shape, and channels train thin: set thin=False, or leave "
                    "it out"
                )
            if _AVERAGE in above:
                warnings.warn(
                    f"{kind.__name__} evaluates and saves an average in which removed weights are not zero yet: only "
                    "the model at the end of the fit is sparse",
                    stacklevel=2,
                )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Gradients are reduced and unscaled, and not yet clipped."""
        if self.sparsifier is not None:
            self.sparsifier.prepare_step()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Logs, where the trainer does."""
        if self.sparsifier is not None and trainer.global_step % trainer.log_every_n_steps == 0:
            metrics = self.sparsifier.metrics()
            trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last checkpoint: the exact target, also where training was stopped early."""
        if self.sparsifier is not None:
            self.sparsifier.detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """What is written of a failed run is as it trained."""
        self._hide()

    # -- evaluation --------------------------------------------------------------------------------------------------

    @torch.inference_mode(False)  # Lightning evaluates in it, and what is kept for training must not come from there
    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._loaded is not None and not trainer.sanity_checking:
            if self.sparsifier is None:  # a checkpoint that is evaluated without a fit: nothing steps
                steps = int(self._loaded["config"]["total_steps"])
                stand_in = torch.optim.SGD(pl_module.parameters(), lr=0.0)
                self.sparsifier = Sparsifier(pl_module, stand_in, total_steps=steps, **self._options)
            self.sparsifier.load_state_dict(self._loaded)
            self._loaded = None
        if self.sparsifier is not None:
            self._shown.enter_context(self.sparsifier.sparse())

    @torch.inference_mode(False)
    def _hide(self, *_: Any) -> None:
        self._shown.close()

    on_validation_start = on_test_start = on_predict_start = _show
    on_validation_end = on_test_end = on_predict_end = _hide

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the sparsifier's state; where channels train thin, weights and optimizers are saved at full width."""
        if self.sparsifier is None:
            return
        with self.sparsifier.full_width():
            checkpoint[KEY] = self.sparsifier.state_dict()
            if getattr(self._options["pattern"], "thin", False):
                checkpoint["state_dict"] = copy.deepcopy(trainer.strategy.lightning_module_state_dict())
                states = [trainer.strategy.optimizer_state(one) for one in trainer.optimizers]
                checkpoint["optimizer_states"] = copy.deepcopy(states)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps the sparsifier's state until it is attached."""
        self._loaded = checkpoint.get(KEY)
