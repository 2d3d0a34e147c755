"""``regrow compare``: several methods and seeds of one recipe."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.commands.recipes import add_recipe_arguments, load, require_recipe, show_help, stem
from regrow.commands.words import Parser, command_parser, seeds_of, vary_of, whole, words_of
from regrow.errors import UserError

if TYPE_CHECKING:
    from regrow.training.recipe import Recipe
    from regrow.training.sections import StudySection

# what is compared where nobody says, by pattern
COMPARED = {"weights": "iee,rigl,set,static,dense", "channels": "iee,halp,uniform,oneshot,dense"}


def add(group: argparse._SubParsersAction[Parser]) -> Parser:
    examples = (
        "  regrow compare digits-iee --methods iee,rigl,set,static,dense --seeds 0,1,2\n"
        "  regrow compare cifar10-wrn22-2-iee --methods iee,rigl --match cost --out runs/matched\n"
        "  regrow compare digits-channels --methods iee,halp,uniform --match time --out runs/equal-time\n"
        "  regrow compare digits-iee --methods iee,rigl --vary pattern.sparsity=0.9,0.95,0.98\n"
        "  regrow compare digits-iee --methods iee --vary method.h=10,20,40 --vary optimizer.lr=0.05,0.1\n"
        "  regrow compare study.yaml --out runs/study      all that its section study says:\n"
        "      base: digits-iee\n"
        "      study: {methods: [iee, rigl], seeds: [0, 1, 2], vary: {pattern.sparsity: [0.9, 0.95]}, match: cost}\n"
        "The same command again continues a comparison that was interrupted."
    )
    usage = (
        "RECIPE [--key value ...] [--methods A,B,...] [--seeds 0,1,...] [--vary KEY=A,B,...] [--match steps|cost|time] "
        "[--out DIR] [--jobs N]"
    )
    command = command_parser(group, "compare", "run a recipe with several methods and seeds", examples, usage)
    add_recipe_arguments(command)
    command.add_argument("--methods", metavar="A,B,...",
                         help="methods (yours are package.module:Class), or labels of the recipe's compare section "
                         f"(default: {COMPARED['weights']}, or for channels {COMPARED['channels']}); differences are "
                         "against the first")  # fmt: skip
    command.add_argument("--seeds", metavar="0,1,...", help="seeds of each (default: 0,1,2)")
    command.add_argument("--vary", metavar="KEY=A,B,...", action="append",
                         help="values of a key of the recipe, each compared with all methods; given several times, all "
                         "combinations")  # fmt: skip
    command.add_argument("--match", choices=("steps", "cost", "time"),
                         help="what all methods get the same of: training steps (the default), training FLOPs, or, "
                         "with thin channels, the time that the recipe's method trains on this machine")  # fmt: skip
    command.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: runs/compare-NAME)")
    command.add_argument("--jobs", type=whole, metavar="N", help="runs at a time (default: one for each core)")
    command.add_argument("--quiet", action="store_true", help="show no progress, only the table")
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
    given: dict[str, Any] = {
        "methods": None if args.methods is None else tuple(words_of(args.methods, "--methods")),
        "seeds": None if args.seeds is None else tuple(seeds_of(args.seeds)),
        "vary": None if args.vary is None else vary_of(args.vary),
        "match": args.match,
    }
    chosen = selection_of(recipe, **{key: value for key, value in given.items() if value is not None})
    return carry_out(
        recipe, out, list(chosen.methods), list(chosen.seeds), match=chosen.match, vary=chosen.vary, jobs=args.jobs,
        quiet=args.quiet,
    )  # fmt: skip


def selection_of(recipe: Recipe, **given: Any) -> StudySection:
    """What is compared: what is given, otherwise what the recipe's section study says, with methods in any case.

    Raises:
        UserError: it says something twice, or has no seeds.
    """
    study = recipe.study
    _said("methods", study.methods)
    if not _said("seeds", study.seeds):
        raise UserError("study.seeds is empty")
    chosen = dataclasses.replace(study, **given)
    return chosen if chosen.methods else dataclasses.replace(chosen, methods=tuple(_default_methods(recipe)))


def _said(key: str, values: Sequence[Any]) -> list[Any]:
    """What a study says, which must not say it twice."""
    for value in values:
        if list(values).count(value) > 1:
            raise UserError(f"study.{key} names {value!r} twice")
    return list(values)


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
    if found.results["runs"] and found.report is not None:
        print(f"report: {found.report}")
    for failure in found.failures:
        print(f"regrow: {failure}", file=sys.stderr)
    if not found.results["runs"]:
        print(f"regrow: no run has finished; the same command with --out {out} tries again", file=sys.stderr)
    return 1 if found.failures else 0
