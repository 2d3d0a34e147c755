"""Names of modules, parameters and buffers, with and without compiled parts."""

import torch
from torch import nn

from regrow import names


def model() -> nn.Module:
    norm = nn.BatchNorm1d(3)
    net = nn.Sequential(nn.Linear(3, 3), nn.Sequential(norm, nn.Linear(3, 3)), nn.Linear(3, 3), norm)
    net[2].weight = net[0].weight
    return net


def test_compiled_parts_leave_no_mark():
    plain, compiled = model(), model()
    compiled[0] = torch.compile(compiled[0], backend="eager")
    compiled[1] = torch.compile(compiled[1], backend="eager")
    compiled = torch.compile(compiled, backend="eager")
    for every_name in (False, True):
        for read in (names.modules, names.parameters, names.buffers, names.tensors):
            assert list(read(compiled, every_name)) == list(read(plain, every_name))
    assert {name: type(m) for name, m in names.modules(compiled).items()} == {
        name: type(m) for name, m in plain.named_modules()
    }


def test_several_names():
    net = model()
    assert "2.weight" not in names.parameters(net)
    assert names.parameters(net, every_name=True)["2.weight"] is net[0].weight
    assert "3" not in names.modules(net)
    assert names.modules(net, every_name=True)["3"] is net[1][0]
    assert names.tensors(net).keys() == names.parameters(net).keys() | names.buffers(net).keys()


def test_canonical():
    assert names.canonical("_orig_mod.layer1._orig_mod.0.weight") == "layer1.0.weight"
    assert names.canonical("layer1._orig_mod") == "layer1"
    assert names.canonical("my_orig_mod.weight") == "my_orig_mod.weight"


def test_unwrap():
    net = model()
    assert names.unwrap(nn.DataParallel(torch.compile(net, backend="eager"))) is net
    assert names.unwrap(nn.DataParallel(net)) is net
