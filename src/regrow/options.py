"""The words of the command line: which commands there are, what they take, and how lists and shapes are read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from regrow.errors import UserError, percent

_RECIPE = "YAML file, or the name of a shipped recipe such as digits-iee"
_MODEL = "wrn22-2, digits-cnn, timm:NAME, torchvision:NAME or package.module:callable"
_DESCRIPTION = "Make PyTorch models sparse while they train, and keep changing your mind about what to remove."
_EXAMPLES = """examples:
  regrow demo
  regrow train digits-iee --seed 1 --out runs/first
  regrow compare digits-iee --methods iee,rigl,set,static,dense --seeds 0,1,2

`regrow COMMAND --help` says more about each command."""

# what `compare` compares, by pattern
COMPARED = {"weights": "iee,rigl,set,static,dense", "channels": "iee,halp,uniform,oneshot,dense"}
_DIGITS = 12  # of a whole number; more are none that counts anything
_SIDE = 2**16  # of an image
_AS_WRITTEN = argparse.RawDescriptionHelpFormatter


class Parser(argparse.ArgumentParser):
    """Raises what argparse would print with its usage, so that every error looks the same."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.replace(chr(10), ' ')} (see {self.prog} --help)")


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The main parser, and that of each command."""
    parser = Parser("regrow", description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=_AS_WRITTEN)
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    group = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    adders = (_add_demo, _add_train, _add_compare, _add_inspect, _add_profile, _add_report)
    commands = dict(add(group) for add in adders)
    for one in (parser, *commands.values()):  # for the help; `main` takes it out
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser, commands


def _command(group: argparse._SubParsersAction[Parser], name: str, about: str, examples: str, usage: str) -> Parser:
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


def whole(text: str) -> int:
    """A whole number of a length that counts something."""
    if len(text) > _DIGITS:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} has more than {_DIGITS} digits")
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from error


def share(text: str) -> float:
    """A number, of a share."""
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"invalid float value: {text[:40]!r}{percent(text)}") from error


def _add_demo(group: argparse._SubParsersAction[Parser]) -> tuple[str, Parser]:
    examples = "  regrow demo\n  regrow demo --out /tmp/demo"
    command = _command(group, "demo", "train dense and sparse networks on handwritten digits", examples, "[--out DIR]")
    command.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="where to write (default: demo)")
    return "demo", command


def _add_train(group: argparse._SubParsersAction[Parser]) -> tuple[str, Parser]:
    examples = (
        "  regrow train digits-iee\n"
        "  regrow train digits-iee --method.h 40 --pattern.sparsity 0.95 --out runs/sparser\n"
        "  regrow train runs/sparser/recipe.yaml --out runs/sparser --resume\n"
        "  regrow train digits-rigl --help          lists every key of that recipe\n"
        "  torchrun --nproc_per_node 8 -m regrow train imagenet-resnet50-erk90-iee --out runs/imagenet"
    )
    usage = "RECIPE [--key value ...] [--out DIR] [--resume]"
    command = _command(group, "train", "run a recipe", examples, usage)
    _add_recipe_arguments(command)
    command.add_argument("--out", type=Path, metavar="DIR", help="the run directory (default: runs/NAME, a new one)")
    command.add_argument("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
    command.add_argument("--label", help="name of the run in tables (default: the method)")
    command.add_argument("--quiet", action="store_true", help="show no progress")
    command.add_argument("--no-report", action="store_true", help="write no report.html")
    return "train", command


def _add_compare(group: argparse._SubParsersAction[Parser]) -> tuple[str, Parser]:
    examples = (
        "  regrow compare digits-iee --methods iee,rigl,set,static,dense --seeds 0,1,2\n"
        "  regrow compare cifar10-wrn22-2-iee --methods iee,rigl --match cost --out runs/matched\n"
        "The same command again continues a comparison that was interrupted."
    )
    usage = "RECIPE [--key value ...] [--methods A,B,...] [--seeds 0,1,...] [--match steps|cost] [--out DIR] [--jobs N]"
    command = _command(group, "compare", "run a recipe with several methods and seeds", examples, usage)
    _add_recipe_arguments(command)
    command.add_argument("--methods", metavar="A,B,...",
                         help="methods (yours are package.module:Class), or labels of the recipe's compare section "
                         f"(default: {COMPARED['weights']}, or for channels {COMPARED['channels']}); differences are "
                         "against the first")  # fmt: skip
    command.add_argument("--seeds", metavar="0,1,...", default="0,1,2", help="seeds of each (default: %(default)s)")
    command.add_argument("--match", choices=("steps", "cost"), default="steps",
                         help="what all methods get the same of: training steps, or training FLOPs")  # fmt: skip
    command.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: runs/compare-NAME)")
    command.add_argument("--jobs", type=whole, metavar="N", help="runs at a time (default: as many as there are cores)")
    command.add_argument("--quiet", action="store_true", help="show no progress")
    return "compare", command


def _add_recipe_arguments(command: Parser) -> None:
    command.add_argument("recipe", nargs="?", metavar="RECIPE", help=_RECIPE)
    command.add_argument("--key", dest="_", metavar="value", action=_NeverGiven,
                         help="any key of the recipe, dotted: --seed 1 --method.h 20 --train.ema 0.999")  # fmt: skip
    command.add_argument("--trust", action="store_true",
                         help="import the code that the recipe of a run directory names")  # fmt: skip
    command.add_argument("--print_config", action="store_true", help="print the whole recipe and exit")
    command.add_argument("-h", "--help", action="store_true", help="show this; with RECIPE, also all keys")


class _NeverGiven(argparse.Action):
    """Stands in the help for all keys of the recipe."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.error("--key stands for a key of the recipe, such as --seed or --method.h")


