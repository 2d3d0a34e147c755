"""The command line. Heavy modules are imported by the command that needs them, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from regrow import extras
from regrow.errors import UserError, is_out_of_memory, nearest
from regrow.options import COMPARED, parsers, seeds_of, shape_of, split_overrides, words_of

if TYPE_CHECKING:
    from regrow.training.recipe import Recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the words after ``regrow``; default: those of this process

    Returns:
        The exit code: 0 if all is well, 1 if a run of a comparison failed, 2 for bad input, 130 if interrupted.
    """
    _show_any_name()
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    if argv is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = _dispatch([word for word in words if word != "--debug"])
    except BaseException as error:
        if debug and not _was_interrupted(error):
            raise
        code = _said(error)
    if argv is None:  # the process is about to end, which Ctrl-C cannot hasten
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        exec("")  # and if it came inside of an exec, as dataclasses have, Python takes it for unhandled until the next
    return code


def _said(error: BaseException) -> int:
    """Says in one line what has ended a command, where that is known; gives the exit code.

    Raises:
        BaseException: ``error`` itself, if it is a mistake of regrow's.
    """
    if _was_interrupted(error):
        print("regrow: interrupted", file=sys.stderr)
        return 130
    if isinstance(error, BrokenPipeError):  # the reader of our output has gone, e.g. `| head`
        sys.stderr.close()
        return 1
    if isinstance(error, OSError):
        place = "" if error.filename is None else f"{error.filename}: "
        said = f"{place}{error.strerror or error}"
    elif isinstance(error, UserError):
        said = str(error)
    elif is_out_of_memory(error):
        said = f"there is not enough memory: {str(error).strip() or 'use smaller batches, or a smaller model'}"
    else:
        raise error
    print(f"regrow: {' '.join(said.split())}", file=sys.stderr)
    return 2


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """A warning as one line: of regrow's as it speaks otherwise, of others with what it is and where it is from."""
    said = " ".join(str(message).split())
    place = "" if Path(filename).is_relative_to(Path(__file__).parent) else f" ({category.__name__} in {filename})"
    print(f"regrow: {said}{place}", file=sys.stderr)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Ctrl-C as always, but that it ends the process at once if it comes while a module is imported.

    Half of an import cannot be undone, and modules that are written in C swallow the interruption or turn it into
    another error. Nothing is lost: whatever is written is written so that the process may die at any moment.
    """
    within = frame
    while within is not None:
        if within.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"regrow: interrupted\n")
            os._exit(130)
        within = within.f_back
    signal.default_int_handler(signum, frame)


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C's, also where an import that was interrupted has made another error of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _show_any_name() -> None:
    """What the terminal's encoding cannot show, as names of files that are not UTF-8, is printed escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _dispatch(words: list[str]) -> int:
    parser, commands = parsers()
    name = next((word for word in words if not word.startswith("-")), None)
    if name is None:
        if words and words[0] not in ("-h", "--help", "--version"):
            parser.error(f"unknown option {words[0]}")
        if words and words[0] == "--version":
            from regrow import __version__

            print(f"regrow {__version__}")
        else:
            parser.print_help()
        return 0
    if name not in commands:
        raise UserError(f"there is no command {name!r}{nearest(name, commands)}")
    command = commands[name]
    rest = words[: words.index(name)] + words[words.index(name) + 1 :]
    overrides: list[str] = []
    if name in ("train", "compare"):
        rest, overrides = split_overrides(rest, command)
    args = command.parse_args(rest)
    args.overrides = overrides
    if not getattr(args, "help", False) or args.recipe is not None:
        extras.require("train", f"`regrow {name}`")
    return _RUN[name](args)


