"""Reading regular files alone: a pipe that nobody writes to keeps its reader waiting, and a device may have no end."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO


def opened(path: str | os.PathLike[str]) -> BinaryIO:
    """The file, open to be read.

    Raises:
        OSError: it cannot be opened, or is a directory, a pipe or a device.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 (whoever asks closes it)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    return file


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """All of a file.

    Raises:
        OSError: as `opened`.
    """
    with opened(path) as file:
        return file.read()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
