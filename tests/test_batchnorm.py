from __future__ import annotations

import pytest
import torch
from torch import nn

import regrow
from engine import network, same, snapshot


def test_statistics_are_those_of_the_batches_and_nothing_else_changes() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Conv2d(3, 2, 1))
    model.train()
    model[1].eval()
    with torch.no_grad():
        model[0].weight.fill_(2.0)
        model[0].running_mean.fill_(99)
    before = snapshot(model)
    data = [torch.randn(16, 3, 4, 4) for _ in range(6)]
    regrow.recalibrate(model, [(x, None) for x in data], batches=4)
    means = torch.stack([x.mean((0, 2, 3)) for x in data[:4]]).mean(0)
    variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in data[:4]]).mean(0)
    torch.testing.assert_close(model[0].running_mean, means)
    torch.testing.assert_close(model[0].running_var, variances)
    assert [m.training for m in model] == [True, False, True]
    assert model[0].momentum == 0.1
    after = snapshot(model)
    assert same(*[{k: v for k, v in s.items() if "running" not in k and "num" not in k} for s in (before, after)])


def test_an_empty_loader_keeps_the_old_statistics() -> None:
    model = network()
    model(torch.randn(4, 1, 6, 6))
    before = snapshot(model)
    with pytest.raises(regrow.UserError, match="no batch"):
        regrow.recalibrate(model, [])
    assert same(before, snapshot(model))


def test_batches_in_mappings_and_what_is_no_batch() -> None:
    data = torch.randn(16, 3, 4, 4)
    models = [nn.Sequential(nn.BatchNorm2d(3)) for _ in range(2)]
    regrow.recalibrate(models[0], [{"id": "a", "image": data, "label": torch.zeros(16)}])
    regrow.recalibrate(models[1], [data])
    assert same(*map(snapshot, models))
    for batch, kind in (({"id": "a"}, "dict"), (("x", data), "tuple"), ([], "list"), ("x", "str")):
        with pytest.raises(regrow.UserError, match=f"^the loader yielded a {kind} without a tensor"):
            regrow.recalibrate(models[0], [batch])
        assert same(*map(snapshot, models))
    with pytest.raises(regrow.UserError, match="batches is 0, but must be at least 1"):
        regrow.recalibrate(models[0], [data], batches=0)


def test_a_model_without_norms_is_left_alone() -> None:
    regrow.recalibrate(nn.Linear(2, 2), iter(()))
