"""What a training step needs, built from a recipe: model, data, optimizer, sparsifier, and the state to resume from."""

from __future__ import annotations

import dataclasses
import gc
import os
import random
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from regrow import attach
from regrow.cost import training_cost
from regrow.criteria import Criterion
from regrow.data.named import BatchSource, DataSet
from regrow.data.named import load as load_data
from regrow.errors import UserError
from regrow.importing import import_callable
from regrow.inputs import first_line
from regrow.sparsifier import Sparsifier
from regrow.tracing.flops import count_flops
from regrow.training import provenance, resume, trackers
from regrow.training.evaluation import moving_average
from regrow.training.initial import start_from
from regrow.training.recipe import Recipe
from regrow.training.speed import check_batch, is_channels, needs_table, table_of
from regrow.training.tasks.task import Batch, Teach
from regrow.training.teacher import PHASE as TEACHER
from regrow.training.teacher import Teacher
from regrow.zoo.models import GIVEN, build_with, example_input, tokenizer_of

if TYPE_CHECKING:
    from regrow.latency.table import LatencyTable
    from regrow.methods import Method
    from regrow.patterns.pattern import Pattern


_MEASURED = 4  # batches that a pattern has losses measured on


class Run:
    """Everything that a step needs, built from a recipe alone; nothing is written.

    Args:
        recipe: what to do
        label: name of the run in tables
        table: of latencies, where an earlier session or a comparison has measured it; otherwise this does, if the
            recipe needs one
        quiet: show no progress of that
    """

    def __init__(self, recipe: Recipe, label: str, table: LatencyTable | None = None, quiet: bool = True) -> None:
        self.recipe, self.label = recipe, label
        settings, self.task = recipe.train, recipe.task
        self.task.check(settings)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        trackers.check(settings.all_trackers)
        if settings.tensorboard:
            said = "train.tensorboard will go in regrow 0.3; write train.trackers: [tensorboard]"
            warnings.warn(said, FutureWarning, stacklevel=2)
        self.accelerator = _accelerator(recipe)
        self.device: torch.device = self.accelerator.device
        self.data = data_of(recipe, self.accelerator.process_index, self.accelerator.num_processes)
        self.task.check_data(self.data, recipe.data.name)
        self.builder = provenance.builder(recipe, self.data)
        self.stream = Stream(self.data.train)
        self.steps_per_epoch = self.stream.batches_per_epoch / settings.accumulate
        self.total_steps = recipe.total_steps(self.steps_per_epoch)
        self.cost_steps = settings.cost_steps or self.total_steps
        recipe.schedule.check(self.total_steps, self.steps_per_epoch)
        criterion = criterion_of(recipe)
        check_thin(recipe)
        self.model: nn.Module = model_of(recipe, self.data).to(self.device)
        self.example = example_input(self.model, self.data.shape)
        self.flops = count_flops(self.model, self.example)
        self.dense_size = provenance.size(self.model)
        self.task.check_model(self.model, self.example, self.data.num_classes, recipe.model.name)
        self.teacher = teacher_of(recipe, self.data, self.device)
        optimizer = recipe.optimizer.build(self.model.named_parameters())
        self.peak_lr = [group["lr"] for group in optimizer.param_groups]
        averaged = moving_average(self.model, settings.ema) if settings.ema is not None else None
        self.table = table or table_of(recipe, self.model, self.data.shape, progress=not quiet)
        check_batch(recipe, self.model, self.data.shape, self.table)
        self._wrapped_for_other_shapes = False
        self.sparsifier = Sparsifier(
            self.model, optimizer, pattern=pattern_of(recipe, self.table), method=recipe.method, criterion=criterion,
            total_steps=self.total_steps, seed=recipe.seed, example_inputs=self.example, on_resize=self._resized,
            **self.measured_by(recipe),
        )  # fmt: skip
        self.ema = self.sparsifier.average(averaged) if averaged is not None else None
        self.timeline = self.sparsifier.method.timeline(self.total_steps)
        self.start_active = {name: int(mask.sum()) for name, mask in self.sparsifier.masks.items()}
        self.start_widths = {group: kept for group, (kept, _) in self.sparsifier.widths().items()}
        self.prepared, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self._wrapped_for_other_shapes = False
        self.forward: Any = torch.compile(self.prepared) if settings.compile else self.prepared
        self.optimizer.train()
        self.step = 0
        # since the last line of the metrics
        self.loss_sum = torch.zeros((), device=self.device)
        self.loss_count = 0
        self.last_loss = 0.0

    def measured_by(self, recipe: Recipe) -> dict[str, Any]:
        """What `Sparsifier` measures losses by, for a recipe of this data and task whose pattern does so: the loss that
        it trains by, on the first batches of its training data."""
        if not (recipe.method.sparsifies and recipe.pattern.measures):
            return {}

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            with self.accelerator.autocast():
                return self.task.loss(model, batch, self.device, recipe.train, self.teach)

        return {"batches": islice(self.data.train.epoch(0), _MEASURED), "loss": loss}

    def _resized(self) -> None:
        self._wrapped_for_other_shapes = self.accelerator.num_processes > 1

    def wrap(self) -> None:
        """Wraps the model anew where its parameters have changed their shapes since, which no wrapper follows. To be
        called before a step; on all processes, as all of them resize at the same one."""
        if not self._wrapped_for_other_shapes:
            return
        models = self.accelerator._models
        models[:] = [model for model in models if model is not self.prepared and model is not self.model]
        self.accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False)
        self.prepared = self.forward = None
        gc.collect()  # the old wrapper, part of a cycle, holds what accumulates gradients of the old shapes
        self.prepared = self.forward = self.accelerator.prepare_model(self.model)
        self._wrapped_for_other_shapes = False

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs to go on from here; to be read back with ``weights_only=True``. Of channels it is
        the state at full width. All processes must call it."""
        if not self.start_widths:
            return self._state()
        with self.sparsifier.full_width():
            state = copied(self._state())
        if self.recipe.pattern.thin:
            self._resized()  # there and back, which has cost the wrapper its hooks
        return state

    def _state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "recipe": self.recipe.resolved(),
            "label": self.label,
            "step": self.step,
            "processes": self.accelerator.num_processes,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sparsifier": self.sparsifier.state_dict(),
            "ema": self.ema.averaged.state_dict() if self.ema is not None else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "start_active": self.start_active,
            **({"start_widths": self.start_widths} if self.start_widths else {}),
            "loss": [float(self.loss_sum), self.loss_count, self.last_loss],
            **self._losses_of_processes(),
        }

    def _losses_of_processes(self) -> dict[str, list[float]]:
        """The sums of the losses since the last line of the metrics, which differ between several processes."""
        if self.accelerator.num_processes == 1:
            return {}
        return {"loss_sums": self.accelerator.gather(self.loss_sum.reshape(1)).tolist()}

    def share_buffers(self, model: nn.Module) -> None:
        """Gives all processes the first one's buffers of ``model``, such as the statistics of batch norms: what is
        evaluated is what is saved. All processes must call it."""
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast

            for buffer in model.buffers():
                buffer.copy_(broadcast(buffer.detach().clone()))

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            UserError: if the state does not belong to this model, optimizer or sparsifier.
        """
        try:
            with self.sparsifier.full_width():
                resume.check(self, state)
                self.model.load_state_dict(state["model"])
                self.optimizer.load_state_dict(
                    {**state["optimizer"], "param_groups": resume.groups(self, state["optimizer"]["param_groups"])}
                )
                self.sparsifier.load_state_dict(state["sparsifier"])
            if self.ema is not None:
                self.ema.averaged.load_state_dict(state["ema"])
            if self.accelerator.scaler is not None and state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.start_active = dict(state["start_active"])
            self.start_widths = dict(state.get("start_widths", {}))
            self.step = int(state["step"])
            total, self.loss_count, self.last_loss = state["loss"]
            sums = state.get("loss_sums") or []
            own = self.accelerator.process_index
            self.loss_sum.fill_(sums[own] if own < len(sums) else total)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the checkpoint does not fit the recipe's model or optimizer: {reason}; start anew with another --out"
            ) from error

    def cost(self) -> dict[str, float]:
        """Training FLOPs of the steps so far, x those of ``cost_steps`` dense ones: by phase, a teacher's forward
        passes beside them, and in total."""
        costs = training_cost(self.flops, self.sparsifier.ledger, self.cost_steps)
        if self.teacher is None:
            return costs
        theirs = self.step * self.teacher.flops / (3 * self.flops.total * self.cost_steps)
        return {**costs, TEACHER: theirs, "total": costs["total"] + theirs}

    @property
    def teach(self) -> Teach | None:
        """Adds the teacher's share to a loss, in the precision of the forward pass (`Teacher.taught`)."""
        return None if self.teacher is None else partial(self.teacher.taught, precision=self.accelerator.autocast())

    def learning_rate(self, step: int) -> float:
        """The learning rate of the first parameter group at ``step``."""
        return self.peak_lr[0] * self.recipe.schedule.factor(step, self.total_steps, self.steps_per_epoch)


