"""Models for the tests of channels: small ones of every kind, and real ones at small inputs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def scramble(model: nn.Module, seed: int = 0) -> nn.Module:
    """Makes every constant parameter and statistic random, or equalities could hold for want of values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.numel() == 1 or bool((p == p.flatten()[0]).all()) or float(p.abs().max()) < 1e-3:
                p.add_(torch.empty_like(p).uniform_(0.1, 0.6, generator=generator))
        for name, b in model.named_buffers():
            if "running_mean" in name:
                b.normal_(0, 0.1, generator=generator)
            if "running_var" in name:
                b.uniform_(0.5, 1.5, generator=generator)
    return model


SMALL = {
    "densenet-small": ("densenet121", {"growth_rate": 8, "block_config": (2, 2), "num_classes": 10}),
    "swin-small": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (3, 6), "num_classes": 10},
    ),
}


def build(name: str, size: int) -> nn.Module:
    """``tv:NAME`` from torchvision, ``NAME`` from timm, without weights, for images of this size."""
    if name.startswith("tv:"):
        import torchvision

        options = {"init_weights": True} if name in ("tv:googlenet", "tv:inception_v3") else {}
        if name.startswith("tv:vit"):
            options["image_size"] = size
        return scramble(torchvision.models.get_model(name[3:], weights=None, **options))
    import timm

    if name in SMALL:
        return scramble(timm.create_model(SMALL[name][0], pretrained=False, **SMALL[name][1]))
    try:
        return scramble(timm.create_model(name, pretrained=False, img_size=size))
    except TypeError:
        return scramble(timm.create_model(name, pretrained=False))


class Residual(nn.Module):
    """Two convolutions around a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return self.head(torch.relu(x + y).mean((2, 3)))


class Parallel(nn.Module):
    """A branch with one layer for a hidden part, which can go, and for weights that cannot, as a softmax sums them."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 6
        self.both, self.up, self.mix = nn.Linear(8, 10), nn.Linear(6, 8), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        wide, weights = self.both(x).split([self.hidden, 4], -1)
        return x + (self.up(wide.relu()) + self.mix(weights.softmax(-1)))


class Chain(nn.Module):
    """Any module between two convolutions: 3 → width → … → 7 channels."""

    def __init__(self, middle: nn.Module, width: int = 8, out: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.middle = middle
        self.last = nn.Conv2d(out, 7, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Attention(nn.Module):
    """Attention whose width is an attribute, so that heads can go."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = 4, 3, 12
        self.embed = nn.Linear(6, 10)
        self.norm = nn.LayerNorm(10)
        self.qkv = nn.Linear(10, 36)
        self.proj = nn.Linear(12, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, self.attn_dim)
        return self.head((x + self.proj(y)).mean(1))


class Flatten(nn.Module):
    """Convolution, flatten, linear: 16 features for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.fc1 = nn.Linear(96, 10)
        self.fc2 = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(torch.relu(self.conv(x)).flatten(1))))


class Dense(nn.Module):
    """Concatenation: one dimension of `last` belongs to two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 5, 1)
        self.b = nn.Conv2d(5, 4, 1)
        self.bn = nn.BatchNorm2d(9)
        self.last = nn.Conv2d(9, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.last(torch.relu(self.bn(torch.cat([a, self.b(a)], 1))))
