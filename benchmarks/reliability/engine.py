"""Interrupts optimizer steps while they change the structure, and hands sparsifiers damaged states.

What counts as a failure, after an interruption at a random call: a structure that is neither the old nor the new one,
an exception when training goes on, an entry that is pruned and not zero, other counts at the end (of channels, a
budget that is exceeded); after a damaged state: anything but a sentence with nothing changed, or a run that goes on to
its end.

    python benchmarks/reliability/engine.py

Everything is drawn by a seed. Prints what was tried and what failed; ends with 1 if anything has.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import attack_states as states
import attack_updates as updates

INTERRUPTIONS = {"weights": 83, "weights explored": 83, "channels": 77, "thin": 78}
DAMAGED_STATES = 215  # of each kind


def main() -> None:
    warnings.filterwarnings("ignore", message=".*updates fit")
    failed = 0
    for kind, count in INTERRUPTIONS.items():
        for what, tried, attack in (
            ("interruptions", count, updates.attack),
            ("damaged states", DAMAGED_STATES, states.attack),
        ):
            said = attack(kind, tried)
            failed += len(said)
            print(f"{what}, {kind}: tried {tried}, failed {len(said)}", flush=True)
            for line in said[:10]:
                print("   ", line)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
