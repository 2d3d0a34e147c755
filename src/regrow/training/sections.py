"""The sections of a recipe that are the same for every method, optimizer and schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from regrow.training.fields import number


@dataclass(frozen=True)
class ModelSection:
    """What is trained.

    Attributes:
        name: wrn22-2, shapes-ssd and other built-in names, timm:NAME, torchvision:NAME, hf:PATH or
            package.module:callable
        options: keyword arguments for the model, e.g. dropout
        weights: a model saved by regrow to start from, a run directory or its model/; {seed} in it stands for the seed;
            null means random weights
    """

    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: str | None = None


@dataclass(frozen=True)
class DataSection:
    """What it is trained on.

    Attributes:
        name: digits, cifar10, fashion-mnist, folder:PATH, imagenet:PATH, generated:... or package.module:callable;
            with boxes shapes:N, voc:PATH and coco:PATH, with masks shapes-masks:N and voc-masks:PATH; texts text:PATH
        batch_size: images per batch and process; an optimizer step sees batch_size x processes x train.accumulate
        augment: standard augmentation of the data set, or none
        val_fraction: share of the training images that is held out for validation; null means a tenth, or the val/ of
            an image folder
        split_seed: seed of that split
        pool: squares of so many pixels a side are averaged into one
        size: side to which the images of folders are resized; null means the data set's own
        workers: processes that decode images on the fly (imagenet); null means one for each core, at most 8
    """

    name: str
    batch_size: int = number(128, 1, cap=2**20)
    augment: Literal["standard", "none"] = "standard"
    val_fraction: float | None = number(None, 0, 0.9)
    split_seed: int = number(0, 0, 2**31 - 1)
    pool: int = number(1, 1, cap=1024)
    size: int | None = number(None, 1, cap=4096)
    workers: int | None = number(None, 0, cap=256)


@dataclass(frozen=True)
class TrainSection:
    """How it is trained.

    Attributes:
        label_smoothing: label smoothing of the training loss
        precision: number format of the forward pass
        accumulate: batches whose gradients are added up for one optimizer step
        clip_norm: largest norm of the gradient; null means no clipping
        ema: decay of a moving average of the weights, which is then what is evaluated and saved; null means none
        recalibrate: training batches that re-estimate batch-norm statistics before the final evaluation; 0 means none
        compile: compile the model with torch.compile
        channels_last: hand images over in channels-last format, which makes convolutions faster in bf16 and on GPUs
        threads: CPU threads; null means torch's default
        latency_batch: images at a time where latency is measured (pattern channels, unless pattern.table says)
        latency_seconds: how long measuring a latency table may take, where there is no pattern.table
        cost_steps: steps of the dense training that training costs are multiples of; null means those of the run itself
        planned_seconds: that training was planned to take, where a comparison matched runs by time; it is only reported
        log_every: steps between two lines of metrics.jsonl
        eval_every: epochs between two evaluations on the validation split; 0 means only at the end
        checkpoint_minutes: minutes between two checkpoints; 0 means none by time
        checkpoint_steps: steps between two checkpoints; 0 means none by steps
        trackers: where metrics go beside metrics.jsonl, with phase, budget, IoU and survival of updates: csv for
            metrics.csv, tensorboard for its event files, wandb for Weights & Biases
        tensorboard: deprecated, the same as trackers: [tensorboard]
    """

    label_smoothing: float = number(0.0, 0, 0.999)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = number(1, 1, cap=4096)
    clip_norm: float | None = number(None, above=0)
    ema: float | None = number(None, above=0, high=0.999999)
    recalibrate: int = number(0, 0, cap=10**6)
    compile: bool = False
    channels_last: bool = False
    threads: int | None = number(None, 1, 1024)
    latency_batch: int = number(8, 1, cap=4096)
    latency_seconds: float = number(60.0, above=0, cap=86_400)
    cost_steps: int | None = number(None, 1)
    planned_seconds: float | None = number(None, 0)
    log_every: int = number(50, 1)
    eval_every: float = number(1.0, 0, cap=10**9)
    checkpoint_minutes: float = number(5.0, 0, cap=10**9)
    checkpoint_steps: int = number(0, 0)
    trackers: Sequence[str] = ()
    tensorboard: bool = False

    @property
    def all_trackers(self) -> tuple[str, ...]:
        """Those of `trackers`, and what `tensorboard` stands for."""
        return (*self.trackers, *(["tensorboard"] if self.tensorboard else []))


@dataclass(frozen=True)
class DistillSection:
    """A trained network that is learnt from beside the labels.

    Attributes:
        teacher: directory of a finished run on the same data; {seed} in it stands for the seed
        weight: share of the loss that is the teacher's; the rest is the labels'
        temperature: that divides logits before they are compared
    """

    teacher: str
    weight: float = number(0.5, above=0, high=1)
    temperature: float = number(4.0, above=0, cap=1000)


@dataclass(frozen=True)
class TopSection:
    """The run as a whole.

    Attributes:
        epochs: length of the training in epochs; give this or steps
        steps: length of the training in optimizer steps
        seed: seed of the weights, the order of the data, the augmentation and the structure
        criterion: how important a weight is: magnitude, taylor, gradient, random or package.module:callable
        task: what is learnt: classification, detection of objects with boxes, or segmentation into classes of pixels,
            or text-classification
    """

    epochs: float | None = number(None, above=0, cap=10**6)
    steps: int | None = number(None, 1, cap=10**12)
    seed: int = number(0, 0, 2**31 - 1)
    criterion: str = "magnitude"
    task: str = "classification"


@dataclass(frozen=True)
class StudySection:
    """What `regrow compare` compares, where its options do not say.

    Attributes:
        methods: methods, or labels of the section compare; none means those for the pattern
        seeds: of each
        vary: dotted key of the recipe -> its values; all combinations are compared
        match: what all methods get the same of: steps of training, its cost in FLOPs, or (channels) its time
    """

    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = number((0, 1, 2), 0, 2**31 - 1)
    vary: Mapping[str, list[Any]] = dataclasses.field(default_factory=dict)
    match: Literal["steps", "cost", "time"] = "steps"
