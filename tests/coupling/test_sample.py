"""A fair sample of real models, each at small images: masked and thin compute the same.

`benchmarks/coverage.py` does the same with every model of torchvision and more than a hundred of timm.
"""

import pytest
import torch

from channel_models import build, scramble
from masked_and_thin import deviation, random_keep
from regrow.coupling.couple import couple

SAMPLE = {  # name → image size, coupled groups
    "tv:resnet18": (48, 12),
    "tv:mobilenet_v2": (64, 25),
    "tv:mobilenet_v3_small": (64, 27),
    "tv:efficientnet_b0": (48, 40),
    "tv:shufflenet_v2_x0_5": (64, 20),
    "tv:regnet_x_400mf": (48, 37),
    "tv:googlenet": (64, 61),
    "tv:squeezenet1_1": (64, 25),
    "densenet-small": (64, 10),
    "swin-small": (64, 8),
    "vgg": (32, 7),
    "mixer_s32_224": (64, 16),
    "vit_tiny_patch16_224": (32, 24),
    "convnext_atto": (64, 12),
    "mobilenetv1_100": (48, 14),
    "mobilenetv4_conv_small_035": (64, 21),
    "regnety_002": (48, 33),
    "resnest14d": (48, 19),
    "skresnet18": (48, 16),
    "ghostnet_050": (64, 31),
    "hgnet_tiny": (64, 33),
    "dla34": (64, 25),
    "lcnet_035": (64, 17),
}


def made(name, size):
    torch.manual_seed(0)
    if name == "vgg":  # the smallest of the libraries has 130 million parameters
        from timm.models.vgg import VGG

        return scramble(VGG([16, "M", 32, 32, "M", 64, "M", 16], num_classes=10, norm_layer=torch.nn.BatchNorm2d))
    return build(name, size)


# of each of their families there is another one here
LIKE_OTHERS = (
    "tv:mobilenet_v2", "tv:efficientnet_b0", "tv:regnet_x_400mf", "tv:squeezenet1_1", "mobilenetv1_100",
    "mobilenetv4_conv_small_035", "skresnet18", "hgnet_tiny", "lcnet_035",
)  # fmt: skip
FIRST = [pytest.param(name, marks=[pytest.mark.thorough] if name in LIKE_OTHERS else []) for name in SAMPLE]


@pytest.fixture(scope="module", params=FIRST)
def coupled(request):
    size, groups = SAMPLE[request.param]
    model, images = made(request.param, size), torch.randn(2, 3, size, size)
    coupling = couple(model, images[:1])
    return model.double(), coupling, images.double(), groups


def test_coupling_finds_groups(coupled):
    model, coupling, _, groups = coupled
    assert len(coupling.groups) == groups
    names = {part.name for group in coupling.groups for part in group.slices}
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert sum(n for name, n in sizes.items() if name in names) > 0.5 * sum(sizes.values())


# in double precision: in float32 a ReLU beside zero and the order of sums decide more than a wrong channel would
@pytest.mark.parametrize("steps", [0, 1])
def test_masked_is_thin(coupled, steps):
    model, coupling, images, _ = coupled
    keep = random_keep(coupling, 0.5, seed=steps)
    assert deviation(model, coupling, keep, (images,), steps=steps) < 1e-8


@pytest.mark.parametrize("name", ["tv:resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_to_1e_5_in_single_precision(name):
    model, images = made(name, 64), torch.randn(4, 3, 64, 64)
    coupling = couple(model, images[:1])
    keep = random_keep(coupling, 0.5)
    assert deviation(model, coupling, keep, (images,)) < 1e-5
    assert deviation(model, coupling, keep, (images,), steps=1, lr=1e-4) < 1e-5
