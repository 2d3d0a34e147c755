"""What regrow costs beside plain training, rigl-torch and torch.nn.utils.prune, all in one run.

    pip install 'regrow[bench]'
    python benchmarks/overhead.py --out benchmarks/results/overhead.json

The contenders take turns of a few steps each, so that a machine whose speed drifts slows all of them; what is reported
is the median, with quartiles, over the rounds of the ratio of a turn's median step to the plain one of the same round.
Plain training takes two turns in each round (how far its two ratios lie apart is the noise). Beside the steps: the time
of one prune and one grow over all weights of a ResNet-50, and the memory that is held for each sparsified weight.

Times are those of a clock; with ``--threads 1`` they are the processor's, which others on a busy machine change less.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import nn

import regrow
from regrow.actions import Explore, Grow, Prune
from regrow.schedule import Span

SPARSITY = 0.9
TURN = 5  # steps in a row, as in training: the first of them finds caches that the others have filled


def seconds(function: Callable[[], object]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    function()
    return clock() - start


def trainer(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def resnet18() -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], None]]:
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    return model, optimizer, trainer(model, optimizer, torch.randn(32, 3, 64, 64), torch.randint(0, 1000, (32,)))


METHODS = {
    "estimate": regrow.IEE(10**6, 1, 1, update_end=1.0),
    "explore": regrow.IEE(1, 0, 10**6, update_end=1.0),
    "preview": regrow.IEE(10**6, update_end=1.0),
    "latent": regrow.STE.topkast(every=10**6),
    "latent, p = 3": regrow.STE.feather(ramp=None, every=10**6),
    "latent, selecting": regrow.STE.topkast(every=1),
    "latent, p = 3, selecting": regrow.STE.feather(ramp=None, every=1),
}


def in_phase(phase: str, criterion: str = "magnitude") -> Callable[[], None]:
    """A step that stays in this phase for the whole measurement; "preview" is IEE's default."""
    model, optimizer, step = resnet18()
    method = METHODS[phase]
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=regrow.Weights(SPARSITY, "erk"), method=method, criterion=criterion,
        total_steps=10**6 + 2,
    )  # fmt: skip
    step()
    assert sparsifier.phase == {"preview": "estimate"}.get(phase, phase.split(",")[0])
    return step


def rigl_torch() -> Callable[[], None]:
    from rigl_torch.RigL import RigLScheduler

    model, optimizer, _ = resnet18()
    scheduler = RigLScheduler(
        model, optimizer, dense_allocation=1 - SPARSITY, T_end=10**6, delta=10**6, ignore_linear_layers=False
    )
    x, y = torch.randn(32, 3, 64, 64), torch.randint(0, 1000, (32,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        if scheduler():
            optimizer.step()

    return step


def torch_prune() -> Callable[[], None]:
    from torch.nn.utils import prune

    model, _, _ = resnet18()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            prune.l1_unstructured(module, "weight", amount=SPARSITY)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    return trainer(model, optimizer, torch.randn(32, 3, 64, 64), torch.randint(0, 1000, (32,)))


def steps(rounds: int) -> dict[str, dict[str, float]]:
    contenders = {
        "plain": resnet18()[2],
        "plain again": resnet18()[2],
        "regrow exploit": in_phase("estimate"),
        "regrow exploit, preview": in_phase("preview"),
        "regrow exploit, taylor": in_phase("estimate", "taylor"),
        "regrow explore": in_phase("explore"),
        "regrow latent, hard projection": in_phase("latent"),
        "regrow latent, p = 3": in_phase("latent, p = 3"),
        "regrow latent, hard projection, selecting at every step": in_phase("latent, selecting"),
        "regrow latent, p = 3, selecting at every step": in_phase("latent, p = 3, selecting"),
        "rigl-torch 0.5.2": rigl_torch(),
        "torch.nn.utils.prune": torch_prune(),
    }
    for step in contenders.values():
        step(), step()
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for i in range(rounds):
        for name in order[i % len(order) :] + order[: i % len(order)]:  # nobody always follows the same one
            taken[name].append(statistics.median(seconds(contenders[name]) for _ in range(TURN)))
    both = [(a + b) / 2 for a, b in zip(taken["plain"], taken["plain again"], strict=True)]
    return {name: summary(times, both) for name, times in taken.items()}


def summary(times: list[float], plain: list[float]) -> dict[str, float]:
    lower, ratio, upper = statistics.quantiles((t / p for t, p in zip(times, plain, strict=True)), n=4)
    return {"median_ms": 1000 * statistics.median(times), "ratio": ratio, "lower": lower, "upper": upper}


def selection() -> dict[str, float]:
    """One prune and one grow over all of a ResNet-50's weights, in dense training steps of 32 images of 3×224×224."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    step = trainer(model, optimizer, torch.randn(32, 3, 224, 224), torch.randint(0, 1000, (32,)))
    step()
    dense = statistics.median(seconds(step) for _ in range(5))
    results: dict[str, float] = {"dense_step_seconds": dense}
    for scope in ("layer", "global"):
        copy = torchvision.models.resnet50()
        sgd = torch.optim.SGD(copy.parameters(), 0.01, momentum=0.9)
        sparsifier = regrow.Sparsifier(
            copy, sgd, pattern=regrow.Weights(SPARSITY, "erk", scope), method=regrow.IEE(1, 0, 1), total_steps=100
        )
        units = sparsifier._units
        training, exploring = Span("estimate", 1, 2, 0), Span("explore", 2, 3, 0, trains="removed")
        prunes, grows = [], []
        for _ in range(5):
            prunes.append(seconds(functools.partial(units.carry_out, Prune(SPARSITY, churn=0.3), 1, training)))
            units.carry_out(Explore("mru"), 1, exploring)
            grows.append(seconds(functools.partial(units.carry_out, Grow(SPARSITY), 1, training)))
        results[f"prune_{scope}"] = statistics.median(prunes) / dense
        results[f"grow_{scope}"] = statistics.median(grows) / dense
    return results


def resident() -> int:
    """Bytes that the process holds, once the allocator has given back what nobody uses."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory() -> dict[str, float]:
    """Bytes that stay for each sparsified weight beside model and optimizer while exploiting, as the system counts."""
    model = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(12)))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    x = torch.randn(4, 2048)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    step()
    weights = sum(p.numel() for p in model.parameters())
    before = resident()
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=regrow.Weights(SPARSITY, "erk"), method=regrow.IEE(50, 2, 2), total_steps=100
    )
    for _ in range(5):
        step()
    assert sparsifier.phase == "estimate"
    after = resident()
    held = sum(t.numel() * t.element_size() for s in sparsifier._states.values() for t in (s.flags, s.memory))
    return {"bytes_per_weight": held / weights, "resident_bytes_per_weight": (after - before) / weights}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = {
        "machine": {"processor": platform.machine(), "threads": args.threads, "torch": torch.__version__},
        "step": steps(args.rounds),
        "selection": selection(),
        "memory": memory(),  # last, as it gives memory back to the system, which the others would have to ask for again
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
