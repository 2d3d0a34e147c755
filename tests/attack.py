"""What can happen to files, drawn at random by a seed: bytes that change, JSON that is edited, and kills and errors at
every operation of the file system. The scripts of benchmarks/reliability do it in numbers, the tests a little of it."""

from __future__ import annotations

import builtins
import copy
import io
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, -7, 1, 3, 255, 2**31, 2**63, 2**64, -(2**70), 10**300, 0.5, -0.5, 1e308, -1e308, 1e-320,
    float("nan"), float("inf"), float("-inf"), "", "x", "NaN", "1", "../../etc/passwd", "\x00", "\ud800", "a\nb",
    "ä" * 5000, [], [0], [None], [[]], [1, 2, 3], {}, {"a": 1}, {"": {}}, [[[[[[]]]]]], "<script>", 1e16, 0.1,
)  # fmt: skip


# ---- bytes ----


def flip(data: bytes, random_: random.Random) -> bytes:
    """One bit."""
    at = random_.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random_.randrange(8)]) + data[at + 1 :]


def garble(data: bytes, random_: random.Random) -> bytes:
    """A bit, a byte, a range, an end, a beginning or the order of two halves."""
    a, b = sorted(random_.randrange(len(data) + 1) for _ in range(2))
    kinds: list[Callable[[], bytes]] = [
        lambda: flip(data, random_),
        lambda: data[:a] + bytes([random_.randrange(256)]) + data[a + 1 :],
        lambda: data[:a] + bytes(b - a) + data[b:],
        lambda: data[:a] + random_.randbytes(b - a) + data[b:],
        lambda: data[:a],
        lambda: data[a:],
        lambda: data[:a] + data[b:],
        lambda: data + random_.randbytes(random_.randrange(1, 64)),
        lambda: data[a:] + data[:a],
        lambda: data[:a] + data[a:b] + data[a:],
    ]
    return random_.choice(kinds)()


# ---- what JSON says ----


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything inside dicts and lists; of long lists the first and the last entries."""
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value))) if len(value) < 12 else [0, 1, 2, len(value) - 2, len(value) - 1]
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def inside(value: Any, path: tuple[Any, ...]) -> Any:
    """What is at a path."""
    for key in path:
        value = value[key]
    return value


def changed(value: Any, random_: random.Random, values: tuple[Any, ...] = VALUES) -> tuple[Any, str]:
    """A copy with one thing changed, and what that was."""
    value = copy.deepcopy(value)
    path = random_.choice(list(places(value)))
    holder, key = inside(value, path[:-1]), path[-1]
    old = holder[key]
    kind = random_.choice(["replace", "replace", "replace", "delete", "nudge", "extra", "rename", "wrap", "swap"])
    if kind == "delete":
        del holder[key]
    elif kind == "nudge" and isinstance(old, int | float) and not isinstance(old, bool):
        holder[key] = random_.choice([old + 1, old - 1, -old, old * 2, old * 1e300, old + 0.5, 10 * old, old // 2])
    elif kind == "extra" and isinstance(holder, dict):
        holder[random_.choice(["x", "", "__class__", "step", "ä"])] = copy.deepcopy(random_.choice(values))
    elif kind == "extra" and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(random_.choice([old, *values])))
    elif kind == "rename" and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif kind == "wrap":
        holder[key] = random_.choice([[old], {"a": old}, [old, old], [[old]]])
    elif kind == "swap":
        other = random_.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[key], holder[other] = holder[other], holder[key]
    else:
        kind, holder[key] = "replace", copy.deepcopy(random_.choice(values))
    return value, f"{kind} {'.'.join(map(str, path))[:80]}"


# ---- operations of the file system ----

_OPERATIONS = ("open", "mkdir", "rename", "replace", "unlink", "remove", "rmdir", "chmod", "fsync", "link", "truncate")


@contextmanager
def before_each_operation(act: Callable[[str], object]) -> Iterator[None]:
    """Inside it, ``act`` is called with the name of each operation of the file system, just before it is done."""
    originals = [(os, name, getattr(os, name)) for name in _OPERATIONS]
    originals += [(builtins, "open", builtins.open), (io, "open", io.open)]
    busy: list[bool] = []

    def patched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **options: Any) -> Any:
            if not busy:
                busy.append(True)
                try:
                    act(name)
                finally:
                    busy.clear()
            return original(*args, **options)

        return operation

    for module, name, original in originals:
        setattr(module, name, patched(name, original))
    try:
        yield
    finally:
        for module, name, original in originals:
            setattr(module, name, original)


def crash_points(action: Callable[[], object], directory: Path, copies: Path) -> list[tuple[str, Path]]:
    """Does it, and keeps what the directory was like just before each operation and at the end: what a kill leaves."""
    points: list[tuple[str, Path]] = []

    def keep(name: str) -> None:
        copied = copies / f"{len(points):03}"
        shutil.copytree(directory, copied, symlinks=True)
        points.append((name, copied))

    with before_each_operation(keep):
        action()
    keep("end")
    return points


def failing_at(number: int, error: BaseException) -> Any:
    """A context in which the operation of this number fails; its ``done`` says how many there were."""
    return _Failing(number, error)


class _Failing:
    def __init__(self, number: int, error: BaseException) -> None:
        self.number, self.error, self.done = number, error, 0

    def __enter__(self) -> _Failing:
        self._context = before_each_operation(self._count)
        self._context.__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        self._context.__exit__(*args)

    def _count(self, name: str) -> None:
        self.done += 1
        if self.done == self.number + 1:
            raise self.error
