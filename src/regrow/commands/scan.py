"""``regrow scan``: how much each layer, or group of channels, can lose before the loss moves."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow import atomic
from regrow.commands.recipes import add_recipe_arguments, load, require_recipe, show_help
from regrow.commands.words import Parser, command_parser, share, whole, words_of
from regrow.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from regrow.data.named import BatchSource, DataSet
    from regrow.sensitivity import Scan
    from regrow.training.recipe import Recipe


def add(group: argparse._SubParsersAction[Parser]) -> Parser:
    examples = (
        "  regrow scan runs/first\n"
        "  regrow scan digits-iee --model.weights dense.pt --criterion taylor --sparsities 0.5,0.9,0.98\n"
        "  regrow train digits-iee --pattern.distribution scan.json\n"
        "The pattern of the recipe says what is removed: weights, blocks, n of m, or whole channels."
    )
    usage = "RECIPE_OR_RUN [--key value ...] [--sparsities A,B,...] [--batches N] [--out FILE]"
    command = command_parser(group, "scan", "see how much each layer can lose before the loss moves", examples, usage)
    add_recipe_arguments(command, "YAML file, the name of a shipped recipe, or a directory that `regrow train` wrote")
    command.add_argument("--sparsities", metavar="A,B,...",
                         help="shares of a layer to remove (default: 0.5,0.7,0.9,0.95,0.99)")  # fmt: skip
    command.add_argument("--batches", type=whole, default=8, metavar="N",
                         help="of the validation set that losses are measured on (default: %(default)s)")  # fmt: skip
    command.add_argument("--recalibrate", type=whole, metavar="N",
                         help="re-estimate statistics of batch norms each time, from N training batches")  # fmt: skip
    command.add_argument("--out", type=Path, metavar="FILE",
                         help="the numbers, over any that are there; a page is written beside them, FILE.html "
                         "(default: scan.json, which is never written over)")  # fmt: skip
    command.add_argument("--quiet", action="store_true", help="show no progress")
    return command


def run(args: argparse.Namespace) -> int:
    if args.help:
        return show_help(args)
    require_recipe(args, "a directory that `regrow train` wrote, a YAML file")
    for option in ("batches", "recalibrate"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option} must be at least 1, not {value}")
    sparsities = None if args.sparsities is None else _shares(args.sparsities)
    out, page = _targets(args.out)
    directory = Path(args.recipe)
    of_run = directory.is_dir()
    if of_run:
        _refuse_other_model(args.overrides)
        args.recipe = str(directory / "recipe.yaml")
    model = _finished(directory, args.trust) if of_run and not args.print_config else None
    recipe = load(args, resumed=of_run)
    if args.print_config:
        print(recipe.to_yaml(), end="")
        return 0
    found = _scan(recipe, model, args, sparsities)
    found.save(out)
    from regrow.report import scanned

    scanned.write(found, page)
    _print(found)
    print(f"numbers: {out}, page: {page}")
    if model is not None and found.pattern != "channels":
        _say_if_sparse(model)
    return 0


def _targets(named: Path | None) -> tuple[Path, Path]:
    """Where the numbers and the page go."""
    from regrow.training import rundir

    out = named or Path("scan.json")
    if out.suffix != ".json":
        raise UserError(f"--out {out} does not end in .json, by which distribution= knows a scan: name scan.json")
    page = out.with_suffix(".html")
    for path in (out, page):
        atomic.check_file(path, "--out", "scan.json")
        rundir.check_no_part(path, "--out")
        if named is None and path.exists():  # recipes may name it
            raise UserError(f"{path} is there already: name another with --out, or this one to write over it")
    return out, page


def _shares(text: str) -> list[float]:
    try:
        return [share(word) for word in words_of(text, "--sparsities")]
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--sparsities: {error}") from error


def _refuse_other_model(overrides: list[str]) -> None:
    named = next((word for word in overrides if word.startswith("--model")), None)
    if named is not None:
        raise UserError(f"{named.partition('=')[0]} is of no use here, as a run's network is scanned as it was saved")


def _finished(directory: Path, trusted: bool) -> nn.Module:
    from regrow.training import finished

    return finished.read(directory, trusted).network()


def _say_if_sparse(model: nn.Module) -> None:
    """Such a scan looks as if layers could lose nearly everything, although they have lost it already."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    zeros = sum(int((weight == 0).sum()) for weight in weights) / max(1, sum(weight.numel() for weight in weights))
    if zeros >= 0.01:
        print(
            f"regrow: {zeros:.0%} of the network's weights are zero already, and layers lose these first, which costs "
            "nothing: to see what layers can lose, scan one that was trained with --method.name dense", file=sys.stderr,
        )  # fmt: skip