def _add_inspect(group: argparse._SubParsersAction[Parser]) -> tuple[str, Parser]:
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
    command.add_argument("--sparsity", type=share, metavar="S", help="share of the weights to remove (default: 0.9)")
    command.add_argument("--distribution", metavar="D", help="uniform, er, erk or global (default: uniform)")
    command.add_argument("--channels", action="store_true",
                         help="show which channels go together, and what stays dense and why")  # fmt: skip
    command.add_argument("--flops", metavar="F",
                         help="with --channels: widths that meet this budget, a share of dense or '1.1 G'")  # fmt: skip
    command.add_argument("--params", metavar="P", help="likewise, a share of dense or '5 M'")
    command.add_argument("--latency", metavar="L", help="likewise, a share of dense or '12 ms'; needs --table")
    command.add_argument("--table", metavar="FILE", help="latency table that `regrow profile` has written")
    command.add_argument("--round-to", type=whole, metavar="N",
                         help="with a budget: what numbers of channels are multiples of (default: 8)")  # fmt: skip
    command.add_argument("--exclude", metavar="A,B,...", default="", help="layers that stay dense; * and ? allowed")
    command.add_argument("--include", metavar="A,B,...", default="", help="sparsify only these layers; * and ? allowed")
    command.add_argument(
        "--data-shape", metavar="C,H,W", help="shape of an image (default: what the model is made for)"
    )
    command.add_argument(
        "--classes", type=whole, metavar="N", help="number of classes (default: 10, or 1000 for 224 pixels)"
    )
    return "inspect", command


def _add_profile(group: argparse._SubParsersAction[Parser]) -> tuple[str, Parser]:
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
    command.add_argument("--batch", type=whole, default=8, metavar="N", help="images at a time (default: %(default)s)")
    command.add_argument("--threads", type=whole, default=1, metavar="N",
                         help="of the runtime (default: %(default)s, whose own time counts, so that other programs on "
                         "the machine disturb little; the time of several is that on the wall)")  # fmt: skip
    command.add_argument("--data-shape", metavar="C,H,W",
                         help="shape of an image (default: what the model is made for)")  # fmt: skip
    command.add_argument("--classes", type=whole, metavar="N", help="number of classes (default: as in inspect)")
    command.add_argument("--time-limit", type=float, default=120.0, metavar="S",
                         help="seconds to take; the less, the fewer widths are measured (default: 120)")  # fmt: skip
    command.add_argument("--seed", type=whole, default=0, metavar="N", help="of the thin models (default: %(default)s)")
    command.add_argument("--check", type=whole, default=3, metavar="N",
                         help="thin models that the finished table is checked with (default: %(default)s)")  # fmt: skip
    return "profile", command


def _add_report(group: argparse._SubParsersAction[Parser]) -> tuple[str, Parser]:
    examples = "  regrow report runs/first --out first.html\n  regrow report runs/* --out all.html"
    command = _command(group, "report", "write one self-contained page about runs", examples, "RUN_DIR... [--out FILE]")
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="what train or compare wrote")
    command.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html")
    return "report", command


def split_overrides(words: Sequence[str], command: Parser) -> tuple[list[str], list[str]]:
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


def words_of(text: str, option: str = "") -> list[str]:
    """``a,b,c`` as a list of words; where an option is named, it must have some.

    Raises:
        UserError: there are none, or a word is there twice.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if option and not words:
        raise UserError(f"{option} is empty")
    if len(set(words)) < len(words):
        double = next(word for word in words if words.count(word) > 1)
        raise UserError(f"{option or 'a list'} names {double!r} twice")
    return words


def seeds_of(text: str) -> list[int]:
    """``0,1,2`` as numbers.

    Raises:
        UserError: it is something else.
    """
    words = words_of(text, "--seeds")
    for word in words:
        if not (word.isdecimal() and len(word) <= _DIGITS):
            raise UserError(f"--seeds must be whole numbers such as 0,1,2, not {word[:40]!r}")
    return [int(word) for word in words]


def shape_of(text: str) -> tuple[int, ...]:
    """``3,32,32`` (or ``3x32x32``) as the shape of an image.

    Raises:
        UserError: it is something else.
    """
    parts = text.replace("x", ",").split(",")
    sides = [part.strip() for part in parts]
    if len(sides) != 3 or not all(s.isdecimal() and len(s) <= _DIGITS and 0 < int(s) <= _SIDE for s in sides):
        raise UserError(f"--data-shape must be channels, height and width such as 3,32,32, not {text[:40]!r}")
    return tuple(int(part) for part in parts)
