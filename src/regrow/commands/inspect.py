"""``regrow inspect``: what a pattern will do to a model, before any training."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from regrow.commands.subject import add_images, add_model, model_of, shape_in, taken
from regrow.commands.words import Parser, command_parser, pair, share, whole, words_of
from regrow.errors import UserError, thing_of

SHOWN = 8  # layers for each reason

if TYPE_CHECKING:
    from torch import nn

    from regrow.groups import Coupling
    from regrow.latency.table import LatencyTable
    from regrow.patterns.entries import EntryPattern


def add(group: argparse._SubParsersAction[Parser]) -> Parser:
    examples = (
        "  regrow inspect wrn22-2 --sparsity 0.9 --distribution erk\n"
        "  regrow inspect timm:resnet50 --sparsity 0.8 --data-shape 3,224,224\n"
        "  regrow inspect torchvision:vit_b_16 --nm 2:4\n"
        "  regrow inspect torchvision:resnet50 --channels --flops 0.5\n"
        "  regrow inspect torchvision:vit_b_16 --channels --normalised --branches\n"
        "  regrow inspect torchvision:ssd300_vgg16 --channels --classes 20\n"
        "  regrow inspect hf:bert --channels --heads width\n"
        "  regrow inspect mine:build --data-shape 3,64,64        build() of mine.py, which returns the model"
    )
    usage = (
        "MODEL [--sparsity S] [--distribution D | --blocks R:C] | [--nm N:M] | [--channels] [--data-shape C,H,W] [...]"
    )
    command = command_parser(
        group, "inspect", "show a model's layers, densities and FLOPs before any training", examples, usage
    )
    add_model(command)
    command.add_argument("--sparsity", type=share, metavar="S", help="share of the weights to remove (default: 0.9)")
    command.add_argument("--distribution", metavar="D",
                         help="uniform, er, erk, global, or a file that scan wrote (default: uniform)")  # fmt: skip
    command.add_argument("--nm", type=pair, metavar="N:M", help="n of every m weights in a row stay, as in 2:4")
    command.add_argument("--blocks", type=pair, metavar="R:C",
                         help="remove blocks of R outputs and C inputs, as in 16:1, not single weights")  # fmt: skip
    command.add_argument("--channels", action="store_true",
                         help="show which channels go together, and what stays dense and why")  # fmt: skip
    command.add_argument("--flops", metavar="F",
                         help="with --channels: widths that meet this budget, a share of dense or '1.1 G'")  # fmt: skip
    command.add_argument("--params", metavar="P", help="likewise, a share of dense or '5 M'")
    command.add_argument("--latency", metavar="L", help="likewise, a share of dense or '12 ms'; needs --table")
    command.add_argument("--table", metavar="FILE", help="latency table that `regrow profile` has written")
    command.add_argument("--round-to", type=whole, metavar="N",
                         help="with a budget: what numbers of channels are multiples of (default: 8)")  # fmt: skip
    command.add_argument("--branches", action="store_true", default=None,
                         help="with --channels: also the branches of residual sums that may go whole")  # fmt: skip
    command.add_argument("--normalised", action="store_true", default=None,
                         help="with --channels: also those that a norm mixes, such as the hidden size of a "
                              "transformer")  # fmt: skip
    command.add_argument("--heads", choices=("count", "width"),
                         help="with --channels: whether whole heads of attention can go, or their width "
                              "(default: count)")  # fmt: skip
    command.add_argument("--exclude", metavar="A,B,...", default="", help="layers that stay dense; * and ? allowed")
    command.add_argument("--include", metavar="A,B,...", default="", help="sparsify only these layers; * and ? allowed")
    add_images(command)
    return command


def run(args: argparse.Namespace) -> int:
    shape = shape_in(args)
    budgets = {kind: getattr(args, kind) for kind in ("latency", "flops", "params")}
    of_channels = {
        **budgets, "table": args.table, "round-to": args.round_to, "branches": args.branches, "heads": args.heads,
        "normalised": args.normalised,
    }  # fmt: skip
    of_weights = {
        "sparsity": args.sparsity, "distribution": args.distribution, "nm": args.nm, "blocks": args.blocks,
        "include": args.include or None,
    }  # fmt: skip
    for option, value in (of_weights if args.channels else of_channels).items():
        if value is not None:
            wrong, way_out = ("not ", "drop it, or drop") if args.channels else ("", "add")
            raise UserError(f"--{option} is {wrong}for channels: {way_out} --channels")
    if args.table is not None and args.latency is None:
        raise UserError("--table prices latency: add --latency, or drop it")
    if args.channels:
        show_channels(
            args.model, budgets={kind: value for kind, value in budgets.items() if value is not None},
            table=args.table, round_to=8 if args.round_to is None else args.round_to,
            exclude=words_of(args.exclude or ""), shape=shape, classes=args.classes, branches=bool(args.branches),
            heads=args.heads or "count", normalised=bool(args.normalised),
        )  # fmt: skip
        return 0
    show(args.model, _pattern(args), shape=shape, classes=args.classes)
    return 0


def _pattern(args: argparse.Namespace) -> EntryPattern:
    from regrow.patterns import NM, Blocks, Weights

    exclude, include = words_of(args.exclude or ""), words_of(args.include or "")
    given = [f"--{name}" for name in ("sparsity", "distribution", "blocks") if getattr(args, name) is not None]
    if args.nm is not None:
        if given:
            raise UserError(f"--nm says how many weights stay, and which compete: drop {given[0]}, or --nm")
        n, m = args.nm
        return NM(n, m, exclude=exclude, include=include)
    sparsity = 0.9 if args.sparsity is None else args.sparsity
    distribution = args.distribution or "uniform"
    if args.blocks is not None:
        return Blocks(args.blocks, sparsity, distribution, exclude, include)
    return Weights(sparsity, distribution, exclude=exclude, include=include)


def show(spec: str, pattern: EntryPattern, *, shape: Sequence[int] | None = None, classes: int | None = None) -> None:
    """Print the layers of a model with their densities and FLOPs.

    Args:
        spec: name of the model
        pattern: of weights, groups or blocks of them
        shape: (channels, height, width) of an image; default: what the model is made for
        classes: outputs; default: 1000 for images of 200 pixels or more, else 10

    Raises:
        UserError: if the model cannot be built or does not take such images, or the pattern does not fit it.
    """
    from regrow.tracing.flops import count_flops
    from regrow.zoo.models import example_input

    model, shape = model_of(spec, shape, classes)
    flops = count_flops(model, example_input(model, shape))
    found = pattern.select(model).dense
    counts = pattern.counts(model)
    parameters = dict(model.named_parameters())
    rows = [(name, tuple(parameters[name].shape), *counts[name], flops.by_parameter[name]) for name in counts]
    densities = {name: active / total for name, (active, total) in counts.items()}
    dense = [name for name, p in parameters.items() if p.dim() > 1 and densities.get(name, 1.0) == 1.0]
    unit = "weights" if pattern.unit_size == 1 else "blocks"
    _print(
        spec, shape, unit, rows, flops.total, flops.inference(densities), sum(p.numel() for p in parameters.values())
    )
    from rich import print as say

    for sentence in _left(
        {name: found.get(name, "the distribution keeps all of it") for name in dense},
        {n: p.numel() for n, p in parameters.items()},
    ):
        say(sentence)
    if flops.uncounted:
        ops = ", ".join(f"{name} ({calls}×)" for name, calls in sorted(flops.uncounted.items()))
        say(f"not counted, as no rule is known for them: {ops}")


def show_channels(
    spec: str,
    *,
    budgets: Mapping[str, str],
    table: str | None = None,
    round_to: int = 8,
    exclude: Sequence[str] = (),
    shape: Sequence[int] | None = None,
    classes: int | None = None,
    branches: bool = False,
    heads: Literal["count", "width"] = "count",
    normalised: bool = False,
) -> None:
    """Print the groups of channels that go together, where they occur, and what stays dense and why.

    Args:
        spec: name of the model
        budgets: "latency", "flops" or "params" → a share of dense or an amount; the widths shown for them are those of
            a network whose groups all keep the same share
        table: latency table, for a budget of latency
        round_to: what numbers of channels are multiples of, where there is a budget
        exclude: layers whose output channels stay
        shape, classes: as in `show`
        branches: whether to show the branches of residual sums that may go whole, too
        heads: what of attention may go: whole heads, or their width
        normalised: whether channels that are normalised together may go

    Raises:
        UserError: if the model cannot be built or followed, or the budgets cannot be met.
    """
    from regrow.coupling.couple import couple
    from regrow.zoo.models import example_input

    if "latency" in budgets and table is None:
        raise UserError("--latency needs --table, which `regrow profile` writes")
    model, shape = model_of(spec, shape, classes)
    example = example_input(model, shape)
    options: dict[str, Any] = {"blocks": branches, "heads": heads, "normalised": normalised}
    kept, shares, latency = dict[str, int](), dict[str, float](), ""
    if budgets:
        from regrow.budgets.allocation import uniform
        from regrow.patterns import Channels

        more = {"table": table, "round_to": round_to, "exclude": tuple(exclude)}
        pattern = Channels(**budgets, **more, **options)  # type: ignore[arg-type]
        units = pattern.bind(model, example)
        coupling, prices = units.coupling, units.prices
        floor = {group.id: pattern.floor_of(group) for group in coupling.groups}
        kept = uniform(prices, floor, units.steps, units.budgets.amounts)
        costs = prices.cost(kept)
        shares = {kind: cost / prices.dense[kind] for kind, cost in costs.items()}
        latency = _latency(units.table, costs.get("latency"))
        for sentence in units.doubts:
            warnings.warn(sentence, stacklevel=2)
    else:
        coupling = couple(model, example, forbid=tuple(exclude), **options)
    _print_channels(spec, shape, model, coupling, kept, shares, latency)
    if branches and not coupling.blocks and not coupling.whole:
        print("no block can go whole, as no branch of a residual sum has channels of its own")


def _left(dense: Mapping[str, str], sizes: Mapping[str, int]) -> list[str]:
    """What stays dense: a line for each reason, each layer once, the most first."""
    from regrow import summary

    lines = []
    for reason in summary.reasons(dense, sizes):
        layers = dict.fromkeys(name.rpartition(".")[0] or name for name in reason.names)
        stay = "stays" if len(layers) == 1 else "stay"
        lines.append(reason.line(f"{_shown(list(layers))} {stay} dense", sum(sizes.values())))
    return lines


def _shown(names: Sequence[str]) -> str:
    """The first of them, and how many more."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _latency(table: LatencyTable | None, seconds: float | None) -> str:
    """What a latency is in ms, with the margin that the dense model's has, relative to it."""
    from regrow.commands.profile import with_margin

    if table is None or seconds is None:
        return ""
    margin = table.margin()
    interval = None if margin is None else (seconds * (1 - margin), seconds * (1 + margin))
    return f"; predicted latency {with_margin(seconds, interval)} ms"


