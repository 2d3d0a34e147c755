"""Trains for 20,000 steps with methods that change the structure all the time, and sees whether the process grows.

What counts as a failure: more than 2 MB more at the end than after a tenth of the steps, as the system counts, once
what the history of updates holds (which has an upper limit) is taken off; a density that is not the target's; or an
entry that is pruned and not zero.

    python benchmarks/reliability/growth.py [--steps 20000]

Prints megabytes; ends with 1 if anything has failed.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "tests")]

import regrow  # noqa: E402
from engine import batches, loss_of, network  # noqa: E402
from overhead import resident  # noqa: E402

LARGEST_GROWTH = 2e6  # bytes
TRIED = {
    "IEE, previewing": (regrow.Weights(0.7, "erk"), regrow.IEE(h=20), "magnitude"),
    "IEE, exploring": (regrow.Weights(0.7, "erk"), regrow.IEE.paper(20), "taylor"),
    "STE, selecting at every step": (regrow.Weights(0.7, "erk"), regrow.STE(), "magnitude"),
    "RigL": (regrow.Weights(0.7, "erk"), regrow.RigL(interval=20), "magnitude"),
    "IEE, thin": (regrow.Channels(params=0.6, round_to=1), regrow.IEE(h=20, j=10, q=10), "taylor"),
}


def grown(pattern: regrow.Weights | regrow.Channels, method: object, criterion: str, steps: int) -> tuple[float, str]:
    """Bytes that the process holds more at the end than after a tenth of the steps, and what is wrong, or ""."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    data = batches(50)
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=pattern, method=method, criterion=criterion, total_steps=steps,  # type: ignore[arg-type]
        example_inputs=data[0][0],
    )  # fmt: skip
    early = 0
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, data[step % len(data)]).backward()
        optimizer.step()
        if step + 1 == steps // 10:
            early = resident() - sum(map(sys.getsizeof, sparsifier.history))
    more = resident() - sum(map(sys.getsizeof, sparsifier.history)) - early
    wrong = ""
    with sparsifier.full_width():
        for name, mask in sparsifier.masks.items():
            if (model.get_parameter(name)[~mask] != 0).any():
                wrong = f"{name} is not zero where it is pruned"
    if isinstance(pattern, regrow.Weights) and abs(sparsifier.density() - 0.3) > 0.02:
        wrong = f"its density is {sparsifier.density():.3f}"
    return more, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    steps = parser.parse_args().steps
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    failed = 0
    for name, (pattern, method, criterion) in TRIED.items():
        more, wrong = grown(pattern, method, criterion, steps)
        failed += bool(wrong) or more > LARGEST_GROWTH
        print(f"{name}: {steps} steps, {more / 1e6:+.2f} MB{', ' + wrong if wrong else ''}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
