"""Exporting: what is refused at the door, files written aside, shown to compute the same, and renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from regrow import atomic, extras, names, saved
from regrow.errors import UserError, nearest
from regrow.exporting import hub, programs, tensors
from regrow.exporting.proof import BATCHES, Proof, Subject, widened
from regrow.inputs import Inputs, first_line
from regrow.tracing.replica import replica_of
from regrow.watch import OnTrial

# format → what writes and proves a file
_WRITERS: dict[str, Callable[[Subject, Path], Proof]] = {
    "safetensors": tensors.write_dense,
    "compressed": tensors.write_compressed,
    "onnx": programs.write_onnx,
    "pt2": programs.write_pt2,
}
FORMATS = (*_WRITERS, "hub")
PROGRAMS = ("onnx", "pt2")  # which are traced, and need an example
_STEPS = 2  # of each writer, before it compares


@dataclass(frozen=True)
class Exported:
    """What `export` has written.

    Attributes:
        path: of the file, or of the directory (hub)
        format: its format
        bytes: its size
        dense_bytes: of all tensors of the model stored whole, zeros too
        difference: the largest between the file's outputs and the model's, divided by the largest absolute value of the
            output it is in; 0.0 where tensors alone were compared, which must be equal in every bit
        batches: sizes of the batches that were compared
    """

    path: Path
    format: str
    bytes: int
    dense_bytes: int
    difference: float
    batches: tuple[int, ...]

    def __str__(self) -> str:
        size = f"{self.path}: {self.bytes:,} bytes; its tensors are {self.dense_bytes:,} bytes with their zeros"
        if not self.batches:
            return f"{size}\nread back: all values are equal"
        counts = ", ".join(map(str, self.batches))
        return f"{size}\nlargest difference {self.difference:.1e} of the output, over batches of {counts}"


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    format: str | None = None,
    example_inputs: Any = None,
    *,
    dynamic_batch: bool = True,
    tolerance: float | None = None,
    about: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Exported:
    """Writes a model as a file that runs elsewhere, once that file has been shown to compute what the model does.

    The file is written aside, loaded and compared with the model in eval mode, on the example and on other numbers in
    batches of 1, 2, 3 and 5. Only then does it take its name: after an error what was there before is still there.
    During exploration export inside ``with sparsifier.sparse():``; channels are gone after ``sparsifier.compact()``.
    Pruning leaves the statistics of batch norms stale: see `regrow.recalibrate`.

    Args:
        model: on any device; it is left as it is
        path: of the file to write, or to replace; for ``"hub"`` of a directory that is not there yet
        format: ``"safetensors"``: plain dense tensors under their own names. ``"compressed"``: a safetensors file with
            one bit an entry and the values that are not zero, where that is smaller (single weights, N:M groups); all
            is kept bit for bit but the sign of zeros. `regrow.load` and `regrow.load_tensors` read both. ``"onnx"``: by
            PyTorch's dynamo exporter, compared in ONNX Runtime; needs the extra ``export``. ``"pt2"``: a
            ``torch.export`` program. ``"hub"``: a directory with ``model.safetensors``, ``config.json`` and a model
            card, ``README.md``. None takes what the name of the file ends in: ``.safetensors``, ``.onnx`` or ``.pt2``
        example_inputs: one batch as the model takes it: a tensor, a tuple of arguments, a dict of keyword arguments, or
            ``(args, kwargs)``. Needed for ``"onnx"`` and ``"pt2"``; without it tensors are compared bit by bit alone
        dynamic_batch: the first dimension of every input may have any length; False: that of the example alone
        tolerance: of the largest difference, divided by the largest absolute value of the output; default: 1e-5, for
            float16 5e-3 and for bfloat16 4e-2
        about: a run in ``results.json``, for the model card
        progress: show a bar on a terminal

    Returns:
        What was written, and the largest difference.

    Raises:
        UserError: for bad input, a model that returns no tensor, cannot be traced or translated, or computes something
            else then.
    """
    from regrow.latency.whole import bar

    _check(model, tolerance, about)
    OnTrial.warn(model)
    target = Path(path)
    format = format_of(target, format)
    check_target(target, format, "path")
    given = _inputs(example_inputs, format)
    plain = _on_cpu(names.unwrap(model))
    inputs = None if given is None else given.map(lambda t: t.detach().cpu()).in_order(plain)
    inputs = widened(inputs) if inputs is not None and dynamic_batch else inputs
    with bar(progress, _STEPS + 1 + len(BATCHES), "exporting") as advance, _place(target, format) as written:
        subject = Subject(plain, inputs, dynamic_batch, tolerance, advance)
        proof = hub.write(subject, written, about) if format == "hub" else _WRITERS[format](subject, written)
    return Exported(target, format, _size(target), dense_bytes(plain), proof.difference, proof.batches)


def _check(model: object, tolerance: object, about: object) -> None:
    if not isinstance(model, nn.Module):
        raise UserError(f"model must be a torch.nn.Module, not {type(model).__name__}; the path comes second")
    if tolerance is not None and not (isinstance(tolerance, int | float) and 0 <= tolerance < 1):
        raise UserError(f"tolerance is {tolerance!r}, but must be a share of the outputs' size, such as 1e-5")
    if about is not None and (not isinstance(about, Mapping) or "runs" in about):
        raise UserError('about must be one run of results.json: json.loads(text)["runs"][0]')
    try:
        json.dumps(about and dict(about))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"about cannot be written into config.json: {first_line(error)}") from error


def _inputs(given: Any, format: str) -> Inputs | None:
    if given is None:
        if format in PROGRAMS:
            raise UserError(f"example_inputs is missing: {format} needs one batch as the model takes it")
        return None
    inputs = Inputs.of(given)
    if any(t.dim() and not len(t) for t in inputs.tensors[:1]):
        raise UserError("example_inputs is a batch without examples: pass one with one at least")
    return inputs


def format_of(path: Path, given: str | None) -> str:
    """The format that is meant: the given one, or that which the name of the file ends in.

    Raises:
        UserError: none is given, and the name does not tell.
    """
    if given is not None:
        return given
    ending = path.suffix.removeprefix(".")
    if ending not in _WRITERS:
        raise UserError(f"{path} does not tell the format: give one of {', '.join(FORMATS)}")
    return ending


def check_target(path: Path, format: str, option: str) -> None:
    """Refuses an unknown format and a place where nothing can be written, before any work is done.

    Args:
        option: what the user called the place, for messages

    Raises:
        UserError: saying so, or that the format needs an extra which is not installed.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}{nearest(format, FORMATS)}")
    if format == "onnx":
        extras.require("export", "the format onnx")
    if format != "hub":
        atomic.check_file(path, option, {"compressed": "model.safetensors"}.get(format, f"model.{format}"))
        if path.name in (saved.MANIFEST, saved.WEIGHTS) and (path.parent / saved.MANIFEST).is_file():
            raise UserError(f"{option} {path} is a part of the model that regrow.save wrote there: name another place")
        if path.exists() and not path.is_file():
            raise UserError(f"{option} {path} is no file that could be replaced: name another")
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{option} {path} is there already: name a directory that is not, or remove it")
    parent = next(place for place in path.absolute().parents if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{option} {path} cannot be made, as {parent} is not a directory that you may write to")


def dense_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, zeros too; what is shared counts once."""
    return sum(t.numel() * t.element_size() for t in names.tensors(model).values())


def _on_cpu(model: nn.Module) -> nn.Module:
    """The model, or a copy of it where it is on another device: kernels of others round otherwise."""
    if all(t.device.type in ("cpu", "meta") for t in names.tensors(model).values()):
        return model
    return replica_of(model)


@contextmanager
def _place(target: Path, format: str) -> Iterator[Path]:
    """A file or a directory to write, which takes the place of ``target`` after the block."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic.new_directory(target) if format == "hub" else atomic.replacing(target) as written:
            yield written
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from error


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
