"""What the processes of one training send to agree on an update: counted, computed, and the time that it takes.

    torchrun --nproc-per-node 2 benchmarks/communication.py [--out benchmarks/results/communication-2.json]

Four linear layers of 1,024 × 1,024 weights train by RigL with AdamW under DistributedDataParallel and FSDP2, on CPUs
over gloo. What is sent by regrow is counted where it is sent; the formulas are those of docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import regrow

LAYERS, WIDTH, BATCH = 4, 1024, 64
INTERVAL, UPDATES = 4, 8


class Sent:
    """Messages and bytes that regrow has sent from this process, and the seconds until others had sent theirs."""

    def __init__(self) -> None:
        self.messages = self.bytes = 0
        self.seconds = 0.0

    def note(self, tensor: Tensor) -> None:
        self.messages += 1
        self.bytes += tensor.numel() * tensor.element_size()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """DistributedDataParallel and FSDP2 send by other functions than these."""
        distributed: Any = torch.distributed
        kept = {name: getattr(distributed, name) for name in ("all_reduce", "all_gather", "broadcast")}

        def noting(send: Callable[..., Any], which: int) -> Callable[..., Any]:
            def noted(*args: Any, **options: Any) -> Any:
                self.note(args[which])
                start = time.perf_counter()
                found = send(*args, **options)
                self.seconds += time.perf_counter() - start
                return found

            return noted

        try:
            for name, send in kept.items():
                setattr(distributed, name, noting(send, int(name == "all_gather")))
            yield
        finally:
            for name, send in kept.items():
                setattr(distributed, name, send)


def computed(kind: str) -> dict[str, int]:
    """Messages and bytes of an update of RigL with AdamW: a pruning and a growing."""
    if kind == "ddp":
        return {"messages": 2 * LAYERS, "bytes": 2 * LAYERS * WIDTH * WIDTH}
    per_layer = {"messages": 3 + 1 + 1 + 1, "bytes": 8 * (2048 + 2048 + 1024) + 8 + 4 * 8 + 2 * 8}
    once = {"messages": 5, "bytes": 8 * (1 + 3 + LAYERS + 2 + 2)}  # finite; counts: pruned, missing, grown, overlap
    return {key: 2 * LAYERS * per_layer[key] + once[key] for key in once}


def measured(kind: str, rank: int, world: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())])
    forward: nn.Module = model
    if kind == "ddp":
        forward = DistributedDataParallel(model)
    else:
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    steps = INTERVAL * (UPDATES + 1)
    method = regrow.RigL(interval=INTERVAL, update_end=1.0)
    regrow.Sparsifier(forward, optimizer, pattern=regrow.Weights(0.9, "erk"), method=method, total_steps=steps)
    source = torch.Generator().manual_seed(rank)
    plain, updating, waiting, messages, sizes = [], [], [], [], []
    for step in range(1, INTERVAL * UPDATES + 1):
        optimizer.zero_grad()
        forward(torch.randn(BATCH, WIDTH, generator=source)).square().mean().backward()
        torch.distributed.barrier()
        sent, start = Sent(), time.perf_counter()
        with sent.counting():
            optimizer.step()
        seconds = time.perf_counter() - start
        if step % INTERVAL:
            plain.append(seconds)
        else:
            updating.append(seconds)
            waiting.append(sent.seconds)
            messages.append(sent.messages)
            sizes.append(sent.bytes)
    extra = statistics.median(updating) - statistics.median(plain)
    return {
        "messages": statistics.median(messages),
        "bytes": statistics.median(sizes),
        "computed": computed(kind),
        "seconds_of_an_update": extra,
        "seconds_in_messages": statistics.median(waiting),
        "seconds_of_a_step_of_the_optimizer": statistics.median(plain),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    found: dict[str, Any] = {kind: measured(kind, rank, world) for kind in ("ddp", "fsdp2")}
    if rank == 0:
        found |= {"processes": world, "weights": LAYERS * WIDTH * WIDTH, "torch": torch.__version__}
        found |= {"machine": platform.machine()}
        text = json.dumps(found, indent=1)
        print(text)
        if out is not None:
            out.write_text(text + "\n", encoding="utf-8")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
