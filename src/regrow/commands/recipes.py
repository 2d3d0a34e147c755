"""What commands that take a recipe share: their words, the recipe that these name, and where its runs go."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from regrow.commands.words import Parser
from regrow.errors import UserError

if TYPE_CHECKING:
    from regrow.training.recipe import Recipe

_RECIPE = "YAML file, or the name of a shipped recipe such as digits-iee; without one, train names them all"


def add_recipe_arguments(command: Parser, about: str = _RECIPE) -> None:
    """Lets a command take a recipe, which its help says ``about``, its keys, and help about both."""
    command.set_defaults(parser=command)
    command.add_argument("recipe", nargs="?", metavar="RECIPE", help=about)
    command.add_argument("--key", dest="_", metavar="value", action=_NeverGiven,
                         help="any key of the recipe, dotted: --seed 1 --method.h 20 --train.ema 0.999")  # fmt: skip
    command.add_argument("--trust", action="store_true",
                         help="import the code that the recipe of a run directory names")  # fmt: skip
    command.add_argument(
        "--print_config", "--print-config", action="store_true", help="print the whole recipe and exit"
    )
    command.add_argument("-h", "--help", action="store_true", help="show this; with RECIPE, also all keys")


class _NeverGiven(argparse.Action):
    """Stands in the help for all keys of the recipe."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.error("--key stands for a key of the recipe, such as --seed or --method.h")


def split_overrides(words: Sequence[str], command: Parser) -> tuple[list[str], list[str]]:
    """The words that the command itself knows, and ``--key value`` for the recipe."""
    known = command._option_string_actions
    own: list[str] = []
    overrides: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        target = own
        option = word.partition("=")[0]
        if word.startswith("--") and option not in known:
            target = overrides
        target.append(word)
        takes_value = target is overrides or (option in known and known[option].nargs is None)
        if word.startswith("--") and "=" not in word and takes_value and queue:
            target.append(queue.pop(0))
    return own, overrides


def load(args: argparse.Namespace, resumed: bool = False) -> Recipe:
    """The recipe of a command, once the user trusts the code that it names.

    Raises:
        UserError: if there is no such recipe, anything in it is wrong, or it comes with a run and names code.
    """
    from regrow.training import recipe as recipes
    from regrow.training import trust

    tree = recipes.tree_of(args.recipe, args.overrides)
    trust.require(args.recipe, tree, args.trust, resumed, shown_only=args.print_config or args.help)
    return recipes.parse(tree)


def show_help(args: argparse.Namespace) -> int:
    """The help of a command, and what the keys of its recipe are where it is given one."""
    args.parser.print_help()
    if args.recipe is None:
        print(f"\n`{args.parser.prog} RECIPE --help` lists all keys of a recipe.")
        return 0
    from regrow.training import describe

    print("\n" + describe.keys(load(args)))
    return 0


def require_recipe(args: argparse.Namespace, kinds: str = "a YAML file") -> None:
    """Refuses a command without a recipe; ``kinds`` is what it takes beside the names of shipped ones.

    Raises:
        UserError: naming those that the package ships.
    """
    if args.recipe is None:
        from regrow.training.recipe import shipped

        raise UserError(f"{args.parser.prog.split()[-1]} needs a RECIPE: {kinds}, or one of {', '.join(shipped())}")


def stem(recipe: str) -> str:
    """What runs of a recipe are called: its name, or that of the run directory that it lies in."""
    path = Path(recipe)
    if path.name == "recipe.yaml" and path.absolute().parent.name:
        return path.absolute().parent.name
    return path.name.removesuffix(".yaml").removesuffix(".yml")


def fresh(path: Path, unless: Callable[[Path], bool] = lambda path: False) -> Path:
    """``path``, or the first of ``path-2``, ``path-3``, … that does not exist, or may be used all the same."""
    candidate, number = path, 2
    while candidate.exists() and not unless(candidate):
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate
