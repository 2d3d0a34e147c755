"""What the parts beyond the core are made with, and the sentence that says how to install it."""

from __future__ import annotations

import importlib.util

from regrow.errors import UserError

# extra of the distribution → the packages that it brings, by the names that they are imported by
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": (
        "torchvision",
        "timm",
        "accelerate",
        "sklearn",
        "PIL",
        "jsonargparse",
        "yaml",
        "rich",
        "plotly",
        "jinja2",
    ),
    "detection": ("torchmetrics", "faster_coco_eval"),
    "text": ("transformers", "tokenizers"),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "integrations": ("lightning", "transformers", "accelerate"),
}


def require(extra: str, what: str, *packages: str) -> None:
    """Refuses what cannot be done without an extra, before any of it is done.

    Args:
        extra: one of `EXTRAS`
        what: needs it, in messages
        packages: those of its packages that are needed; default: all

    Raises:
        UserError: if any of its packages is not installed.
    """
    missing = [package for package in packages or EXTRAS[extra] if not _is_installed(package)]
    if missing:
        named = ", ".join(missing)
        raise UserError(f"{what} needs packages that are not installed ({named}): pip install 'regrow[{extra}]'")


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # ValueError: something without a spec stands in its place
        return False
