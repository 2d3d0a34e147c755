"""The command line. Heavy modules are imported by the command that needs them, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from regrow.errors import UserError, nearest

_RECIPE = "YAML file, or the name of a shipped recipe such as digits-iee"
_MODEL = "wrn22-2, digits-cnn, timm:NAME, torchvision:NAME or package.module:callable"
_DESCRIPTION = "Make PyTorch models sparse while they train, and keep changing your mind about what to remove."
_EXAMPLES = """examples:
  regrow demo
  regrow train digits-iee --seed 1 --out runs/first
  regrow compare digits-iee --methods iee,rigl,set,static,dense --seeds 0,1,2

`regrow COMMAND --help` says more about each command."""

# what `compare` compares, by pattern
_METHODS = {"weights": "iee,rigl,set,static,dense", "channels": "iee,halp,uniform,oneshot,dense"}
_AS_WRITTEN = argparse.RawDescriptionHelpFormatter


class _Parser(argparse.ArgumentParser):
    """Raises what argparse would print with its usage, so that every error looks the same."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.replace(chr(10), ' ')} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the words after ``regrow``; default: those of this process

    Returns:
        The exit code: 0 if all is well, 1 if a run of a comparison failed, 2 for bad input, 130 if interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        return _dispatch([word for word in words if word != "--debug"])
    except UserError as error:
        if debug:
            raise
        print(f"regrow: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("regrow: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        sys.stderr.close()
        return 1
    except OSError as error:
        if debug:
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        print(f"regrow: {place}{error.strerror or ' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _dispatch(words: list[str]) -> int:
    parser, commands = _parsers()
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
    command, run = commands[name]
    rest = words[: words.index(name)] + words[words.index(name) + 1 :]
    overrides: list[str] = []
    if name in ("train", "compare"):
        rest, overrides = _split_overrides(rest, command)
    args = command.parse_args(rest)
    args.overrides = overrides
    return run(args)


def _parsers() -> tuple[_Parser, dict[str, tuple[_Parser, Callable[[argparse.Namespace], int]]]]:
    """The main parser, and for each command its parser and what runs it."""
    parser = _Parser("regrow", description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=_AS_WRITTEN)
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    group = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)
    commands: dict[str, tuple[_Parser, Callable[[argparse.Namespace], int]]] = {}
    for add in (_add_demo, _add_train, _add_compare, _add_inspect, _add_profile, _add_report):
        name, command, run = add(group)
        commands[name] = (command, run)
    for one in (parser, *(command for command, _ in commands.values())):  # for the help; `main` takes it out
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser, commands


def _command(group: argparse._SubParsersAction[_Parser], name: str, about: str, examples: str, usage: str) -> _Parser:
    return group.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog="examples:\n" + examples,
        usage=f"regrow {name} {usage}",
        formatter_class=_AS_WRITTEN,
        allow_abbrev=False,
        add_help=name not in ("train", "compare"),
    )


_Added = tuple[str, _Parser, Callable[[argparse.Namespace], int]]


def _add_demo(group: argparse._SubParsersAction[_Parser]) -> _Added:
    examples = "  regrow demo\n  regrow demo --out /tmp/demo"
    command = _command(group, "demo", "train dense and sparse networks on handwritten digits", examples, "[--out DIR]")
    command.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="where to write (default: demo)")
    return "demo", command, _demo


