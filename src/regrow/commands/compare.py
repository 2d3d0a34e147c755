"""``regrow compare``: several methods and seeds of one recipe."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.commands.recipes import add_recipe_arguments, load, require_recipe, show_help, stem
from regrow.commands.words import Parser, command_parser, seeds_of, whole, words_of

if TYPE_CHECKING:
    from regrow.training.recipe import Recipe

# what is compared where nobody says, by pattern
COMPARED = {"weights": "iee,rigl,set,static,dense", "channels": "iee,halp,uniform,oneshot,dense"}


def add(group: argparse._SubParsersAction[Parser]) -> Parser:
    examples = (
        "  regrow compare digits-iee --methods iee,rigl,set,static,dense --seeds 0,1,2\n"
        "  regrow compare cifar10-wrn22-2-iee --methods iee,rigl --match cost --out runs/matched\n"
        "The same command again continues a comparison that was interrupted."
    )
    usage = "RECIPE [--key value ...] [--methods A,B,...] [--seeds 0,1,...] [--match steps|cost] [--out DIR] [--jobs N]"
    command = command_parser(group, "compare", "run a recipe with several methods and seeds", examples, usage)
    add_recipe_arguments(command)
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
    return command


def run(args: argparse.Namespace) -> int:
    if args.help:
        return show_help(args)
    require_recipe(args)
    recipe = load(args)
    if args.print_config:
        print(recipe.to_yaml(), end="")
        return 0
    out = args.out or Path("runs") / f"compare-{stem(args.recipe)}"
    methods = _default_methods(recipe) if args.methods is None else words_of(args.methods, "--methods")
    return carry_out(
        recipe, out, methods, seeds_of(args.seeds), match=args.match, jobs=args.jobs, quiet=args.quiet
    )  # fmt: skip


def _default_methods(recipe: Recipe) -> list[str]:
    """What is compared where nobody says: the recipe's own method if it is the user's, and those for its pattern."""
    from regrow.training import own
    from regrow.training.speed import is_channels

    mine = [recipe.method_name] if own.is_class("method", recipe.method_name) else []
    return mine + words_of(COMPARED["channels" if is_channels(recipe) else "weights"])


def carry_out(recipe: Recipe, out: Path, labels: list[str], seeds: list[int], **options: Any) -> int:
    """Compares, and says what came of it; ``options`` are those of `regrow.study.comparison.compare`."""
    from regrow.study import comparison as comparing
    from regrow.study.printed import print_table
    from regrow.training.progress import Interrupted

    try:
        found = comparing.compare(recipe, out, labels, seeds, **options)
    except Interrupted as stopped:
        print(f"regrow: {stopped}; the same command with --out {out} continues it", file=sys.stderr)
        return 130
    if found.results["runs"]:
        print_table(found.results["summary"])
        print(f"report: {out / 'report.html'}")
    for failure in found.failures:
        print(f"regrow: {failure}", file=sys.stderr)
    if not found.results["runs"]:
        print(f"regrow: no run has finished; the same command with --out {out} tries again", file=sys.stderr)
    return 1 if found.failures else 0
