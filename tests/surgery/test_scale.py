"""Attention whose scale is held at a width."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regrow
from regrow.coupling.couple import couple
from regrow.errors import UserError
from regrow.surgery import resize, scale

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))


class Attention(nn.Module):
    """Of one head, with a scale of its own or that of the function."""

    def __init__(self, own: float | None = None) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), scale=self.own)


def net(own: float | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Attention(own), nn.Linear(8, 3)).eval()


def test_only_attention_without_a_scale_takes_it() -> None:
    for own, expected in ((None, 32**-0.5), (0.3, 0.3)):
        model = net(own)
        scale.hold(model[0], 32)
        scale.hold(model[0], 7)  # it is held already
        assert torch.equal(model(X), net(expected)(X))
        assert torch.equal(copy.deepcopy(model)(X), model(X))
        assert torch.equal(pickle.loads(pickle.dumps(model))(X), model(X))
        assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(X), model(X))
        scale.let_go(model[0])
        scale.let_go(model[0])
        assert torch.equal(model(X), net(own)(X))
        assert vars(model[0]).keys() == vars(net()[0]).keys()


def test_the_scale_is_put_back() -> None:
    model = net()
    scale.put_back(model[0], 32)
    assert model[0].regrow_scaled == 32
    scale.put_back(model[0], None)
    assert not scale.is_held(model[0])


def test_a_forward_that_somebody_has_replaced_stays() -> None:
    model = net()
    assert scale.can_hold(model[0])
    model[0].forward = model[0].forward
    assert not scale.can_hold(model[0])
    coupling = couple(model, X, heads="width")
    assert {group.id for group in coupling.groups} == {"0.v"}
    assert "computes something else" in coupling.dense["0.q.weight"]


def test_a_saved_scale_needs_a_module_that_can_have_it(tmp_path: Path) -> None:
    model = net()
    coupling = couple(model, X, heads="width")
    resize.compact(model, coupling, {group.id: torch.arange(group.size) < 5 for group in coupling.groups})
    regrow.save(model, tmp_path / "thin")
    assert model.regrow_thin["0"] == {"regrow_scaled": 8}
    assert torch.equal(regrow.load(net(), tmp_path / "thin")(X), model(X))
    other = net()
    other[0].forward = other[0].forward
    with pytest.raises(UserError, match="gives the module '0' a scale of attention that it cannot have"):
        regrow.load(other, tmp_path / "thin")
    assert other[0].q.out_features == 8
