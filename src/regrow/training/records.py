"""What the files of a run say, as the page reads it; keys that are not read may be anything.

What a run did not know is null or missing. Bounds are wide: they keep out what no run writes and no page can draw.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from regrow.schema import OpenForm

_MOST = 1e30  # that a page can draw

Count = Annotated[int, Field(ge=0, le=2**53)] | None
Seed = Annotated[int, Field(ge=0, le=2**63)]
Step = Annotated[int, Field(ge=0, le=2**53)]
Share = Annotated[float, Field(ge=0, le=1)] | None
Amount = Annotated[float, Field(ge=0, le=_MOST)] | None
Word = Annotated[str, Field(max_length=1000)]


def _drawable(loss: float) -> float | None:
    return loss if abs(loss) <= _MOST else None


Loss = Annotated[float, Field(allow_inf_nan=True), AfterValidator(_drawable)] | None  # not of a run that diverged


class RecordForm(OpenForm):
    """A run in ``results.json``; what else it has is kept as it is. ``metric`` names what ``accuracy`` is, where it is
    something else (see `regrow.training.measures`)."""

    model_config = ConfigDict(extra="allow")

    method: Word
    seed: Seed
    label: Word | None = None
    metric: Word | None = None
    accuracy: Share = None
    mAP50: Share = None
    validation_accuracy: Share = None
    density: Share = None
    training_cost: Amount = None
    by_phase: dict[Word, Amount] | None = None
    inference_flops: Amount = None
    dense_flops: Amount = None
    seconds: Amount = None
    latency: Amount = None
    latency_predicted: Amount = None
    latency_margin: Amount = None
    dense_latency: Amount = None
    throughput: Amount = None
    train_seconds: Amount = None
    steps: Count = None
    explore_steps: Count = None
    cost_steps: Count = None
    planned_seconds: Amount = None
    variant_of: Word | None = None
    cell: dict[Word, Any] = Field(default_factory=dict)


class FailureForm(OpenForm):
    """A run of a comparison without a result."""

    run: Word
    reason: str


class ResultsForm(OpenForm):
    """``results.json``."""

    runs: list[RecordForm]
    regrow: Word | None = None
    failures: list[FailureForm] = Field(default_factory=list)


class MetricForm(OpenForm):
    """A line of ``metrics.jsonl``: one logged step of a run. ``accuracy`` is a fraction, ``cost`` × dense."""

    step: Step
    phase: Word | None = None
    loss: Loss = None
    density: Share = None
    metric: Word | None = None
    accuracy: Share = None
    split: Word | None = None
    cost: Amount = None


class LayerForm(OpenForm):
    """A sparsified parameter in ``structure.json``: how many of its ``total`` entries were and are active."""

    name: str
    total: Step
    start_active: Count = None
    active: Step

    @model_validator(mode="after")
    def _fits(self) -> LayerForm:
        if max(self.active, self.at_start) > self.total:
            raise ValueError("has more active entries than there are")
        return self

    @property
    def at_start(self) -> int:
        """How many were active at the start."""
        return self.active if self.start_active is None else self.start_active


class WidthForm(OpenForm):
    """A group of channels in ``structure.json``: how many the dense network has of it, and how many there are now."""

    group: str
    before: Step
    start: Count = None
    after: Step

    @model_validator(mode="after")
    def _fits(self) -> WidthForm:
        if max(self.after, self.at_start) > self.before:
            raise ValueError("has more channels than there were")
        return self

    @property
    def at_start(self) -> int:
        """How many there were at the start."""
        return self.after if self.start is None else self.start


class UpdateForm(OpenForm):
    """An update in ``structure.json``: IoU with the structure before it, and the share of the units grown last time
    that it kept."""

    step: Step
    iou: Share = None
    survival: Share = None


class StructureForm(OpenForm):
    """``structure.json``."""

    layers: list[LayerForm] = Field(default_factory=list)
    history: list[UpdateForm] = Field(default_factory=list)
    widths: list[WidthForm] = Field(default_factory=list)
    training_cost: dict[Word, Amount] | None = None
    method: Word | None = None
    label: Word | None = None
    seed: Seed | None = None