def _add_train(group: argparse._SubParsersAction[_Parser]) -> _Added:
    examples = (
        "  regrow train digits-iee\n"
        "  regrow train digits-iee --method.h 40 --pattern.sparsity 0.95 --out runs/sparser\n"
        "  regrow train runs/sparser/recipe.yaml --out runs/sparser --resume\n"
        "  regrow train digits-rigl --help          lists every key of that recipe\n"
        "  accelerate launch -m regrow train imagenet-resnet50-erk90-iee --out runs/imagenet"
    )
    usage = "RECIPE [--key value ...] [--out DIR] [--resume]"
    command = _command(group, "train", "run a recipe", examples, usage)
    _add_recipe_arguments(command)
    command.add_argument("--out", type=Path, metavar="DIR", help="the run directory (default: runs/NAME, a new one)")
    command.add_argument("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
    command.add_argument("--label", help="name of the run in tables (default: the method)")
    command.add_argument("--quiet", action="store_true", help="show no progress")
    command.add_argument("--no-report", action="store_true", help="write no report.html")
    return "train", command, _train


def _add_compare(group: argparse._SubParsersAction[_Parser]) -> _Added:
    examples = (
        "  regrow compare digits-iee --methods iee,rigl,set,static,dense --seeds 0,1,2\n"
        "  regrow compare cifar10-wrn22-2-iee --methods iee,rigl --match cost --out runs/matched\n"
        "The same command again continues a comparison that was interrupted."
    )
    usage = "RECIPE [--key value ...] [--methods A,B,...] [--seeds 0,1,...] [--match steps|cost] [--out DIR] [--jobs N]"
    command = _command(group, "compare", "run a recipe with several methods and seeds", examples, usage)
    _add_recipe_arguments(command)
    command.add_argument("--methods", metavar="A,B,...",
                         help=f"methods, or labels of the recipe's compare section (default: {_METHODS['weights']}, or "
                         f"for channels {_METHODS['channels']}); differences are against the first")  # fmt: skip
    command.add_argument("--seeds", metavar="0,1,...", default="0,1,2", help="seeds of each (default: %(default)s)")
    command.add_argument("--match", choices=("steps", "cost"), default="steps",
                         help="what all methods get the same of: training steps, or training FLOPs")  # fmt: skip
    command.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: runs/compare-NAME)")
    command.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: as many as there are cores)")
    command.add_argument("--quiet", action="store_true", help="show no progress")
    return "compare", command, _compare


def _add_recipe_arguments(command: _Parser) -> None:
    command.add_argument("recipe", nargs="?", metavar="RECIPE", help=_RECIPE)
    command.add_argument("--key", dest="_", metavar="value", action=_NeverGiven,
                         help="any key of the recipe, dotted: --seed 1 --method.h 20 --train.ema 0.999")  # fmt: skip
    command.add_argument("--print_config", action="store_true", help="print the whole recipe and exit")
    command.add_argument("-h", "--help", action="store_true", help="show this; with RECIPE, also all keys")


