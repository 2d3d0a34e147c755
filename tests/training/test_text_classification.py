"""Classifiers of texts by recipes: runs of the command line, resuming, saved networks, and what is refused."""

import json
from types import SimpleNamespace

import pytest
import torch

from outcome import outcome
from regrow import UserError
from regrow.cli import main
from regrow.tracing.flops import count_flops
from regrow.training import finished, loop
from regrow.training.progress import Interrupted
from regrow.training.recipe import load
from regrow.training.run import data_of
from regrow.zoo.models import example_input
from text_data import write_recipe

pytest.importorskip("transformers")

CHANNELS = ["--pattern", "{name: channels, flops: 0.7, round_to: 1}", "--criterion", "taylor"]
ALONE = SimpleNamespace(reduce=lambda tensor, _: tensor)


def accuracy_of(directory):
    """What the network in a run's directory reaches on the test texts of its recipe."""
    recipe = load(directory / "recipe.yaml")
    model = finished.read(directory).network()
    return recipe.task.evaluate(model, data_of(recipe).test.epoch(0), torch.device("cpu"), ALONE)["accuracy"]


def test_a_run_of_the_command_line_learns_at_exact_counts(tmp_path):
    out = tmp_path / "run"
    words = ["--pattern", "{name: nm, n: 2, m: 4}", "--steps", "72"]
    assert main(["train", str(write_recipe(tmp_path)), "--out", str(out), "--quiet", *words]) == 0
    [run] = json.loads((out / "results.json").read_text())["runs"]
    assert run["accuracy"] > 0.8  # chance is one half
    assert run["density"] == 0.5
    layers = json.loads((out / "structure.json").read_text())["layers"]
    assert len(layers) == 2 * 6 + 1  # embeddings are looked up, not multiplied with
    assert all(layer["active"] * 2 == layer["total"] for layer in layers)
    assert "metric" not in run
    assert accuracy_of(out) == run["accuracy"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "on texts that were held out of training" in page


def test_channels_meet_their_budget_and_the_saved_network_needs_no_other_file(tmp_path):
    out = tmp_path / "run"
    loop.train(load(write_recipe(tmp_path), CHANNELS), out, quiet=True)
    [run] = json.loads((out / "results.json").read_text())["runs"]
    assert run["throughput"] == pytest.approx(2 / run["latency"])
    assert run["model"]["name"] == "hf:bert"
    assert run["model"]["shape"] == [8]
    assert run["model"]["options"]["vocab_size"] == 22
    assert "tokenizer" not in run["model"]["options"]
    assert accuracy_of(out) == run["accuracy"]
    model = finished.read(out).network()
    assert count_flops(model, example_input(model, (8,))).total <= 0.7 * run["dense_flops"]
    assert sum(p.numel() for p in model.parameters()) == run["parameters"] < run["dense_parameters"]


@pytest.mark.parametrize("words", [[], CHANNELS], ids=["weights", "channels"])
def test_stopped_and_resumed_ends_the_same(tmp_path, monkeypatch, words):
    recipe, out = load(write_recipe(tmp_path), words), tmp_path / "stopped"
    loop.train(recipe, tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_stop_wanted", lambda self, _: self.run.step == 17)
        with pytest.raises(Interrupted):
            loop.train(recipe, out, quiet=True)
    loop.train(recipe, out, resume=True, quiet=True)
    assert outcome(out) == outcome(tmp_path / "whole")


def test_a_scan_counts_texts_and_measures_in_eval_mode(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--sparsities", "0.5", "--batches", "1", "--out", "scan.json", "--quiet"]
    assert main(["scan", str(write_recipe(tmp_path)), *words]) == 0
    found = json.loads((tmp_path / "scan.json").read_text())
    assert (found["examples"], len(found["layers"])) == (8, 13)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--train.recalibrate", "2"], "train.recalibrate does not apply to task: text-classification, as encoders"),
        (["--train.channels_last", "true"], "train.channels_last does not apply to task: text-classification"),
        (["--task", "classification"], "is for text-classification, not classification: say task: text-classification"),
        (["--data.name", "digits"], "the data set 'digits' is for classification, not text-classification"),
        (["--model", "{name: digits-cnn}"], "needs the tokenizer of its model: take model.name hf:PATH"),
        (["--task", "classification", "--data.name", "digits"], "models hf:PATH take texts, but the data are images"),
        (["--distill.teacher", "runs/dense"], "distill does not apply to task: text-classification: leave it out"),
        (["--data.pool", "2"], "pool=2 does not apply to the data set"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, words, said):
    path = write_recipe(tmp_path)
    if words[0] == "--model":  # the options of another model would be merged with these
        path.write_text(path.read_text().replace('name: "hf:bert"', "name: digits-cnn"))
        words = []
    with pytest.raises(UserError, match=said):
        loop.train(load(path, words), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
