"""Networks that give every pixel a class: those of torchvision, and one for small images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regrow.errors import UserError
from regrow.zoo.detectors import fill


class Segmenter(nn.Module):
    """A network for segmentation of torchvision's, without what it computes beside the classes of pixels.

    Maps normalised images (B, 3, H, W) to logits (B, classes, H, W).

    Args:
        net: returns a mapping whose ``out`` they are.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)["out"]


def is_torchvision_segmenter(name: str) -> bool:
    """Whether torchvision has a network for segmentation of this name."""
    import torchvision

    return name in torchvision.models.list_models(module=torchvision.models.segmentation)


def torchvision_segmenter(name: str, num_classes: int, options: dict[str, Any]) -> Segmenter:
    """One of torchvision's networks for segmentation with random weights, for so many classes.

    Args:
        name: as torchvision has it.
        num_classes: of the data, with the background where that is one.
        options: passed on; ``pretrained`` downloads weights, of which those of a head of other classes are left out.
    """
    import torchvision

    pretrained = options.pop("pretrained", False)
    given = {"weights": None, "weights_backbone": None, "num_classes": num_classes}
    net = torchvision.models.get_model(name, **options, **given)
    if pretrained:
        fill(net, torchvision.models.get_model_weights(name).DEFAULT)
    return Segmenter(net)


class SmallSegmenter(nn.Module):
    """Convolutions with batch norms down to an eighth of the side, whose maps of an eighth and a quarter are summed
    after a classifier each, as a fully convolutional network does (arXiv:1411.4038).

    Maps images (B, in_channels, H, W) to logits (B, num_classes, H, W).

    Args:
        num_classes: of the data.
        in_channels: of the images.
        width: channels of the first convolution; the others have up to 6 times as many.

    Raises:
        UserError: for a width below 1.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        if width < 1:
            raise UserError(f"the width of 'shapes-fcn' must be at least 1, not {width}")
        w = width
        self.fine = nn.Sequential(
            _layer(in_channels, w, 2), _layer(w, 2 * w, 2), _layer(2 * w, 4 * w), _layer(4 * w, 4 * w)
        )
        self.coarse = nn.Sequential(_layer(4 * w, 6 * w, 2), _layer(6 * w, 6 * w), _layer(6 * w, 6 * w))
        self.fine_head = nn.Conv2d(4 * w, num_classes, 1)
        self.coarse_head = nn.Conv2d(6 * w, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(images)
        scores = _resized(self.coarse_head(self.coarse(fine)), fine.shape[-2:]) + self.fine_head(fine)
        return _resized(scores, images.shape[-2:])


def _layer(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU())


def _resized(scores: Tensor, size: torch.Size) -> Tensor:
    return nn.functional.interpolate(scores, size=size, mode="bilinear", align_corners=False)
