"""The built-in detectors, on torchvision's SSD (arXiv:1512.02325): SSD512 on a ResNet-50, and one for small images."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from regrow.errors import UserError
from regrow.zoo.detectors import Detector, fill

_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
# of SSD512 on VOC, as shares of the image: the sides of the boxes of each of seven maps, and one more
_SCALES_512 = [0.07, 0.15, 0.30, 0.45, 0.60, 0.75, 0.90, 1.05]
# channels inside and at the end of the blocks behind a ResNet, and whether they have batch norms: not on maps of a few
# places, of which small batches give no statistics
_EXTRA = ((256, 512, True), (256, 512, True), (128, 256, True), (128, 256, False), (128, 256, False), (128, 256, False))
_RATIOS_512 = [[2], [2, 3], [2, 3], [2, 3], [2, 3], [2], [2]]


def ssd512_resnet50(num_classes: int, in_channels: int = 3, pretrained: bool = False, size: int = 512) -> Detector:
    """SSD512 on a ResNet-50, the detector of HALP's and IEE's papers: images become 512 x 512 pixels, with predictions
    on seven maps of 64, 32, 16, 8, 4, 2 and 1 places a side.

    Args:
        num_classes: of the data, without a background.
        in_channels: of the images: 3.
        pretrained: downloads torchvision's weights of the ResNet-50, trained on ImageNet; else all are random.
        size: side to which images are resized, in pixels.

    Raises:
        UserError: for images of other than 3 channels, or a size too small.
    """
    _check_channels("ssd512-resnet50", in_channels)
    if size < 32:
        raise UserError(f"'ssd512-resnet50' needs a size of at least 32, not {size}")
    return _ssd(ResNetMaps(pretrained), _RATIOS_512, _SCALES_512, size, num_classes, **_IMAGENET)


def shapes_ssd(num_classes: int, in_channels: int = 3, width: int = 16, size: int = 64) -> Detector:
    """An SSD that a CPU trains in a minute: convolutions with batch norms, and predictions on three maps, of an eighth
    of the image's side, a sixteenth and half of that.

    Args:
        num_classes: of the data, without a background.
        in_channels: of the images: 3.
        width: channels of the first convolution; the others have up to 6 times as many.
        size: side to which images are resized, in pixels.

    Raises:
        UserError: for images of other than 3 channels, or a width or size too small.
    """
    _check_channels("shapes-ssd", in_channels)
    if width < 1 or size < 32:
        raise UserError(f"'shapes-ssd' needs a width of at least 1 and a size of at least 32, not {width} and {size}")
    return _ssd(
        SmallMaps(width), [[2], [2], [2]], [0.15, 0.3, 0.5, 0.75], size, num_classes,
        image_mean=[0.5] * 3, image_std=[0.25] * 3, detections_per_img=20, topk_candidates=40, score_thresh=0.05,
    )  # fmt: skip


def _check_channels(name: str, in_channels: int) -> None:
    if in_channels != 3:
        raise UserError(f"{name!r} takes images of 3 channels, not {in_channels}")


def _ssd(
    backbone: nn.Module, ratios: list[list[int]], scales: list[float], size: int, num_classes: int, **options: Any
) -> Detector:  # fmt: skip
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD

    anchors = DefaultBoxGenerator(ratios, scales=scales)
    return Detector(SSD(backbone, anchors, (size, size), num_classes + 1, **options), background=True)


class ResNetMaps(nn.Module):
    """A ResNet-50 up to its third stage, whose stride is left out, and six blocks that halve the map each.

    Maps images (B, 3, H, W) to seven maps by name, from an eighth of the side on; each next one has half of it.
    """

    def __init__(self, pretrained: bool = False) -> None:
        super().__init__()
        from torchvision.models import ResNet50_Weights, resnet50

        net = resnet50(weights=None)
        if pretrained:
            fill(net, ResNet50_Weights.DEFAULT)
        for layer in (net.layer3[0].conv2, net.layer3[0].downsample[0]):
            layer.stride = (1, 1)
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.stages = nn.Sequential(net.layer1, net.layer2, net.layer3)
        channels, extra = 1024, []
        for inner, out, norm in _EXTRA:
            extra.append(nn.Sequential(_conv(channels, inner, 1, norm=norm), _conv(inner, out, 3, stride=2, norm=norm)))
            channels = out
        self.extra = nn.ModuleList(extra)
        initialise(self.extra)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = [self.stages(self.stem(x))]
        for block in self.extra:
            maps.append(block(maps[-1]))
        return OrderedDict((str(number), one) for number, one in enumerate(maps))


class SmallMaps(nn.Module):
    """Seven convolutions of 3x3, and the maps after the fifth, the sixth and the last.

    Maps images (B, 3, H, W) to three maps by name, of an eighth, a sixteenth and a thirty-second of the side.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        w = width
        self.fine = nn.Sequential(
            _conv(3, w, 3, stride=2), _conv(w, 2 * w, 3, stride=2), _conv(2 * w, 2 * w, 3),
            _conv(2 * w, 4 * w, 3, stride=2), _conv(4 * w, 4 * w, 3),
        )  # fmt: skip
        self.middle = nn.Sequential(_conv(4 * w, 6 * w, 3, stride=2), _conv(6 * w, 6 * w, 3))
        self.coarse = _conv(6 * w, 6 * w, 3, stride=2)
        initialise(self)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        fine = self.fine(x)
        middle = self.middle(fine)
        return OrderedDict(fine=fine, middle=middle, coarse=self.coarse(middle))


def _conv(channels: int, out: int, kernel: int, stride: int = 1, norm: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=not norm)
    return nn.Sequential(conv, *([nn.BatchNorm2d(out)] if norm else []), nn.ReLU())


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Kaiming's initial values for convolutions that are followed by ReLU."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
