"""Two real gloo processes under DistributedDataParallel: equal masks, equal to one process on the whole batch."""

from __future__ import annotations

import gc
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

import regrow
from engine import attach, loss_of, same, train
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


def worker(rank: int, out: str) -> None:
    torch.set_num_threads(1)
    join_group(rank, out, timedelta(minutes=5))
    assert torch.distributed.get_world_size() == 2
    for case in range(len(CASES)):
        trained(case, rank, f"{out}/{case}-{rank}.pt")
    for name, options in JOINS.items():
        Path(f"{out}/{name}-{rank}.txt").write_text(joined(rank, **options))
    torch.save(not_finite(rank), f"{out}/not-finite-{rank}.pt")
    leave_group()
    alone(rank, out)
    os._exit(0)  # the thread of a group that has waited in vain may abort the process when Python cleans up


def join_group(rank: int, out: str, timeout: timedelta) -> None:
    """Met at a file, as ports that are free now may be taken in a moment."""
    meeting = f"file://{out}/meeting-{timeout.seconds}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timeout)


def leave_group() -> None:
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


JOINS = {  # batches of each process, Join's options, the pattern
    "uneven": {"count": (6, 4), "after": True},
    "uneven, wrapped first": {"count": (4, 6), "after": False},
    "even": {"count": (6, 6), "after": True},
    "uneven channels": {"count": (6, 4), "after": True, "pattern": regrow.Channels(flops=0.6, round_to=1, thin=False)},
    "stops all, even": {"count": (12, 12), "after": True, "throw_on_early_termination": True},
    "stops all, uneven": {"count": (12, 9), "after": True, "throw_on_early_termination": True},
    "disabled": {"count": (12, 12), "after": False, "enable": False},
}


def joined(rank: int, count: tuple[int, int], after: bool, pattern: regrow.Weights = PATTERN, **options: bool) -> str:
    """What comes of training inside Join: the error, or the number of steps."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    settings = {"pattern": pattern, "method": RigL(interval=3), "total_steps": 12}
    if isinstance(pattern, regrow.Channels):
        settings |= {"method": "iee", "example_inputs": batches()[0][0], "total_steps": 2000}
    wrapped = None if after else DistributedDataParallel(model)
    sparsifier = attach(wrapped or model, optimizer, **settings)
    wrapped = wrapped or DistributedDataParallel(model)
    try:
        with Join([wrapped], **options):
            train(wrapped, optimizer, batches()[: count[rank]])
    except (regrow.UserError, RuntimeError) as error:
        return f"{type(error).__name__} at {sparsifier.step_count}: {error}"
    return f"{sparsifier.step_count} steps"


BAD = 4  # the batch that is not finite, on the second process alone


def not_finite(rank: int) -> dict[str, object]:
    """Steps are skipped where gradients are not finite, which all processes see alike once they are averaged."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    sparsifier = attach(model, optimizer, pattern=PATTERN, method=RigL(interval=3), total_steps=12)
    wrapped = DistributedDataParallel(model)
    half = slice(4 * rank, 4 * rank + 4)
    for i, (x, y) in enumerate(batches()[:13]):
        optimizer.zero_grad()
        bad = float("nan") if (i, rank) == (BAD, 1) else 1.0
        loss_of(wrapped, (x[half] * bad, y[half])).backward()
        if all(bool(p.grad.isfinite().all()) for p in model.parameters()):
            optimizer.step()
    return {"steps": sparsifier.step_count, "masks": sparsifier.masks, "weights": model.state_dict()}


def alone(rank: int, out: str) -> None:
    """The second process attaches, the first never does."""
    join_group(rank, out, timedelta(seconds=1))
    said = Path(f"{out}/alone.txt")
    if rank == 1:
        model = network()
        try:
            attach(model, torch.optim.SGD(model.parameters(), 0.05), pattern=PATTERN, method="static", total_steps=9)
        except regrow.UserError as error:
            said.with_suffix(".tmp").write_text(str(error))
            said.with_suffix(".tmp").rename(said)
    while not said.exists():
        time.sleep(0.05)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(str(out),), nprocs=2)
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


def test_a_batch_that_is_not_finite_on_one_process_is_skipped_by_all(results) -> None:
    a, b = (torch.load(results / f"not-finite-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert (a["steps"], b["steps"]) == (12, 12)
    for part in ("masks", "weights"):
        assert same(a[part], b[part])
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    alone = attach(model, optimizer, pattern=PATTERN, method=RigL(interval=3), total_steps=12)
    train(model, optimizer, [batch for i, batch in enumerate(batches()[:13]) if i != BAD])
    for name, mask in alone.masks.items():
        assert a["weights"][name].isfinite().all()
        assert (a["weights"][name][~a["masks"][name]] == 0).all()
        assert (mask != a["masks"][name]).sum() <= 2


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", JOINS)
def test_inputs_of_different_lengths(name, rank, results) -> None:
    found = (results / f"{name}-{rank}.txt").read_text()
    if name == "stops all, uneven":
        assert found.startswith("RuntimeError at 9: ")
    elif name in ("stops all, even", "disabled"):
        assert found == "12 steps"
    else:
        assert found.startswith("UserError at 0: Join lets processes run out of batches at different steps")


def test_a_process_without_a_sparsifier(results) -> None:
    found = (results / "alone.txt").read_text()
    assert found.startswith("the processes do not update the structure together: each must attach a sparsifier")
    assert "\n" not in found
