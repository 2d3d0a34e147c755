"""What the files of a run look like."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator
from torch import Tensor

from regrow.schema import Form

Count = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[int, Field(ge=1, le=2**53)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
AnyFloat = Annotated[float, Field(allow_inf_nan=True)]  # of a run that is about to diverge


class OptimizerForm(Form):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    state: dict[int, dict[str, Any]]
    param_groups: list[dict[str, Any]]


class CheckpointForm(Form):
    """What fits model, optimizer and sparsifier is seen when they are there; see `regrow.training.resume`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    format: Literal["regrow-checkpoint"]
    version: Literal[1, 2]
    recipe: dict[str, Any]
    label: str
    step: Count
    seconds: Seconds
    train_seconds: Seconds = 0.0
    metrics_lines: Count
    model: dict[str, Tensor]
    optimizer: OptimizerForm
    sparsifier: dict[str, Any]
    ema: dict[str, Tensor] | None
    scaler: dict[str, Any] | None
    start_active: dict[str, Count]
    start_widths: dict[str, Positive] = Field(default_factory=dict)
    loss: tuple[AnyFloat, Count, AnyFloat] | Annotated[list[AnyFloat | int], Field(min_length=3, max_length=3)]
    loss_sums: list[AnyFloat] | None = None  # of each process
    processes: Positive | None = None
    checksum: str | None = None

    @model_validator(mode="after")
    def _has_checksum(self) -> CheckpointForm:
        if self.version > 1 and (self.checksum is None or self.processes is None):
            raise ValueError("its checksum or its number of processes is missing")
        if not isinstance(self.loss[1], int) or self.loss[1] < 0:
            raise ValueError("loss should be a sum, a number of steps and the last one")
        return self