def _print_channels(
    spec: str, shape: tuple[int, ...], model: nn.Module, coupling: Coupling, kept: Mapping[str, int],
    shares: Mapping[str, float], latency: str,
) -> None:  # fmt: skip
    from rich.console import Console
    from rich.table import Table

    parameters = dict(model.named_parameters())
    table = Table(title=f"{spec} on {taken(shape)}", title_justify="left")
    table.add_column("group", overflow="fold")
    table.add_column("channels", justify="right")
    if kept:
        table.add_column("kept", justify="right")
    table.add_column("parameters", justify="right")
    table.add_column("where its channels occur", overflow="fold")
    for group in coupling.groups:
        of_model = replace(group, slices=tuple(part for part in group.slices if part.name in parameters))
        entries = of_model.entries({name: p.shape for name, p in parameters.items()})
        places = dict.fromkeys(part.name.rpartition(".")[0] or part.name for part in of_model.slices)
        width = [str(kept[group.id])] if kept else []
        table.add_row(group.id, str(group.size), *width, f"{entries:,}", ", ".join(places))
    console = Console()
    if not console.is_terminal:  # a pipe or a file has no width to fit into
        console = Console(width=160)
    console.print(table)
    blocks = {block.id for block in coupling.blocks}
    sizes = [group.size for group in coupling.groups if group.id not in blocks]
    say = [f"{sum(sizes):,} channels in {len(sizes)} groups; a parameter counts in each group that it belongs to"]
    if coupling.heads == "width":
        narrow = list(dict.fromkeys(name for product in coupling.attended for name in product.channel))
        say.append(
            f"a channel of {_shown(narrow)} is one index of all heads" if narrow else "all heads keep their width"
        )
    say += [f"{block.id} may go whole, with all channels of {', '.join(block.inner)}" for block in coupling.blocks]
    say += [f"{name} cannot go whole: {why}" for name, why in coupling.whole.items()]
    if kept:
        costs = ", ".join(f"{share:.1%} of the {kind}" for kind, share in shares.items())
        stay = sum(count for group, count in kept.items() if group not in blocks)
        say.append(f"kept: the same share of every group, {stay:,} channels in all, {costs}{latency}")
    say += _left(coupling.dense, {name: p.numel() for name, p in parameters.items()})
    if coupling.untrained:
        say.append(f"not tried in training mode: {coupling.untrained}")
    for sentence in say:
        console.print(sentence, highlight=False, soft_wrap=True, markup=False)


