"""``regrow export``: the network of a run as a file that runs elsewhere."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.commands.words import Parser, command_parser, share, whole
from regrow.errors import UserError

if TYPE_CHECKING:
    from regrow.exporting.exports import Exported

_FORMATS = """safetensors: plain dense tensors; compressed: bits and values, small for sparse weights; onnx: for ONNX
Runtime and others, with the extra export; pt2: torch.export; hub: a directory with a model card
(default: what the name of the file ends in)"""


def add(group: argparse._SubParsersAction[Parser]) -> Parser:
    examples = (
        "  regrow export runs/first --out first.onnx\n"
        "  regrow export runs/first --format compressed --out first.safetensors\n"
        "  regrow export runs/first --format hub --out first-hub --recalibrate 100\n"
        "The file is loaded and compared with the network before it takes its name."
    )
    usage = "RUN_DIR --out FILE [--format F] [--recalibrate N] [--batch N] [--tolerance T] [--trust]"
    command = command_parser(
        group, "export", "write the network of a run as a file that runs elsewhere", examples, usage
    )
    command.add_argument("run", type=Path, metavar="RUN_DIR", help="what train wrote, or one of the runs/ of compare")
    command.add_argument("--format", metavar="F", help=" ".join(_FORMATS.split()))
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file, or the directory for hub")
    command.add_argument("--recalibrate", type=whole, metavar="N",
                         help="first estimate the statistics of batch norms anew from N training batches")  # fmt: skip
    command.add_argument("--batch", type=whole, metavar="N",
                         help="onnx, pt2: for batches of N images alone (default: of any size)")  # fmt: skip
    command.add_argument("--tolerance", type=share, metavar="T",
                         help="largest difference, as a share of the outputs' size (default: 1e-5)")  # fmt: skip
    command.add_argument("--trust", action="store_true", help="import the code that the run names")
    return command


def run(args: argparse.Namespace) -> int:
    from regrow import recalibrate
    from regrow.exporting import exports
    from regrow.training import finished, rundir
    from regrow.training.run import data_of
    from regrow.zoo.models import example_input

    args.format = exports.format_of(args.out, args.format)
    for option in ("recalibrate", "batch"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option} must be at least 1, not {value}")
    if args.batch is not None and args.format not in exports.PROGRAMS:
        raise UserError(f"--batch is for the formats {' and '.join(exports.PROGRAMS)}: leave it out")
    if args.tolerance is not None and not 0 <= args.tolerance < 1:
        raise UserError(f"--tolerance must be a share of the outputs' size such as 1e-5, not {args.tolerance:g}")
    exports.check_target(args.out, args.format, "--out")
    rundir.check_no_part(args.out, "--out")
    found = finished.read(args.run, args.trust)
    model = found.network()
    if args.recalibrate:
        recalibrate(model, data_of(found.recipe()).train.epoch(0), args.recalibrate)
    done = exports.export(
        model, args.out, args.format, example_input(model, found.builder.shape, args.batch or 2),
        dynamic_batch=args.batch is None, tolerance=args.tolerance, about=_about(found, args.recalibrate),
        progress=True,
    )  # fmt: skip
    _print(done, found.record, args.recalibrate)
    return 0


def _about(found: Any, recalibrated: int | None) -> dict[str, Any]:
    data = found.tree.get("data")
    name = data.get("name") if isinstance(data, dict) else None
    return {**found.record, **({"data": name} if name else {}), "recalibrated": recalibrated}


def _print(done: Exported, record: Mapping[str, Any], recalibrated: int | None) -> None:
    if recalibrated:
        print(f"statistics of batch norms: estimated anew from {recalibrated} training batches")
    print(done)
    dense = record.get("dense_bytes")
    if isinstance(dense, int) and dense > 0:
        print(f"the tensors of the dense network: {dense:,} bytes; this is {done.bytes / dense:.1%} of it")
