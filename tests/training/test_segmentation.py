"""Segmentation by recipes: the metric, a run of the command line, resuming, and what is refused."""

import json
from types import SimpleNamespace

import pytest
import torch

from outcome import outcome
from regrow import UserError, storage
from regrow.cli import main
from regrow.data.named import load as load_data
from regrow.training import loop
from regrow.training.progress import Interrupted
from regrow.training.recipe import load
from regrow.training.tasks import segmentation
from regrow.zoo.models import build

TINY = """\
task: segmentation
model: {name: shapes-fcn, options: {width: 4}}
data: {name: "shapes-masks:30,size=32", batch_size: 6, val_fraction: 0.2}
steps: 12
method: {name: iee, h: 2, j: 1, q: 1}
pattern: {name: channels, flops: 0.6, round_to: 1}
criterion: taylor
optimizer: {name: sgd, lr: 0.05}
train: {log_every: 4, eval_every: 2, threads: 1, latency_batch: 2, latency_seconds: 1}
"""


def write(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path / "tiny.yaml"


def test_overlaps_by_hand():
    truth = torch.tensor([[[0, 0, 1, 255], [0, 0, 1, 1]]])
    found = torch.tensor([[[0, 1, 1, 2], [0, 0, 1, 2]]])
    counts = segmentation.confusion(found, truth, 4)
    assert counts.tolist() == [[3, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    # 3 of 4 pixels of class 0, 2 of 4 of class 1, none of one of class 2, which is only predicted; no class 3 at all
    assert segmentation.overlaps(counts) == {
        "accuracy": pytest.approx((3 / 4 + 2 / 4 + 0) / 3), "metric": "mIoU", "pixels": pytest.approx(5 / 7),
    }  # fmt: skip
    nothing = segmentation.overlaps(torch.zeros(3, 3, dtype=torch.int64))
    assert nothing == {"accuracy": 0.0, "metric": "mIoU", "pixels": 0.0}


def test_a_run_of_the_command_line(tmp_path):
    out = tmp_path / "run"
    assert main(["train", str(write(tmp_path)), "--out", str(out), "--quiet"]) == 0
    [run] = json.loads((out / "results.json").read_text())["runs"]
    assert run["metric"] == "mIoU"
    assert run["inference_flops"] <= 0.6 * run["dense_flops"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "mIoU" in page[page.index("<h1>") : page.index("</h1>")]
    model = storage.load(build("shapes-fcn", 4, width=4), out / "model")
    data = load_data("shapes-masks:30,size=32", batch_size=6)
    one = SimpleNamespace(reduce=lambda tensor, _: tensor)
    again = load(out / "recipe.yaml").task.evaluate(model, data.test.epoch(0), torch.device("cpu"), one)
    assert (again["accuracy"], again["pixels"]) == (pytest.approx(run["accuracy"]), pytest.approx(run["pixels"]))


def test_stopped_and_resumed_ends_the_same(tmp_path, monkeypatch):
    recipe, out = load(write(tmp_path), ["--train.eval_every", "0"]), tmp_path / "stopped"
    loop.train(recipe, tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_stop_wanted", lambda self, _: self.run.step == 7)
        with pytest.raises(Interrupted):
            loop.train(recipe, out, quiet=True)
    loop.train(recipe, out, resume=True, quiet=True)
    assert outcome(out) == outcome(tmp_path / "whole")


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large"])
def test_networks_of_torchvision_give_every_pixel_a_class(name):
    model = build(f"torchvision:{name}", 5, seed=0)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 5, 32, 32)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.name", "shapes:30"], "the data set 'shapes:30' is for detection, not segmentation"),
        (
            ["--model.name", "wrn10-1", "--model.options", "{}"],
            r"gives \(1, 4\) for one image, but a tensor \(",
        ),
        (["--model.name", "shapes-ssd", "--model.options", "{}"], "gives dict for one image, but a tensor"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, words, said):
    with pytest.raises(UserError, match=said):
        loop.train(load(write(tmp_path), words), tmp_path / "run", quiet=True)
