"""2 and 4 processes, under DistributedDataParallel and FSDP2, train what one does: the same masks after every step."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import sharded
from sharded import DDP, FSDP, RESUMED, STOP, WORLDS


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(place, one_server):
    torch.set_num_threads(1)
    return {world: sharded.launch(world, place) for world in WORLDS}


@pytest.fixture(scope="module")
def alone():
    return {case: sharded.trained(case) for case in {*FSDP, RESUMED}}


def check(one: dict, other: dict, since: int = 0) -> None:
    for mine, theirs in zip(one["masks"], other["masks"][since:], strict=True):
        assert all(torch.equal(mask, theirs[name]) for name, mask in mine.items())
    for name, weight in one["weights"].items():
        assert torch.allclose(weight, other["weights"][name], rtol=0, atol=1e-6)
        if name in one["masks"][-1]:
            assert (weight[~one["masks"][-1][name]] == 0).all()
    for key in ("history", "density", "ledger"):
        assert one[key] == other[key]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", DDP, ids="-".join)
def test_whole_parameters(case, world, found, alone) -> None:
    for of_rank in found[world]:
        check(of_rank["ddp"][DDP.index(case)], alone[case])


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", FSDP, ids="-".join)
def test_shards(case, world, found, alone) -> None:
    for of_rank in found[world]:
        check(of_rank["fsdp"][FSDP.index(case)], alone[case])


@pytest.mark.parametrize("world", WORLDS)
def test_goes_on_with_other_processes(world, found, alone) -> None:
    for of_rank in found[world]:
        check(of_rank["resumed"], alone[RESUMED], since=STOP)


def test_goes_on_alone(place, found, alone) -> None:
    dcp_to_torch_save(place / "checkpoint", place / "whole.pt")
    state = torch.load(place / "whole.pt", weights_only=True)
    run = sharded.Training(RESUMED)
    sharded.set_state_dict(
        run.model, run.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    run.sparsifier.load_state_dict(state["sparsifier"])
    check(run.results(run.train()), alone[RESUMED], since=STOP)


@pytest.mark.parametrize("world", WORLDS)
def test_decisions_that_differ_are_found(world, found) -> None:
    for of_rank in found[world]:
        for said, what in zip(of_rank["odd"], ("codes", "counts"), strict=True):
            assert said.startswith(f"process 1 has other {what} than process 0: ")
