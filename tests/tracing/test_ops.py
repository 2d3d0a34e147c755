"""The table of operations: that each name is one of torch's, stands in one family, and means what it should."""

import pytest
import torch
import torchvision  # noqa: F401, its operations

from regrow.coupling import following, rules  # noqa: F401, the first imports all rules
from regrow.tracing.ops import FAMILIES, family_of, is_free, is_pointwise

aten = torch.ops.aten


def overloads(name: str) -> list[torch._ops.OpOverload]:
    """Those of the operations that a name of the table stands for."""
    spaces = (aten, torch.ops.torchvision)
    spelled = (name, f"_{name}", f"{name}_", f"_{name}_")
    found = [getattr(space, spelling, None) for space in spaces for spelling in spelled]
    return [getattr(packet, overload) for packet in found if packet is not None for overload in packet.overloads()]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_is_an_operation_and_found(family):
    for name in FAMILIES[family].split():
        assert {family_of(op) for op in overloads(name)} == {family}, name


def test_no_name_stands_twice():
    names = " ".join(FAMILIES.values()).split()
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "free", [aten.relu.default, aten.relu_.default, aten.view.default, aten._softmax.default, aten.copy_.default]
)
def test_free(free):
    assert is_free(free)


@pytest.mark.parametrize(
    "costly",
    [
        aten.mm.default,
        aten._fft_r2c.default,
        aten.grid_sampler_2d.default,
        torch.ops.torchvision.roi_align.default,
        torch.ops.torchvision.deform_conv2d.default,
        len,
    ],
)
def test_not_free(costly):
    assert not is_free(costly)


@pytest.mark.parametrize(
    ("func", "rule"),
    [
        (aten.addmm.default, "product"),
        (aten.relu_.default, "elementwise"),  # by its tag
        (aten.uniform_.default, "elementwise"),
        (aten._native_batch_norm_legit_no_training.default, "batch_norm"),
        (torch.ops.torchvision.roi_align.default, "pool"),
        (torch.ops.torchvision.deform_conv2d.default, "deformable"),
        (aten.transpose_.default, "move"),
    ],
)
def test_rules_are_found_by_family(func, rule):
    assert rules.find(func).__name__ == rule


@pytest.mark.parametrize("func", [aten.linalg_inv_ex.default, torch.ops.torchvision.nms.default, len])
def test_what_is_not_known_has_no_rule(func):
    assert family_of(func) is None
    assert not is_pointwise(func)
    assert rules.find(func) is None