def _scan(recipe: Recipe, model: nn.Module | None, args: argparse.Namespace, sparsities: list[float] | None) -> Scan:
    from contextlib import ExitStack
    from dataclasses import replace

    import torch
    from accelerate.state import PartialState

    from regrow.latency.whole import bar
    from regrow.scanning import scan
    from regrow.training.run import criterion_of, data_of, model_of
    from regrow.zoo.models import example_input

    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    recipe.task.check(recipe.train)
    data = data_of(recipe)
    recipe.task.check_data(data, recipe.data.name)
    held_out = _held_out(data, args.batches)
    if model is None:
        model = model_of(recipe, data)
        if recipe.model.weights is None and not recipe.model.options.get("pretrained"):
            print(
                "regrow: the network has random weights, so that its losses say little: set --model.weights, or give "
                "the directory of a run", file=sys.stderr,
            )  # fmt: skip
    model = model.to(PartialState().device)
    fresh = None if args.recalibrate is None else _first(data.train, args.recalibrate)
    with ExitStack() as stack:
        advance: list[Any] = []

        def progress(done: int, total: int) -> None:
            if not advance:
                advance.append(stack.enter_context(bar(not args.quiet, total, "scanning")))
            advance[0]()

        found = scan(
            model, held_out, recipe.pattern, sparsities=sparsities, criterion=criterion_of(recipe),
            example_inputs=example_input(model, data.shape), recalibrate=fresh, seed=recipe.seed, progress=progress,
            loss=None if recipe.task.name == "classification" else _loss_of(recipe),
        )  # fmt: skip
    return replace(found, model=f"{args.recipe} ({recipe.model.name})")


def _loss_of(recipe: Recipe) -> Callable[[nn.Module, Any], Any]:
    """That of a task; where its models tell it in training mode alone, their norms stay as in eval mode."""
    from regrow.batchnorm import hold_still

    def loss(model: nn.Module, batch: Any) -> Any:
        device = next(model.parameters()).device
        if recipe.task.loss_in_eval:
            return recipe.task.loss(model, batch, device, recipe.train)
        try:
            model.train()
            hold_still(model)
            return recipe.task.loss(model, batch, device, recipe.train)
        finally:
            model.eval()

    return loss


def _held_out(data: DataSet, batches: int) -> list[Any]:
    if data.val.examples == 0:
        raise UserError(
            "the recipe holds no images out (data.val_fraction is 0), and the test set is not for choosing anything: "
            "add --data.val_fraction 0.1"
        )
    return _first(data.val, batches)


def _first(source: BatchSource, batches: int) -> list[Any]:
    from itertools import islice

    return list(islice(source.epoch(0), batches))


def _print(found: Scan) -> None:
    from rich.console import Console
    from rich.table import Table

    from regrow.report.scanned import increase, unit_of

    accuracy = "" if found.accuracy is None else f", accuracy {found.accuracy:.2%}"
    title = (
        f"{found.model}, {found.pattern} by {found.criterion}: growth of the loss ({found.loss:.4f} before{accuracy}), "
        f"{found.examples:,} images"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("group" if found.pattern == "channels" else "layer", overflow="fold")
    table.add_column(unit_of(found), justify="right")
    for removed in found.sparsities:
        table.add_column(f"−{100 * removed:.4g}%", justify="right")
    for layer in found.layers:
        table.add_row(layer.name, f"{layer.units:,}", *(increase(value) for value in found.increase(layer)))
    console = Console()
    if not console.is_terminal:  # a pipe or a file has no width to fit into
        console = Console(width=160)
    console.print(table)
