"""Interrupts optimizer steps while they change the structure, at random calls: an update is all or nothing.

What counts as a failure: a structure that is neither the old nor the new one, an exception when training goes on, an
entry that is pruned and not zero, and other counts at the end (of channels, a budget that is exceeded).

    python benchmarks/reliability/interruptions.py

Everything is drawn by a seed. Prints what was tried and what failed; ends with 1 if anything has.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import attack_updates as updates

COUNTS = {"weights": 83, "weights explored": 83, "channels": 77, "thin": 78}


def main() -> None:
    warnings.filterwarnings("ignore", message=".*updates fit")
    failed = 0
    for kind, count in COUNTS.items():
        said = updates.attack(kind, count)
        failed += len(said)
        print(f"{kind}: tried {count}, failed {len(said)}", flush=True)
        for line in said[:10]:
            print("   ", line)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
