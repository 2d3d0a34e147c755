"""``regrow profile``: measures a latency table, saves it, and shows how well it predicts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regrow import atomic
from regrow.commands.subject import add_images, add_model, check_classes, model_of, shape_in, taken
from regrow.commands.words import Parser, command_parser, whole

if TYPE_CHECKING:
    from regrow.latency.spread import Spread
    from regrow.profiling import Profile


def add(group: argparse._SubParsersAction[Parser]) -> Parser:
    examples = (
        "  regrow profile torchvision:resnet50 --out latency.json\n"
        "  regrow profile timm:mobilenetv1_100 --runtime onnxruntime --batch 1 --out latency.json\n"
        "  regrow profile wrn22-2 --time-limit 30 --check 5 --out latency.json\n"
        "The table holds for this machine, runtime, batch and image size."
    )
    usage = "MODEL --out FILE [--runtime R] [--batch N] [--threads N] [--time-limit S] [--check N] [...]"
    command = command_parser(
        group, "profile", "measure what the layers of a model cost on this machine", examples, usage
    )
    add_model(command)
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write the table (JSON)")
    command.add_argument("--runtime", default="eager", metavar="R",
                         help="eager (default), onnxruntime or compile; on a GPU eager-cuda, compile-cuda or "
                         "tensorrt")  # fmt: skip
    command.add_argument("--batch", type=whole, default=8, metavar="N", help="images at a time (default: %(default)s)")
    command.add_argument("--threads", type=whole, default=1, metavar="N",
                         help="of the runtime (default: %(default)s, whose own time counts, so that other programs on "
                         "the machine disturb little; the time of several is that on the wall)")  # fmt: skip
    add_images(command)
    command.add_argument("--time-limit", type=float, default=120.0, metavar="S",
                         help="seconds to take; the less, the fewer widths are measured (default: 120)")  # fmt: skip
    command.add_argument("--seed", type=whole, default=0, metavar="N", help="of the thin models (default: %(default)s)")
    command.add_argument("--check", type=whole, default=3, metavar="N",
                         help="thin models that the finished table is checked with (default: %(default)s)")  # fmt: skip
    command.add_argument("--allow-busy", action="store_true",
                         help="write a table even if the machine is too busy for one that can be trusted")  # fmt: skip
    return command


def run(args: argparse.Namespace) -> int:
    shape = shape_in(args)
    show(
        args.model, args.out, runtime=args.runtime, batch=args.batch, threads=args.threads, shape=shape,
        classes=args.classes, time_limit=args.time_limit, check=args.check, seed=args.seed, allow_busy=args.allow_busy,
    )  # fmt: skip
    return 0


def show(
    spec: str, out: Path, *, runtime: str = "eager", batch: int = 8, threads: int = 1,
    shape: Sequence[int] | None = None, classes: int | None = None, time_limit: float = 120.0,
    check: int = 3, seed: int = 0, allow_busy: bool = False,
) -> None:  # fmt: skip
    """Measure a table, save it and print how well it predicts.

    Args:
        spec: name of the model
        out: the file; written at the end, so that an interruption leaves nothing
        batch: images at a time
        shape, classes: as in `regrow.commands.subject.model_of`
        runtime, threads, time_limit, check, seed, allow_busy: as in `regrow.profiling.profile`

    Raises:
        UserError: for bad input, before anything is measured, or for a machine that is too busy, after that.
    """
    from regrow import profiling
    from regrow.latency.measure import make_runtime
    from regrow.training import rundir
    from regrow.zoo.models import example_input

    profiling.check_numbers("--", batch=batch, threads=threads, check=check, time_limit=time_limit)
    check_classes(classes)
    make_runtime(runtime, batch, threads)
    atomic.check_file(out, "--out", "table.json")
    rundir.check_no_part(out, "--out")
    model, shape = model_of(spec, shape, classes, seed)
    if not sys.stderr.isatty():  # where no progress bar shows that something goes on
        print(f"measuring for up to {time_limit:g} s, then checking", file=sys.stderr)
    found = profiling.run(
        model, example_input(model, shape, batch), runtime=runtime, threads=threads, time_limit=time_limit,
        check=check, progress=True, seed=seed, allow_busy=allow_busy,
    )  # fmt: skip
    found.table.save(out)
    _print(spec, shape, found)
    points = sum(grid.seconds.size for grid in found.table.grids.values())
    print(f"saved to {out}: {len(found.table.grids)} kinds of layers at {points} widths")


def _print(spec: str, shape: Sequence[int], found: Profile) -> None:
    from rich.console import Console
    from rich.table import Table

    made = found.table
    threads = "one thread" if made.threads == 1 else f"{made.threads} threads"
    title = f"{spec}, {made.batch} {taken(shape)}, {made.machine.runtime}, {threads}"
    table = Table(title=title, title_justify="left", show_footer=True)
    table.add_column("check", footer="median error")
    table.add_column("channels kept", justify="right")
    table.add_column("predicted ms", justify="right")
    table.add_column("measured ms", justify="right")
    table.add_column("error", footer=f"{found.median_error:.1%}", justify="right")
    for number, one in enumerate(found.checks, 1):
        table.add_row(
            "the dense model" if found.note else f"thin model {number}", f"{one.kept:.0%}",
            with_margin(one.predicted, one.interval), _ms(one.measured), f"{one.error:+.1%}",
        )  # fmt: skip
    console = Console()
    if not console.is_terminal:  # a pipe or a file has no width to fit into
        console = Console(width=120)
    console.print(table)
    fitted = "the table was fitted to it" if found.note else "none of these was used for fitting"
    say = [f"times are for a whole batch; {fitted}; the dense model takes {_ms(made.measured)} ms"]
    if made.spread is not None:
        say.append(steadiness(made.spread))
    if made.network.unpriced:
        ops = ", ".join(f"{name} ({calls}×)" for name, calls in sorted(made.network.unpriced.items()))
        say.append(f"counted at any width as in the dense model, as they are not measured by themselves: {ops}")
    for sentence in (*say, *([found.note] if found.note else [])):
        console.print(sentence, highlight=False, soft_wrap=True, markup=False)


def with_margin(seconds: float, interval: tuple[float, float] | None) -> str:
    """A predicted latency in ms, with half of its interval where there is one."""
    return _ms(seconds) if interval is None else f"{_ms(seconds)} ± {_ms((interval[1] - interval[0]) / 2)}"


def steadiness(spread: Spread) -> str:
    """A sentence on ± and on the machine."""
    drift = f", after a drift of {spread.drift:.0%} that was divided out" if spread.drift else ""
    return (
        f"± holds in nine of ten cases; a fixed piece of work in between, which shows how steady the machine was, "
        f"spread by {spread.reference:.1%}{drift}"
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.{2 if seconds >= 1e-3 else 3}f}"
