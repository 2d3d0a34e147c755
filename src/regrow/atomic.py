"""Files that appear whole or not at all: written aside in the same directory, flushed to the disk, and renamed.

Whoever reads meanwhile, and whoever is left with the disk after a kill at any moment, has the old content or the new.
A symbolic link is followed, permissions are those of the file that is replaced, or what the umask leaves of a new one.
What cannot be replaced (a device, a pipe, /dev/stdout) is written to as it is.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from regrow.errors import UserError

TEMPORARY = ".*.tmp"  # what a killed process leaves of these files, as a pattern for Path.glob
_DESCRIPTORS = {"/dev/stdout": 1, "/dev/stderr": 2}


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` once the block ends without an error.

    Missing directories are made.

    Raises:
        OSError: if it cannot be written; what was there before stays.
    """
    target = _real(path)
    if _is_stream(path, target):
        with _open_stream(path) as stream:
            yield stream
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as written, written.open("r+b") as file:
        yield file


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The same for whoever wants a path to write to: an empty file beside ``path``, of its directory's file system."""
    target = _real(path)
    with temporary(target) as written:
        mode = permissions(target, written)
        yield written
        move(written, target, mode)


@contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """An empty file beside ``target``, which is gone after the block if it has not been moved."""
    path = _beside(target)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # as the umask has it
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def permissions(target: Path, new: Path) -> int:
    """Those of a file that is replaced; if there is none, of a new one that nobody has changed yet."""
    return stat.S_IMODE((target if target.exists() else new).stat().st_mode)


def move(written: Path, target: Path, mode: int) -> None:
    """Puts what has been written in the place of ``target``, with these permissions."""
    try:
        os.chmod(written, mode)  # some writers make private files
        _flush(written)
        os.replace(written, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(target)) from error  # whoever reads it knows no other name
    flush_directory(target.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a whole file in UTF-8; see `writing`."""
    data = text.encode("utf-8")  # before anything is opened
    with writing(path) as file:
        file.write(data)


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """`write_text` of JSON."""
    write_text(path, json.dumps(value, indent=1) + "\n")


@contextmanager
def new_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty directory to write to, which becomes ``path`` once the block ends without an error.

    Args:
        path: must not exist yet, or be an empty directory.

    Raises:
        OSError: if that is not possible; what was there before stays.
    """
    target = _real(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    written = _beside(target)
    written.mkdir()
    try:
        yield written
        flush_directory(written)
        os.replace(written, target)
    finally:
        shutil.rmtree(written, ignore_errors=True)
    flush_directory(target.parent)


def check_file(path: str | os.PathLike[str], option: str, example: str) -> None:
    """Refuses a place that cannot be written to, before the work is done whose result goes there.

    Args:
        path: of a file that need not exist.
        option: what the user called it, for the message.
        example: a name for such a file.

    Raises:
        UserError: if it is a directory, or where no file can be made.
    """
    target = _real(path)
    if target.is_dir():
        raise UserError(f"{option} {path} is a directory: name a file, such as {Path(path) / example}")
    if _is_stream(path, target):
        return
    parent = next(place for place in target.parents if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{option} {path} cannot be written, as {parent} is not a directory that you may write to")


def flush_directory(directory: Path) -> None:
    """Makes names in a directory last, where the system can."""
    with suppress(OSError):  # a directory cannot be opened everywhere
        _flush(directory)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _real(path: str | os.PathLike[str]) -> Path:
    """Where a path leads, also where a link leads to nothing yet."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
    return target


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name[:80]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _is_stream(path: str | os.PathLike[str], target: Path) -> bool:
    """Whether there is something that is written to rather than replaced."""
    if _descriptor(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode  # not of the target: where links lead to a pipe, their text is no path
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _descriptor(path: str | os.PathLike[str]) -> int | None:
    """The number of the open file that a path stands for, such as /dev/stdout."""
    text = os.fspath(path)
    found = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", text)
    return int(found[1]) if found else _DESCRIPTORS.get(text)


def _open_stream(path: str | os.PathLike[str]) -> BinaryIO:
    descriptor = _descriptor(path)
    if descriptor is None:
        return open(path, "wb")
    sys.stdout.flush()  # what was printed before comes before
    sys.stderr.flush()
    return os.fdopen(os.dup(descriptor), "wb")
