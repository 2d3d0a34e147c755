"""Every number of a recipe and of the command line, at its extremes: does each end in a run or in one sentence?

Walks all numeric keys of all sections, methods, patterns, optimizers and schedules, and the numeric options of the
commands, through `VALUES`, as a user gives them (in words) and as YAML has them. Each case is a small run in a process
of its own, with limits on memory and time. What is allowed: it runs; it is refused before its first step in one
sentence with exit code 2; its training diverges and says so; it goes on too long for us, and ends within seconds once
it is asked to. Everything else is a failure: a traceback, a hang, an end of the memory, a sentence that comes only
after the whole training.

    python benchmarks/reliability/recipes.py [--only WORD] [--jobs N]

Takes about five minutes on two cores. Nothing is random. Prints a line for each failure, and the counts; ends with 1
if there are failures.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import typing
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

RECIPE = """\
model: {name: digits-cnn, options: {width: 4}}
data: {name: "generated:1x8x8:4:48", batch_size: 16}
steps: 9
method: {name: iee, h: 2, j: 1}
pattern: {sparsity: 0.5}
optimizer: {name: sgd, lr: 0.05}
train: {log_every: 3, threads: 1, latency_batch: 2, latency_seconds: 1}
"""
VALUES = [
    "-1e308", "-1", "0", "5e-324", "1e-9", "0.999999999999", "1", "1.0", "65536", "2147483648",
    "9223372036854775807", "9223372036854775808", "1000000000000000000000", "1e39", "1e308", "inf", "nan",
    "9" * 400, "9" * 5000, "", "null",
]  # fmt: skip
AS_YAML = [".inf", ".nan", "true", "9" * 400, "[1]"]
CHANNELS = ("--pattern.name", "channels", "--pattern.flops", "0.4", "--pattern.round_to", "1")
SECONDS, PATIENCE = 3.0, 60.0  # until a run is asked to end, and then until it must have
MEMORY = 6 << 30
# what a key needs beside it, so that its value matters
NEEDS: dict[str, tuple[str, ...]] = {
    "epochs": ("--epochs", "1"),
    "train.latency_batch": CHANNELS,
    "train.latency_seconds": ("--pattern.name", "channels", "--pattern.latency", "0.5", "--pattern.round_to", "1"),
    "optimizer.sgd.momentum": ("--optimizer.weight_decay", "1e-4"),
    "data.size": (),
    "method.gmp.begin_at": ("--method.interval", "2"),
}


@dataclass(frozen=True)
class Case:
    """One command: ``words`` after ``regrow``, and the recipe that it names."""

    name: str
    words: tuple[str, ...]
    recipe: str = RECIPE
    extra: dict[str, str] = field(default_factory=dict)


def cases() -> Iterator[Case]:
    """All of them, in a fixed order."""
    from regrow.training.recipe import registries
    from regrow.training.sections import DataSection, TopSection, TrainSection

    for section, cls in (("", TopSection), ("data", DataSection), ("train", TrainSection)):
        for key in _numbers(cls):
            dotted = f"{section}.{key}" if section else key
            yield from _of_key(dotted, (), NEEDS.get(dotted, ()))
    for section, classes in registries().items():
        for name, cls in classes.items():
            for key in _numbers(cls):
                chosen = (f"--{section}.name", name)
                needs = NEEDS.get(f"{section}.{name}.{key}", ())
                if getattr(cls, "channels_only", False):
                    needs = (*CHANNELS, *needs)
                if name == "channels":
                    needs = CHANNELS if key != "flops" else CHANNELS[:2]
                yield from _of_key(f"{section}.{key}", chosen, needs, f"{section}.{name}.{key}")
    yield from _inside_text()
    yield from _commands()


def _numbers(cls: type) -> list[str]:
    """The keys of a section that a number may be given for."""
    from regrow.training.typed import leaves

    return [key for key, hint in leaves(cls) if _has_number(hint)]


def _has_number(hint: object) -> bool:
    if hint in (int, float):
        return True
    return any(_has_number(part) for part in typing.get_args(hint))


def _of_key(key: str, chosen: tuple[str, ...], needs: tuple[str, ...], name: str = "") -> Iterator[Case]:
    steps = () if key in ("epochs", "steps") else ("--steps", "9")
    for value in VALUES:
        yield Case(f"{name or key} {_short(value)}", ("train", *chosen, *needs, *steps, f"--{key}={value}"))
    for value in AS_YAML:
        yield Case(f"{name or key} yaml {_short(value)}", ("train", *chosen, *needs, *steps), extra={key: value})


def _short(value: str) -> str:
    return value if len(value) < 25 else f"{value[:3]}…({len(value)} digits)"


def _inside_text() -> Iterator[Case]:
    """Numbers inside of names and other text."""
    for value in VALUES:
        for form in ("generated:{}", "generated:1x8x8:4:{}", "generated:1x8x{}:4:48", "generated:{}x8x8:4:48",
                     "generated:1x8x8:{}:48", "generated:1x8x8:4:48,pool={}", "digits,pool={}"):  # fmt: skip
            yield Case(f"data.name {form} {_short(value)}", ("train", f"--data.name={form.format(value)}"))
        for form in ("wrn{}-1", "wrn10-{}"):
            words = ("train", f"--model.name={form.format(value)}", "--model.options={}")
            yield Case(f"model.name {form} {_short(value)}", words)
        for option in ("width", "num_classes", "in_channels"):
            yield Case(f"model.options.{option} {_short(value)}", ("train", f"--model.options.{option}={value}"))
        for kind, units in (("flops", ("", " M", " G")), ("params", (" k",)), ("latency", (" ms", ""))):
            for unit in units:
                budget = ("--pattern.name", "channels", "--pattern.round_to", "1", f"--pattern.{kind}={value}{unit}")
                yield Case(f"pattern.{kind} {_short(value)}{unit}", ("train", *budget))
        yield Case(f"distribution {_short(value)}", ("train", f"--pattern.distribution={{head: {value}}}"))
        round_to = ("--pattern.name", "channels", "--pattern.flops", "0.5", f"--pattern.round_to={{'*': {value}}}")
        yield Case(f"round_to {_short(value)}", ("train", *round_to))
        yield Case(f"variant {_short(value)}", ("train", f"--compare.rigl.interval={value}", "--method.name", "rigl"))


def _commands() -> Iterator[Case]:
    """The numeric options of the commands."""
    for value in VALUES:
        for option in ("--seeds", "--jobs"):
            words = ("compare", "--methods", "static", f"{option}={value}", "--steps", "3")
            yield Case(f"compare {option} {_short(value)}", words)
        for option in ("--sparsity", "--classes", "--data-shape"):
            text = f"1,8,{value}" if option == "--data-shape" else value
            yield Case(f"inspect {option} {_short(value)}", ("inspect", "digits-cnn", f"{option}={text}"), recipe="")
        for option in ("--round-to", "--flops", "--params"):
            budget = ("--flops", "0.5") if option == "--round-to" else ()
            words = ("inspect", "digits-cnn", "--channels", *budget, f"{option}={value}")
            yield Case(f"inspect {option} {_short(value)}", words, recipe="")
        for option in ("--batch", "--threads", "--time-limit", "--seed", "--check"):
            words = ("profile", "digits-cnn", "--out", "t.json", "--time-limit=1", "--check=0", f"{option}={value}")
            yield Case(f"profile {option} {_short(value)}", words, recipe="")


def run(case: Case, place: Path) -> str:
    """What became of a case, run in a child of this process; a word of `ALLOWED`, or what is wrong."""
    place.mkdir()
    (place / "base.yaml").write_text(case.recipe)
    (place / "recipe.yaml").write_text("base: base.yaml\n" + "".join(_yaml(*pair) for pair in case.extra.items()))
    words = list(case.words)
    if case.recipe:
        words.insert(1, "recipe.yaml")
        words += ["--out", "out", "--quiet"] + (["--no-report"] if words[0] == "train" else [])
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(words, place)
    asked, status = False, None
    while status is None:
        found, code = os.waitpid(child, os.WNOHANG)
        if found:
            status = os.waitstatus_to_exitcode(code)
        elif time.monotonic() - started > SECONDS + PATIENCE:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"hangs: it did not end when asked to after {SECONDS:g} s"
        elif not asked and time.monotonic() - started > SECONDS:
            asked = True
            os.kill(child, signal.SIGINT)
        else:
            time.sleep(0.005)
    return _judged(case, place, status, asked)


def _yaml(key: str, value: str) -> str:
    """The line of a recipe that says it."""
    *sections, last = key.split(".")
    text = f"{last}: {value}"
    for section in reversed(sections):
        text = f"{section}: {{{text}}}"
    return text + "\n"


def _child(words: list[str], place: Path) -> typing.NoReturn:
    code = 99
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(place)
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT, 0o644), descriptor)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from regrow.cli import main

        code = main(words)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _judged(case: Case, place: Path, status: int, asked: bool) -> str:
    said = (place / "stderr").read_text(errors="replace").strip() if (place / "stderr").exists() else ""
    last = said.splitlines()[-1][:160] if said else "nothing was said"
    if "Traceback" in said or status not in (0, 2, 130) or (status == 130 and not asked):
        return f"exit code {status}: {last}"
    if status == 0:
        return "ran"
    if status == 130:
        return "long"
    if said.count("\n") or not said.startswith("regrow: "):
        return f"not one sentence: {said[:300]!r}"
    if "training diverged" in said:
        return "diverged"
    metrics = place / "out" / "metrics.jsonl"
    if metrics.exists() and metrics.stat().st_size:
        return f"refused after its training: {last}"
    return "refused"


ALLOWED = ("ran", "refused", "diverged", "long")


def _warm_up() -> None:
    """Imports here, once, what every child would import."""
    for module in (
        "accelerate",
        "jsonargparse",
        "schedulefree",
        "sklearn.datasets",
        "timm.optim",
        "torch._dynamo",
        "regrow.commands.inspect",
        "regrow.profiling",
        "regrow.study.comparison",
        "regrow.training.loop",
        "regrow.training.trust",
        "rich.progress",
        "rich.table",
        "regrow.training.statistics",
        "regrow.coupling.couple",
        "regrow.budgets.allocation",
        "regrow.plan",
    ):
        importlib.import_module(module)
    import torch

    from regrow.training.recipe import load

    torch.set_num_threads(1)
    load("digits-channels")


def main() -> int:
    """Walks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only cases whose name has this in it")
    parser.add_argument("--verbose", action="store_true", help="a line for every case")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    _warm_up()
    chosen = [case for case in cases() if args.only in case.name]
    root = Path(tempfile.mkdtemp(prefix="regrow-recipes-"))
    workers = []
    for k in range(args.jobs):
        pid = os.fork()
        if pid == 0:
            with (root / f"found-{k}").open("w") as found:
                for number, case in enumerate(chosen):
                    if number % args.jobs == k:
                        place = root / str(number)
                        found.write(f"{number}\t{run(case, place)}\n")
                        found.flush()
                        if args.verbose:
                            said = (place / "stderr").read_text(errors="replace")[:200].strip()
                            print(f"{case.name}: {said}", flush=True)
                        shutil.rmtree(place, ignore_errors=True)
            os._exit(0)
        workers.append(pid)
    for pid in workers:
        os.waitpid(pid, 0)
    outcomes: dict[int, str] = {}
    for k in range(args.jobs):
        for line in (root / f"found-{k}").read_text().splitlines():
            number, _, outcome = line.partition("\t")
            outcomes[int(number)] = outcome
    shutil.rmtree(root)
    counts: Counter[str] = Counter()
    for number, case in enumerate(chosen):
        outcome = outcomes.get(number, "the worker ended")
        counts[outcome if outcome in ALLOWED else "FAILED"] += 1
        if outcome not in ALLOWED:
            print(f"FAILED {case.name}: {outcome}")
    print(f"{len(chosen)} cases: {', '.join(f'{n} {what}' for what, n in sorted(counts.items()))}")
    return 1 if counts["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