def copied(value: Any) -> Any:
    """Nested dicts and lists with copies of their tensors, which keep what they hold when a model is resized."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Stream:
    """The endless sequence of training batches of one process: batch m is a pure function of m."""

    source: BatchSource

    @property
    def batches_per_epoch(self) -> int:
        return len(self.source)

    def starting_at(self, position: int) -> Iterator[Batch]:
        """The batches from ``position`` on."""
        epoch, index = divmod(position, len(self.source))
        while True:
            yield from self.source.epoch(epoch, start=index)
            epoch, index = epoch + 1, 0


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make what a model draws at random in this step (dropout) a pure function of these three."""
    value = int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])
    random.seed(value)
    torch.manual_seed(value)


def _accelerator(recipe: Recipe) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    _check_device(os.environ.get("ACCELERATE_TORCH_DEVICE"))
    # one process may train several recipes in turn, but Accelerate keeps the settings of the first
    if not PartialState().use_distributed:
        AcceleratorState._reset_state(reset_partial_state=True)
    precision = {"fp32": "no"}.get(recipe.train.precision, recipe.train.precision)
    try:
        accelerator = Accelerator(mixed_precision=precision, gradient_accumulation_steps=recipe.train.accumulate)
    except ValueError as error:
        what = "training" if precision == "no" else f"train.precision {precision}"
        raise UserError(f"{what} does not work on this machine: {error}") from error
    if recipe.train.precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("train.precision fp16 needs a GPU: use bf16 or fp32")
    started = os.environ.get("WORLD_SIZE", "1")
    if started not in ("1", str(accelerator.num_processes)):
        raise UserError(
            f"{started} processes were started (WORLD_SIZE), but Accelerate trains in {accelerator.num_processes} as "
            "it finds no GPU for each: on CPUs, set ACCELERATE_USE_CPU=true for torchrun"
        )
    return accelerator


