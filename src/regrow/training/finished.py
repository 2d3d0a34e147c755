"""The network of a finished run, from its directory alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from torch import nn

from regrow import regular, schema, storage
from regrow.errors import UserError
from regrow.schema import OpenForm
from regrow.training import recipe as recipes
from regrow.training import rundir, trust
from regrow.training.recipe import Recipe
from regrow.training.records import ResultsForm, Word
from regrow.zoo.models import build_with

_WAY_OUT = "restore it, or train again"


def _of_example(shape: list[int]) -> list[int]:
    if len(shape) not in (1, 3):
        raise ValueError("give the length of a text, or the channels, height and width of an image")
    return shape


class BuilderForm(OpenForm):
    """What builds a run's network: a name and options, classes, and the shape of an image or of a text."""

    name: Word
    options: dict[Word, Any] = Field(default_factory=dict)
    classes: Annotated[int, Field(ge=1, le=2**20)]
    shape: Annotated[list[Annotated[int, Field(ge=1, le=2**16)]], AfterValidator(_of_example)]


@dataclass(frozen=True)
class FinishedRun:
    """A run that has its results.

    Attributes:
        directory: of the run
        record: its entry in ``results.json``
        builder: what builds its network
        tree: its recipe in its plain form
        trusted: the user trusts the code that it names
    """

    directory: Path
    record: Mapping[str, Any]
    builder: BuilderForm
    tree: Mapping[str, Any]
    trusted: bool

    def network(self) -> nn.Module:
        """The network as it was saved, on the CPU.

        Raises:
            UserError: it cannot be built or loaded, or it names code that the user does not trust.
        """
        self._require_trust({"model": {"name": self.builder.name}})
        options = dict(self.builder.options)
        if self.builder.name.partition(":")[0] in ("timm", "torchvision"):
            options.pop("pretrained", None)  # its own weights come from the file
        model = build_with(options, self.builder.name, self.builder.classes, self.builder.shape[0])
        return storage.load(model, self.directory / "model")

    def recipe(self) -> Recipe:
        """The recipe that it was trained by.

        Raises:
            UserError: it names code that the user does not trust, or is none.
        """
        self._require_trust(self.tree)
        return recipes.parse(self.tree)

    def _require_trust(self, tree: Mapping[str, Any]) -> None:
        if named := {} if self.trusted else trust.foreign(dict(tree)):
            what = ", ".join(f"{spec} ({key})" for key, spec in named.items())
            raise UserError(
                f"the run in {self.directory} names code that would be imported and called: {what}; add --trust if you "
                "trust whoever wrote it"
            )


def read(directory: Path, trusted: bool = False) -> FinishedRun:
    """The run in a directory that `regrow train` wrote.

    Raises:
        UserError: there is none, it is not finished, or its files are damaged.
    """
    path = directory / rundir.RESULTS
    if not directory.is_dir():
        raise UserError(f"{directory} is no run directory: give one that `regrow train` wrote")
    if not rundir.is_finished(directory):
        if (directory / "recipes").is_dir():  # a comparison, which is not resumed as one run
            raise UserError(
                f"{directory} is a comparison that is not finished: give one of its finished runs in "
                f"{directory / 'runs'}, or finish it with the same regrow compare command"
            )
        if (directory / rundir.RECIPE).is_file():
            raise UserError(
                f"the run in {directory} is not finished: continue it with regrow train --out {directory} --resume"
            )
        raise UserError(f"{directory} holds no run: give a directory that `regrow train` wrote")
    content = schema.parse_json(regular.read_bytes(path), path, _WAY_OUT)
    found = schema.check(ResultsForm, content, path, _WAY_OUT).runs
    if len(found) != 1 or not (directory / "model" / storage.MANIFEST).is_file():
        inside = next((str(p.parent) for p in sorted(directory.glob("runs/*/results.json"))), None)
        hint = "it holds no saved model" if inside is None else f"give one of its runs, such as {inside}"
        raise UserError(f"{directory} is not the directory of one run: {hint}")
    record = content["runs"][0]
    if "model" not in record:
        raise UserError(
            f"{path} does not say what builds the network, as an earlier regrow wrote it: load the model with "
            "regrow.load, and use regrow.export"
        )
    builder = schema.check(BuilderForm, record["model"], f"{path}, runs.0.model", _WAY_OUT)
    return FinishedRun(directory, record, builder, content.get("recipe") or {}, trusted)
