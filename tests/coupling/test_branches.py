"""Branches of residual sums that may go whole: which are found, and what the model computes without them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ConvNeXt, MobileNetV2, ResNet, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock, Bottleneck

from channel_models import Residual, build, scramble
from regrow.coupling.branches import blocks_of
from regrow.coupling.couple import couple
from regrow.errors import UserError
from regrow.groups import Coupling
from regrow.inputs import Inputs
from regrow.surgery import resize
from regrow.zoo.models import build as built_in

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Gated(nn.Module):
    """A block whose branch also scales the sum afterwards, a hidden layer, and one of a user's own class."""

    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 8)
        self.read, self.inner = nn.Linear(8, 12), nn.Linear(12, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8, bias=False)
        self.wide, self.own = nn.Linear(8, 6), self.Own(6, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        branch = self.inner(self.read(x).relu())
        x = (x + branch) * branch.sigmoid()
        x = x + self.down(self.up(x).relu_())
        x = x + self.own(self.wide(x).relu())
        return self.head(x)


def gone(coupling: Coupling, names: list[str]) -> dict[str, Tensor]:
    """Masks without these blocks."""
    members = {member for block in coupling.blocks if block.id in names for member in block.members}
    return {g.id: torch.full((g.size,), g.id not in members) for g in coupling.groups}


def bottleneck() -> nn.Module:
    return scramble(ResNet(Bottleneck, [1, 2, 1, 1], num_classes=10, width_per_group=16))


def vision_transformer() -> nn.Module:
    return scramble(VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=10))


def convnext() -> nn.Module:
    return scramble(ConvNeXt([CNBlockConfig(16, 24, 2), CNBlockConfig(24, None, 1)], num_classes=10))


