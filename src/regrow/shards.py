"""What this process holds of a parameter: all of it, or a shard, the other rows being with other processes (FSDP2).

The engine works on what is here, as plain tensors, and asks two things of the rest: counts over all processes that hold
a shard (`Ranks`), and where in the whole this shard lies (`Holding`). A plain parameter is held
whole, by this process alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regrow import processes
from regrow.errors import UserError

_DRAWN = 1 << 20  # random numbers at a time that are passed over


class Ranks:
    """The processes that hold the shards of parameters: this one alone, which holds them whole."""

    several = False

    def totals(self, counts: Iterable[int]) -> list[int]:
        """Numbers of this process → their sums over all; one message, whatever there are."""
        return list(counts)

    def sums(self, values: Tensor) -> Tensor:
        """The same for a tensor."""
        return values

    def highest(self, value: Tensor) -> Tensor:
        """The largest of everybody's numbers: a scalar, as is `value`."""
        return value

    def all(self, flag: Tensor) -> Tensor:
        """Whether a bool scalar is set on all."""
        return flag

    def gathered(self, counts: Iterable[int]) -> tuple[int, list[list[int]]]:
        """The place of this process, and everybody's numbers in the order of places."""
        return 0, [list(counts)]

    def agree(self, code: Tensor) -> Tensor:
        """Codes of what is held here, as all processes have decided on them."""
        processes.compare("codes", code)
        return processes.agree(code)

    def compare(self, what: str, *decided: object) -> None:
        """As `regrow.processes.compare`, of what all must have decided alike; nothing to compare for one alone."""

    def require_same(self, settings: Mapping[str, str], device: torch.device) -> None:
        """As `regrow.processes.require_same`."""
        processes.require_same(settings, device)


ALONE = Ranks()


class ShardRanks(Ranks):
    """Those of a process group, in the order of their shards.

    Args:
        group: of the mesh that parameters are sharded over.
        device: that it sends from.
    """

    several = True

    def __init__(self, group: torch.distributed.ProcessGroup, device: torch.device) -> None:
        self._group, self._device = group, device

    def totals(self, counts: Iterable[int]) -> list[int]:
        found: list[int] = self.sums(torch.tensor(list(counts))).tolist()
        return found

    def sums(self, values: Tensor) -> Tensor:
        return self._reduced(values, torch.distributed.ReduceOp.SUM)

    def highest(self, value: Tensor) -> Tensor:
        return self._reduced(value.double(), torch.distributed.ReduceOp.MAX).to(value.dtype)

    def _reduced(self, values: Tensor, how: torch.distributed.ReduceOp.RedOpType) -> Tensor:
        sent = values.to(self._device, copy=True)
        with processes.taking_part():
            torch.distributed.all_reduce(sent, how, group=self._group)
        return sent.to(values.device)

    def all(self, flag: Tensor) -> Tensor:
        return self.sums((~flag).long()) == 0

    def gathered(self, counts: Iterable[int]) -> tuple[int, list[list[int]]]:
        mine = torch.tensor(list(counts), device=self._device)
        of_all = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(self._group))]
        with processes.taking_part():
            torch.distributed.all_gather(of_all, mine, group=self._group)
        return torch.distributed.get_rank(self._group), [one.tolist() for one in of_all]

    def agree(self, code: Tensor) -> Tensor:
        return code  # nobody else has any of it

    def compare(self, what: str, *decided: object) -> None:
        processes.compare(what, *decided, group=self._group)

    def require_same(self, settings: Mapping[str, str], device: torch.device) -> None:
        processes.require_same(settings, self._device, self._group)

    def __deepcopy__(self, memo: object) -> ShardRanks:
        return self


class Holding:
    """A plain parameter, which this process holds whole.

    Args:
        parameter: of the model.
    """

    ranks: Ranks = ALONE
    offset = 0  # of its first entry in the whole

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter

    @property
    def local(self) -> Tensor:
        """What is held here, as a plain tensor; written in place."""
        return self.parameter

    @property
    def grad(self) -> Tensor | None:
        """Its gradient, as a plain tensor."""
        return self.parameter.grad

    @property
    def version(self) -> int:
        """A number that changes whenever the parameter is written by a way that is counted."""
        return self.parameter._version

    def shape_of(self, part: Tensor) -> tuple[int, ...]:
        """The shape of `whole` of it."""
        return tuple(part.shape)

    def whole(self, part: Tensor) -> Tensor:
        """A tensor of the parameter's kind, of which this process holds `part` (the shape of `local`)."""
        return part

    def part(self, whole: Tensor) -> Tensor:
        """What this process holds of a tensor of the parameter's shape and kind, or of a plain one of its shape.

        Raises:
            UserError: it is sharded otherwise.
        """
        if is_sharded(whole):
            raise UserError(
                "the state is of sharded parameters: make one file of it with torch.distributed.checkpoint."
                "format_utils.dcp_to_torch_save, and load that"
            )
        return whole

    def pass_over(self, generator: torch.Generator) -> torch.Generator:
        """The generator, as it is after drawing a number for each entry of the whole that comes before `local`."""
        for start in range(0, self.offset, _DRAWN):
            torch.rand(min(_DRAWN, self.offset - start), generator=generator)
        return generator


