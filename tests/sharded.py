"""Training under DistributedDataParallel and FSDP2 with real gloo processes, and in one process on the same batches."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import regrow
from regrow.study.pool import Server

STEPS, STOP = 12, 4  # of a run, and where one is saved: in the middle of IEE's exploration
WORLDS = (2, 4)

METHODS = {
    "iee": regrow.IEE(h=2, j=1, q=2),
    "rigl": regrow.RigL(interval=3),
    "gmp": regrow.GMP(interval=3),
    "ste": regrow.STE(every=2),
    "set": regrow.SET(interval=4),
}
PATTERNS = {
    "erk": regrow.Weights(0.8, "erk"),
    "uniform": regrow.Weights(0.7),
    "global": regrow.Weights(0.8, scope="global"),
    "nm": regrow.NM(2, 4),
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.AdamW(p, 0.01),
}
DDP = [("iee", "erk", "taylor", "sgd"), ("rigl", "erk", "magnitude", "adam"), ("gmp", "erk", "magnitude", "sgd")]
FSDP = [
    *DDP,
    ("iee", "global", "taylor", "adam"), ("iee", "nm", "magnitude", "sgd"), ("rigl", "global", "magnitude", "sgd"),
    ("rigl", "nm", "magnitude", "sgd"), ("gmp", "uniform", "taylor", "sgd"), ("gmp", "global", "magnitude", "sgd"),
    ("gmp", "nm", "magnitude", "sgd"), ("ste", "erk", "magnitude", "sgd"), ("ste", "global", "magnitude", "adam"),
    ("ste", "nm", "magnitude", "sgd"), ("set", "erk", "magnitude", "sgd"),
]  # fmt: skip
CASES = {2: FSDP, 4: [FSDP[i] for i in (0, 1, 4, 8, 11)]}  # of the processes that share two cores, fewer
RESUMED = ("iee", "erk", "taylor", "adam")

Case = tuple[str, str, str, str]


def network() -> nn.Module:
    """Without batch norm, whose statistics differ by how a batch is split; rows that few processes can share evenly."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 7, 3), nn.ReLU(), nn.Flatten(), nn.Linear(28, 12), nn.ReLU(), nn.Linear(12, 5)
    ).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    source = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 4, 4, 4, generator=source).double(), torch.randint(0, 5, (8,), generator=source))
        for _ in range(STEPS)
    ]


def full(tensor: Tensor) -> Tensor:
    """All of a tensor, on every process."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach().clone()


class Training:
    """A run of one case: in one process, or this process's part of it."""

    def __init__(self, case: Case, mesh: DeviceMesh | None = None, ddp: bool = False) -> None:
        method, pattern, criterion, optimizer = case
        self.rank, self.world = (mesh.get_local_rank(), mesh.size()) if mesh is not None else (0, 1)
        self.model = self.forward = network()
        if ddp:
            self.forward = DistributedDataParallel(self.model)
        elif mesh is not None:
            fully_shard(self.model, mesh=mesh)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.sparsifier = regrow.Sparsifier(
            self.forward, self.optimizer, pattern=PATTERNS[pattern], method=METHODS[method], criterion=criterion,
            total_steps=STEPS,
        )  # fmt: skip

    def train(self, until: int = STEPS) -> list[dict[str, Tensor]]:
        """The masks after each step."""
        masks = []
        for x, y in batches()[self.sparsifier.step_count : until]:
            self.optimizer.zero_grad()
            out = self.forward(x[self.rank :: self.world])
            nn.functional.cross_entropy(out, y[self.rank :: self.world]).backward()
            self.optimizer.step()
            masks.append({name: full(mask) for name, mask in self.sparsifier.masks.items()})
        return masks

    def results(self, masks: list[dict[str, Tensor]]) -> dict[str, Any]:
        weights = {name: full(p) for name, p in self.model.named_parameters()}
        ledger = {phase: dict(entry.density_steps) for phase, entry in self.sparsifier.ledger.items()}
        found = {"history": self.sparsifier.history, "density": self.sparsifier.layer_density(), "ledger": ledger}
        return {"masks": masks, "weights": weights, **found}

    def state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "sparsifier": self.sparsifier.state_dict()}

    def load(self, place: str) -> None:
        state = self.state()
        dcp.load(state, checkpoint_id=place)
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.sparsifier.load_state_dict(state["sparsifier"])


def trained(case: Case, mesh: DeviceMesh | None = None, ddp: bool = False) -> dict[str, Any]:
    run = Training(case, mesh, ddp)
    return run.results(run.train())


def worker(rank: int, world: int, where: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{where}/{world}", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    found: dict[str, Any] = {"ddp": [trained(case, mesh, ddp=True) for case in DDP]}
    found["fsdp"] = [trained(case, mesh) for case in CASES[world][1:]]
    torch.distributed.set_debug_level(torch.distributed.DebugLevel.DETAIL)  # what is decided is compared
    found["fsdp"].insert(0, trained(CASES[world][0], mesh))
    found["settings"] = [odd_settings(mesh, ddp) for ddp in (True, False)]
    found["odd"] = [odd_gradients(mesh, ddp) for ddp in (True, False)]
    torch.distributed.set_debug_level(torch.distributed.DebugLevel.OFF)
    found["resumed"] = resumed(mesh, where)
    torch.save(found, f"{where}/{world}-{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def odd_gradients(mesh: DeviceMesh, ddp: bool) -> str:
    """What is said where one process trains by other numbers than the first."""
    run = Training(("rigl", "erk", "magnitude", "sgd"), mesh, ddp)
    if run.rank == 1 and ddp:
        with torch.no_grad():
            run.model[3].weight.normal_()
    elif run.rank == 1:
        run.sparsifier._units.final = {name: (n - 1, size) for name, (n, size) in run.sparsifier._units.final.items()}
    try:
        run.train(3)
    except regrow.UserError as error:
        return str(error)
    return ""


def odd_settings(mesh: DeviceMesh, ddp: bool) -> str:
    """What is said where one process attaches another method than the others."""
    try:
        Training(("gmp" if mesh.get_local_rank() == 1 else "rigl", "erk", "magnitude", "sgd"), mesh, ddp)
    except regrow.UserError as error:
        return str(error)
    return ""


def resumed(mesh: DeviceMesh, where: str) -> dict[str, Any]:
    """A run that two processes begin, and as many as there are end."""
    run = Training(RESUMED, mesh)
    if run.world == WORLDS[0]:
        run.train(STOP)
        dcp.save(run.state(), checkpoint_id=f"{where}/checkpoint")
        run = Training(RESUMED, mesh)
    run.load(f"{where}/checkpoint")
    assert run.sparsifier.step_count == STOP
    assert run.sparsifier.phase == "explore"
    return run.results(run.train())


def launch(world: int, where: Path) -> list[dict[str, Any]]:
    """What the processes have found, one after the other. Fork them with the fixture ``one_server``."""
    with Server(1) as server:
        ranks = [server.context.Process(target=worker, args=(rank, world, str(where))) for rank in range(world)]
        for one in ranks:
            one.start()
        for one in ranks:
            one.join()
    assert [one.exitcode for one in ranks] == [0] * world
    return [torch.load(where / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]
