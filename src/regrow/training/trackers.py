"""Where a run's metrics go beside ``metrics.jsonl``: TensorBoard, Weights & Biases, a table."""

from __future__ import annotations

import csv
import io
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from regrow import atomic, extras
from regrow.errors import UserError, nearest

TABLE = "metrics.csv"


class Tracker(Protocol):
    """Takes a run's metrics."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Notes them; several calls may be of one step."""

    def flush(self) -> None:
        """Writes what is not written yet; called before each checkpoint, as a run that goes on from there does not log
        again what came before."""

    def close(self) -> None:
        """Nothing more will come."""


class TensorBoard:
    """Event files in ``tensorboard/``; what an earlier session noted after `step` is not shown."""

    def __init__(self, out: Path, step: int, name: str, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, by Accelerate's tracker, in the project ``regrow`` unless ``WANDB_PROJECT`` says
    otherwise. A run that is resumed goes on in the one that it began."""

    def __init__(self, out: Path, step: int, name: str, config: Mapping[str, Any]) -> None:
        from accelerate.tracking import WandBTracker

        place = out / "wandb"
        place.mkdir(exist_ok=True)
        known = place / "run-id"
        if step == 0 or not known.is_file():
            atomic.write_text(known, secrets.token_hex(8))
        self._tracker = WandBTracker(
            os.environ.get("WANDB_PROJECT", "regrow"), name=name, group=out.absolute().parent.parent.name,
            dir=str(out), id=known.read_text(encoding="utf-8"), resume="allow",
        )  # fmt: skip
        self._tracker.start()
        self._tracker.store_init_configuration(dict(config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(values), step=step)

    def flush(self) -> None:
        """Nothing: its process writes when it likes (each 15 seconds), and cannot be asked to by what is public. So a
        kill may take the last of them; ``metrics.jsonl`` has all."""

    def close(self) -> None:
        self._tracker.finish()


class MetricsTable:
    """``metrics.csv``: a row for each step, written at once, and a column for each metric."""

    def __init__(self, out: Path, step: int, name: str, config: Mapping[str, Any]) -> None:
        self._path = out / TABLE
        self._columns: list[str] = ["step"]
        rows = [row for row in self._rows() if int(row["step"]) <= step] if step else []
        self._last: dict[str, Any] = dict(rows[-1]) if rows else {}  # which may get more values
        self._write(rows)

    def log(self, values: Mapping[str, float], step: int) -> None:
        again = str(self._last.get("step")) == str(step)
        self._last = {**(self._last if again else {}), "step": step, **values}
        new = [key for key in self._last if key not in self._columns]
        if again or new:
            rows = self._rows()
            self._columns += new
            self._write([*(rows[:-1] if again else rows), self._last])
            return
        with self._path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(self._last)

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def _rows(self) -> list[dict[str, str]]:
        if not self._path.is_file():
            return []
        try:
            with self._path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                found = [row for row in reader if None not in row.values()]  # without the half of one
            if not all(row["step"].isdecimal() and None not in row for row in found):
                raise ValueError("its rows have no steps")
        except (ValueError, KeyError, csv.Error) as error:
            raise UserError(f"{self._path} is damaged, or was edited ({error}): move it away") from error
        self._columns = list(reader.fieldnames or self._columns)
        return found

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic.write_text(self._path, text.getvalue())


# name in recipes → what takes metrics there, and the extra that brings the package it needs
TRACKERS: dict[str, tuple[Callable[[Path, int, str, Mapping[str, Any]], Tracker], str | None]] = {
    "tensorboard": (TensorBoard, "tensorboard"),
    "wandb": (WeightsAndBiases, "wandb"),
    "csv": (MetricsTable, None),
}


def check(names: Sequence[str]) -> None:
    """Refuses trackers that there are not, before anything is trained.

    Raises:
        UserError: an unknown name, or a package that is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"train.trackers has {name!r}{nearest(name, TRACKERS)}")
        extra = TRACKERS[name][1]
        if extra is not None:
            extras.require(extra, f"train.trackers: [{name}]")


def start(names: Sequence[str], out: Path, step: int, name: str, config: Mapping[str, Any]) -> list[Tracker]:
    """The trackers of these names.

    Args:
        names: keys of `TRACKERS`.
        out: the run directory.
        step: that the run goes on from; 0 for one that begins.
        name: of the run.
        config: its recipe, in plain values.
    """
    return [TRACKERS[each][0](out, step, name, config) for each in dict.fromkeys(names)]