def _print(
    spec: str, shape: tuple[int, ...], unit: str, rows: list[tuple[str, tuple[int, ...], int, int, float]],
    dense_flops: float, sparse_flops: float, parameters: int,
) -> None:  # fmt: skip
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{spec} on {taken(shape)}", show_footer=True, title_justify="left")
    total = sum(row[3] for row in rows)
    active = sum(row[2] for row in rows)
    kept = 1.0 if total == 0 else active / total
    table.add_column("layer", footer="sparsified layers", overflow="fold")
    table.add_column("shape")
    table.add_column(unit, footer=f"{total:,}", justify="right")
    table.add_column("kept", footer=f"{active:,}", justify="right")
    table.add_column("density", footer=f"{kept:.2%}", justify="right")
    table.add_column("MFLOPs dense", footer=f"{sum(row[4] for row in rows) / 1e6:,.2f}", justify="right")
    table.add_column("sparse", footer=f"{sum(r[4] * r[2] / r[3] for r in rows) / 1e6:,.2f}", justify="right")
    for name, size, kept_here, weights, flops in rows:
        share = kept_here / weights
        table.add_row(
            name, "×".join(map(str, size)), f"{weights:,}", f"{kept_here:,}", f"{share:.2%}",
            f"{flops / 1e6:,.2f}", f"{flops * share / 1e6:,.2f}",
        )  # fmt: skip
    console = Console()
    if not console.is_terminal:  # a pipe or a file has no width to fit into
        console = Console(width=160)
    console.print(table)
    one = "a text" if thing_of(shape) == "text" else "an image"
    saved = f"{dense_flops / sparse_flops:.1f}× fewer" if sparse_flops else "none left"
    console.print(
        f"whole model: {parameters:,} parameters; {dense_flops / 1e6:,.2f} MFLOPs for {one} when dense, "
        f"{sparse_flops / 1e6:,.2f} when sparse ({saved})",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    console.print("a multiply-add counts as 2 FLOPs", highlight=False)