def _train(args: argparse.Namespace) -> int:
    if args.help:
        return _show_help("train", args)
    of_its_own = args.recipe is None and args.resume and args.out is not None
    if of_its_own:
        args.recipe = str(args.out / "recipe.yaml")
    _require_recipe("train", args)
    if args.resume and args.out is None:
        raise UserError("--resume needs --out, the directory of the run to continue")
    if args.resume and not (args.out / "recipe.yaml").is_file():
        raise UserError(f"{args.out} holds no run that could be continued: leave --resume out to start one")
    recipe = _load(args, resumed=of_its_own)
    if args.print_config:
        print(recipe.to_yaml(), end="")
        return 0
    out = args.out or _fresh(Path("runs") / _stem(args.recipe))
    from regrow.training import rundir

    if args.resume and rundir.is_finished(out):
        rundir.check_same_recipe(out, recipe)
        print(f"the run in {out} is finished; its results are in {out / rundir.RESULTS}")
        if rundir.report_is_due(out) and not args.no_report:  # it ended just before
            from regrow.report.page import write

            print(f"report: {write([out], out / rundir.REPORT)}")
        return 0
    from regrow.training import checkpoint, trust
    from regrow.training.loop import train
    from regrow.training.progress import Interrupted

    if args.resume and not args.quiet and not checkpoint.path_in(out).exists():
        print(f"the run in {out} has no checkpoint yet, so it starts from the beginning")
    try:
        found = train(
            recipe, out, resume=args.resume, label=args.label, report=not args.no_report, quiet=args.quiet
        )  # fmt: skip
    except Interrupted as stopped:
        if _speaks():
            also = " --trust" if trust.foreign(recipe) else ""
            print(f"regrow: {stopped}; continue with: regrow train --out {out} --resume{also}", file=sys.stderr)
        return 130
    if not args.quiet and _speaks():
        run = found["runs"][0]
        print(
            f"{run['label']}: test accuracy {run['accuracy']:.2%} at density {run['density']:.1%}, "
            f"training cost {run['training_cost']:.2f} x dense; see {out}"
        )
    return 0


def _speaks() -> bool:
    """Whether this is the one of several processes that train together which says what came of it."""
    from accelerate.state import PartialState

    return bool(PartialState().is_main_process)


def _compare(args: argparse.Namespace) -> int:
    if args.help:
        return _show_help("compare", args)
    _require_recipe("compare", args)
    recipe = _load(args)
    if args.print_config:
        print(recipe.to_yaml(), end="")
        return 0
    out = args.out or Path("runs") / f"compare-{_stem(args.recipe)}"
    methods = _default_methods(recipe) if args.methods is None else words_of(args.methods, "--methods")
    return _run_compare(args, recipe, out, methods, seeds_of(args.seeds))


def _default_methods(recipe: Recipe) -> list[str]:
    """What is compared where nobody says: the recipe's own method if it is the user's, and those for its pattern."""
    from regrow.training import own
    from regrow.training.latency import is_channels

    mine = [recipe.method_name] if own.is_class("method", recipe.method_name) else []
    return mine + words_of(COMPARED["channels" if is_channels(recipe) else "weights"])


def _load(args: argparse.Namespace, resumed: bool = False) -> Recipe:
    """The recipe of a command, once the user trusts the code that it names.

    Raises:
        UserError: if there is no such recipe, anything in it is wrong, or it comes with a run and names code.
    """
    from regrow.training import recipe as recipes
    from regrow.training import trust

    tree = recipes.tree_of(args.recipe, args.overrides)
    trust.require(args.recipe, tree, args.trust, resumed, shown_only=args.print_config or args.help)
    return recipes.parse(tree)


_DEMO = {
    "dense": "all of its weights",
    "static": "5% of them, chosen at random once",
    "rigl": "5%, moved by RigL to where gradients are large",
    "iee": "5%, moved by IEE after a preview of those that were removed",
    "channels": "whole channels removed by IEE, until it takes 60% of its time",
}  # label of the recipe → what it is


def _demo(args: argparse.Namespace) -> int:
    from regrow.training import recipe as recipes

    recipe = recipes.load("digits-iee")
    from regrow.training.compare import is_unfinished

    out = _fresh(args.out, unless=lambda path: is_unfinished(path, recipe))
    if out.exists():
        print(f"continuing the demo in {out}")
    elif out != args.out:
        print(f"{args.out} exists, so this demo goes to {out}")
    print("a small network on handwritten digits, three times each (about a minute on two free cores):")
    for label, what in _DEMO.items():
        print(f"  {label:<10}{what}")
    args.recipe, args.match, args.jobs, args.quiet = "digits-iee", "steps", None, False
    return _run_compare(args, recipe, out, list(_DEMO), [0, 1, 2])


