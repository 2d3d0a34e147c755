"""Several processes that train one model: they take the same steps, and the first one's structure is that of all."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regrow.errors import UserError


def agree(code: Tensor) -> Tensor:
    """The codes of the first process, on all.

    Raises:
        UserError: another process does not take part, and the process group has waited as long as it waits.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        try:
            torch.distributed.broadcast(code, src=0)
        except RuntimeError as error:
            raise UserError(
                "the processes do not update the structure together: each must attach a sparsifier and take the same "
                f"steps ({' '.join(str(error).split())[:200]})"
            ) from error
    return code


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
