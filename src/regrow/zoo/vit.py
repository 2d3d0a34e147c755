"""A small vision transformer, for small images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regrow.errors import UserError


class VisionTransformer(nn.Module):
    """Vision transformer (arXiv:2010.11929) without a class token: patches, attention and two linear layers in turn
    around a residual stream, with a LayerNorm before each, and the mean over all patches.

    Queries, keys and values have a layer each, so that the hidden size, heads or their width, and the width between the
    two linear layers can be pruned by themselves.

    Maps (batch, in_channels, size, size) to logits (batch, num_classes).

    Args:
        depth: number of layers.
        width: hidden size.
        heads: of attention, each ``width / heads`` wide; 0: as many as have a width of 32.
        hidden: width between the two linear layers, as a multiple of the hidden size.
        size: side of the images, in pixels.
        patch: side of a patch, in pixels.

    Raises:
        UserError: a width that the heads do not share evenly, or a side that the patches do not.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int,
        in_channels: int = 3,
        heads: int = 0,
        hidden: int = 4,
        size: int = 32,
        patch: int = 4,
    ) -> None:
        super().__init__()
        heads = heads or max(1, width // 32)
        if min(depth, width, heads, hidden, patch) < 1 or width % heads:
            raise UserError(f"vit{depth}-{width}: the width must be a multiple of heads ({heads}), and all at least 1")
        if size < patch or size % patch:
            raise UserError(f"images of {size} pixels are no whole number of patches of {patch}: set size and patch")
        self.size = size
        self.stem = nn.Conv2d(in_channels, width, patch, patch)
        self.position = nn.Parameter(torch.empty((size // patch) ** 2, width))
        self.layers = nn.ModuleList(_Layer(width, heads, hidden * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.position, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.size, self.size):
            raise UserError(f"images of {x.shape[-2]}×{x.shape[-1]} pixels, but the model has size={self.size}: set it")
        x = self.stem(x).flatten(2).transpose(1, 2) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


class _Layer(nn.Module):
    """Attention, and two linear layers."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        x = x + self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))
