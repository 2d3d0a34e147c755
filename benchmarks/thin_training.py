"""Wall-clock cost of training a thin ResNet-50 from scratch by IEE, beside training the dense one, in one run.

    python benchmarks/thin_training.py --out benchmarks/results/thin_training.json

Both networks train on the same random images and take turns of a few steps, so that a machine whose speed drifts slows
both. All that IEE does is inside its time: estimating, pruning, the selection under the latency budget, surgery,
exploration at full width, growing. Measuring the latency table, once for a machine, is given beside it. The steps are
few, so updates come far oftener than in practice, and what they cost counts for more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

import regrow
from regrow.profiling import profile

TURN = 4  # steps in a row


def network() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torchvision.models.resnet50()
    return model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)


def stepper(model: nn.Module, optimizer: torch.optim.Optimizer, args: argparse.Namespace) -> Callable[[], None]:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(args.batch, 3, args.size, args.size, generator=source)
    y = torch.randint(0, 1000, (args.batch,), generator=source)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--latency", type=float, default=0.3, help="share of the dense latency (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--phases", type=int, nargs=3, default=(20, 20, 8), metavar=("H", "J", "Q"))
    parser.add_argument("--update-end", type=float, default=0.75)
    parser.add_argument("--size", type=int, default=96, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--profile-seconds", type=float, default=120.0)
    return parser.parse_args()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(
    sparsifier: regrow.Sparsifier, ours: Callable[[], None], plain: Callable[[], None], steps: int
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of the steps of IEE, by phase, and of dense training."""
    by_phase: dict[str, list[float]] = defaultdict(list)
    dense_steps: list[float] = []
    while sparsifier.step_count < steps:
        for _ in range(min(TURN, steps - sparsifier.step_count)):
            phase = sparsifier.phase  # a step may end it
            by_phase[phase].append(seconds(ours))
        dense_steps += [seconds(plain) for _ in range(min(TURN, steps - len(dense_steps)))]
        print(f"{sparsifier.step_count}/{steps}", {k: round(sum(v), 1) for k, v in by_phase.items()}, flush=True)
    return by_phase, dense_steps


def expand_and_shrink(sparsifier: regrow.Sparsifier) -> None:
    with sparsifier.full_width():
        pass


@torch.no_grad()
def compare_latency(thin: nn.Module, dense: nn.Module, example: torch.Tensor) -> float:
    ratios = []
    for turn in range(12):
        times = []
        for model in (thin, dense):
            start = time.perf_counter()
            model(example)
            times.append(time.perf_counter() - start)
        if turn > 1:
            ratios.append(times[0] / times[1])
    return statistics.median(ratios)


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    start = time.perf_counter()
    dense, dense_optimizer = network()
    example = torch.randn(args.batch, 3, args.size, args.size)
    table, _ = profile(dense, example, threads=1, time_limit=args.profile_seconds, check=1)
    profiled = time.perf_counter() - start
    model, optimizer = network()
    start = time.perf_counter()
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=regrow.Channels(latency=args.latency, table=table),
        method=regrow.IEE(*args.phases, update_end=args.update_end), criterion="taylor", total_steps=args.steps,
        example_inputs=example,
    )  # fmt: skip
    attached = time.perf_counter() - start
    ours, plain = stepper(model, optimizer, args), stepper(dense, dense_optimizer, args)
    by_phase, dense_steps = in_turns(sparsifier, ours, plain, args.steps)
    cost = sparsifier.training_cost()
    surgery = [seconds(lambda: expand_and_shrink(sparsifier)) for _ in range(5)]
    sparsifier.compact()
    (model.eval(), dense.eval())
    measured = compare_latency(model, dense, example)
    total = attached + sum(sum(times) for times in by_phase.values())
    typical = statistics.median(dense_steps)
    result: dict[str, Any] = {
        "wall_clock_ratio": total / sum(dense_steps),
        "training_flops_ratio": cost["total"],
        "latency_budget": args.latency,
        "latency_measured": measured,
        "steps": args.steps,
        "phases_hjq": list(args.phases),
        "update_end": args.update_end,
        "explore_share": len(by_phase["explore"]) / args.steps,
        "updates": len(sparsifier.history),
        "median_step_ratio": {phase: statistics.median(times) / typical for phase, times in by_phase.items()},
        "expand_and_shrink_ratio": statistics.median(surgery) / typical,
        "seconds": {
            "dense": sum(dense_steps), "iee": total, "attach": attached, "profile_once": profiled,
            "dense_step": typical,
        },
        "last_update": sparsifier.history[-1],
        "setting": f"ResNet-50, {args.size}x{args.size}, batch {args.batch}, SGD, 1 thread",
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                    "torch": torch.__version__},
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
