"""Two real gloo processes under DistributedDataParallel: equal masks, equal to one process on the whole batch."""

from __future__ import annotations

import gc
import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import regrow
from engine import attach, same, train
from regrow.methods import IEE, SET, RigL

PATTERN = regrow.Weights(0.7, "erk")
CASES = [  # method, criterion, attached before the model is wrapped
    (IEE(h=5, j=4, q=3), "taylor", True),
    (IEE(h=5, j=4, q=3), "taylor", False),
    (RigL(interval=7), "magnitude", True),
    (SET(interval=7), "magnitude", False),
]


def network() -> nn.Module:
    """Without batch norm, whose statistics differ by how a batch is split."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 5))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    source = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 1, 6, 6, generator=source), torch.randint(0, 5, (8,), generator=source)) for _ in range(40)]


def worker(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for case in range(len(CASES)):
        trained(case, rank, f"{out}/{case}-{rank}.pt")
    # a process that leaves while the other still talks to it, or with a wrapper alive, may abort on its way out
    gc.collect()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def trained(case: int, rank: int, out: str) -> None:
    method, criterion, after = CASES[case]
    model = network()
    if rank == 1:  # started differently: the weights and the codes of rank 0 must win
        for p in model.parameters():
            nn.init.normal_(p)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    options = {"pattern": PATTERN, "method": method, "criterion": criterion, "total_steps": 40}
    if after:
        sparsifier = attach(model, optimizer, **options)
        wrapped = DistributedDataParallel(model)
    else:
        wrapped = DistributedDataParallel(model)
        sparsifier = attach(wrapped, optimizer, **options)
    half = slice(4 * rank, 4 * rank + 4)
    train(wrapped, optimizer, [(x[half], y[half]) for x, y in batches()])
    torch.save({"masks": sparsifier.masks, "weights": model.state_dict()}, out)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(port, str(out)), nprocs=2)
    return out


@pytest.mark.parametrize("case", range(len(CASES)))
def test_ranks_agree(case, results) -> None:
    method, criterion, _ = CASES[case]
    a, b = (torch.load(results / f"{case}-{rank}.pt", weights_only=True) for rank in (0, 1))
    for part in ("masks", "weights"):
        assert same(a[part], b[part])
    for name, mask in a["masks"].items():
        assert (a["weights"][name][~mask] == 0).all()
    # one process, whole batches: the same up to the order of summation
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    alone = attach(model, optimizer, pattern=PATTERN, method=method, criterion=criterion, total_steps=40)
    train(model, optimizer, batches())
    for name, mask in alone.masks.items():
        assert (mask != a["masks"][name]).sum() <= 2
