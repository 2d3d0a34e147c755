"""``regrow train``: one run of a recipe."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from regrow.commands.recipes import add_recipe_arguments, fresh, load, require_recipe, show_help, stem
from regrow.commands.words import Parser, command_parser
from regrow.errors import UserError


def add(group: argparse._SubParsersAction[Parser]) -> Parser:
    examples = (
        "  regrow train digits-iee\n"
        "  regrow train digits-iee --method.h 40 --pattern.sparsity 0.95 --out runs/sparser\n"
        "  regrow train runs/sparser/recipe.yaml --out runs/sparser --resume\n"
        "  regrow train digits-rigl --help          lists every key of that recipe\n"
        "  torchrun --nproc_per_node 8 -m regrow train imagenet-resnet50-erk90-iee --out runs/imagenet"
    )
    usage = "RECIPE [--key value ...] [--out DIR] [--resume]"
    command = command_parser(group, "train", "run a recipe", examples, usage)
    add_recipe_arguments(command)
    command.add_argument("--out", type=Path, metavar="DIR", help="the run directory (default: runs/NAME, a new one)")
    command.add_argument("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
    command.add_argument("--label", help="name of the run in tables (default: the method)")
    command.add_argument("--quiet", action="store_true", help="print nothing but warnings and errors")
    command.add_argument("--no-report", action="store_true", help="write no report.html")
    return command


def run(args: argparse.Namespace) -> int:
    if args.help:
        return show_help(args)
    of_its_own = args.recipe is None and args.resume and args.out is not None
    if of_its_own:
        args.recipe = str(args.out / "recipe.yaml")
    require_recipe(args)
    if args.resume and args.out is None:
        raise UserError("--resume needs --out, the directory of the run to continue")
    if args.resume and not (args.out / "recipe.yaml").is_file():
        raise UserError(f"{args.out} holds no run that could be continued: leave --resume out to start one")
    recipe = load(args, resumed=of_its_own)
    if args.print_config:
        print(recipe.to_yaml(), end="")
        return 0
    out = args.out or fresh(Path("runs") / stem(args.recipe))
    from regrow.training import rundir

    if args.resume and rundir.is_finished(out):
        rundir.check_same_recipe(out, recipe)
        print(f"the run in {out} is finished; its results are in {out / rundir.RESULTS}")
        if rundir.report_is_due(out) and not args.no_report:  # it ended just before
            print(f"report: {_write_report(out)}")
        return 0
    from regrow.training import checkpoint, trust
    from regrow.training.loop import train
    from regrow.training.progress import Interrupted

    if args.resume and not args.quiet and not checkpoint.path_in(out).exists():
        print(f"the run in {out} has no checkpoint yet, so it starts from the beginning")
    try:
        found = train(recipe, out, resume=args.resume, label=args.label, quiet=args.quiet)
    except Interrupted as stopped:
        if _speaks():
            also = " --trust" if trust.foreign(recipe) else ""
            print(f"regrow: {stopped}; continue with: regrow train --out {out} --resume{also}", file=sys.stderr)
        return 130
    if not _speaks():
        return 0
    if not args.no_report:
        _write_report(out)
    if not args.quiet:
        from regrow.training.measures import measure_of

        run = found["runs"][0]
        print(
            f"{run['label']}: test {measure_of([run]).name} {run['accuracy']:.2%} at density {run['density']:.1%}, "
            f"training cost {run['training_cost']:.2f} x dense; see {out}"
        )
    return 0


def _write_report(out: Path) -> Path:
    from regrow.report.page import write
    from regrow.training import rundir

    return write([out], out / rundir.REPORT)


def _speaks() -> bool:
    """Whether this is the one of several processes that train together which says what came of it."""
    from accelerate.state import PartialState

    return bool(PartialState().is_main_process)
