"""``regrow inspect``: what a pattern will do to a model, before any training."""

from __future__ import annotations

from collections.abc import Sequence

from regrow.errors import UserError


def show(
    spec: str,
    *,
    sparsity: float,
    distribution: str = "uniform",
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    shape: Sequence[int] | None = None,
    classes: int | None = None,
) -> None:
    """Print the layers of a model with their densities and FLOPs.

    Args:
        spec: name of the model
        sparsity, distribution, exclude, include: as in `regrow.Weights`
        shape: (channels, height, width) of an image; default: what the model is made for
        classes: outputs; default: 1000 for images of 200 pixels or more, else 10

    Raises:
        UserError: if the model cannot be built or does not take such images, or the pattern does not fit it.
    """
    from regrow.cost import count_flops
    from regrow.patterns import Weights
    from regrow.training.models import build, default_shape, example_input

    pattern = Weights(sparsity, distribution, exclude=tuple(exclude), include=tuple(include))
    if classes is not None and classes < 1:
        raise UserError(f"--classes must be at least 1, not {classes}")
    shape = tuple(shape or default_shape(spec))
    model = build(spec, classes or (1000 if shape[-1] >= 200 else 10), shape[0])
    flops = count_flops(model, example_input(model, shape))
    counts = pattern.counts(model)
    parameters = dict(model.named_parameters())
    rows = [(name, tuple(parameters[name].shape), *counts[name], flops.by_parameter[name]) for name in counts]
    densities = {name: active / total for name, (active, total) in counts.items()}
    dense = [name for name, p in parameters.items() if p.dim() > 1 and densities.get(name, 1.0) == 1.0]
    _print(
        spec, tuple(shape), rows, flops.total, flops.inference(densities), sum(p.numel() for p in parameters.values())
    )
    from rich import print as say

    if dense:
        say(f"stay dense: {', '.join(dense)}")
    if flops.uncounted:
        ops = ", ".join(f"{name} ({calls}×)" for name, calls in sorted(flops.uncounted.items()))
        say(f"not counted, as no rule is known for them: {ops}")


def _print(
    spec: str, shape: tuple[int, ...], rows: list[tuple[str, tuple[int, ...], int, int, float]],
    dense_flops: float, sparse_flops: float, parameters: int,
) -> None:  # fmt: skip
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{spec} on images of {'×'.join(map(str, shape))}", show_footer=True, title_justify="left")
    total = sum(row[3] for row in rows)
    active = sum(row[2] for row in rows)
    kept = 1.0 if total == 0 else active / total
    table.add_column("layer", footer="sparsified layers", overflow="fold")
    table.add_column("shape")
    table.add_column("weights", footer=f"{total:,}", justify="right")
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
    saved = f"{dense_flops / sparse_flops:.1f}× fewer" if sparse_flops else "none left"
    console.print(
        f"whole model: {parameters:,} parameters; {dense_flops / 1e6:,.2f} MFLOPs for an image when dense, "
        f"{sparse_flops / 1e6:,.2f} when sparse ({saved})",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    console.print("a multiply-add counts as 2 FLOPs", highlight=False)