class ShardHolding(Holding):
    """A DTensor that `fully_shard` has sharded along its first dimension over one dimension of a mesh."""

    parameter: Any

    def __init__(self, parameter: Any, ranks: ShardRanks) -> None:
        super().__init__(parameter)
        self.ranks = ranks
        rows = math.ceil(parameter.shape[0] / parameter.device_mesh.size())  # of every shard but the last ones
        before = min(rows * parameter.device_mesh.get_local_rank(), parameter.shape[0])
        self.offset = before * math.prod(parameter.shape[1:])

    @property
    def local(self) -> Tensor:
        found: Tensor = self.parameter._local_tensor  # to_local() makes another object every time
        return found

    @property
    def grad(self) -> Tensor | None:
        grad = self.parameter.grad
        return None if grad is None else grad._local_tensor

    @property
    def version(self) -> int:
        # operations on the DTensor count on itself, those on its shard there
        return int(self.parameter._version + self.local._version)

    def shape_of(self, part: Tensor) -> tuple[int, ...]:
        return tuple(self.parameter.shape)

    def whole(self, part: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        like = self.parameter
        found: Tensor = DTensor.from_local(
            part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        return found

    def part(self, whole: Tensor) -> Tensor:
        if is_sharded(whole):
            found = local(whole)
            if found.shape != self.local.shape:
                raise UserError(
                    "the state is sharded over another number of processes: load it by torch.distributed.checkpoint"
                )
            return found
        rows = self.offset // max(1, math.prod(self.parameter.shape[1:]))
        return whole[rows : rows + self.local.shape[0]]


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")  # imported by whoever has made one
    return module is not None and (isinstance(tensor, module.DTensor) or isinstance(tensor.data, module.DTensor))


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, as a plain one that shares its memory; itself where it is plain."""
    found: Tensor = tensor._local_tensor if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return found


def version(tensor: Tensor) -> int:
    """As `Holding.version`, of any tensor."""
    return tensor._version + (local(tensor)._version if is_sharded(tensor) else 0)


def ranks_of(parameters: dict[str, nn.Parameter]) -> Ranks:
    """Who holds the shards of these parameters.

    Args:
        parameters: those that are to be sparsified, by canonical name.

    Raises:
        UserError: naming one that is not sharded as `fully_shard` does it by default, or not as the others are.
    """
    sharded = {name: p for name, p in parameters.items() if is_sharded(p)}
    if not sharded:
        return ALONE
    plain = next((name for name in parameters if name not in sharded), None)
    if plain is not None:
        raise UserError(
            f"{plain} is a plain parameter, but {next(iter(sharded))} is sharded: call fully_shard on the whole model, "
            f"or leave it out with exclude=[{plain!r}]"
        )
    first: Any = next(iter(sharded.values()))
    for name, param in sharded.items():
        _check_placement(name, param, first)
    mesh = first.device_mesh
    return ShardRanks(mesh.get_group(), torch.device(mesh.device_type))


def _check_placement(name: str, param: Any, first: Any) -> None:
    placements: Sequence[Any] = param.placements
    if len(placements) != 1:
        raise UserError(
            f"{name} lies on a mesh of {len(placements)} dimensions (hybrid sharding, or tensor parallelism), whose "
            "shards regrow cannot count yet; use fully_shard over a mesh of one dimension"
        )
    if type(placements[0]).__name__ != "Shard" or placements[0].dim != 0:
        raise UserError(
            f"{name} is placed as {placements[0]}, but regrow takes shards of the first dimension alone, as "
            "fully_shard makes them without shard_placement_fn and tensor parallelism"
        )
    if param.device_mesh != first.device_mesh:
        raise UserError(f"{name} is sharded over another mesh than the first parameter; shard all over one mesh")


def holding(parameter: Tensor, ranks: Ranks = ALONE) -> Holding:
    """How this process holds a parameter.

    Args:
        ranks: what `ranks_of` has found.
    """
    return ShardHolding(parameter, ranks) if isinstance(ranks, ShardRanks) else Holding(parameter)
