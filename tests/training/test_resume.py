"""A run that is stopped, or killed, and continued ends bit-identical to one that was left alone."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

import tiny_recipe as tiny
from outcome import outcome
from processes import fork
from regrow import UserError
from regrow.cli import main
from regrow.training import checkpoint, loop
from regrow.training.progress import Interrupted
from regrow.training.recipe import load

EVERYTHING = """--model.name wrn10-1 --model.options {dropout: 0.2} --train.ema 0.9 --train.accumulate 2
    --train.clip_norm 1 --optimizer.name adamw --schedule.name onecycle --data.val_fraction 0.2 --train.recalibrate 2
    --criterion taylor"""
CHANNELS = """--pattern.name channels --pattern.flops 0.4 --pattern.round_to 1 --criterion taylor
    --model.options {width: 8}"""
VARIANTS = {
    "plain": "",
    "everything": EVERYTHING,
    "rigl": "--method.name rigl --method.interval 4 --optimizer.nesterov true",
    "muon": "--optimizer.name muon --train.precision bf16",
    "schedulefree": "--optimizer.name schedulefree-adamw --schedule.name constant",
    "channels": CHANNELS,
    "channels, adamw": f"{CHANNELS} --optimizer.name adamw --pattern.solver grouped --train.clip_norm 1",
    "channels, masked": f"{CHANNELS} --pattern.thin false --train.ema 0.9 --train.recalibrate 2",
    "channels, averaged": f"{CHANNELS} --train.ema 0.9",
    "channels, halp": f"{CHANNELS} --method.name halp --method.prunings 4 --method.interval 4",
}


def words_of(text):
    """Split at blanks, but not inside {...}."""
    return re.findall(r"\{.*?\}|\S+", text)


def train(recipe, out, stop_after=None, monkeypatch=None, **options):
    with monkeypatch.context() as patch:
        if stop_after is not None:
            patch.setattr(loop.Trainer, "_stop_wanted", lambda self, stop: self.run.step == stop_after)
        return loop.train(recipe, out, quiet=True, **options)


def test_a_run_from_before_a_key_existed_goes_on(tmp_path, monkeypatch):
    recipe, out = load(tiny.write(tmp_path)), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(recipe, out, 4, monkeypatch)
    written = out / "recipe.yaml"
    text = written.read_text()
    assert "  channels_last: false\n" in text
    written.write_text(text.replace("  channels_last: false\n", ""))
    train(recipe, out, None, monkeypatch, resume=True)
    with pytest.raises(UserError, match=r"^train\.channels_last differs from the recipe that"):
        train(load(tiny.write(tmp_path), ["--train.channels_last", "true"]), out, None, monkeypatch, resume=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_at_any_step(tmp_path, monkeypatch, variant):
    """Stops in every phase and at every boundary: 3 estimate, 2 improve, 3 explore, twice; then fixed."""
    recipe = load(tiny.write(tmp_path), words_of(VARIANTS[variant]))
    train(recipe, tmp_path / "whole", monkeypatch=monkeypatch)
    stops = {"plain": [1, 3, 4, 5, 8, 16], "channels": [3, 5, 8, 16]}
    for stop in stops.get(variant, [4, 13]):
        out = tmp_path / f"stopped-{stop}"
        with pytest.raises(Interrupted, match=f"stopped after step {stop} of 30"):
            train(recipe, out, stop, monkeypatch)
        train(recipe, out, None, monkeypatch, resume=True)
        assert outcome(out) == outcome(tmp_path / "whole"), stop


def test_stopped_again_and_again(tmp_path, monkeypatch):
    recipe = load(tiny.write(tmp_path))
    train(recipe, tmp_path / "whole", monkeypatch=monkeypatch)
    for stop in range(2, 30, 5):
        with pytest.raises(Interrupted):
            train(recipe, tmp_path / "run", stop, monkeypatch, resume=True)
    train(recipe, tmp_path / "run", None, monkeypatch, resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def command(recipe, out, *words):
    words = ["train", str(recipe), "--out", str(out), "--quiet", "--no-report", "--train.log_every", "1", *words]
    return [*words, *(["--resume"] if (out / "recipe.yaml").exists() else [])]


def wait_for_step(alive, out, step):
    """Until the metrics have reached a step, or the process has ended."""
    path = out / "metrics.jsonl"
    while alive():
        text = path.read_text() if path.exists() else ""
        if text.count("\n") and json.loads(text[: text.rindex("\n")].splitlines()[-1])["step"] >= step:
            return
        time.sleep(0.001)


@pytest.mark.usefixtures("one_server")
def test_killed(tmp_path, monkeypatch):
    """kill -9 of the real command, several times in one run: in every phase, at whatever it is doing."""
    recipe = tiny.write(tmp_path)
    long = ["--steps", "300", "--method.h", "20", "--method.j", "20", "--method.q", "20"]
    train(load(recipe, [*long, "--train.log_every", "1"]), tmp_path / "whole", monkeypatch=monkeypatch)
    kills, log = 0, tmp_path / "said"
    for step in (10, 30, 50, 230):
        process = fork(command(recipe, tmp_path / "run", *long, "--train.checkpoint_steps", "7"), log)
        wait_for_step(process.is_alive, tmp_path / "run", step)
        process.kill()
        process.join(tiny.PATIENCE)
        kills += process.exitcode == -signal.SIGKILL
    process = fork(command(recipe, tmp_path / "run", *long, "--train.checkpoint_steps", "7"), log)
    process.join(tiny.PATIENCE)
    assert process.exitcode == 0, log.read_text()
    assert kills == 4
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert not list((tmp_path / "run").rglob("*.tmp*"))


def test_asked_to_stop(tmp_path):
    """SIGINT and SIGTERM: the step ends, the checkpoint is written, the command says how to go on."""
    recipe, out = tiny.write(tmp_path), tmp_path / "run"
    for number, step in ((signal.SIGTERM, 20), (signal.SIGINT, 60)):
        process = subprocess.Popen(
            [sys.executable, "-m", "regrow", *command(recipe, out, "--steps", "3000")],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_for_step(lambda process=process: process.poll() is None, out, step)
        process.send_signal(number)
        _, said = process.communicate(timeout=tiny.PATIENCE)
        assert process.returncode == 130
        assert said.count("\n") == 1
        assert f"continue with: regrow train --out {out} --resume" in said
        state = torch.load(checkpoint.path_in(out), weights_only=True)
        assert step <= state["step"] < 3000
        assert state["metrics_lines"] == len((out / "metrics.jsonl").read_text().splitlines())


def test_a_finished_run_says_so(tmp_path, capsys, monkeypatch):
    recipe, out = tiny.write(tmp_path), tmp_path / "run"
    train(load(recipe), out, monkeypatch=monkeypatch)
    assert main(["train", str(recipe), "--out", str(out), "--resume", "--no-report"]) == 0
    assert not (out / "report.html").exists()
    assert main(["train", str(recipe), "--out", str(out), "--resume"]) == 0
    assert f"report: {out / 'report.html'}" in capsys.readouterr().out  # it ended before that was written
    assert "iee" in (out / "report.html").read_text(encoding="utf-8")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert main(["train", str(recipe), "--out", str(out), "--resume"]) == 0
    said = capsys.readouterr().out
    assert "is finished" in said
    assert "report:" not in said
    assert main(["train", "--out", str(out), "--resume"]) == 0  # the recipe is in the directory
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    os.utime(out / "report.html", ns=(0, 0))  # that of an earlier run
    assert main(["train", "--out", str(out), "--resume"]) == 0
    assert (out / "report.html").stat().st_mtime_ns > 0


def test_what_is_resumed_must_be_there(tmp_path, capsys, monkeypatch):
    """Nothing is trained from the beginning where a run was to be continued, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    recipe = tiny.write(tmp_path)
    (tmp_path / "empty").mkdir()
    for out in ("nowhere", "empty", "no/where", "tiny.yaml"):
        for words in (["train", str(recipe), "--out", out, "--resume"], ["train", "--out", out, "--resume"]):
            assert main(words) == 2
            said = f"regrow: {out} holds no run that could be continued: leave --resume out to start one\n"
            assert capsys.readouterr() == ("", said)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "tiny.yaml"]


