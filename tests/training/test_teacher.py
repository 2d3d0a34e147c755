"""Distillation: the teacher's share of the loss by hand, what it costs, and what it refuses."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch

import tiny_recipe as tiny
from outcome import outcome
from regrow import UserError, storage
from regrow.commands.compare import carry_out
from regrow.cost import training_cost
from regrow.training import loop
from regrow.training.progress import Interrupted
from regrow.training.recipe import load
from regrow.training.run import Run
from regrow.training.stepping import train_step

WORDS = ["--data.val_fraction", "0.1"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished dense run."""
    place = tmp_path_factory.mktemp("teacher")
    loop.train(load(tiny.write(place), [*WORDS, "--method.name", "dense"]), place / "dense", quiet=True)
    return place / "dense"


def taught(dense: Path, *words: str) -> list[str]:
    return [*WORDS, "--distill.teacher", str(dense), *words]


def test_the_share_of_the_teacher_by_hand(dense: Path, tmp_path: Path) -> None:
    run = Run(load(tiny.write(tmp_path), taught(dense, "--distill.weight", "0.25", "--distill.temperature", "2")), "x")
    assert run.teacher is not None
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(1))
    found = run.teacher.taught(torch.tensor(2.0), logits, images, contextlib.nullcontext())
    with torch.no_grad():
        wanted = torch.softmax(run.teacher.network(images) / 2, 1)
    mine = torch.softmax(logits / 2, 1)
    divergence = sum(
        float(p * torch.log(p / q))
        for row, other in zip(wanted, mine, strict=True)
        for p, q in zip(row, other, strict=True)
    )
    assert float(found) == pytest.approx(0.75 * 2.0 + 0.25 * 4 * divergence / 3, rel=1e-5)


def test_the_teacher_stays_as_it_is_and_takes_no_gradient(dense: Path, tmp_path: Path) -> None:
    run = Run(load(tiny.write(tmp_path), taught(dense)), "x")
    assert run.teacher is not None
    saved = storage.load(run.teacher.network.__class__(10, 1, width=4), dense / "model").state_dict()
    batches = run.stream.starting_at(0)
    for _ in range(3):
        train_step(run, batches)
    assert not run.teacher.network.training
    for name, value in run.teacher.network.state_dict().items():
        assert torch.equal(value, saved[name])
    assert all(p.grad is None and not p.requires_grad for p in run.teacher.network.parameters())


def test_a_student_that_is_its_teacher_learns_from_labels_alone(dense: Path, tmp_path: Path) -> None:
    """Its divergence is zero, and so is the gradient of it."""
    words = ["--method.name", "dense", "--model.weights", str(dense)]
    run = Run(load(tiny.write(tmp_path), taught(dense, "--distill.weight", "1", *words)), "x")
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = run.model.eval()(images)
    loss = run.teach(torch.tensor(3.0), logits, images)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    [gradient] = torch.autograd.grad(loss, logits)
    assert float(gradient.abs().max()) < 1e-6


def test_forward_passes_of_the_teacher_are_in_the_cost(dense: Path, tmp_path: Path) -> None:
    [found] = loop.train(load(tiny.write(tmp_path), taught(dense)), tmp_path / "run", quiet=True)["runs"]
    assert found["by_phase"]["teacher"] == pytest.approx(1 / 3)  # the same network: one forward pass of three
    assert found["training_cost"] == pytest.approx(sum(found["by_phase"].values()))
    run = Run(load(tmp_path / "run" / "recipe.yaml"), "x")
    assert training_cost(run.flops, run.sparsifier.ledger, 30)["total"] == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["cost"] == pytest.approx(found["training_cost"])
    assert "teacher" in (tmp_path / "run" / "structure.json").read_text()


