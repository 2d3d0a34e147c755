"""Ctrl-C in a comparison, at any moment: one line, exit code 130, no process left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny_recipe as tiny
from processes import Marked
from regrow.study import pool
from regrow.study.pool import Job, Overview, run_jobs, slots_of
from regrow.training import rundir

# what answers Ctrl-C before this line is Python itself
BEGINS = """
import signal, sys
from regrow import cli

def said(*handler, install=signal.signal):
    signal.signal = install
    before = install(*handler)
    print("begun", flush=True)
    return before

signal.signal = said
sys.exit(cli.main())
"""
# seconds after that: while modules are imported, while the runs are planned, while the server of processes
# imports, and while runs go on; on another machine at other points of these, where the same must hold
MOMENTS = (0.4, 3.0, 6.0, 9.0)


def start(words: list[str], marked: Marked, place: Path | None = None) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "regrow", *words],
        cwd=place, env=marked.environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def begin(words: list[str], marked: Marked) -> subprocess.Popen:
    """The command line as it is called by no other words; returns when it listens to Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGINS, *words],
        env=marked.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "begun\n"
    return process


def check_ended(process: subprocess.Popen, marked: Marked) -> str:
    said, err = process.communicate(timeout=tiny.PATIENCE)
    assert process.returncode == 130, (said, err)
    assert err.count("\n") == 1, err
    assert err.startswith(("regrow: interrupted", "regrow: stopped with 0 of ")), err
    deadline = time.monotonic() + tiny.PATIENCE
    while (left := marked.alive()) and time.monotonic() < deadline:  # its helpers end with it, but not before it
        time.sleep(0.05)
    assert left == []
    return err


@pytest.mark.parametrize("command", ["compare", "demo"])
def test_interrupted_at_any_moment(tmp_path, command):
    """All at once, as each waits for its moment most of the time."""
    started = []
    for number, moment in enumerate(MOMENTS if command == "compare" else MOMENTS[1::2]):
        place = tmp_path / str(number)
        place.mkdir()
        words = ["demo", "--out", str(place / "out")]
        if command == "compare":
            words = ["compare", str(tiny.write(place)), "--methods", "static,dense", "--seeds", "0,1"]
            words += ["--steps", "9000", "--out", str(place / "out"), "--quiet"]
        marked = Marked()
        process = begin(words, marked)
        started.append((time.monotonic() + moment, process, marked))
    for moment, process, _ in started:
        time.sleep(max(0.0, moment - time.monotonic()))
        os.killpg(process.pid, signal.SIGINT)
    for _, process, marked in started:
        check_ended(process, marked)


def test_a_second_ctrl_c_ends_the_runs_at_once(tmp_path):
    marked, out = Marked(), tmp_path / "out"
    words = ["compare", str(tiny.write(tmp_path)), "--methods", "static,dense", "--seeds", "0", "--steps", "90000"]
    process = start([*words, "--out", str(out), "--quiet"], marked)
    deadline = time.monotonic() + tiny.PATIENCE
    while not (out / "runs" / "static-seed0" / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.02)
    check_ended(process, marked)
    assert not (out / "results.json").exists()


def test_interrupted_inside_an_import_that_swallows_it(tmp_path):
    (tmp_path / "stubborn.py").write_text(
        "import pathlib, time\n"
        "pathlib.Path('begun').touch()\n"
        "while True:\n"
        "    try:\n"
        "        time.sleep(60)\n"
        "    except KeyboardInterrupt:\n"
        "        pass\n"
    )
    marked = Marked()
    process = start(["inspect", "stubborn:model", "--sparsity", "0.5"], marked, tmp_path)
    deadline = time.monotonic() + tiny.PATIENCE
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert check_ended(process, marked) == "regrow: interrupted\n"


@pytest.mark.parametrize("line", ["[1]", "3", "null", "[" * 4000, '{"step": null, "loss": "x", "accuracy": [1]}', "{"])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_damaged_line_of_metrics_shows_nothing(tmp_path, monkeypatch, capsys, line, terminal):
    monkeypatch.setenv("FORCE_COLOR", "1") if terminal else monkeypatch.delenv("FORCE_COLOR", raising=False)
    job = Job("iee-seed0", [], tmp_path, tmp_path / "log", state="finished")
    (tmp_path / rundir.METRICS).write_text(f'{{"step": 1}}\n{line}\n')
    job.look()
    assert [job.shown(key, ".2%") for key in ("loss", "accuracy", "lr")] == ["", "", ""]
    with Overview([job], quiet=False) as overview:
        overview.refresh()
        overview.changed(job)
    assert ("iee-seed0: finished\n" in capsys.readouterr().out) != terminal


def test_what_a_signal_ended_says_so(tmp_path):
    log = tmp_path / "log"
    log.write_text("regrow: only a warning\n")
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    process.kill()
    process.exitcode = process.wait()  # as processes of multiprocessing call it
    job = Job("iee-seed0", [], tmp_path, log, process=process)
    assert job.last_words() == f"SIGKILL ended it, as systems do where memory is short ({log})"
    process.exitcode = 1
    assert job.last_words() == f"only a warning ({log})"


def test_no_more_places_than_runs():
    assert slots_of(999_999_999_999, 1, 3) == [{}, {}, {}]
    assert slots_of(2, 1, 3) == [{}, {}]
    assert slots_of(None, 1, 1) == slots_of(4, 1, 0) == [{}]


@pytest.mark.parametrize("patience", [600.0, 0.0])
def test_runs_of_a_killed_session_are_waited_for(tmp_path, monkeypatch, patience):
    """What kill -9 of a comparison leaves writes its checkpoints first, and is in nobody's way meanwhile."""
    jobs = [Job(name, [], tmp_path / name, tmp_path / "log") for name in ("old", "new")]
    for job in jobs:
        job.directory.mkdir()
    old = rundir.locked(jobs[0].directory)
    old.__enter__()
    started, polls = [], []

    def start(context, job, slot, slots):
        started.append((job.name, len(polls)))
        job.state = "failed"

    def sleep(_):
        polls.append(None)
        if len(polls) == 3:
            old.__exit__(None, None, None)

    monkeypatch.setattr(pool, "_start", start)
    monkeypatch.setattr(pool, "_PATIENCE", patience)
    monkeypatch.setattr(pool.Server, "__enter__", lambda self: self)
    monkeypatch.setattr(pool.Server, "__exit__", lambda *_: None)
    monkeypatch.setattr(pool.Server, "ready", True)
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", sleep)
        run_jobs(jobs, slots=[{}, {}], threads=1, quiet=True)
    assert started == ([("new", 0), ("old", 3)] if patience else [("old", 0), ("new", 0)])


def test_whether_a_directory_is_locked(tmp_path):
    assert not rundir.is_locked(tmp_path / "none")
    with rundir.locked(tmp_path):
        assert rundir.is_locked(tmp_path)
    assert not rundir.is_locked(tmp_path)
    (tmp_path / ".lock").write_text("")  # of a process that was killed
    assert not rundir.is_locked(tmp_path)
