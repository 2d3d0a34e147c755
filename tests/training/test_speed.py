"""The latency table of a run: measured once, kept, and what whole models take."""

import json

import pytest
import torch
from torch import nn

import fixed_latency
import tiny_recipe as tiny
from regrow import UserError
from regrow.latency.table import LatencyTable
from regrow.training import loop, run
from regrow.training import speed as latency
from regrow.training.progress import Interrupted
from regrow.training.recipe import load

WORDS = [*tiny.CHANNELS[:2], "--pattern.latency", "0.9", *tiny.CHANNELS[4:], "--train.latency_batch", "16"]


@pytest.fixture(autouse=True)
def fixed(monkeypatch):
    """Nothing is measured: what is tested is where a table comes from and goes to."""
    monkeypatch.setattr("regrow.profiling.profile", fixed_latency.profile)


def train(recipe, out, monkeypatch, stop_after=None, **options):
    with monkeypatch.context() as patch:
        if stop_after is not None:
            patch.setattr(loop.Trainer, "_stop_wanted", lambda self, stop: self.run.step == stop_after)
        return loop.train(recipe, out, quiet=True, **options)


def test_a_run_measures_once(tmp_path, monkeypatch):
    recipe, out = load(tiny.write(tmp_path), WORDS), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(recipe, out, monkeypatch, stop_after=7)  # in the middle of exploration
    table = LatencyTable.load(out / "latency.json")
    assert (table.batch, table.threads) == (16, 1)
    written = (out / "latency.json").read_bytes()
    monkeypatch.setattr(run, "table_of", lambda *a, **k: pytest.fail("measured again"))
    [entry] = train(recipe, out, monkeypatch, resume=True)["runs"]
    assert (out / "latency.json").read_bytes() == written
    assert entry["latency_batch"] == 16
    assert entry["latency_predicted"] <= 0.9 * table.model() * (1 + 1e-9)
    for record in json.loads((out / "structure.json").read_text())["history"]:
        assert record["latency"] <= 0.9 + 1e-9

    # with the table at hand, a run that is left alone is the same
    other = tmp_path / "other"
    other.mkdir()
    (other / "latency.json").write_bytes(written)
    train(recipe, other, monkeypatch, resume=True)
    assert (other / "model" / "model.safetensors").read_bytes() == (out / "model" / "model.safetensors").read_bytes()


def test_a_table_of_the_users(tmp_path, monkeypatch):
    recipe = load(tiny.write(tmp_path), WORDS)
    part = loop.Run(recipe, "x")
    part.table.save(tmp_path / "table.json")
    own = load(tiny.write(tmp_path), [*WORDS, "--pattern.table", str(tmp_path / "table.json")])
    monkeypatch.setattr("regrow.profiling.profile", lambda *a, **k: pytest.fail("measured again"))
    [entry] = train(own, tmp_path / "run", monkeypatch)["runs"]
    assert entry["latency_batch"] == 16
    assert not (tmp_path / "run" / "latency.json").exists()
    for content, message in (("{", "is not valid JSON"), ("{}", "is not a latency table")):
        (tmp_path / "table.json").write_text(content)
        with pytest.raises(UserError, match=message):
            train(own, tmp_path / "bad", monkeypatch)
    assert not (tmp_path / "bad").exists()


def test_a_table_beside_another_budget_says_how_models_are_timed(tmp_path, monkeypatch):
    part = loop.Run(load(tiny.write(tmp_path), WORDS), "x")
    part.table.save(tmp_path / "table.json")
    words = [*tiny.CHANNELS, "--pattern.table", str(tmp_path / "table.json")]
    [entry] = train(load(tiny.write(tmp_path), words), tmp_path / "run", monkeypatch)["runs"]
    assert entry["latency_batch"] == part.table.batch == 16
    assert entry["latency_predicted"] > 0


def test_who_needs_a_table(tmp_path):
    path = tiny.write(tmp_path)
    for words, needs in (
        ([], False),
        (tiny.CHANNELS, False),
        (WORDS, True),
        ([*WORDS, "--method.name", "dense"], False),
        ([*WORDS, "--pattern.table", "x.json"], False),
    ):
        assert latency.needs_table(load(path, words)) == needs


def test_whole_models_are_left_as_they_were():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small, large = latency.whole_models([model, nn.Sequential(*[nn.Conv2d(3, 3, 9) for _ in range(4)])],
                                        torch.randn(4, 3, 40, 40), threads=1)  # fmt: skip
    assert min(small, large) > 0
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
