"""``regrow demo``: dense and sparse networks on handwritten digits."""

from __future__ import annotations

import argparse
from pathlib import Path

from regrow.commands.compare import carry_out
from regrow.commands.recipes import fresh
from regrow.commands.words import Parser, command_parser

_DEMO = {
    "dense": "all of its weights",
    "static": "5% of them, chosen at random once",
    "rigl": "5%, moved by RigL to where gradients are large",
    "iee": "5%, moved by IEE after a preview of those that were removed",
    "channels": "whole channels removed by IEE, until it takes 60% of its time",
}  # label of the recipe → what it is


def add(group: argparse._SubParsersAction[Parser]) -> Parser:
    examples = "  regrow demo\n  regrow demo --out /tmp/demo"
    command = command_parser(
        group, "demo", "train dense and sparse networks on handwritten digits", examples, "[--out DIR]"
    )
    command.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="where to write (default: demo)")
    return command


def run(args: argparse.Namespace) -> int:
    from regrow.training import recipe as recipes

    recipe = recipes.load("digits-iee")
    from regrow.study.comparison import is_unfinished

    out = fresh(args.out, unless=lambda path: is_unfinished(path, recipe))
    if out.exists():
        print(f"continuing the demo in {out}")
    elif out != args.out:
        print(f"{args.out} exists, so this demo goes to {out}")
    print("a small network on handwritten digits, three times each (about a minute on two free cores):")
    for label, what in _DEMO.items():
        print(f"  {label:<10}{what}")
    return carry_out(recipe, out, list(_DEMO), [0, 1, 2])