def layers(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(*middle[:1], nn.Conv2d(8, 12, 1), nn.ReLU(inplace=True), nn.Conv2d(12, 8, 1), *middle[1:])


class Branched(nn.Module):
    """An identity beside one branch."""

    branch: Callable[[Tensor], Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((x + self.branch(x)).mean((2, 3)))


class Own(Branched):
    class Norm(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.movedim(1, -1)).movedim(-1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.branch = layers(self.Norm(8), self.Norm(8))


class Viewed(Branched):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.scale = layers(nn.Identity()), nn.Parameter(torch.ones(8))

    def branch(self, x: Tensor) -> Tensor:
        return self.f(x).mul(self.scale.reshape(1, -1, 1, 1))


class Squeezed(Branched):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.down, self.up = layers(nn.BatchNorm2d(8), nn.BatchNorm2d(8)), nn.Linear(8, 4), nn.Linear(4, 8)

    def branch(self, x: Tensor) -> Tensor:
        x = self.f(x)
        return x * self.up(self.down(x.mean((2, 3))).relu()).sigmoid()[..., None, None]


class Depthwise(Branched):
    def __init__(self) -> None:
        super().__init__()
        wide = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.branch = layers(wide)


class Unscaled(Branched):
    def __init__(self) -> None:
        super().__init__()
        self.branch = layers(nn.BatchNorm2d(8, affine=False), nn.BatchNorm2d(8, affine=False))


class Cubic(Branched):
    def __init__(self) -> None:
        super().__init__()
        self.branch = layers(nn.LayerNorm((8, 8, 8)), nn.LayerNorm((8, 8, 8)))


def branched(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return scramble({c.__name__: c for c in Branched.__subclasses__()}[kind]())


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "basic": (lambda: scramble(ResNet(BasicBlock, [2, 1, 1, 1], num_classes=10)), 5),
    "tv:mobilenet_v3_small": (lambda: build("tv:mobilenet_v3_small", 32), 6),
    "bottleneck": (bottleneck, 5),
    "inverted": (lambda: scramble(MobileNetV2(10, 0.25, [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]])), 2),
    "transformer": (vision_transformer, 2),
    "convnext": (convnext, 3),
    "wrn22-2": (lambda: scramble(built_in("wrn22-2", 10)), 9),
    "own-norms": (lambda: branched("Own"), 1),
    "scaled-by-a-view": (lambda: branched("Viewed"), 1),
    "squeezed-behind-its-norm": (lambda: branched("Squeezed"), 1),
    "behind-a-depthwise-layer": (lambda: branched("Depthwise"), 1),
    "a-norm-of-no-parameters": (lambda: branched("Unscaled"), 1),
    "a-norm-of-three-dimensions": (lambda: branched("Cubic"), 1),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_half_of_its_blocks_computes_what_it_does_with_them_at_zero(name: str) -> None:
    make, count = MODELS[name]
    model = make().double()
    x = IMAGES.double()
    coupling = couple(model, x, blocks=True)
    assert len(coupling.blocks) == count
    assert not coupling.whole
    keep = gone(coupling, [block.id for block in coupling.blocks[::2]])
    masked, thin = copy.deepcopy(model), copy.deepcopy(model)
    resize.zero(masked, coupling, keep)
    remainder = resize.shrink(thin, coupling, keep)
    parts = [part.name for b in coupling.blocks[::2] for member in b.members for part in coupling[member].slices]
    held = dict(thin.named_parameters())
    assert all(not held[part].numel() for part in parts if part in held)
    for train in (False, True):
        torch.manual_seed(0)
        expected = masked.train(train)(x)
        torch.manual_seed(0)
        found = thin.train(train)(x)
        for out in (expected, found):
            out.sum().backward()
        assert all(p.grad is not None for p in (*masked.parameters(), *thin.parameters()))
        assert float((found - expected).detach().abs().max()) <= 1e-12 * float(expected.detach().abs().max())
    resize.expand(thin, remainder)
    assert all(torch.equal(a, b) for a, b in zip(thin.parameters(), model.parameters(), strict=True))
    assert [type(m) for m in thin.modules()] == [type(m) for m in model.modules()]
    assert not any("forward" in vars(m) for m in thin.modules())
    plain = model.eval()(x)
    thin.load_state_dict(model.state_dict())
    assert torch.equal(thin.eval()(x), plain)


def test_what_of_a_branch_goes() -> None:
    model = Residual()
    (block,) = couple(model, torch.randn(2, 3, 8, 8), blocks=True).blocks
    assert block.id == "block"
    assert block.inner == ("conv1",)
    assert block.skips == ("conv1", "bn1", "conv2", "bn2")
    assert block.ending == ("bn2.weight", "bn2.bias")


def test_what_is_read_outside_of_a_branch_or_computes_more_is_no_block() -> None:
    model = scramble(Gated())
    coupling = couple(model, torch.randn(4, 3), blocks=True)
    assert [(block.inner, block.skips) for block in coupling.blocks] == [(("up",), ("up", "down"))]
    assert coupling.blocks[0].ending == ("down.weight",)
    assert coupling.whole == {"block#2": "what own (Own) does with 'bias' where no channels are left is not known"}


def test_a_block_that_fails_on_trial_stays_and_is_named() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.up, self.down, self.head = (
                nn.Linear(3, 8),
                nn.Linear(8, 8),
                nn.Linear(8, 8),
                nn.Linear(8, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            hidden = self.up(x).relu()
            assert hidden.shape[1] > 0, "nothing is left"
            return self.head(x + self.down(hidden))

    coupling = couple(Scaled(), torch.randn(4, 3), blocks=True)
    assert not coupling.blocks
    assert "up" in coupling.ids
    assert "nothing is left" in coupling.whole["block"]
    assert coupling.ids == couple(Scaled(), torch.randn(4, 3)).ids


class Parts(nn.Module):
    """Sums of what stands in `sides` (of pairs of layers, or of a number for the identity)."""

    def __init__(self, *sides: nn.Module | None, table: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 8), nn.Linear(8, 5)
        self.sides = nn.ModuleList([side or nn.Identity() for side in sides])
        self.table = nn.Parameter(torch.ones(4, 8)) if table else 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(sum(side(x) for side in self.sides) + self.table)


def pair(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 8))


def test_something_of_the_inputs_always_comes_through() -> None:
    def inner(model: nn.Module) -> list[tuple[str, ...]]:
        return [block.inner for block in couple(model, torch.randn(4, 3), blocks=True).blocks]

    assert inner(Parts(pair(6), pair(7), None)) == [("sides.0.0",), ("sides.1.0",)]
    assert inner(Parts(pair(6), pair(7))) == [("sides.0.0",)]
    assert inner(Parts(pair(6), pair(7), pair(9))) == [("sides.0.0",), ("sides.1.0",)]
    assert inner(Parts(pair(6), table=True)) == []  # as a stem before what is learned for each place


def test_a_branch_with_a_layer_that_is_forbidden_stays() -> None:
    def found(*forbid: str) -> list[str]:
        model = Parts(pair(6), None, pair(7))
        coupling = couple(model, torch.randn(4, 3), blocks=True, forbid=forbid)
        assert not coupling.whole
        return [name for block in coupling.blocks for name in block.inner]

    assert found() == ["sides.0.0", "sides.2.0"]
    assert found("stem") == found()
    assert found("sides.0.2") == ["sides.2.0"]  # its outputs are those of the sum
    assert found("sides.0.2.bias") == ["sides.2.0"]
    assert found("sides.?.2") == []


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.parametrize("of", [0, 2])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_weight_that_is_normalised_is_never_left_without_channels(norm: Callable[..., nn.Module], of: int) -> None:
    side = pair(6)
    norm(side[of])  # of no channels, torch's own operation ends the process
    coupling = couple(Parts(side, None), torch.randn(4, 3), blocks=True)
    assert not coupling.blocks
    assert "where no channels are left is not known" in coupling.whole["block"]


def test_masks_take_a_block_whole_or_not_at_all() -> None:
    model = Residual()
    coupling = couple(model, torch.randn(2, 3, 8, 8), blocks=True)
    nothing, one = torch.zeros(12, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)
    with pytest.raises(UserError, match="'conv1' would lose all its channels, and 'block' of the same block would not"):
        coupling.check_keep({"conv1": nothing})
    with pytest.raises(UserError, match="'block' would lose all its channels, and 'conv1'"):
        coupling.check_keep({"block": one, "conv1": torch.ones(12, dtype=torch.bool)})
    with pytest.raises(UserError, match="'stem' would lose all its channels; keep at least one"):
        coupling.check_keep({"stem": torch.zeros(8, dtype=torch.bool)})
    coupling.check_keep({"block": one, "conv1": nothing})
    assert coupling.gone({"block": one, "conv1": nothing}) == coupling.blocks
    assert coupling.gone({"block": one}) == coupling.gone({"conv1": nothing}) == ()


def test_no_group_lies_in_two_blocks() -> None:
    model = bottleneck()
    groups = couple(model, IMAGES).groups
    pairs, whole = blocks_of(model, Inputs.of(IMAGES), groups, math.inf)
    assert not whole
    inner = [name for block, _ in pairs for name in block.inner]
    assert len(set(inner)) == len(inner)
    assert [group.id for _, group in pairs] == [block.id for block, _ in pairs]
    assert all(group.size == 1 and len({g.name for g in group.slices}) == len(group.slices) for _, group in pairs)
