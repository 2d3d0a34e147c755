"""``regrow profile``: measures a latency table, saves it, and shows how well it predicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regrow import atomic, profiling
from regrow.latency.measure import make_runtime
from regrow.training.models import build, default_shape, example_input


def show(
    spec: str, out: Path, *, runtime: str = "eager", batch: int = profiling.BATCH, threads: int = 1,
    shape: Sequence[int] | None = None, classes: int | None = None, time_limit: float = profiling.TIME_LIMIT,
    check: int = 3, seed: int = 0,
) -> None:  # fmt: skip
    """Measure a table, save it and print how well it predicts.

    Args:
        spec: name of the model
        out: the file; written at the end, so that an interruption leaves nothing
        batch: images at a time
        shape, classes: as in `regrow.inspection.show`
        runtime, threads, time_limit, check, seed: as in `regrow.profiling.profile`

    Raises:
        UserError: for bad input, before anything is measured.
    """
    counts = {"batch": batch, "threads": threads, "check": check} | ({} if classes is None else {"classes": classes})
    profiling.check_numbers("--", **counts, time_limit=time_limit)
    make_runtime(runtime, batch, threads)
    atomic.check_file(out, "--out", "table.json")
    shape = tuple(shape or default_shape(spec))
    model = build(spec, classes or (1000 if shape[-1] >= 200 else 10), shape[0], seed=seed)
    found = profiling.run(
        model, example_input(model, shape, batch), runtime=runtime, threads=threads, time_limit=time_limit,
        check=check, progress=True, seed=seed,
    )  # fmt: skip
    found.table.save(out)
    _print(spec, shape, found)
    points = sum(grid.seconds.size for grid in found.table.grids.values())
    print(f"saved to {out}: {len(found.table.grids)} kinds of layers at {points} widths")


def _print(spec: str, shape: Sequence[int], found: profiling.Profile) -> None:
    from rich.console import Console
    from rich.table import Table

    made = found.table
    threads = "one thread" if made.threads == 1 else f"{made.threads} threads"
    title = f"{spec}, {made.batch} images of {'×'.join(map(str, shape))}, {made.machine.runtime}, {threads}"
    table = Table(title=title, title_justify="left", show_footer=True)
    table.add_column("check", footer="median error")
    table.add_column("channels kept", justify="right")
    table.add_column("predicted ms", justify="right")
    table.add_column("measured ms", justify="right")
    table.add_column("error", footer=f"{found.median_error:.1%}", justify="right")
    for number, one in enumerate(found.checks, 1):
        table.add_row(
            "the dense model" if found.note else f"thin model {number}", f"{one.kept:.0%}",
            _ms(one.predicted), _ms(one.measured), f"{one.error:+.1%}",
        )  # fmt: skip
    console = Console()
    if not console.is_terminal:  # a pipe or a file has no width to fit into
        console = Console(width=120)
    console.print(table)
    fitted = "the table was fitted to it" if found.note else "none of these was used for fitting"
    say = [f"times are for a whole batch; {fitted}; the dense model takes {_ms(made.measured)} ms"]
    if made.network.unpriced:
        ops = ", ".join(f"{name} ({calls}×)" for name, calls in sorted(made.network.unpriced.items()))
        say.append(f"counted at any width as in the dense model, as they are not measured by themselves: {ops}")
    for sentence in (*say, *([found.note] if found.note else [])):
        console.print(sentence, highlight=False, soft_wrap=True, markup=False)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.{2 if seconds >= 1e-3 else 3}f}"
