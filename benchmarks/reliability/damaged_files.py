"""Damages the files that regrow reads, and kills it while it writes them: nothing is half, and nothing wrong is taken.

What counts as a failure: anything but a result or a sentence (a traceback); damage that is accepted and changes the
result; a model that is half changed when a file is refused. The attacks themselves are in tests/attack*.py.

    python benchmarks/reliability/damaged_files.py [--only WORD]

Everything is drawn by a seed, but for the moments at which racing readers read. Prints what was tried and what failed;
ends with 1 if anything has.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "report"))

import fake_runs

import attack_checkpoints as checkpoints
import attack_runs as runs
import attack_saves as saves
import attack_tables as tables

Attack = Callable[[Path], tuple[int, list[str]]]


def counted(count: int, attack: Callable[[int, Path], list[str]]) -> Attack:
    """An attack that does so much."""
    return lambda place: (count, attack(count, place))


def damaged_runs(count: int, place: Path) -> list[str]:
    """Reports and tables about a comparison of two methods and two seeds."""
    return runs.attack(count, fake_runs.write_compare(place / "made", ["dense", "iee"], [0, 1], steps=60), place)


ATTACKS: dict[str, Attack] = {
    "damaged saved models": counted(2365, lambda n, place: saves.attack(n, saves.damaged, place)),
    "flipped bits in saved models": counted(120, lambda n, place: saves.attack(n, saves.flipped, place, True)),
    "kills and errors while saving over a save": saves.crashes,
    "kills at each operation of a run": checkpoints.kills,
    "edited checkpoints": counted(800, lambda n, place: checkpoints.attack(n, "edited", place)),
    "flipped bits in checkpoints": counted(60, lambda n, place: checkpoints.attack(n, "flipped", place)),
    "damaged latency tables": counted(4500, lambda n, place: tables.attack(n, "damaged", place)),
    "flipped bits in latency tables": counted(300, lambda n, place: tables.attack(n, "flipped", place)),
    "damaged runs and comparisons": counted(1000, damaged_runs),
    "loads while another process saves": lambda place: saves.races(1500, 3, place),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORD", help="only attacks with this word in their names")
    only = parser.parse_args().only
    failures = 0
    for name, attack in ATTACKS.items():
        if only not in name:
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as place:
            tried, wrong = attack(Path(place))
        for said in wrong[:20]:
            print(f"  {said}")
        print(f"{name}: tried {tried}, failed {len(wrong)} ({time.monotonic() - started:.0f} s)", flush=True)
        failures += len(wrong)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
