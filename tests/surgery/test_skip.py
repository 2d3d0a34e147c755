"""Layers that are not run give what they would give if nothing came in and they added nothing."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import regrow
from channel_models import Residual
from regrow.coupling.couple import couple
from regrow.errors import UserError
from regrow.groups import Coupling
from regrow.surgery import resize, skip

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def removed(coupling: Coupling) -> dict[str, torch.Tensor]:
    members = coupling.blocks[0].members
    return {g.id: torch.full((g.size,), g.id not in members) for g in coupling.groups}


LAYERS = [
    (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    (nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 4, 11, 13)),
    (nn.Conv2d(4, 6, 3), (4, 11, 13)),
    (nn.Conv3d(4, 8, 2, groups=4), (1, 4, 3, 4, 5)),
    (nn.Conv2d(4, 6, (2, 3), padding="same", dilation=2), (2, 4, 7, 8)),
    (nn.Conv2d(4, 6, (2, 3), padding="valid", stride=2), (2, 4, 7, 8)),
    (nn.Linear(4, 6), (2, 7, 4)),
    (nn.BatchNorm2d(4), (2, 4, 3, 3)),
    (nn.LayerNorm(4), (2, 7, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_the_shape_is_that_of_the_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer = copy.deepcopy(layer)
    assert skip.can_skip(layer)
    expected = layer(torch.zeros(shape)).shape
    skip.skip(layer, skip.WIDE)
    out = layer(torch.zeros(shape))
    assert out.shape == expected
    assert not out.any()
    skip.run_again(layer)
    assert not skip.is_skipped(layer)
    assert vars(layer).keys() == vars(type(layer)(**_like(layer))).keys()


def _like(layer: nn.Module) -> dict[str, object]:
    if isinstance(layer, nn.Linear):
        return {"in_features": 1, "out_features": 1}
    if isinstance(layer, nn.BatchNorm2d):
        return {"num_features": 1}
    if isinstance(layer, nn.LayerNorm):
        return {"normalized_shape": 1}
    return {"in_channels": 1, "out_channels": 1, "kernel_size": 1}


def test_attention_is_skipped_with_its_own_projection() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8)
    skip.skip(layer, skip.WIDE)
    out, weights = layer(x, x, x, need_weights=False)
    assert weights is None
    assert out.shape == (2, 5, 8)
    assert not out.any()


def test_attention_that_is_called_by_names_has_the_shape_of_its_query() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    memory, x = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    skip.skip(layer, skip.WIDE)
    assert layer(key=memory, value=memory, query=x)[0].shape == (2, 5, 8)


def test_what_cannot_be_skipped() -> None:
    class Own(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    changed = nn.Linear(2, 2)
    changed.forward = changed.forward
    assert not any(map(skip.can_skip, [Own(2, 2), nn.ConvTranspose2d(2, 2, 1), changed]))
    skipped = nn.Linear(2, 2)
    skip.skip(skipped, skip.WIDE)
    assert skip.can_skip(skipped)


def test_what_a_skipped_layer_reads_has_gradients_of_zero() -> None:
    layer, x, memory = nn.MultiheadAttention(8, 2), torch.ones(2, 5, 8, requires_grad=True), torch.ones(2, 5, 8)
    memory.requires_grad_()
    skip.skip(layer, skip.WIDE)
    (layer(x, memory, memory)[0] + 1).square().sum().backward()
    assert x.grad is not None
    assert memory.grad is not None
    assert not x.grad.any()
    assert not memory.grad.any()
    for p in layer.parameters():  # they have entries, which nothing reads: so it is in the masked network
        assert p.grad is not None
        assert not p.grad.any()


def test_save_and_load_and_copies(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    coupling = couple(model, X, blocks=True)
    thin = resize.compact(model, coupling, removed(coupling))
    assert thin.regrow_thin["conv2"][skip.SKIPPED] == skip.WIDE
    expected = thin(X)
    for other in (copy.deepcopy(thin), pickle.loads(pickle.dumps(thin))):
        assert torch.equal(other(X), expected)
        assert other.conv2.forward.module is other.conv2
    regrow.save(thin, tmp_path / "thin")
    torch.manual_seed(1)
    loaded = regrow.load(Residual().eval(), tmp_path / "thin")
    assert torch.equal(loaded(X), expected)
    assert loaded.regrow_thin == thin.regrow_thin
    regrow.save(loaded, tmp_path / "again")
    assert torch.equal(regrow.load(Residual().eval(), tmp_path / "again")(X), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_model_that_skips_is_traced_with_its_gradients_on() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    coupling = couple(model, X, blocks=True)
    thin = resize.compact(model, coupling, removed(coupling))
    traced = torch.jit.trace(thin, X)  # which compares its graph with that of a second call, without gradients
    assert torch.equal(traced(X[:1]), thin(X[:1]))


def test_a_note_that_skips_what_is_no_layer_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Residual()
    coupling = couple(model, X, blocks=True)
    regrow.save(resize.compact(model, coupling, removed(coupling)), tmp_path / "thin")
    other = Residual()
    other.bn1 = nn.Module()
    other.bn1.register_parameter("weight", nn.Parameter(torch.ones(12)))
    with pytest.raises(UserError, match="no layer that can be skipped"):
        regrow.load(other, tmp_path / "thin")


def test_optimizer_state_waits_and_comes_back() -> None:
    torch.manual_seed(0)
    model = Residual()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    coupling = couple(model, X, blocks=True)
    model(X).square().mean().backward()
    optimizer.step()
    weight = model.conv1.weight
    value, second = weight.detach().clone(), optimizer.state[weight]["exp_avg_sq"].clone()
    remainder = resize.shrink(model, coupling, removed(coupling), optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    assert weight.numel() == 0
    resize.expand(model, remainder, optimizer)
    assert model.conv1.weight is weight
    assert torch.equal(weight, value)
    assert torch.equal(optimizer.state[weight]["exp_avg_sq"], second)
