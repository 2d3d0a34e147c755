"""Kills runs at random moments, and fills their disk: what is left goes on to the outcome of an unbroken run.

Each kill is a SIGKILL of a process that trains (weights, then channels), at a moment drawn by a seed. A full disk is
an error of the file system at one of its operations; the run must end in a sentence. Afterwards the run is resumed,
and its weights, metrics and accuracy must be those of the unbroken one, bit for bit.

    python benchmarks/reliability/kills.py

Prints what was tried and what failed; ends with 1 if anything has. (Kills at every operation of the file system are in
damaged_files.py.)
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import torch

import tiny_recipe as tiny
from attack import failing_at
from regrow import UserError, storage
from regrow.training import loop, rundir
from regrow.training.recipe import load

KILLS, FULL_DISKS = 100, 16
KINDS = {"weights": ("--train.checkpoint_steps", "3"), "channels": (*tiny.CHANNELS, "--train.checkpoint_steps", "3")}


def outcome(out: Path) -> list[Any]:
    weights = (out / "model" / storage.WEIGHTS).read_bytes()
    lines = [json.loads(line) for line in (out / rundir.METRICS).read_text().splitlines()]
    metrics = [(line["step"], line.get("loss"), line.get("accuracy")) for line in lines]
    return [weights, metrics, json.loads((out / rundir.RESULTS).read_text())["runs"][0]["accuracy"]]


def in_a_child(action: Callable[[], object]) -> int:
    """The id of a process, forked from this one, that does it."""
    child = os.fork()
    if child:
        return child
    try:
        action()
        os._exit(0)
    except (UserError, OSError):  # what the command line says in a sentence
        os._exit(2)
    except BaseException:
        os._exit(1)


def code_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(train: Callable[[Path], object], out: Path, after: float) -> bool:
    """Whether the run was killed before its end."""
    child = in_a_child(lambda: train(out))
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return code_of(child) == -signal.SIGKILL


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    source = random.Random(0)
    failed = {"kills at random moments": 0, "full disks": 0}
    hits = 0
    for kind, words in KINDS.items():
        with tempfile.TemporaryDirectory() as place:
            recipe = load(tiny.write(Path(place)), words)

            def train(out: Path, recipe: Any = recipe) -> None:
                loop.train(recipe, out, resume=True, quiet=True)

            def goes_on(out: Path, right: list[Any], train: Callable[[Path], None] = train) -> str:
                code = code_of(in_a_child(lambda: train(out)))
                if code:
                    return f"resuming ended with {code}"
                return "" if outcome(out) == right else "another outcome"

            started = time.monotonic()
            assert code_of(in_a_child(lambda train=train: train(Path(place) / "right"))) == 0
            length, right = time.monotonic() - started, outcome(Path(place) / "right")
            for number in range(KILLS // len(KINDS)):
                out = Path(place) / f"kill-{number}"
                hits += killed(train, out, source.uniform(0.05, 1.0) * length)
                if said := goes_on(out, right):
                    failed["kills at random moments"] += 1
                    print(f"  {kind}, kill {number}: {said}", flush=True)
            for number in range(FULL_DISKS // len(KINDS)):
                out = Path(place) / f"full-{number}"
                at = source.randrange(100)

                def fill(out: Path = out, at: int = at, train: Callable[[Path], None] = train) -> None:
                    with failing_at(at, OSError(errno.ENOSPC, "No space left on device")):
                        train(out)

                code = code_of(in_a_child(fill))
                said = f"the run ended with {code}" if code not in (0, 2) else goes_on(out, right)
                if said:
                    failed["full disks"] += 1
                    print(f"  {kind}, full at operation {at}: {said}", flush=True)
    print(f"kills at random moments: tried {KILLS} ({hits} before the end), failed {failed['kills at random moments']}")
    print(f"full disks: tried {FULL_DISKS}, failed {failed['full disks']}")
    sys.exit(1 if any(failed.values()) else 0)


if __name__ == "__main__":
    main()
