"""The plain table of coupled channels: what must be removed together, and which numbers of the modules follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from regrow.errors import UserError, nearest


@dataclass(frozen=True, eq=False)
class Slice:
    """One dimension of a parameter or buffer.

    Attributes:
        name: as in ``model.named_parameters()`` or ``model.named_buffers()``, without marks of torch.compile.
        dim: which of its dimensions.
        channel: int64, one number for each index of the dimension: the channel of the group that the index goes with,
            or -1 where it belongs to another group or to none.
        zeroed: whether the masked model has zeros there; directions of weight normalisation keep their values, as zeros
            have no length to be divided by.
    """

    name: str
    dim: int
    channel: Tensor
    zeroed: bool = True


@dataclass(frozen=True, eq=False)
class Size:
    """A number that a module keeps about its own width (``out_channels``, ``num_heads``, ...).

    Attributes:
        module: as in ``model.named_modules()``, without marks of torch.compile.
        attribute: its name; where the attribute is a tuple or list, `position` says which element.
        channel: int64, as in `Slice`, one number for each thing that the attribute counts.
        position: index into it, or None for a plain integer.
    """

    module: str
    attribute: str
    channel: Tensor
    position: int | None = None


@dataclass(frozen=True, eq=False)
class Group:
    """Channels of one width of the network.

    Attributes:
        id: the module (or parameter) that first produces these channels, ``"layer1.0.conv1"``.
        size: number of channels.
        slices: everything that goes when a channel goes; each channel occurs in every one of them.
        sizes: the attributes of modules that follow.
        exact: whether removal computes the same as zeroing; False where channels are normalised together, and norms of
            the thin model see those that it has.
        multiple: what the number of channels has to be a multiple of, as a kernel demands it.
        scaled: module → width of its heads, by whose root it goes on dividing products of attention, whatever is left
            of the width.
    """

    id: str
    size: int
    slices: tuple[Slice, ...]
    sizes: tuple[Size, ...] = ()
    exact: bool = True
    multiple: int = 1
    scaled: Mapping[str, int] = field(default_factory=dict)

    @property
    def each(self) -> int:
        """How many indices of the weight that makes them each channel has: the width of a head, the number of heads
        where these lose width, mostly 1."""
        made = (part for part in self.slices if part.dim == 0 and part.name.endswith("weight"))
        maker = next(made, self.slices[0])
        return max(1, int((maker.channel >= 0).sum()) // self.size)

    def entries(self, shapes: Mapping[str, torch.Size]) -> int:
        """How many numbers of the tensors of these shapes belong to the group, by any of their dimensions."""
        total = 0
        by_name: dict[str, list[Slice]] = {}
        for part in self.slices:
            by_name.setdefault(part.name, []).append(part)
        for name, parts in by_name.items():
            shape = shapes[name]
            outside = shape.numel()
            for part in parts:
                outside = outside // shape[part.dim] * int((part.channel < 0).sum())
            total += shape.numel() - outside
        return total


@dataclass(frozen=True, eq=False)
class Block:
    """The branch of a residual sum, which may go whole: once no channel is left inside it, its layers are not run.

    Attributes:
        id: of the group that stands for it, which has one channel: what of the branch has the width of the sum, and
            would leave a constant (the last norm, the last bias), or is read by the branch alone (its first norm).
        inner: ids of the groups that lie inside it. They and its own group lose all their channels, or none does.
        skips: the modules that are not run, as in ``model.named_modules()``.
        ending: the parameters of the last of them, whose gradients say what the branch as a whole is worth.
        within: the norms among them whose results only others of them read.
        holder: the module that computes nothing but its input plus the branch, and is passed through without it; "" for
            none.
        activated: whether a ReLU of that sum is what it returns.
    """

    id: str
    inner: tuple[str, ...]
    skips: tuple[str, ...]
    ending: tuple[str, ...]
    within: tuple[str, ...] = ()
    holder: str = ""
    activated: bool = False

    @property
    def members(self) -> tuple[str, ...]:
        """The groups that go together: its own, and those inside."""
        return (self.id, *self.inner)


@dataclass(frozen=True, eq=False)
class Attended:
    """A product of activations, which has a part for each head, or for each index of their width.

    Attributes:
        flops: of all parts, for one forward pass of the example (2 for each multiply-add).
        channel: group id → int64, as in `Slice`, one number for each part.
    """

    flops: float
    channel: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Coupling:
    """All groups of a model, and what stays dense.

    Attributes:
        groups: in the order of the model's parameters; one dimension may belong to several of them.
        dense: parameter name → why its outputs are not in any group.
        untrained: why the groups could not be tried in training mode; "" where they were.
        seconds: of processor time that it took to find out, whatever else the machine did.
        attended: the products of activations of which parts go with channels.
        blocks: branches that may go whole, each of which has a group.
        whole: name of a branch → why it cannot go whole.
        heads: what of attention can go, "count" or "width".
    """

    groups: tuple[Group, ...]
    dense: Mapping[str, str] = field(default_factory=dict)
    untrained: str = ""
    seconds: float = 0.0
    attended: tuple[Attended, ...] = ()
    blocks: tuple[Block, ...] = ()
    whole: Mapping[str, str] = field(default_factory=dict)
    heads: Literal["count", "width"] = "count"

    def __getitem__(self, group: str) -> Group:
        """The group of this id.

        Raises:
            UserError: there is none.
        """
        for candidate in self.groups:
            if candidate.id == group:
                return candidate
        raise UserError(f"there is no group {group!r}{nearest(group, self.ids)}")

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all groups."""
        return tuple(group.id for group in self.groups)

    def check_keep(self, keep: Mapping[str, Tensor]) -> None:
        """Refuses masks that do not fit.

        Args:
            keep: group id → bool, one for each of its channels, True for those that stay.

        Raises:
            UserError: an unknown group, a wrong length or type, or a group that would lose all its channels without
                the block that it lies in, or beside others that do not.
        """
        sizes = {group.id: group.size for group in self.groups}
        for name, mask in keep.items():
            if name not in sizes:
                raise UserError(f"there is no group {name!r}{nearest(name, sizes)}")
            if mask.dtype != torch.bool or mask.shape != (sizes[name],):
                raise UserError(
                    f"the mask of group {name!r} must be {sizes[name]} bools, not {mask.dtype} of shape "
                    f"{tuple(mask.shape)}"
                )
        empty = {name for name, mask in keep.items() if not bool(mask.any())}
        for block in self.gone(keep):
            empty -= {*block.members}
        if empty:
            name = next(name for name in keep if name in empty)
            mine = next((block for block in self.blocks if name in block.members), None)
            if mine is None:
                raise UserError(f"group {name!r} would lose all its channels; keep at least one")
            others = next(other for other in mine.members if other not in empty)
            raise UserError(
                f"group {name!r} would lose all its channels, and {others!r} of the same block would not: a block goes "
                "whole, or keeps at least one channel of each"
            )

    def gone(self, keep: Mapping[str, Tensor]) -> tuple[Block, ...]:
        """The blocks of which nothing is left under these masks (group id → bool [channels])."""
        return tuple(
            block for block in self.blocks if all(m in keep and not bool(keep[m].any()) for m in block.members)
        )

    def kept(self, keep: Mapping[str, Tensor], *, zeroed: bool = False) -> dict[str, dict[int, Tensor]]:
        """What stays of each tensor under these masks.

        Args:
            keep: group id → bool [channels]; groups that are not named stay whole.
            zeroed: only what the masked model has zeros for.

        Returns:
            tensor name → dimension → bool [length of the dimension]; only dimensions that lose something.
        """
        self.check_keep(keep)
        result: dict[str, dict[int, Tensor]] = {}
        for group in self.groups:
            if group.id not in keep or bool(keep[group.id].all()):
                continue
            mask = keep[group.id].cpu()
            for part in group.slices:
                if zeroed and not part.zeroed:
                    continue
                stays = stay(part.channel, mask)
                dims = result.setdefault(part.name, {})
                dims[part.dim] = dims[part.dim] & stays if part.dim in dims else stays
        return result

    def widths(self, keep: Mapping[str, Tensor]) -> dict[tuple[str, str, int | None], int]:
        """How much each attribute of a module falls: (module, attribute, position) → number of things removed."""
        self.check_keep(keep)
        removed: dict[tuple[str, str, int | None], int] = {}
        for group in self.groups:
            if group.id not in keep:
                continue
            mask = keep[group.id].cpu()
            for part in group.sizes:
                key = (part.module, part.attribute, part.position)
                removed[key] = removed.get(key, 0) + int((~stay(part.channel, mask)).sum())
        return {key: count for key, count in removed.items() if count}


def stay(channel: Tensor, mask: Tensor) -> Tensor:
    """bool, one for each index: whether it stays when only the channels in `mask` (bool [channels]) are kept."""
    return mask[channel.clamp(min=0)] | (channel < 0)
