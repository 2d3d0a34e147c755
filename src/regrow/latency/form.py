"""What a latency table looks like in JSON."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from regrow.schema import Form

Count = Annotated[int, Field(ge=0, le=2**31)]
Positive = Annotated[int, Field(ge=1, le=2**31)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Share = Annotated[float, Field(ge=0, le=1e3)]
Numbers = Annotated[list[Count], Field(max_length=8)]
Word = Annotated[str, Field(max_length=150)]
Name = Annotated[str, Field(min_length=1)]


class MachineForm(Form):
    cpu: Word
    cores: Positive
    torch: Word
    runtime: Word
    runtime_version: Word
    gpu: Word = ""


class KeyForm(Form):
    kind: Name
    size: Numbers
    kernel: Numbers
    stride: Numbers
    padding: Numbers
    dilation: Numbers
    groups: Count
    bias: bool
    tail: list[Name]
    per_group: Positive


class UnitForm(Form):
    name: Name
    key: KeyForm
    c_in: Positive
    c_out: Positive
    sources: list[str]
    fixed: bool
    own: bool


class GridForm(Form):
    key: KeyForm
    c_in: Annotated[list[Positive], Field(min_length=1)]
    c_out: Annotated[list[Count], Field(min_length=1)]
    seconds: list[list[Seconds]]
    step: Positive
    stairs: Annotated[list[Annotated[float, Field(ge=0, le=10)]], Field(min_length=2, max_length=2)]
    error: Share = 0.0

    @model_validator(mode="after")
    def _fits(self) -> GridForm:
        for side in (self.c_in, self.c_out):
            if side != sorted(set(side)):
                raise ValueError("has channel counts that do not rise")
        if len(self.seconds) != len(self.c_in) or {len(row) for row in self.seconds} != {len(self.c_out)}:
            raise ValueError("has seconds that do not fit its channel counts")
        return self


class SpreadForm(Form):
    reference: Share
    drift: Share
    dense: Share
    wholes: Share | None
    freedom: Count

    @model_validator(mode="after")
    def _free(self) -> SpreadForm:
        if (self.wholes is None) != (self.freedom == 0):
            raise ValueError("has an error of whole models without degrees of freedom, or these without it")
        return self


class TableForm(Form):
    """``checksum`` is there in tables that are files of their own; version 1 says nothing of errors, versions below 3
    have no attention and no layer norms among their units."""

    format: Literal["regrow-latency"]
    version: Literal[1, 2, 3]
    machine: MachineForm
    batch: Positive
    threads: Positive
    measured: Seconds
    correction: Annotated[float, Field(gt=0, le=1e9)]
    other: Seconds
    spread: SpreadForm | None = None
    unpriced: dict[str, Positive]
    units: list[UnitForm]
    grids: list[GridForm]
    checksum: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> TableForm:
        known = {str(grid.key) for grid in self.grids}
        if len(known) < len(self.grids):
            raise ValueError("it has two grids for one kind of unit")
        if missing := [unit.name for unit in self.units if str(unit.key) not in known]:
            raise ValueError(f"it has no grid for the unit {missing[0]!r:.100}")
        return self
