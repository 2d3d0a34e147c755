"""Every key of a recipe with its type, its meaning and its value: what ``regrow train RECIPE --help`` shows."""

from __future__ import annotations

import re
from argparse import SUPPRESS

from regrow.training import own
from regrow.training.recipe import WHOLE, Recipe, registries
from regrow.training.sections import DataSection, DistillSection, ModelSection, TopSection, TrainSection


def keys(recipe: Recipe) -> str:
    """All keys that this recipe's model, method, pattern, optimizer and schedule have, as help text."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(add_help=False, usage="", exit_on_error=False)
    parser.add_class_arguments(TopSection)
    parser.add_class_arguments(ModelSection, "model")
    parser.add_class_arguments(DataSection, "data")
    for section, classes in registries().items():
        names = sorted(classes)
        chosen = getattr(recipe, f"{section}_name")
        names += ["package.module:Class"] if section in own.SECTIONS else []
        names += [] if chosen in names else [chosen]
        parser.add_argument(f"--{section}.name", default=chosen, choices=names, help="which one; its options follow")
        parser.add_class_arguments(type(getattr(recipe, section)), section)
    parser.add_class_arguments(TrainSection, "train")
    parser.add_class_arguments(DistillSection, "distill")
    shown = recipe.resolved()
    for section in ("compare", "study"):  # what `regrow compare` does with it, and nothing that a run has
        shown.pop(section, None)
    for section in registries():
        shown[section] = {key: value for key, value in shown[section].items() if key != "name"}
    parser.set_defaults({key: value for key, value in _flat(shown) if value is not None})
    for action in parser._actions:
        if (
            action.metavar == "CONFIG"
        ):  # jsonargparse's own way to read a section from another file; recipes have `base`
            action.help = SUPPRESS
    text = re.sub(r", --\S+\+ \[ITEM,...\]|required, ", "", parser.format_help())
    return text[text.index("\n\n") :].strip() if text.startswith("usage") else text.strip()


def _flat(tree: dict[str, object], prefix: str = "") -> list[tuple[str, object]]:
    flat: list[tuple[str, object]] = []
    for key, value in tree.items():
        if isinstance(value, dict) and value and prefix + key not in WHOLE:
            flat += _flat(value, f"{prefix}{key}.")
        else:
            flat.append((prefix + key, value))
    return flat
