"""A model as a program: traced by `torch.export` for batches of any size, and written for PyTorch or as ONNX."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map

from regrow import extras
from regrow.errors import UserError
from regrow.exporting.proof import Proof, Subject, flat, has_batch, prove
from regrow.inputs import Inputs, first_line
from regrow.quiet import evaluating, quiet, silent

_BATCH = Dim("batch")
_WAY_OUT = "tolerance= (--tolerance) allows more, where that is enough"


def write_pt2(subject: Subject, path: Path) -> Proof:
    """Writes a ``torch.export`` program, loads it and compares it.

    Raises:
        UserError: if the model cannot be traced, or the program differs.
    """
    program = _traced(subject)
    subject.advance()
    program._example_inputs = None  # which it would hold: they may be somebody's data
    with silent(), path.open("wb") as file:
        torch.export.save(program, file)
    subject.advance()
    with silent(), path.open("rb") as written:
        module = torch.export.load(written).module()

    def run(inputs: Inputs) -> list[Tensor]:
        with quiet():
            return flat(inputs(module))

    return prove(subject, run, "the exported program", _WAY_OUT)


def write_onnx(subject: Subject, path: Path) -> Proof:
    """Writes an ONNX file by PyTorch's dynamo exporter, runs it in ONNX Runtime and compares it.

    Inputs have the names of the model's arguments, outputs are called ``output``, or ``output_0``, ``output_1``, …

    Raises:
        UserError: if the extra is not installed, the model cannot be traced or translated, or the graph differs.
    """
    extras.require("export", "the format onnx")
    program = _traced(subject)
    subject.advance()
    inputs = _inputs(subject)
    count = len(subject.outputs(inputs))
    outputs = ["output"] if count == 1 else [f"output_{number}" for number in range(count)]
    # of a program, all that is taken from these shapes is the names of dimensions, by its tensors in a row
    named = [_shape(inputs, t) for t in inputs.tensors] if subject.dynamic else None
    try:
        with silent(), quiet():
            torch.onnx.export(
                program, inputs.args, path, kwargs=dict(inputs.kwargs), dynamo=True, verbose=False,
                external_data=False, dynamic_shapes=named, output_names=outputs,
            )  # fmt: skip
    except Exception as error:
        reason = first_line(error.__cause__ or error)
        raise UserError(
            f"the model cannot be written as ONNX: {reason}; the format pt2 takes any that can be traced"
        ) from error
    subject.advance()
    session = _session(path)

    def run(case: Inputs) -> list[Tensor]:
        names = [one.name for one in session.get_inputs()]
        if len(names) != len(case.tensors):
            raise UserError(
                f"the ONNX graph takes {len(names)} tensors ({', '.join(names)}), and example_inputs hold "
                f"{len(case.tensors)}: leave out what does not matter for the outputs"
            )
        feeds = {name: tensor.numpy() for name, tensor in zip(names, case.tensors, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, feeds)]

    return prove(subject, run, "the ONNX graph", _WAY_OUT)


def _session(path: Path) -> Any:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"ONNX Runtime does not take the exported graph: {first_line(error)}") from error


def _traced(subject: Subject) -> ExportedProgram:
    inputs = _inputs(subject)
    subject.outputs(inputs)  # that the model runs at all comes first
    try:
        with silent(), quiet(), evaluating(subject.model):
            return torch.export.export(
                subject.model, inputs.args, dict(inputs.kwargs), dynamic_shapes=_shapes(subject)
            )  # fmt: skip
    except Exception as error:
        way_out = "; dynamic_batch=False (--batch N) exports it for one size" if subject.dynamic else ""
        size = "a batch of any size" if subject.dynamic else f"a batch of {inputs.batch}"
        raise UserError(f"the model cannot be traced for {size}: {first_line(error)}{way_out}") from error


def _shapes(subject: Subject) -> Any:
    """For each argument which dimensions are dynamic, as `torch.export.export` takes it."""
    if not subject.dynamic:
        return None
    inputs = _inputs(subject)
    if not inputs.kwargs:
        return tree_map(partial(_shape, inputs), inputs.args)
    bound = inspect.signature(subject.model.forward).bind(*inputs.args, **inputs.kwargs)
    return tree_map(partial(_shape, inputs), dict(bound.arguments))


def _shape(inputs: Inputs, value: Any) -> dict[int, Any] | None:
    return {0: _BATCH} if isinstance(value, Tensor) and has_batch(inputs, value) else None


def _inputs(subject: Subject) -> Inputs:
    if subject.inputs is None:
        raise UserError("example_inputs is missing: pass one batch as the model takes it, with which it is traced")
    return subject.inputs