class _NeverGiven(argparse.Action):
    """Stands in the help for all keys of the recipe."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.error("--key stands for a key of the recipe, such as --seed or --method.h")


def _add_inspect(group: argparse._SubParsersAction[_Parser]) -> _Added:
    examples = (
        "  regrow inspect wrn22-2 --sparsity 0.9 --distribution erk\n"
        "  regrow inspect timm:resnet50 --sparsity 0.8 --data-shape 3,224,224\n"
        "  regrow inspect torchvision:resnet50 --channels --flops 0.5"
    )
    usage = "MODEL [--sparsity S] [--distribution D] | [--channels] [--data-shape C,H,W] [...]"
    command = _command(
        group, "inspect", "show a model's layers, densities and FLOPs before any training", examples, usage
    )
    command.add_argument("model", metavar="MODEL", help=_MODEL)
    command.add_argument("--sparsity", type=float, metavar="S", help="share of the weights to remove (default: 0.9)")
    command.add_argument("--distribution", metavar="D", help="uniform, er, erk or global (default: uniform)")
    command.add_argument("--channels", action="store_true",
                         help="show which channels go together, and what stays dense and why")  # fmt: skip
    command.add_argument("--flops", metavar="F",
                         help="with --channels: widths that meet this budget, a share of dense or '1.1 G'")  # fmt: skip
    command.add_argument("--params", metavar="P", help="likewise, a share of dense or '5 M'")
    command.add_argument("--latency", metavar="L", help="likewise, a share of dense or '12 ms'; needs --table")
    command.add_argument("--table", metavar="FILE", help="latency table that `regrow profile` has written")
    command.add_argument("--round-to", type=int, metavar="N",
                         help="with a budget: what numbers of channels are multiples of (default: 8)")  # fmt: skip
    command.add_argument("--exclude", metavar="A,B,...", default="", help="layers that stay dense; * and ? allowed")
    command.add_argument("--include", metavar="A,B,...", default="", help="sparsify only these layers; * and ? allowed")
    command.add_argument(
        "--data-shape", metavar="C,H,W", help="shape of an image (default: what the model is made for)"
    )
    command.add_argument(
        "--classes", type=int, metavar="N", help="number of classes (default: 10, or 1000 for 224 pixels)"
    )
    return "inspect", command, _inspect


def _add_profile(group: argparse._SubParsersAction[_Parser]) -> _Added:
    examples = (
        "  regrow profile torchvision:resnet50 --out latency.json\n"
        "  regrow profile timm:mobilenetv1_100 --runtime onnxruntime --batch 1 --out latency.json\n"
        "  regrow profile wrn22-2 --time-limit 30 --check 5 --out latency.json\n"
        "The table holds for this machine, runtime, batch and image size."
    )
    usage = "MODEL --out FILE [--runtime R] [--batch N] [--threads N] [--time-limit S] [--check N] [...]"
    command = _command(group, "profile", "measure what the layers of a model cost on this machine", examples, usage)
    command.add_argument("model", metavar="MODEL", help=_MODEL)
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write the table (JSON)")
    command.add_argument("--runtime", default="eager", metavar="R", help="eager (default) or onnxruntime")
    command.add_argument("--batch", type=int, default=8, metavar="N", help="images at a time (default: %(default)s)")
    command.add_argument("--threads", type=int, default=1, metavar="N",
                         help="of the runtime (default: %(default)s, whose own time counts, so that other programs on "
                         "the machine disturb little; the time of several is that on the wall)")  # fmt: skip
    command.add_argument("--data-shape", metavar="C,H,W",
                         help="shape of an image (default: what the model is made for)")  # fmt: skip
    command.add_argument("--classes", type=int, metavar="N", help="number of classes (default: as in inspect)")
    command.add_argument("--time-limit", type=float, default=120.0, metavar="S",
                         help="seconds to take; the less, the fewer widths are measured (default: 120)")  # fmt: skip
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of the thin models (default: %(default)s)")
    command.add_argument("--check", type=int, default=3, metavar="N",
                         help="thin models that the finished table is checked with (default: %(default)s)")  # fmt: skip
    return "profile", command, _profile


def _add_report(group: argparse._SubParsersAction[_Parser]) -> _Added:
    examples = "  regrow report runs/first --out first.html\n  regrow report runs/* --out all.html"
    command = _command(group, "report", "write one self-contained page about runs", examples, "RUN_DIR... [--out FILE]")
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="what train or compare wrote")
    command.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html")
    return "report", command, _report


def _split_overrides(words: Sequence[str], command: _Parser) -> tuple[list[str], list[str]]:
    """The words that the command itself knows, and ``--key value`` for the recipe."""
    known = command._option_string_actions
    own: list[str] = []
    overrides: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        target = own
        option = word.partition("=")[0]
        if word.startswith("--") and option not in known:
            target = overrides
        target.append(word)
        takes_value = target is overrides or (option in known and known[option].nargs is None)
        if word.startswith("--") and "=" not in word and takes_value and queue:
            target.append(queue.pop(0))
    return own, overrides


def _train(args: argparse.Namespace) -> int:
    if args.help:
        return _show_help("train", args)
    if args.recipe is None and args.resume and args.out is not None:
        args.recipe = str(args.out / "recipe.yaml")
    _require_recipe("train", args)
    from regrow.training import recipe as recipes

    recipe = recipes.load(args.recipe, args.overrides)
    if args.print_config:
        print(recipe.to_yaml(), end="")
        return 0
    if args.resume and args.out is None:
        raise UserError("--resume needs --out, the directory of the run to continue")
    out = args.out or _fresh(Path("runs") / _stem(args.recipe))
    from regrow.training import rundir

    if args.resume and rundir.is_finished(out):
        rundir.check_same_recipe(out, recipe)
        print(f"the run in {out} is finished; its results are in {out / rundir.RESULTS}")
        return 0
    from regrow.training.loop import train
    from regrow.training.progress import Interrupted

    try:
        found = train(
            recipe, out, resume=args.resume, label=args.label, report=not args.no_report, quiet=args.quiet
        )  # fmt: skip
    except Interrupted as stopped:
        print(f"regrow: {stopped}; continue with: regrow train --out {out} --resume", file=sys.stderr)
        return 130
    if not args.quiet:
        run = found["runs"][0]
        print(
            f"{run['label']}: test accuracy {run['accuracy']:.2%} at density {run['density']:.1%}, "
            f"training cost {run['training_cost']:.2f} x dense; see {out}"
        )
    return 0


def _compare(args: argparse.Namespace) -> int:
    if args.help:
        return _show_help("compare", args)
    _require_recipe("compare", args)
    from regrow.training import recipe as recipes

    recipe = recipes.load(args.recipe, args.overrides)
    if args.print_config:
        print(recipe.to_yaml(), end="")
        return 0
    out = args.out or Path("runs") / f"compare-{_stem(args.recipe)}"
    methods = _METHODS[recipe.pattern_name] if args.methods is None else args.methods
    return _run_compare(args, recipe, out, _words(methods, "--methods"), _seeds(args.seeds))


def _demo(args: argparse.Namespace) -> int:
    from regrow.training import recipe as recipes

    recipe = recipes.load("digits-iee")
    from regrow.training.compare import is_unfinished

    out = _fresh(args.out, unless=lambda path: is_unfinished(path, recipe))
    if out.exists():
        print(f"continuing the demo in {out}")
    elif out != args.out:
        print(f"{args.out} exists, so this demo goes to {out}")
    args.recipe, args.match, args.jobs, args.quiet = "digits-iee", "steps", None, False
    return _run_compare(args, recipe, out, ["dense", "static", "rigl", "iee", "channels"], [0, 1, 2])


def _run_compare(args: argparse.Namespace, recipe: object, out: Path, labels: list[str], seeds: list[int]) -> int:
    from regrow.training import compare as comparing
    from regrow.training.progress import Interrupted
    from regrow.training.recipe import Recipe

    assert isinstance(recipe, Recipe)
    try:
        found = comparing.compare(
            recipe, out, labels, seeds, match=args.match, jobs=args.jobs, quiet=args.quiet
        )  # fmt: skip
    except Interrupted as stopped:
        print(f"regrow: {stopped}; the same command with --out {out} continues it", file=sys.stderr)
        return 130
    comparing.print_table(found.results["summary"])
    if found.results["runs"]:
        print(f"report: {out / 'report.html'}")
    for failure in found.failures:
        print(f"regrow: {failure}", file=sys.stderr)
    return 1 if found.failures else 0


def _inspect(args: argparse.Namespace) -> int:
    from regrow import inspection

    shape = _shape(args.data_shape) if args.data_shape else None
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
            exclude=_words(args.exclude), shape=shape, classes=args.classes,
        )  # fmt: skip
        return 0
    inspection.show(
        args.model, sparsity=0.9 if args.sparsity is None else args.sparsity,
        distribution=args.distribution or "uniform", exclude=_words(args.exclude), include=_words(args.include),
        shape=shape, classes=args.classes,
    )  # fmt: skip
    return 0


def _profile(args: argparse.Namespace) -> int:
    from regrow import profiling

    shape = _shape(args.data_shape) if args.data_shape else None
    profiling.show(
        args.model, args.out, runtime=args.runtime, batch=args.batch, threads=args.threads, shape=shape,
        classes=args.classes, time_limit=args.time_limit, check=args.check, seed=args.seed,
    )  # fmt: skip
    return 0


def _report(args: argparse.Namespace) -> int:
    from regrow.report.page import write

    print(f"report: {write(args.runs, args.out)}")
    return 0


def _show_help(name: str, args: argparse.Namespace) -> int:
    _, commands = _parsers()
    commands[name][0].print_help()
    if args.recipe is None:
        print(f"\n`regrow {name} RECIPE --help` lists all keys of a recipe.")
        return 0
    from regrow.training import describe, recipe

    print("\n" + describe.keys(recipe.load(args.recipe, args.overrides)))
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


def _words(text: str, option: str = "") -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if option and not words:
        raise UserError(f"{option} is empty")
    if len(set(words)) < len(words):
        double = next(word for word in words if words.count(word) > 1)
        raise UserError(f"{option or 'a list'} names {double!r} twice")
    return words


def _seeds(text: str) -> list[int]:
    words = _words(text, "--seeds")
    for word in words:
        if not word.isdecimal():
            raise UserError(f"--seeds must be whole numbers such as 0,1,2, not {word!r}")
    return [int(word) for word in words]


def _shape(text: str) -> tuple[int, ...]:
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--data-shape must be channels, height and width such as 3,32,32, not {text!r}")
    return tuple(int(part) for part in parts)
