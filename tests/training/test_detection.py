"""Detectors by recipes: the metric, what a run leaves and shows, resuming, the shipped recipes, and what is refused."""

import json
from types import SimpleNamespace

import pytest
import torch

import fixed_latency
from outcome import outcome
from regrow import UserError, extras, storage
from regrow.cli import main
from regrow.data.named import load as load_data
from regrow.training import loop
from regrow.training.progress import Interrupted
from regrow.training.recipe import differences, load
from regrow.training.tasks import TASKS, detection
from regrow.zoo.models import build

# a second's worth of every phase of IEE
TINY = """\
task: detection
model: {name: shapes-ssd, options: {width: 4, size: 32}}
data: {name: "shapes:30,size=32", batch_size: 6, val_fraction: 0.2}
steps: 12
method: {name: iee, h: 2, j: 1, q: 1}
pattern: {sparsity: 0.5, distribution: erk}
optimizer: {name: sgd, lr: 0.01}
train: {log_every: 4, eval_every: 2, threads: 1, clip_norm: 5}
"""
CHANNELS = ["--pattern.name", "channels", "--pattern.flops", "0.7", "--pattern.round_to", "1", "--criterion", "taylor",
            "--train.latency_seconds", "1", "--train.latency_batch", "2"]  # fmt: skip


def write(tmp_path, extra=""):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY + extra)
    return path


