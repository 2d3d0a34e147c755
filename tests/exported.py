"""Networks that are exported, and how far a file is from its network."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import timm
import torch
import torchvision
from torch import Tensor, nn

from channel_models import scramble
from regrow.coupling.couple import couple
from regrow.surgery import resize


def mobilenet() -> nn.Module:
    """MobileNetV2 with two of its stages."""
    settings = [[1, 16, 1, 1], [6, 24, 2, 2]]
    return torchvision.models.MobileNetV2(num_classes=10, inverted_residual_setting=settings)


NETWORKS = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "mobilenet": mobilenet,
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=10),
}


def thin(name: str, size: int = 32) -> nn.Module:
    """A network whose every group of channels has lost half of them, with random statistics."""
    torch.manual_seed(0)
    model = scramble(NETWORKS[name]())
    coupling = couple(model, torch.randn(2, 3, size, size))
    keep = {group.id: torch.arange(group.size) % 2 == 0 for group in coupling.groups}
    assert keep
    return resize.compact(model, coupling, keep).eval()


def sparse(model: nn.Module, density: float, seed: int = 0) -> nn.Module:
    """The model with this share of every weight of two dimensions or more, exactly."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                order = torch.randperm(p.numel(), generator=generator)
                p.view(-1)[order[round(density * p.numel()) :]] = 0.0
    return model


def two_of_four(model: nn.Module) -> nn.Module:
    """The model with the first two of each four weights in the order of memory."""
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1 and p.numel() % 4 == 0:
                p.view(-1, 4)[:, 2:] = 0.0
    return model


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        a.shape == other[name].shape and a.dtype == other[name].dtype and torch.equal(bits(a), bits(other[name]))
        for name, a in one.items()
    )


def unsigned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with 0.0 in the place of -0.0."""
    return {name: torch.where(t == 0, torch.zeros_like(t), t) for name, t in state.items()}


def in_onnx_runtime(path: Path, *tensors: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {one.name: t.numpy() for one, t in zip(session.get_inputs(), tensors, strict=True)}
    return [torch.from_numpy(array) for array in session.run(None, feeds)]


def in_torch(path: Path, *tensors: Tensor) -> list[Tensor]:
    with torch.no_grad(), path.open("rb") as file:
        out = torch.export.load(file).module()(*tensors)
    return [out] if isinstance(out, Tensor) else list(out)


def off(found: Tensor, expected: Tensor) -> float:
    """The largest difference, divided by the largest absolute value."""
    own, theirs = expected.detach().double(), found.double()
    return float((theirs - own).abs().max() / own.abs().max())