def _run_compare(args: argparse.Namespace, recipe: Recipe, out: Path, labels: list[str], seeds: list[int]) -> int:
    from regrow.training import compare as comparing
    from regrow.training.progress import Interrupted

    try:
        found = comparing.compare(
            recipe, out, labels, seeds, match=args.match, jobs=args.jobs, quiet=args.quiet
        )  # fmt: skip
    except Interrupted as stopped:
        print(f"regrow: {stopped}; the same command with --out {out} continues it", file=sys.stderr)
        return 130
    if found.results["runs"]:
        comparing.print_table(found.results["summary"])
        print(f"report: {out / 'report.html'}")
    for failure in found.failures:
        print(f"regrow: {failure}", file=sys.stderr)
    if not found.results["runs"]:
        print(f"regrow: no run has finished; the same command with --out {out} tries again", file=sys.stderr)
    return 1 if found.failures else 0


def _inspect(args: argparse.Namespace) -> int:
    from regrow import inspection

    shape = shape_of(args.data_shape) if args.data_shape else None
    budgets = {kind: getattr(args, kind) for kind in ("latency", "flops", "params")}
    of_channels = {**budgets, "table": args.table, "round-to": args.round_to}
    of_weights = {"sparsity": args.sparsity, "distribution": args.distribution, "include": args.include or None}
    for option, value in (of_weights if args.channels else of_channels).items():
        if value is not None:
            wrong, way_out = ("not ", "drop it, or drop") if args.channels else ("", "add")
            raise UserError(f"--{option} is {wrong}for channels: {way_out} --channels")
    if args.channels:
        inspection.show_channels(
            args.model, budgets={kind: value for kind, value in budgets.items() if value is not None},
            table=args.table, round_to=8 if args.round_to is None else args.round_to,
            exclude=words_of(args.exclude), shape=shape, classes=args.classes,
        )  # fmt: skip
        return 0
    inspection.show(
        args.model, sparsity=0.9 if args.sparsity is None else args.sparsity,
        distribution=args.distribution or "uniform", exclude=words_of(args.exclude), include=words_of(args.include),
        shape=shape, classes=args.classes,
    )  # fmt: skip
    return 0


def _profile(args: argparse.Namespace) -> int:
    from regrow.commands import profile

    shape = shape_of(args.data_shape) if args.data_shape else None
    profile.show(
        args.model, args.out, runtime=args.runtime, batch=args.batch, threads=args.threads, shape=shape,
        classes=args.classes, time_limit=args.time_limit, check=args.check, seed=args.seed,
    )  # fmt: skip
    return 0


def _report(args: argparse.Namespace) -> int:
    from regrow.report.page import write

    print(f"report: {write(args.runs, args.out)}")
    return 0


def _show_help(name: str, args: argparse.Namespace) -> int:
    _, commands = parsers()
    commands[name].print_help()
    if args.recipe is None:
        print(f"\n`regrow {name} RECIPE --help` lists all keys of a recipe.")
        return 0
    from regrow.training import describe

    print("\n" + describe.keys(_load(args)))
    return 0


def _require_recipe(name: str, args: argparse.Namespace) -> None:
    if args.recipe is None:
        from regrow.training.recipe import shipped

        raise UserError(f"{name} needs a RECIPE: a YAML file, or one of {', '.join(shipped())}")


def _stem(recipe: str) -> str:
    path = Path(recipe)
    if path.name == "recipe.yaml" and path.absolute().parent.name:
        return path.absolute().parent.name
    return path.name.removesuffix(".yaml").removesuffix(".yml")


def _fresh(path: Path, unless: Callable[[Path], bool] = lambda path: False) -> Path:
    """``path``, or the first of ``path-2``, ``path-3``, … that does not exist, or may be used all the same."""
    candidate, number = path, 2
    while candidate.exists() and not unless(candidate):
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


_RUN: dict[str, Callable[[argparse.Namespace], int]] = {
    "demo": _demo, "train": _train, "compare": _compare, "inspect": _inspect, "profile": _profile, "report": _report,
}  # fmt: skip
