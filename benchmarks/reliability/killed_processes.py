"""Kills one of two processes that train together, at random moments: what is left goes on to the unbroken outcome.

Both train one network under DistributedDataParallel over gloo (weights, then channels that train thin). One of them,
drawn by a seed, gets a SIGKILL at a moment drawn by it; the other must end by itself, or at the SIGTERM that torchrun
sends then. Two new processes resume the run, and its weights, metrics and accuracy must be those of the unbroken one,
bit for bit.

    python benchmarks/reliability/killed_processes.py

Prints what was tried and what failed; ends with 1 if anything has.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import torch
from kills import code_of, in_a_child, outcome

import tiny_recipe as tiny
from regrow.training import loop
from regrow.training.recipe import load

KILLS = 50
SHARED = ("--data.batch_size", "8", "--train.accumulate", "2", "--train.checkpoint_steps", "3")
KINDS = {"weights": SHARED, "channels": (*tiny.CHANNELS, *SHARED)}
_ENDS_WITHIN = 60.0  # seconds, for a process whose partner is gone and that was asked to end


def begin(recipe: Any, out: Path, meeting: Path) -> list[int]:
    """The ids of two processes that train together, met at a file."""

    def train(rank: int) -> None:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
        loop.train(recipe, out, resume=True, quiet=True)
        torch.distributed.barrier()

    return [in_a_child(lambda rank=rank: train(rank)) for rank in (0, 1)]


def ended(child: int, within: float) -> bool:
    """Whether a process has ended in time; it has, afterwards."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    source = random.Random(0)
    hits = failed = 0
    for kind, words in KINDS.items():
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            recipe = load(tiny.write(place), words)
            started = time.monotonic()
            assert [code_of(child) for child in begin(recipe, place / "right", place / "meeting")] == [0, 0]
            length, right = time.monotonic() - started, outcome(place / "right")
            for number in range(KILLS // len(KINDS)):
                out = place / f"kill-{number}"
                pair = begin(recipe, out, place / f"first-{number}")
                victim = source.randrange(2)
                time.sleep(source.uniform(0.05, 1.0) * length)
                os.kill(pair[victim], signal.SIGKILL)
                hits += code_of(pair[victim]) == -signal.SIGKILL
                other = pair[1 - victim]
                if os.waitpid(other, os.WNOHANG)[0] == 0:
                    os.kill(other, signal.SIGTERM)
                    if not ended(other, _ENDS_WITHIN):
                        failed += 1
                        print(f"  {kind}, kill {number}: process {1 - victim} did not end", flush=True)
                codes = [code_of(child) for child in begin(recipe, out, place / f"second-{number}")]
                said = (
                    f"resuming ended with {codes}" if any(codes) else "" if outcome(out) == right else "other outcome"
                )
                if said:
                    failed += 1
                    print(f"  {kind}, kill {number} of process {victim}: {said}", flush=True)
    print(f"kills of one of two processes: tried {KILLS} ({hits} before the end), failed {failed}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