def test_a_run_without_a_checkpoint_says_that_it_begins_anew(tmp_path, capsys):
    recipe, out = tiny.write(tmp_path), tmp_path / "run"
    out.mkdir()
    (out / "recipe.yaml").write_text(load(recipe).to_yaml())
    assert main(["train", "--out", str(out), "--resume", "--no-report"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"the run in {out} has no checkpoint yet, so it starts from the beginning\n")


def test_killed_between_the_last_step_and_the_results(tmp_path, monkeypatch):
    recipe = load(tiny.write(tmp_path))
    train(recipe, tmp_path / "whole", monkeypatch=monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "structure", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(recipe, tmp_path / "run", monkeypatch=patch)
    train(recipe, tmp_path / "run", None, monkeypatch, resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_what_a_kill_leaves_behind_is_swept(tmp_path, monkeypatch):
    recipe, out = load(tiny.write(tmp_path)), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(recipe, out, 4, monkeypatch)
    (out / ".results.json.1.tmp").write_text("{")
    (out / "checkpoint" / ".state.pt.1.tmp").write_text("{")
    (out / ".model.x1.tmp").mkdir()
    (out / ".model.x1.tmp" / "manifest.json").write_text("{")
    train(recipe, out, None, monkeypatch, resume=True)
    assert [p.name for p in out.rglob("*") if p.name.startswith(".")] == []


def test_another_recipe_is_refused_and_harmless_keys_are_not(tmp_path, monkeypatch):
    path, out = tiny.write(tmp_path), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(load(path), out, 4, monkeypatch)
    for words, key in ((["--seed", "1"], "seed"), (["--method.budget.start", "0.2"], "method.budget.start")):
        with pytest.raises(UserError, match=f"^{key} differs from the recipe that"):
            train(load(path, words), out, None, monkeypatch, resume=True)
    changed = load(path, ["--train.log_every", "3", "--train.checkpoint_steps", "5"])
    assert train(changed, out, None, monkeypatch, resume=True)["runs"][0]["steps"] == 30


def test_two_processes_do_not_share_a_directory(tmp_path, monkeypatch):
    recipe, out = load(tiny.write(tmp_path)), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(recipe, out, 4, monkeypatch)
    with loop.rundir.locked(out):
        with pytest.raises(UserError, match="another process is writing to"):
            train(recipe, out, None, monkeypatch, resume=True)
        assert (out / ".lock").exists()
    train(recipe, out, None, monkeypatch, resume=True)
    assert not (out / ".lock").exists()


def test_a_lock_that_was_removed_while_it_was_taken_is_taken_again(tmp_path, monkeypatch):
    """Between opening the file and locking it, its holder removes it and another process makes a new one."""
    import fcntl

    real = fcntl.flock
    seen = []

    def late(file, how):
        if not seen:
            (tmp_path / ".lock").unlink()
            (tmp_path / ".lock").write_text("")
        seen.append(os.fstat(file.fileno()).st_ino)
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with loop.rundir.locked(tmp_path):
        assert len(seen) == 2
        assert (tmp_path / ".lock").stat().st_ino == seen[1]
    assert list(tmp_path.iterdir()) == []


def test_the_label_is_kept(tmp_path, monkeypatch):
    recipe, out = load(tiny.write(tmp_path)), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(recipe, out, 4, monkeypatch, label="mine")
    with pytest.raises(Interrupted):
        train(recipe, out, 9, monkeypatch, resume=True)
    assert train(recipe, out, None, monkeypatch, resume=True)["runs"][0]["label"] == "mine"
