"""Do 2 and 4 processes train what one does? 36 runs under DistributedDataParallel (gloo, CPU, double precision).

Each is compared with one process that sees the whole batch: equal masks after every step, weights to 1e-12 of the
largest at the end. The network has no batch norm, whose statistics would differ.

    python benchmarks/reliability/ddp.py

Everything is drawn by a seed. Prints what was tried and what failed; ends with 1 if anything has.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import regrow

WORLDS = (2, 4)
STEPS, BATCH = 24, 8
IEE = regrow.IEE(h=3, j=2, q=2, shadow_speed=0.0)
PATTERNS: dict[str, Any] = {
    "weights": regrow.Weights(0.8, "erk"),
    "ranked globally": regrow.Weights(0.8, scope="global"),
    "channels": regrow.Channels(params=0.5, round_to=1, thin=False),
}
METHODS: dict[str, Any] = {
    "iee": {"": IEE},
    "grown": {"": regrow.RigL(interval=4), "channels": regrow.SET(interval=4)},
    "gmp": {"": regrow.GMP(interval=4)},
}
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
}
KINDS = list(product(PATTERNS, METHODS, OPTIMIZERS))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 5)
    ).double()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    source = torch.Generator().manual_seed(1)
    return [
        (torch.randn(BATCH, 1, 8, 8, generator=source, dtype=torch.float64),
         torch.randint(0, 5, (BATCH,), generator=source))
        for _ in range(STEPS)
    ]  # fmt: skip


def trained(kind: tuple[str, str, str], rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Masks after every step and the weights at the end."""
    pattern, method, optimizer = kind
    model = network()
    forward: nn.Module = model if world == 1 else DistributedDataParallel(model)
    made = OPTIMIZERS[optimizer](model.parameters())
    options = METHODS[method]
    sparsifier = regrow.Sparsifier(
        forward, made, pattern=PATTERNS[pattern], method=options.get(pattern, options[""]), total_steps=STEPS,
        example_inputs=batches()[0][0],
    )  # fmt: skip
    masks = []
    for x, y in batches():
        made.zero_grad()
        nn.functional.cross_entropy(forward(x[rank::world]), y[rank::world]).backward()
        made.step()
        masks.append({name: mask.clone() for name, mask in sparsifier.masks.items()})
    return {"masks": masks, "weights": {name: p.detach().clone() for name, p in model.named_parameters()}}


def worker(rank: int, world: int, where: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{where}/{world}", rank=rank, world_size=world)
    found = [trained(kind, rank, world) for kind in KINDS]
    torch.save(found, f"{where}/{world}-{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def failure(one: dict[str, Any], other: dict[str, Any]) -> str:
    for step, (mine, theirs) in enumerate(zip(one["masks"], other["masks"], strict=True)):
        if not all(torch.equal(mask, theirs[name]) for name, mask in mine.items()):
            return f"other masks after step {step + 1}"
    for name, weight in one["weights"].items():
        apart = float((weight - other["weights"][name]).abs().max() / weight.abs().max())
        if apart > 1e-12:
            return f"{name} is {apart:.1e} away"
    return ""


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    alone = [trained(kind) for kind in KINDS]
    failed = 0
    with tempfile.TemporaryDirectory() as where:
        for world in WORLDS:
            mp.spawn(worker, args=(world, where), nprocs=world)
            ranks = [torch.load(Path(where) / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]
            for i, kind in enumerate(KINDS):
                said = [text for found in ranks if (text := failure(alone[i], found[i]))]
                failed += bool(said)
                if said:
                    print(f"{world} processes, {', '.join(kind)}: {said[0]}", flush=True)
    print(f"tried {len(WORLDS) * len(KINDS)}, failed {failed}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
