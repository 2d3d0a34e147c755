"""Detectors of torchvision as networks that regrow can trace, price, thin and train.

A detector picks boxes with code that depends on what it has found, which is nothing that channels or FLOPs could be
read from. So a `Detector` shows what its heads compute as well: that is what is traced, measured and exported, and
losses and boxes are made of it alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regrow.errors import UserError

Target = dict[str, Tensor]  # boxes (n, 4) as x1, y1, x2, y2 in pixels; labels (n,) from 0 on
Heads = Callable[[nn.Module, Tensor], Any]

_POOLED = 7  # side of what torchvision pools of a proposal


class Detector(nn.Module):
    """A detector, called in one of two ways.

    With a batch of images of one size, (B, 3, H, W) in 0…1, it returns what its heads compute of them, in both modes:
    nested tensors, before boxes are picked. With a list of images (3, H, W) it does what torchvision's detectors do: in
    training mode, given targets, it returns a dict of losses, in eval mode a dict for each image with ``boxes`` (n, 4;
    x1, y1, x2, y2 in pixels of that image), ``labels`` (n,; from 0 on) and ``scores`` (n,; 0…1, descending).

    Args:
        net: a detector as torchvision makes them: with a ``transform`` that normalises and resizes images, a
            ``backbone``, and heads.
        background: whether its class 0 is the background, so that the first class of the data is its class 1.
        heads: net and normalised images (B, 3, H, W) → what its heads compute; default: by what the net has,
            `two_stage` for ``roi_heads``, else `one_stage`.

    Raises:
        UserError: the net is not made as torchvision's detectors are.
    """

    def __init__(self, net: nn.Module, background: bool, heads: Heads | None = None) -> None:
        super().__init__()
        self.net = net
        self.first_class = int(background)
        self._heads = heads or _heads_of(net)

    def forward(self, images: Tensor | list[Tensor], targets: Sequence[Target] | None = None) -> Any:
        if isinstance(images, Tensor):
            return self._heads(self.net, self._seen(images))
        if self.training:
            return self.net(images, None if targets is None else [self._target(one) for one in targets])
        return [{**one, "labels": one["labels"] - self.first_class} for one in self.net(images)]

    def _target(self, target: Target) -> Target:
        return {"boxes": target["boxes"], "labels": target["labels"] + self.first_class}

    def _seen(self, images: Tensor) -> Tensor:
        """The batch as the network sees it: normalised, and of its size."""
        transform: Any = self.net.transform
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (transform.image_mean, transform.image_std))
        x = (images - mean) / std
        size, padded = sizes_seen(transform, (x.shape[-2], x.shape[-1]))
        if size != tuple(x.shape[-2:]):
            x = nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        bottom, right = padded[0] - size[0], padded[1] - size[1]
        return nn.functional.pad(x, (0, right, 0, bottom)) if bottom or right else x


def sizes_seen(transform: Any, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of an image after torchvision's transform for detectors, and with the padding of its batch.

    Args:
        transform: of the detector, with ``fixed_size`` (width, height) or ``min_size`` and ``max_size`` in pixels.
        size: height and width before it.
    """
    if transform.fixed_size is not None:
        width, height = transform.fixed_size
        seen = (int(height), int(width))
    else:
        factor = min(transform.min_size[-1] / min(size), transform.max_size / max(size))
        seen = (max(1, math.floor(size[0] * factor)), max(1, math.floor(size[1] * factor)))
    step = transform.size_divisible
    return seen, (math.ceil(seen[0] / step) * step, math.ceil(seen[1] / step) * step)


def _heads_of(net: nn.Module) -> Heads:
    for needed, heads in ((("rpn", "roi_heads"), two_stage), (("head",), one_stage)):
        if all(hasattr(net, name) for name in ("transform", "backbone", *needed)):
            return heads
    raise UserError(
        f"{type(net).__name__} is not made as torchvision's detectors are, with transform, backbone, and head or rpn "
        "and roi_heads: make it so, or wrap it in a class of yours that is called as regrow.zoo.detectors.Detector is"
    )


def one_stage(net: Any, images: Tensor) -> Any:
    """What the heads of SSD, RetinaNet and FCOS compute: a mapping of tensors (B, anchors, …)."""
    return net.head(list(net.backbone(images).values()))


def two_stage(net: Any, images: Tensor) -> Any:
    """What the heads of Faster R-CNN compute: objectness and offsets of proposals, and class scores and boxes of as
    many proposals as it evaluates. In the place of what is pooled of a proposal stands the mean of the features, which
    has their channels too."""
    features = list(net.backbone(images).values())
    mean = features[0].mean((2, 3), keepdim=True)
    pooled = mean.repeat_interleave(net.rpn._post_nms_top_n["testing"], 0).expand(-1, -1, _POOLED, _POOLED)
    return net.rpn.head(features), net.roi_heads.box_predictor(net.roi_heads.box_head(pooled))


@dataclass(frozen=True)
class Family:
    """A kind of torchvision's detectors.

    Attributes:
        background: whether class 0 is the background.
        heads: as in `Detector`.
        size: side of the images that its models are made for, in pixels.
    """

    background: bool
    heads: Heads
    size: int


FAMILIES: dict[str, Family] = {
    "ssd300": Family(True, one_stage, 300),
    "ssdlite320": Family(True, one_stage, 320),
    "retinanet": Family(False, one_stage, 800),
    "fcos": Family(False, one_stage, 800),
    "fasterrcnn": Family(True, two_stage, 800),
}


def family_of(name: str) -> Family:
    """The family of one of torchvision's detectors.

    Raises:
        UserError: for detectors of masks and keypoints.
    """
    found = FAMILIES.get(name.partition("_")[0])
    if found is None:
        raise UserError(
            f"torchvision's {name} needs more than boxes to train on, but data sets have boxes only: choose another, "
            "such as torchvision:ssdlite320_mobilenet_v3_large"
        )
    return found


def is_torchvision_detector(name: str) -> bool:
    """Whether torchvision has a detector of this name."""
    import torchvision

    return name in torchvision.models.list_models(module=torchvision.models.detection)


def torchvision_detector(name: str, num_classes: int, options: dict[str, Any]) -> Detector:
    """One of torchvision's detectors with random weights, for so many classes.

    Args:
        name: as torchvision has it.
        num_classes: of the data, without a background.
        options: passed on; ``pretrained`` downloads weights, of which those of heads of other classes are left out.

    Raises:
        UserError: for detectors of masks and keypoints.
    """
    import torchvision

    family = family_of(name)
    pretrained = options.pop("pretrained", False)
    given = {"weights": None, "weights_backbone": None, "num_classes": num_classes + family.background}
    net = torchvision.models.get_model(name, **options, **given)
    if pretrained:
        fill(net, torchvision.models.get_model_weights(name).DEFAULT)
    return Detector(net, family.background, family.heads)


@torch.no_grad()
def fill(net: nn.Module, weights: Any) -> None:
    """Puts torchvision's downloaded weights into a network; tensors of other names or shapes stay fresh."""
    saved = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    own = net.state_dict()
    net.load_state_dict({k: v for k, v in saved.items() if k in own and own[k].shape == v.shape}, strict=False)
