"""A model as a file of tensors: plain ones, or compressed to bits and values."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from regrow import packed, storage
from regrow.errors import UserError
from regrow.exporting.proof import Proof, Subject, prove, run
from regrow.inputs import Inputs
from regrow.tracing.replica import replica_of

_WAY_OUT = "the model depends on more than its tensors"


def write_dense(subject: Subject, path: Path) -> Proof:
    """Writes every tensor whole under its own name, as readers of safetensors expect it, reads the file and compares.

    Raises:
        UserError: if the model has state that is no tensor, or a copy with what was read computes something else.
    """
    return _write(subject, path, dense=True)


def write_compressed(subject: Subject, path: Path) -> Proof:
    """Writes what has enough zeros as one bit an entry and the values that are not, all else whole; reads and compares.

    A sparse tensor takes (number of values) × (bytes of a value + 1/8 / density) bytes, rounded up. All values are kept
    bit for bit, but for the sign of zeros.

    Raises:
        UserError: as `write_dense`.
    """
    return _write(subject, path, dense=False)


def _write(subject: Subject, path: Path, dense: bool) -> Proof:
    stored, content = storage.contents(subject.model, dense=dense, signed_zeros=False)
    packed.write(path, stored, content)
    subject.advance()
    read = storage.load_tensors(path)
    own = storage.tensors_of(subject.model)
    for name, tensor in read.items():
        if not _same(tensor, own[name].detach().cpu(), signed_zeros=dense):
            raise UserError(f"the tensor {name!r} is not what was written when it is read back: try again")
    subject.advance()
    if subject.inputs is None:
        return Proof(0.0)
    again = replica_of(subject.model, lambda t: t.detach().clone())
    with torch.no_grad():
        for tensor in storage.tensors_of(again).values():
            tensor.zero_()
    storage.load(again, path)

    def loaded(inputs: Inputs) -> list[Tensor]:
        return run(again, inputs)

    return prove(subject, loaded, "the model with the tensors of the file", _WAY_OUT)


def _same(one: Tensor, other: Tensor, signed_zeros: bool) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    pair = [one, other]
    if not signed_zeros and one.is_floating_point():
        pair = [torch.where(t == 0, torch.zeros_like(t), t) for t in pair]
    return torch.equal(*(t.contiguous().flatten().view(torch.uint8) for t in pair))