def _check_device(named: str | None) -> None:
    """Refuses a device that the environment names, where nothing can be computed on it."""
    if named is None:
        return
    try:
        torch.zeros((), device=named).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # as torch says it of what it was built without
        raise UserError(
            f"ACCELERATE_TORCH_DEVICE is {named!r}, but nothing can be computed there ({first_line(error)}); "
            "name another device, such as cpu or cuda:0, or leave it out"
        ) from error


def model_of(recipe: Recipe, data: DataSet) -> nn.Module:
    """The recipe's model on the CPU: with random weights, or with those that ``model.weights`` names.

    Raises:
        UserError: if it cannot be built, or the weights are not there or those of another model.
    """
    section = recipe.model
    for option in GIVEN:
        if option in section.options:
            raise UserError(f"model.options.{option} follows from the data ({recipe.data.name}): leave it out")
    model = build_with(section.options, section.name, data.num_classes, data.shape[0], recipe.seed)
    if section.weights is not None:
        try:
            start_from(model, section.weights.replace("{seed}", str(recipe.seed)), data.num_classes)
        except UserError as error:
            raise UserError(f"model.weights: {error}") from error
    return model


def teacher_of(recipe: Recipe, data: DataSet, device: torch.device) -> Teacher | None:
    """What the recipe's section ``distill`` names, if it has one.

    Raises:
        UserError: if it is not there or does not fit, or the task has no teachers.
    """
    if recipe.distill is None:
        return None
    if not recipe.task.has_teachers:
        raise UserError(f"distill does not apply to task: {recipe.task.name}: leave it out")
    return Teacher(recipe.distill, recipe, data, device)


def pattern_of(recipe: Recipe, table: LatencyTable | None) -> Pattern:
    """The recipe's pattern, with the latency table that it does not name itself, and without one that only says how
    whole models are timed, as no budget is of latency."""
    pattern: Pattern = recipe.pattern
    if is_channels(recipe) and "latency" not in recipe.pattern.budgets:
        return dataclasses.replace(recipe.pattern, table=None)
    return dataclasses.replace(recipe.pattern, table=table) if table is not None and needs_table(recipe) else pattern


def check_thin(recipe: Recipe) -> None:
    """Refuse what cannot follow parameters that change their shapes.

    Raises:
        UserError: naming the key, and the way out.
    """
    if not (is_channels(recipe) and recipe.method.sparsifies and recipe.pattern.thin):
        return
    if recipe.train.compile:
        raise UserError(
            "train.compile would compile anew whenever layers change their widths: set pattern.thin=false, which masks "
            "channels instead"
        )


def criterion_of(recipe: Recipe) -> Criterion:
    """The recipe's criterion: a registered one, or the function that ``package.module:callable`` names.

    Raises:
        UserError: if there is no such function, or it takes something else than (weight) or (weight, grad).
    """
    if ":" not in recipe.criterion:
        return Criterion.of(recipe.criterion)
    function = import_callable(recipe.criterion)
    try:
        return Criterion.of(function)
    except UserError as error:
        raise UserError(f"criterion {recipe.criterion!r} must be a function of (weight) or (weight, grad)") from error


def method_of(recipe: Recipe) -> tuple[Method, Criterion]:
    """The recipe's method, decided for its pattern and criterion, and the criterion that it ranks by."""
    return attach.method(recipe.method, recipe.pattern, criterion_of(recipe))


def data_of(recipe: Recipe, rank: int = 0, world: int = 1) -> DataSet:
    """The recipe's data set: the share of one of ``world`` processes. Texts become what its model's tokenizer makes of
    them."""
    options = dataclasses.asdict(recipe.data)
    tokenizer = tokenizer_of(recipe.model.name, recipe.model.options)
    return load_data(
        options.pop("name"), seed=recipe.seed, rank=rank, world=world, tokenizer=tokenizer, **options
    )  # fmt: skip
