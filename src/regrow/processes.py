"""Several processes that train one model: they take the same steps, and the first one's structure is that of all."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from regrow.errors import UserError

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def together() -> bool:
    """Whether there are other processes to agree with."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def checked() -> bool:
    """Whether what processes decide is compared before it counts: with ``TORCH_DISTRIBUTED_DEBUG=DETAIL``."""
    distributed: Any = torch.distributed
    return bool(distributed.get_debug_level() == distributed.DebugLevel.DETAIL)


@contextmanager
def taking_part() -> Iterator[None]:
    """Says what it means where others do not take part in what is sent inside it.

    Raises:
        UserError: the process group has waited as long as it waits.
    """
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            "the processes do not update the structure together: each must attach a sparsifier and take the same "
            f"steps ({' '.join(str(error).split())[:200]})"
        ) from error


def agree(code: Tensor) -> Tensor:
    """The codes (or values) of the first process, on all.

    Raises:
        UserError: another process does not take part, and the process group has waited as long as it waits.
    """
    if together():
        with taking_part():
            torch.distributed.broadcast(code, src=0)
    return code


def compare(what: str, *decided: object, group: torch.distributed.ProcessGroup | None = None) -> None:
    """Refuses to go on where processes have decided otherwise than the first, if that is `checked`.

    Args:
        what: they have decided on.
        decided: tensors, and whatever else has a `repr`; only a hash of it is sent.
        group: of the processes; None for all.

    Raises:
        UserError: naming the first of them.
    """
    if not (together() and checked()):
        return
    text = sha256()
    for one in decided:
        text.update(one.cpu().contiguous().numpy().tobytes() if isinstance(one, Tensor) else repr(one).encode())
    hashes: list[str] = [""] * torch.distributed.get_world_size(group)
    with taking_part():
        torch.distributed.all_gather_object(hashes, text.hexdigest(), group=group)
    other = next((rank for rank, one in enumerate(hashes) if one != hashes[0]), None)
    if other is not None:
        raise UserError(
            f"process {other} has other {what} than process 0: their gradients or weights differ, or they were loaded "
            "from different checkpoints"
        )


def require_same(
    settings: Mapping[str, str], device: torch.device, group: torch.distributed.ProcessGroup | None = None
) -> None:
    """Refuses processes that attach with other settings, whose updates would not come together, or not fit together.

    Args:
        settings: name → value as text; addresses of objects in it do not count.
        device: to send from.
        group: of the processes; None for all.

    Raises:
        UserError: naming the first process that differs, and the setting; on all of them.
    """
    if not together():
        return
    texts = (_ADDRESS.sub("", text) for text in settings.values())
    mine = torch.tensor([int.from_bytes(sha256(text.encode()).digest()[:7]) for text in texts], device=device)
    of_all = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(group))]
    with taking_part():
        torch.distributed.all_gather(of_all, mine, group=group)
    for rank, theirs in enumerate(of_all):
        for key, same in zip(settings, (theirs == of_all[0]).tolist(), strict=True):
            if not same:
                raise UserError(f"process {rank} attaches with another {key} than process 0: give the same to each")


def refuse_join(module: nn.Module, args: object) -> None:
    """A forward pre-hook of a model: refuses to train inside torch's Join, where a process that has run out of inputs
    imitates what DistributedDataParallel sends, and would leave a sparsifier waiting for it.

    Raises:
        UserError: unless Join stops all processes as soon as one of them has run out.
    """
    if torch.compiler.is_compiling() or not module.training or not torch.distributed.is_available():
        return
    wrapper = getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None)
    join = getattr(wrapper, "_join_config", None)
    if join is not None and join.enable and not join.throw_on_early_termination:
        raise UserError(
            "Join lets processes run out of batches at different steps, but a sparsifier's must all take the same: "
            "leave Join out and give each as many batches, or Join(..., throw_on_early_termination=True)"
        )
