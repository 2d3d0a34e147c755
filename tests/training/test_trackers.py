"""Where metrics go: tables, TensorBoard's files, Weights & Biases."""

from __future__ import annotations

import csv
import json

import pytest

import tiny_recipe as tiny
from regrow.errors import UserError
from regrow.training import loop, trackers
from regrow.training.recipe import load
from regrow.training.trackers import MetricsTable


def run(tmp_path, *overrides):
    """Trains the tiny recipe; its directory."""
    out = tmp_path / "run"
    loop.train(load(tiny.write(tmp_path), overrides), out, quiet=True)
    return out


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_has_a_row_for_each_step_and_a_column_for_each_metric(tmp_path):
    table = MetricsTable(tmp_path, 0, "name", {})
    table.log({"loss": 2.0}, 5)
    table.log({"val": 0.5}, 5)
    table.log({"loss": 1.5, "iou": 0.25}, 10)
    assert (tmp_path / "metrics.csv").read_text() == "step,loss,val,iou\n5,2.0,0.5,\n10,1.5,,0.25\n"


def test_a_table_goes_on_where_the_run_does(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n5,2.0\n10,1.5\n15,1.0\n20,")
    table = MetricsTable(tmp_path, 10, "name", {})
    table.log({"loss": 0.5}, 15)
    table.close()
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n5,2.0\n10,1.5\n15,0.5\n"


def test_the_last_row_of_a_run_that_goes_on_gets_more_values(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n5,2.0\n10,1.5\n")
    MetricsTable(tmp_path, 10, "name", {}).log({"val": 0.5}, 10)
    assert (tmp_path / "metrics.csv").read_text() == "step,loss,val\n5,2.0,\n10,1.5,0.5\n"


@pytest.mark.parametrize(
    "content", [b"step;loss\n5;2.0\n", b"step,loss\nfive,2.0\n", b"step,loss\n5,\xff\n", b"\xef\xbb\xbfstep,l\n5,2\n"]
)
def test_a_table_that_was_edited_is_refused(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.csv is damaged, or was edited \(.*\): move it away"):
        MetricsTable(tmp_path, 10, "name", {})
    assert (tmp_path / "metrics.csv").read_bytes() == content


def test_a_kill_after_a_checkpoint_takes_nothing_from_before_it(tmp_path, monkeypatch):
    """What is logged is in the files when the checkpoint is, as a run that goes on begins after it."""
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    save, seen = loop.checkpoint.save, []

    def saved(out, state):
        events = tensorboard.EventAccumulator(str(out / "tensorboard"))
        events.Reload()
        noted = [event.step for event in events.Scalars("train/loss")]
        seen.append((state["step"], noted, [int(row["step"]) for row in rows(out / "metrics.csv")]))
        save(out, state)

    monkeypatch.setattr(loop.checkpoint, "save", saved)
    run(tmp_path, "--train.trackers", "[csv, tensorboard]", "--train.checkpoint_steps", "10", "--train.eval_every", "0")
    assert seen == [(last, steps, steps) for last in (10, 20, 30) for steps in [list(range(5, last + 1, 5))]]


def test_a_run_that_begins_anew_begins_its_table_anew(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n5,2.0\n")
    MetricsTable(tmp_path, 0, "name", {}).close()
    assert (tmp_path / "metrics.csv").read_text() == "step\n"


def test_a_trained_table_has_what_metrics_jsonl_has(tmp_path):
    out = run(tmp_path, "--train.trackers", "[csv]")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = rows(out / "metrics.csv")
    assert [int(row["step"]) for row in found] == sorted({line["step"] for line in lines})
    by_step = {int(row["step"]): row for row in found}
    for line in lines:
        if "loss" in line:
            assert float(by_step[line["step"]]["train/loss"]) == line["loss"]
        if "split" in line:
            assert float(by_step[line["step"]][f"{line['split']}/accuracy"]) == line["accuracy"]
    assert float(found[-1]["regrow/density"]) == lines[-1]["density"]


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    with pytest.warns(FutureWarning, match=r"write train.trackers: \[tensorboard\]"):
        out = run(tmp_path, "--train.tensorboard", "true")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/lr", "train/density", "val/accuracy", "test/accuracy"} <= tags
    assert {"regrow/density", "regrow/updates", "regrow/phase_fixed", "regrow/iou"} <= tags


def test_weights_and_biases_go_on_in_the_run_that_began(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = run(tmp_path, "--train.trackers", "[wandb]")
    (first,) = (out / "wandb").glob("offline-run-*/*.wandb")
    known = (out / "wandb" / "run-id").read_text()
    assert first.name == f"run-{known}.wandb"
    (tracker,) = trackers.start(["wandb"], out, 7, "again", {})
    tracker.log({"loss": 1.0}, 8)
    tracker.close()
    assert {path.name for path in (out / "wandb").glob("offline-run-*/*.wandb")} == {first.name}


def test_what_there_is_not_is_refused(monkeypatch):
    trackers.check(["csv", "csv"])
    with pytest.raises(UserError, match=r"train\.trackers has 'csb'; did you mean 'csv'"):
        trackers.check(["csb"])
    monkeypatch.setattr("regrow.extras._is_installed", lambda _: False)
    with pytest.raises(UserError, match=r"packages that are not installed \(wandb\): pip install 'regrow\[wandb\]'"):
        trackers.check(["csv", "wandb"])
