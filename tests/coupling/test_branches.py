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


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "basic": (lambda: scramble(ResNet(BasicBlock, [2, 1, 1, 1], num_classes=10)), 5),
    "tv:mobilenet_v3_small": (lambda: build("tv:mobilenet_v3_small", 32), 6),
    "bottleneck": (bottleneck, 5),
    "inverted": (lambda: scramble(MobileNetV2(10, 0.25, [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]])), 2),
    "transformer": (vision_transformer, 2),
    "convnext": (convnext, 3),
    "wrn22-2": (lambda: scramble(built_in("wrn22-2", 10)), 9),
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
    pairs = blocks_of(model, Inputs.of(IMAGES), groups, math.inf)
    inner = [name for block, _ in pairs for name in block.inner]
    assert len(set(inner)) == len(inner)
    assert [group.id for _, group in pairs] == [block.id for block, _ in pairs]
    assert all(group.size == 1 and len({g.name for g in group.slices}) == len(group.slices) for _, group in pairs)
