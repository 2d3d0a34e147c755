"""2:4-sparse linear layers in the layout of the GPU's sparse matrix units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regrow import names
from regrow.errors import UserError

_DTYPES = (torch.float16, torch.bfloat16)  # what both of torch's kernels take, with the result in the same type
_ROWS, _COLUMNS = 32, 64  # a weight has multiples of them: what the pickier of the two kernels takes


def to_semi_structured(model: nn.Module) -> list[str]:
    """Converts the weights of linear layers that are 2:4-sparse, in place, for inference on NVIDIA GPUs.

    The layers then run on sparse matrix units (Ampere or newer) by `torch.sparse.to_sparse_semi_structured`.
    Convolutions have no such kernel and stay as they are, as do layers whose weight is shared, subclasses of
    ``nn.Linear``, and sides that are no multiples of 32 × 64. Save and export the model before: a converted weight is a
    tensor of a class of its own.

    No GPU has been at hand to run this on: the choice of layers and the layout are tested, the kernels are not.

    Args:
        model: trained with ``regrow.NM(2, 4)``, on a CUDA device, as float16 or bfloat16 (``model.cuda().half()``)

    Returns:
        The names of the converted layers.

    Raises:
        UserError: if it is not on a CUDA device, of another type, or no layer fits; nothing is changed then.
    """
    fitting = fitting_layers(model)
    device, dtype = next((layer.weight.device, layer.weight.dtype) for layer in fitting.values())
    if device.type != "cuda":
        raise UserError(
            f"semi-structured kernels run on CUDA alone, and the model is on {device.type}: move it with model.cuda(), "
            "or keep it dense, which computes the same"
        )
    if dtype not in _DTYPES:
        raise UserError(f"semi-structured kernels take float16 or bfloat16, not {dtype}: call model.half()")
    converted = {name: torch.sparse.to_sparse_semi_structured(layer.weight.detach()) for name, layer in fitting.items()}
    for name, weight in converted.items():
        fitting[name].weight = nn.Parameter(weight, requires_grad=False)
    return list(converted)


def fitting_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a model that `to_semi_structured` converts, by name.

    Raises:
        UserError: if there are none.
    """
    found = {name: m for name, m in names.modules(model).items() if type(m) is nn.Linear}
    sparse = {name: layer for name, layer in found.items() if _is_two_of_four(layer.weight)}
    if not sparse:
        raise UserError("no linear layer of the model is 2:4-sparse: train it with pattern=regrow.NM(2, 4)")
    fitting = {name: layer for name, layer in sparse.items() if not _shared(model, layer.weight) and _fits(layer)}
    if not fitting:
        raise UserError(
            f"no 2:4-sparse linear layer has a weight of its own with outputs in multiples of {_ROWS} and inputs in "
            f"multiples of {_COLUMNS}, as semi-structured kernels need it: keep the model dense"
        )
    return fitting


def _is_two_of_four(weight: Tensor) -> bool:
    """Whether each four weights along the inputs in a row have two at most, and there are not just none."""
    if weight.dim() != 2 or weight.shape[1] % 4 or weight.layout is not torch.strided:
        return False
    counts = (weight.detach() != 0).reshape(-1, 4).sum(1)
    return bool((counts <= 2).all()) and bool(counts.any())


def _fits(layer: nn.Linear) -> bool:
    rows, columns = layer.weight.shape
    return rows % _ROWS == 0 and columns % _COLUMNS == 0


def _shared(model: nn.Module, weight: Tensor) -> bool:
    return sum(p is weight for p in names.parameters(model, every_name=True).values()) > 1
