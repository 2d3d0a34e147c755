"""What a run says of its network and its machine. Runs of earlier versions say less: that is None or empty then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regrow import storage
from regrow.errors import thing_of
from regrow.report.plain import number, whole


@dataclass(frozen=True)
class Builder:
    """What `regrow.zoo.models.build` needs for a network that `regrow.load` can fill."""

    name: str
    options: Mapping[str, Any]
    classes: int
    channels: int


@dataclass(frozen=True)
class Facts:
    """All counts are of one network.

    Attributes:
        parameters: in use; ``dense_parameters``: before anything was removed.
        bytes: of all tensors, zeros too; ``dense_bytes``: of the dense network; ``saved_bytes``: as regrow saves it.
        dense_gradients: phase → the part of its training cost that went into gradients of removed weights, × dense.
        builder: how to build the network.
        test_images: how many the accuracy is of; ``things``: what they are, images or texts.
        environment: versions, hardware and threads, by name.
        finished: when, as ISO 8601.
        saved: the directory that `regrow.load` takes, if it is there.
    """

    parameters: int | None = None
    dense_parameters: int | None = None
    bytes: int | None = None
    dense_bytes: int | None = None
    saved_bytes: int | None = None
    dense_gradients: Mapping[str, float] = field(default_factory=dict)
    builder: Builder | None = None
    test_images: int | None = None
    things: str = "images"
    environment: Mapping[str, str] = field(default_factory=dict)
    finished: str | None = None
    saved: Path | None = None


@dataclass(frozen=True)
class Failure:
    """A run of a comparison that has no result: its directory, and a sentence."""

    directory: Path
    reason: str

    @property
    def name(self) -> str:
        return self.directory.name


def facts_of(record: Mapping[str, Any], directory: Path) -> Facts:
    """The facts of an entry of ``results.json`` whose run is in ``directory``."""
    saved = directory / "model"
    environment, finished = record.get("environment"), record.get("finished")
    gradients = record.get("dense_gradients")
    return Facts(
        parameters=whole(record.get("parameters")),
        dense_parameters=whole(record.get("dense_parameters")),
        bytes=whole(record.get("bytes")),
        dense_bytes=whole(record.get("dense_bytes")),
        saved_bytes=whole(record.get("saved_bytes")),
        dense_gradients=_numbers(gradients) if isinstance(gradients, Mapping) else {},
        builder=_builder(record.get("model")),
        test_images=whole(record.get("test_images")),
        things=_things(record.get("model")),
        environment=_words(environment) if isinstance(environment, Mapping) else {},
        finished=finished if isinstance(finished, str) else None,
        saved=saved if (saved / storage.MANIFEST).is_file() else None,
    )


def _things(builder: Any) -> str:
    return f"{thing_of(builder.get('shape') if isinstance(builder, Mapping) else None)}s"


def _builder(value: Any) -> Builder | None:
    if not isinstance(value, Mapping):
        return None
    name, options, shape = value.get("name"), value.get("options"), value.get("shape")
    classes = whole(value.get("classes"))
    channels = whole(shape[0]) if isinstance(shape, list) and shape else None
    if not isinstance(name, str) or not isinstance(options, Mapping) or not classes or not channels:
        return None
    return Builder(name, dict(options), classes, channels)


def _numbers(values: Mapping[Any, Any]) -> dict[str, float]:
    found = {str(key): number(value) for key, value in values.items()}
    return {key: value for key, value in found.items() if value is not None}


def _words(values: Mapping[Any, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in values.items() if isinstance(value, str | int | float)}
