"""A run's directory: who writes to it, and its metrics."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from regrow import atomic, regular
from regrow.errors import UserError
from regrow.training import own
from regrow.training.recipe import Recipe, differences, parse
from regrow.training.recipe_layers import parse_yaml, read_text
from regrow.training.trackers import TABLE

RECIPE = "recipe.yaml"
METRICS = "metrics.jsonl"
RESULTS = "results.json"
STRUCTURE = "structure.json"
PICTURES = "pictures.json"
REPORT = "report.html"
LATENCY = "latency.json"
STEP_TIMES = "step_times.json"
CHECKPOINT = "checkpoint/state.pt"
_LOCK = ".lock"
_OURS = {
    RECIPE,
    METRICS,
    RESULTS,
    STRUCTURE,
    PICTURES,
    REPORT,
    LATENCY,
    "checkpoint",
    "model",
    "tensorboard",
    "wandb",
    TABLE,
}
_PARTS = (_OURS | {STEP_TIMES, "recipes"}) - {REPORT}  # of runs and comparisons; in runs/ there are runs


def is_finished(directory: Path) -> bool:
    """Whether the run in this directory has written its results, the last thing that a run does."""
    return (directory / RESULTS).is_file()


def report_is_due(directory: Path) -> bool:
    """Whether a finished run has no report, or one that is older than its results."""
    report, results = directory / REPORT, directory / RESULTS
    return not report.exists() or report.stat().st_mtime_ns < results.stat().st_mtime_ns


def check_target(directory: Path, resume: bool) -> None:
    """Refuse a directory that a new run must not write to.

    Raises:
        UserError: if the directory holds a run and ``resume`` is off, or holds anything else. What a run without a
            checkpoint has left (it diverged, say) is no loss, and may be replaced.
    """
    if not directory.exists():
        parent = next(p for p in directory.absolute().parents if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UserError(f"cannot write to {directory}: {parent} is not a writable directory")
        return
    check_holds(directory, _OURS, "a run")
    if not resume and (is_finished(directory) or (directory / CHECKPOINT).exists()):
        raise UserError(f"{directory} already holds a run: continue it with --resume, or choose another --out")


def check_holds(directory: Path, ours: AbstractSet[str], what: str) -> None:
    """Refuse a directory that holds other entries than ``what`` has, or a file in its place.

    Raises:
        UserError: naming the first of them.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is a file: choose another --out")
    names = {entry.name for entry in directory.iterdir() if not entry.name.startswith(".")}
    if foreign := sorted(names - ours):
        raise UserError(f"{directory} holds something else than {what} ({foreign[0]}): choose another --out")


def check_no_part(path: Path, option: str) -> None:
    """Refuse to write over what belongs to a run or a comparison, but for its report.

    Args:
        path: of a file or a directory that is to be written.
        option: what the user called it, for the message.

    Raises:
        UserError: naming the run.
    """
    real = Path(os.path.realpath(path))
    for directory in real.parents:
        begun = (directory / RECIPE).is_file() and any((directory / one).exists() for one in (METRICS, "recipes"))
        if begun and real.relative_to(directory).parts[0] in _PARTS:
            raise UserError(f"{option} {path} would write over a part of the run in {directory}: name another place")


def create(directory: Path) -> None:
    """Make a directory, if it is not there.

    Raises:
        UserError: if that is not possible.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}") from error


def sweep(directory: Path) -> None:
    """Remove the half-written files that a killed process has left in its run directory."""
    checkpoints, model = (directory / CHECKPOINT).parent, directory / "model"
    for leftover in (path for place in (directory, checkpoints, model) for path in place.glob(atomic.TEMPORARY)):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def check_same_recipe(directory: Path, recipe: Recipe) -> None:
    """Refuse to continue what is in a directory with another recipe; harmless differences pass.

    Raises:
        UserError: naming the first key that differs, or if the directory's recipe cannot be read.
    """
    path = directory / RECIPE
    if path.exists():
        check_recipe(read_recipe(path), recipe, directory)


def read_recipe(path: Path) -> Any:
    """The plain form of a recipe that an earlier run or comparison has written.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return parse_yaml(read_text(path), str(path))
    except UserError as error:
        raise UserError(f"{path} cannot be read: choose another --out") from error


def check_recipe(old: Any, recipe: Recipe, directory: Path) -> None:
    """The same for a recipe in its plain form."""
    for key in changes(old, recipe):
        raise UserError(
            f"{key or 'the recipe'} differs from the recipe that {directory} was started with: "
            f"continue with {directory / RECIPE}, or choose another --out"
        )


def changes(old: Any, recipe: Recipe) -> list[str]:
    """The keys, but for harmless ones, in which a recipe in its plain form differs from another, however old it is."""
    new = recipe.resolved()
    return list(differences(completed(old, recipe), new)) if any(differences(old, new)) else []


def completed(old: Any, recipe: Recipe | None = None) -> Any:
    """A recipe in its plain form as it would be written today: keys that are newer than it have their defaults. Classes
    that it names are not imported, unless ``recipe`` names them, too."""
    known = () if recipe is None else own.classes_in(recipe.resolved()).values()
    if isinstance(old, Mapping) and not set(own.classes_in(old).values()) <= set(known):
        return old
    with suppress(UserError):
        return parse(old).resolved()
    return old


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keeps two processes from writing to one directory; it ends with the process, however that ends.

    Raises:
        UserError: if another process is inside.
    """
    file = _lock_file(directory)
    try:
        yield
    finally:
        # removed while it is held: whoever waits for this very file finds out that it is no longer there
        with suppress(OSError):
            (directory / _LOCK).unlink()
        file.close()


def is_locked(directory: Path) -> bool:
    """Whether a process writes to a directory just now."""
    try:
        import fcntl

        with (directory / _LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (ImportError, FileNotFoundError):
        return False
    except OSError:
        return True
    return False


def _lock_file(directory: Path) -> IO[str]:
    path = directory / _LOCK
    while True:
        file = path.open("w")
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no flock on this system
            return file
        except OSError as error:
            file.close()
            raise UserError(f"another process is writing to {directory}: wait until it has ended") from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # its holder has removed it since it was opened


def _lines(path: Path, count: int) -> list[bytes]:
    """The first lines of a file of metrics.

    Raises:
        UserError: for one that is none.
    """
    lines = regular.read_bytes(path).splitlines(keepends=True)[:count]
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            raise UserError(f"{path} is damaged: line {number} is no object with a step: delete that line")
    return lines


class Metrics:
    """``metrics.jsonl``: one object a line, flushed at once, so that it can be watched.

    Args:
        path: the file
        lines: how many lines to keep of what is there (those that the checkpoint knows); the others are cut off

    Raises:
        UserError: if one of them is damaged, as no report could be made of the run.
    """

    def __init__(self, path: Path, lines: int = 0) -> None:
        kept = []
        if path.exists() and lines:
            kept = _lines(path, lines)
        with atomic.writing(path) as file:
            file.writelines(kept)
        self.lines = len(kept)
        self._file = path.open("a", encoding="utf-8")

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self.lines += 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()