def test_stopped_and_resumed_ends_the_same(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load(tiny.write(tmp_path), taught(dense))
    loop.train(recipe, tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_stop_wanted", lambda self, stop: self.run.step == 7)
        with pytest.raises(Interrupted):
            loop.train(recipe, tmp_path / "run", quiet=True)
    loop.train(recipe, tmp_path / "run", quiet=True, resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    with pytest.raises(UserError, match=r"^distill.weight differs from the recipe that"):
        loop.train(load(tiny.write(tmp_path), taught(dense, "--distill.weight", "0.1")), tmp_path / "run", resume=True)


def test_channels_learn_thin(dense: Path, tmp_path: Path) -> None:
    """The teacher stays wide while the student changes its shapes."""
    place = tmp_path / "wide"
    wide = load(tiny.write(tmp_path), [*WORDS, "--method.name", "dense", "--model.options.width", "8"])
    loop.train(wide, place, quiet=True)
    recipe = load(tiny.write(tmp_path), taught(place, *tiny.CHANNELS))
    [found] = loop.train(recipe, tmp_path / "run", quiet=True)["runs"]
    assert found["inference_flops"] <= 0.4 * found["dense_flops"]
    assert found["by_phase"]["teacher"] == pytest.approx(1 / 3)


def test_a_comparison_of_taught_and_not(dense: Path, tmp_path: Path) -> None:
    extra = f"compare: {{taught: {{name: static, recipe: {{distill: {{teacher: {dense}}}}}}}}}\n"
    recipe = load(tiny.write(tmp_path, extra), WORDS)
    assert carry_out(recipe, tmp_path / "out", ["taught", "static"], [0], quiet=True, jobs=1) == 0
    runs = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    assert [("teacher" in run["by_phase"], run["label"]) for run in runs] == [(True, "taught"), (False, "static")]
    with pytest.raises(UserError, match=r"--match cost does not count the forward passes of distill\.teacher"):
        carry_out(recipe, tmp_path / "cost", ["taught", "static"], [0], match="cost", quiet=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--distill.teacher", "nowhere"], "distill.teacher: nowhere is no run directory"),
        (["--distill.weight", "0.5"], "distill.teacher is missing: give text"),
        (["--distill.teacher", "DENSE", "--distill.weight", "0"], "distill.weight"),
        (["--distill.teacher", "DENSE", "--distill.temperature", "-1"], "distill.temperature"),
        (["--distill.teacher", "DENSE", "--distill.strength", "1"], "unknown key"),
        (
            ["--distill.teacher", "DENSE", "--data.name", "generated:1x8x8:9:160"],
            "is of classes 10, but the data has 9",
        ),
        (
            ["--distill.teacher", "DENSE", "--data.name", "generated:1x9x9:10:160"],
            "is of images of (channels, height, width) [1, 8, 8], but the data has [1, 9, 9]",
        ),
        (
            ["--distill.teacher", "DENSE", "--data.val_fraction", "0.3"],
            "are normalised by another mean than this data's: train it on the same data",
        ),
        (["--distill", "DENSE"], "distill is"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(dense: Path, tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        loop.train(
            load(tiny.write(tmp_path), [*WORDS, *(word.replace("DENSE", str(dense)) for word in words)]),
            tmp_path / "run", quiet=True,
        )  # fmt: skip
    assert said in str(error.value)
    assert not (tmp_path / "run").exists()


def test_tasks_without_teachers_say_so(dense: Path, tmp_path: Path) -> None:
    words = [
        "--distill.teacher",
        str(dense),
        "--steps",
        "2",
        "--data.name",
        "shapes:8,size=32",
        "--data.batch_size",
        "2",
    ]
    with pytest.raises(UserError, match="distill does not apply to task: detection: leave it out"):
        Run(load("shapes-ssd-dense", words), "x")


def test_a_teacher_that_foreign_code_builds_is_refused_unless_the_recipe_names_it(dense: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for path in ("results.json", "recipe.yaml"):
        text = (dense / path).read_text().replace("digits-cnn", "evil:build")
        (theirs / path).write_text(text)
    (theirs / "model").symlink_to(dense / "model")
    with pytest.raises(UserError, match="is of a network that evil:build builds, code that this recipe does not name"):
        Run(load(tiny.write(tmp_path), taught(theirs)), "x")
