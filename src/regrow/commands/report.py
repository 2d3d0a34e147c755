"""``regrow report``: one self-contained page about runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from regrow.commands.words import Parser, command_parser


def add(group: argparse._SubParsersAction[Parser]) -> Parser:
    examples = "  regrow report runs/first --out first.html\n  regrow report runs/* --out all.html"
    command = command_parser(
        group, "report", "write one self-contained page about runs", examples, "RUN_DIR... [--out FILE]"
    )
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="what train or compare wrote")
    command.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html")
    return command


def run(args: argparse.Namespace) -> int:
    from regrow.report.page import write
    from regrow.training import rundir

    rundir.check_no_part(args.out, "--out")
    print(f"report: {write(args.runs, args.out)}")
    return 0
