"""Channels become zero in place, and afterwards everything is what it was, bit for bit."""

import pytest
import torch
from torch import nn

from regrow import names
from regrow.coupling.couple import couple
from regrow.coupling.shaken import Shaken
from regrow.coupling.trial import about_half

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network():
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 5))
    return nn.Sequential(*layers)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("own", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [None, torch.float64])
@pytest.mark.parametrize("shake", [True, False])
def test_masking_leaves_no_trace(form, own, kind, shake):
    model = network().to(memory_format=form)
    coupling = couple(model, X)
    model.to(own)
    before = {name: t.clone() for name, t in names.tensors(model).items()}
    shaken = Shaken(model, shake)
    whole = {name: t.clone() for name, t in names.tensors(shaken.copy(kind)).items()}
    keep = about_half(coupling.groups)
    for _ in range(2):
        with shaken.masked(coupling, keep, kind) as masked:
            tensors = names.tensors(masked)
            for name, dims in coupling.kept(keep, zeroed=True).items():
                for dim, mask in dims.items():
                    assert not tensors[name].index_select(dim, (~mask).nonzero().flatten()).any()
                assert tensors[name].dim() == 1 or tensors[name].any()
        for name, t in names.tensors(shaken.copy(kind)).items():
            assert torch.equal(t, whole[name])
            assert t.stride() == whole[name].stride()
    assert all(torch.equal(t, before[name]) for name, t in names.tensors(model).items())
    floats = {torch.float16: torch.float32}.get(own, own) if shake else own
    assert shaken.base[0].weight.dtype is floats
    assert shake is not torch.equal(shaken.base[0].weight.to(own), before["0.weight"])


def test_an_error_leaves_no_trace():
    model = network()
    coupling = couple(model, X)
    shaken = Shaken(model, True)
    whole = shaken.base[0].weight.clone()
    with pytest.raises(KeyError), shaken.masked(coupling, about_half(coupling.groups), None):
        raise KeyError
    assert torch.equal(shaken.base[0].weight, whole)