def found_of(*boxes):
    """Boxes as (x1, y1, x2, y2, label, score)."""
    return {
        "boxes": torch.tensor([box[:4] for box in boxes], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([box[4] for box in boxes], dtype=torch.int64),
        "scores": torch.tensor([box[5] for box in boxes], dtype=torch.float32),
    }


def there(*boxes):
    """Boxes as (x1, y1, x2, y2, label, ignored)."""
    found = found_of(*boxes)
    return {"boxes": found["boxes"], "labels": found["labels"], "ignored": found["scores"].bool()}


TWO = there((0, 0, 10, 10, 0, 0), (20, 20, 30, 30, 0, 0))
EXACT, ELSEWHERE = (0, 0, 10, 10, 0, 0.9), (50, 50, 60, 60, 0, 0.8)
HALF = 51 / 101  # the mean precision where half is found, at recalls of 0, 0.01, …, 1


@pytest.mark.parametrize(
    ("found", "truth", "mean", "at_half"),
    [
        # one of two is found, which is right at any overlap; what is elsewhere comes after it
        ([EXACT, ELSEWHERE], TWO, HALF, HALF),
        # the second overlaps by 0.72: it counts at 0.50 to 0.70, five of ten
        ([EXACT, (20, 20, 30, 27.2, 0, 0.8)], TWO, (5 + 5 * HALF) / 10, 1.0),
        # what is wrong comes first, so that precision is half where one is found, and two thirds where both are
        ([(*ELSEWHERE[:5], 0.95), EXACT, (20, 20, 30, 30, 0, 0.5)], TWO, 2 / 3, 2 / 3),
        # of another class: nothing is found of class 0, and nothing is there of class 1
        ([(0, 0, 10, 10, 1, 0.9)], TWO, 0.0, 0.0),
        # what is ignored counts neither as found nor as missed
        ([(20, 20, 30, 30, 0, 0.95), EXACT], there((0, 0, 10, 10, 0, 0), (20, 20, 30, 30, 0, 1)), 1.0, 1.0),
        ([EXACT], there((0, 0, 10, 10, 0, 0), (20, 20, 30, 30, 0, 1)), 1.0, 1.0),
        # the mean over two classes, one found and one not
        ([EXACT], there((0, 0, 10, 10, 0, 0), (20, 20, 30, 30, 1, 0)), 0.5, 0.5),
        ([], TWO, 0.0, 0.0),
        ([EXACT], there(), 0.0, 0.0),
    ],
)
def test_average_precision_by_hand(found, truth, mean, at_half):
    result = detection.average_precision([found_of(*found)], [truth])
    assert result == {"accuracy": pytest.approx(mean, abs=1e-6), "metric": "mAP", "mAP50": pytest.approx(at_half)}


def test_what_all_processes_have_found_is_judged_together():
    """Tables of two processes with different numbers of images and boxes, gathered as Accelerate gathers them."""
    parts = [
        ([found_of(EXACT), found_of()], [TWO, there()]),
        ([found_of((20, 20, 30, 27.2, 1, 0.8), ELSEWHERE)], [there((20, 20, 30, 30, 1, 1))]),
    ]
    sent: list[list[torch.Tensor]] = [[], []]

    def process(rank, answers):
        def gather(rows):
            sent[rank].append(rows)
            return answers[len(sent[rank]) - 1] if answers else rows.repeat(2, *[1] * (rows.dim() - 1))

        def padded(rows, dim, pad_index):
            return torch.nn.functional.pad(rows, (0, 0, 0, 8 - len(rows)), value=pad_index)

        return SimpleNamespace(num_processes=2, process_index=rank, device=torch.device("cpu"), gather=gather,
                               pad_across_processes=padded)  # fmt: skip

    counts = torch.tensor([2, 1])
    for rank, (found, truth) in enumerate(parts):  # what each sends, once it knows how many images the others have
        detection.together(found, truth, process(rank, [counts, torch.zeros(0, 7), torch.zeros(0, 7)]))
    answers = [counts, *(torch.cat([sent[0][k], sent[1][k]]) for k in (1, 2))]
    sent[:] = [[], []]
    for rank, (found, truth) in enumerate(parts):
        merged = detection.together(found, truth, process(rank, answers))
        for got, expected in zip(merged, zip(*parts, strict=True), strict=True):
            for one, other in zip(got, [*expected[0], *expected[1]], strict=True):
                assert one.keys() == other.keys()
                assert all(torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in one)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of the command line, of channels."""
    tmp_path = tmp_path_factory.mktemp("detection")
    words = ["train", str(write(tmp_path)), "--out", str(tmp_path / "run"), "--steps", "8", *CHANNELS]
    assert main([*words, "--quiet"]) == 0
    return tmp_path / "run"


def test_a_run_says_what_it_is_judged_by(run_dir):
    results = json.loads((run_dir / "results.json").read_text())
    [run] = results["runs"]
    assert run["metric"] == results["summary"][0]["metric"] == "mAP"
    assert 0 <= run["accuracy"] <= run["mAP50"] <= 1
    assert results["recipe"]["task"] == "detection"
    assert 0 < run["latency"] < 10
    assert run["inference_flops"] <= 0.7 * run["dense_flops"]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    judged = [line for line in lines if "accuracy" in line]
    assert [line["split"] for line in judged][-2:] == ["val", "test"]
    assert all(line["metric"] == "mAP" and "mAP50" in line for line in judged)


def test_what_is_saved_is_what_was_measured(run_dir):
    recipe = load(run_dir / "recipe.yaml")
    model = storage.load(build("shapes-ssd", 3, width=4, size=32), run_dir / "model")
    data = load_data("shapes:30,size=32", batch_size=6)
    one = SimpleNamespace(num_processes=1)
    again = recipe.task.evaluate(model, data.test.epoch(0), torch.device("cpu"), one)
    [run] = json.loads((run_dir / "results.json").read_text())["runs"]
    assert again == {key: pytest.approx(run[key]) if key != "metric" else "mAP" for key in again}
    assert model.training


def test_the_page_shows_what_is_found(run_dir):
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "mAP" in page[page.index("<h1>") : page.index("</h1>")]
    assert 'aria-label="Found: ' in page
    assert "data:image/png;base64," in page
    assert "chance" not in page[page.index("<h1>") : page.index("<main>")]
    pictures = json.loads((run_dir / "pictures.json").read_text())
    assert (pictures["split"], pictures["classes"]) == ("val", ["circle", "square", "triangle"])
    assert all(picture["truth"] for picture in pictures["images"])


def test_booked_costs_are_those_that_are_planned(tmp_path):
    from regrow.plan import planned_cost
    from regrow.training.run import Run, method_of

    recipe = load(write(tmp_path))
    run = Run(recipe, "iee")
    counts = recipe.pattern.counts(run.model, run.example)
    planned = planned_cost(*method_of(recipe), counts, run.flops, run.total_steps) / run.total_steps
    [found] = loop.train(recipe, tmp_path / "run", quiet=True)["runs"]
    assert found["training_cost"] == pytest.approx(planned, rel=1e-6)


@pytest.mark.parametrize(("extra", "stop"), [([], 3), (CHANNELS, 7)])
def test_stopped_and_resumed_ends_the_same(tmp_path, monkeypatch, extra, stop):
    recipe = load(write(tmp_path), [*extra, "--train.eval_every", "0", "--train.recalibrate", "2"])
    loop.train(recipe, tmp_path / "whole", quiet=True)
    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_stop_wanted", lambda self, _: self.run.step == stop)
        with pytest.raises(Interrupted):
            loop.train(recipe, out, quiet=True)
    loop.train(recipe, out, resume=True, quiet=True)
    assert outcome(out) == outcome(tmp_path / "whole")


def test_the_latency_is_all_that_differs_between_the_recipes_of_voc():
    pair = [load(f"voc-ssd512-resnet50-latency{share}") for share in (50, 30)]
    assert list(differences(*(one.resolved() for one in pair))) == ["pattern.latency"]
    assert [one.pattern.latency for one in pair] == [0.5, 0.3]
    assert all("halp" in one.compare for one in pair)


def test_a_large_recipe_runs(tmp_path, monkeypatch):
    """A few steps of everything the recipe asks for, on generated images and with short phases."""
    monkeypatch.setattr("regrow.profiling.profile", fixed_latency.profile)
    words = ["--steps", "4", "--data.name", "shapes:8,size=32", "--data.batch_size", "2", "--data.val_fraction", "0.2"]
    words += ["--method.h", "1", "--method.j", "1", "--method.q", "1", "--train.threads", "1"]
    words += ["--train.latency_batch", "1", "--train.eval_every", "0", "--schedule.warmup", "0.05"]
    words += ["--model.options", "{size: 64}", "--train.precision", "fp32"]
    recipe = load("voc-ssd512-resnet50-latency50", words)
    [found] = loop.train(recipe, tmp_path / "run", quiet=True)["runs"]
    assert found["metric"] == "mAP"
    assert 0 < found["density"] < 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "detecting"], "unknown task 'detecting'; did you mean 'detection'"),
        (["--task", "classification"], "the data set 'shapes:30,size=32' is for detection, not classification"),
        (["--data.name", "generated:3x32x32:3:20"], "is for classification, not detection: say task: classification"),
        (["--model.name", "wrn10-1", "--model.options", "{}"], "the model 'wrn10-1' is no detector"),
        (["--train.label_smoothing", "0.1"], "train.label_smoothing does not apply to task: detection"),
        (["--train.compile", "true"], "train.compile does not apply to task: detection"),
        (["--train.channels_last", "true"], "train.channels_last does not apply to task: detection"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, words, said):
    with pytest.raises(UserError, match=said):
        loop.train(load(write(tmp_path), words), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_without_its_packages_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(extras, "_is_installed", lambda package: package != "faster_coco_eval")
    with pytest.raises(
        UserError, match=r"task: detection needs .*\(faster_coco_eval\): pip install 'regrow\[detection"
    ):
        TASKS["detection"].check(load("shapes-ssd-iee").train)
