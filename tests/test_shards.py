"""2 and 4 processes, under DistributedDataParallel and FSDP2, train what one does: the same masks after every step."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import regrow
import sharded
from engine import attach
from regrow.shards import Holding
from sharded import CASES, DDP, FSDP, RESUMED, STOP, WORLDS


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


@pytest.mark.parametrize(("world", "case"), [(world, case) for world in WORLDS for case in CASES[world]])
def test_shards(case, world, found, alone) -> None:
    for of_rank in found[world]:
        check(of_rank["fsdp"][CASES[world].index(case)], alone[case])


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


@pytest.mark.parametrize("world", WORLDS)
def test_processes_that_attach_with_other_settings_are_refused(world, found) -> None:
    for of_rank in found[world]:
        assert (
            of_rank["settings"] == ["process 1 attaches with another method than process 0: give the same to each"] * 2
        )


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def attached(model: nn.Module, mesh: tuple[int, ...] = (1,), **options: object) -> regrow.Sparsifier:
    fully_shard(model, mesh=init_device_mesh("cpu", mesh, mesh_dim_names=("replicate", "shard")[-len(mesh) :]))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return attach(model, optimizer, **({"method": "static", "pattern": regrow.Weights(0.5)} | options))


def own(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs() / weight.norm()


REFUSED = {
    "blocks": ({"pattern": regrow.Blocks((4, 1), 0.5)}, "0.weight is sharded (a DTensor), which Blocks cannot"),
    "channels": ({"pattern": regrow.Channels(flops=0.5), "method": regrow.SET(9), "example_inputs": torch.ones(2, 4)},
                 "0.weight is sharded (a DTensor), which Channels cannot"),
    "two dimensions": ({"mesh": (1, 1)}, "1.weight lies on a mesh of 2 dimensions"),
    "lamp": ({"criterion": "lamp"}, "criterion 'lamp' may need a whole layer"),
    "a function": ({"criterion": own}, "criterion 'own' may need a whole layer"),
    "groups": ({"pattern": regrow.NM(2, 4, ramp="groups")}, "ramp='groups' ranks the groups of whole layers"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case, one_process) -> None:
    options, said = REFUSED[case]
    with pytest.raises(regrow.UserError, match=re.escape(said)):
        attached(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)), **options)


def test_groups_along_the_rows_are_refused(one_process) -> None:
    with pytest.raises(regrow.UserError, match=r"0\.weight has its inputs along the first dimension, which is sharded"):
        attached(nn.Sequential(nn.ConvTranspose2d(8, 4, 3), nn.Conv2d(4, 8, 3)), pattern=regrow.NM(2, 4))


def test_a_plain_parameter_among_shards_is_refused(one_process) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
    fully_shard(model[0], mesh=init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(regrow.UserError, match=r"1\.weight is a plain parameter, but 0\.weight is sharded: call"):
        attach(model, optimizer, pattern=regrow.Weights(0.5, "erk"))


def test_what_a_sharded_sparsifier_cannot_do_or_can(one_process, tmp_path) -> None:
    plain = nn.Linear(4, 8)
    average = torch.optim.swa_utils.AveragedModel(plain)
    by_entry = dataclasses.replace(regrow.criteria.Criterion.of(lambda weight: weight.abs()), by_entry=True)
    one = attached(plain, criterion=by_entry)
    with pytest.raises(regrow.UserError, match="cannot follow sharded parameters"):
        one.average(average)
    with pytest.raises(regrow.UserError, match="'weight' is sharded over processes: save a plain model"):
        regrow.save(plain, tmp_path / "model")
    assert one.summary().density == 0.5
    one.finalize()
    assert one.density() == 0.5
    mask = one.masks["weight"]
    assert mask.placements == plain.weight.placements
    assert int(mask.full_tensor().sum()) == 16


def test_a_step_that_only_makes_the_optimizers_state_is_not_counted() -> None:
    model = sharded.network()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    one = attach(model, optimizer, method="static")
    get_state_dict(model, optimizer)
    assert optimizer.state
    assert one.step_count == 0


def test_random_numbers_of_a_shard_are_those_of_the_whole() -> None:
    whole = torch.rand(30, generator=torch.Generator().manual_seed(4))
    held = Holding(torch.zeros(10))
    held.offset = 20
    assert torch.equal(torch.rand(10, generator=held.pass_over(torch.Generator().manual_seed(4))), whole[20:])
