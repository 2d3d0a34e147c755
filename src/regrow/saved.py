"""The two files of a saved model on disk, replaced so that whoever reads them finds those that belong together.

The manifest has the checksum of the tensors that belong to it. New tensors are first written under a name made of their
checksum, then the manifest is replaced, then they take the name of the old ones: at each moment the tensors of the
manifest are under one of the two names.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from regrow import atomic, regular
from regrow.errors import UserError

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
WAY_OUT = "restore it from a copy, or save the model again"
_RESERVED = "__metadata__"  # in the header of the file
_LEFT = re.compile(r"model-[0-9a-f]{32}\.safetensors|\.(model\.safetensors|manifest\.json)\.\d+-[0-9a-f]+\.tmp")


def write(directory: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Writes a saved model, in place of an earlier one if there is one.

    Args:
        content: of the manifest, which gets the checksums too.

    Raises:
        OSError: if it cannot be written; what was there before stays.
    """
    if not (directory / MANIFEST).exists():
        try:
            with atomic.new_directory(directory) as fresh:
                with atomic.replacing(fresh / WEIGHTS) as written:
                    write_tensors(written, tensors)
                atomic.write_json(fresh / MANIFEST, _sealed(content, fresh / WEIGHTS))
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # otherwise somebody else has just saved there
    _replace(Path(os.path.realpath(directory)), tensors, content)


def read_tensors(directory: Path, checksum: str | None) -> dict[str, Tensor]:
    """The tensors that have this checksum; None for those of files that have none.

    Raises:
        UserError: if they are missing or damaged.
    """
    path = directory / WEIGHTS
    if checksum is None:
        found = _read(path, None)
        assert found is not None
        return found
    waiting = directory / f"model-{checksum}.safetensors"
    for place in (path, waiting, path, waiting, path):  # they may move from the latter to the former meanwhile
        with suppress(_Missing):
            found = _read(place, checksum)
            if found is not None:
                return found
    if not path.exists():
        raise UserError(f"{path} is missing: {WAY_OUT}")
    _read(path, None)  # says what is wrong with it, where it is no such file
    raise UserError(f"{path} is damaged: its checksum is not that of {MANIFEST}: {WAY_OUT}")


class _Missing(UserError):
    pass


def _read(path: Path, checksum: str | None) -> dict[str, Tensor] | None:
    """None if the file has another checksum."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from regrow.schema import digest_of

    try:
        with regular.opened(path) as file:
            if checksum is not None and digest_of(file) != checksum:
                return None
            found = load_file(path)
            same = os.path.samestat(os.fstat(file.fileno()), path.stat())
            return found if same else None  # otherwise replaced since it was looked at
    except FileNotFoundError as error:
        raise _Missing(f"{path} is missing: {WAY_OUT}") from error
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        if not path.exists():  # moved just now
            return None
        raise UserError(f"{path} is damaged or no safetensors file: {' '.join(str(error).split())}") from error


def _replace(directory: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    path, manifest = directory / WEIGHTS, directory / MANIFEST
    with _locked(directory) as alone:
        with atomic.temporary(path) as written:
            mode = atomic.permissions(path, written)
            write_tensors(written, tensors)
            sealed = _sealed(content, written)
            waiting = directory / f"model-{sealed['weights']}.safetensors"
            atomic.move(written, waiting, mode)
        try:
            atomic.write_json(manifest, sealed)
        except BaseException:
            if sealed["weights"] not in manifest.read_text(encoding="utf-8"):
                waiting.unlink(missing_ok=True)
            raise
        os.replace(waiting, path)
        atomic.flush_directory(directory)
        for entry in directory.iterdir() if alone else ():  # of earlier saves that were killed
            if _LEFT.fullmatch(entry.name):
                entry.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str] | None = None) -> None:
    """Writes a safetensors file.

    Args:
        tensors: on the CPU, contiguous, none of them sharing memory
        header: what is kept beside them

    Raises:
        OSError: if it cannot be written.
        UserError: if such a file cannot hold one of the tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if _RESERVED in tensors:
        raise UserError(f"a safetensors file cannot hold a tensor called {_RESERVED!r}: rename it")
    try:
        save_file(dict(tensors), path, metadata=header)
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(" ".join(str(error).split())) from error
    except KeyError as error:  # what it makes of types that the format does not have
        wrong = next((name for name, tensor in tensors.items() if error.args[:1] == (tensor.dtype,)), None)
        if wrong is None:
            raise
        dtype = str(tensors[wrong].dtype).removeprefix("torch.")
        raise UserError(
            f"the tensor {wrong!r} is {dtype}, which a safetensors file cannot hold: convert it, or keep it as "
            "real numbers"
        ) from error


def _sealed(content: Mapping[str, Any], weights: Path) -> dict[str, Any]:
    from regrow import schema

    with weights.open("rb", buffering=0) as file:
        return schema.seal({**content, "weights": schema.digest_of(file)})


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Keeps others from saving in a directory; whether it can."""
    try:
        import fcntl

        descriptor = os.open(directory, os.O_RDONLY)
    except (ImportError, OSError):  # not on every system
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            alone = True
        except OSError:  # nor on every file system
            alone = False
        yield alone
    finally:
        os.close(descriptor)
