"""A directory as model hubs have it: tensors, what builds the model, and a model card with the run's own numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from regrow import atomic, names
from regrow.errors import thing_of
from regrow.exporting import tensors
from regrow.exporting.proof import Proof, Subject
from regrow.version import __version__

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
_TASKS = {"mAP": "object-detection", "mIoU": "image-segmentation"}  # by what runs are judged by, as the hub calls them
_ENVIRONMENT = ("regrow", "torch", "device", "cpu")  # of what a run says of its machine


def write(subject: Subject, directory: Path, about: Mapping[str, Any] | None) -> Proof:
    """Writes ``model.safetensors``, ``config.json`` and ``README.md``.

    Args:
        directory: empty
        about: a run in ``results.json``; None: the card has what the model itself says

    Raises:
        UserError: as `regrow.exporting.tensors.write_dense`.
    """
    proof = tensors.write_dense(subject, directory / WEIGHTS)
    about = about or {}
    counts = _counts(subject.model)
    atomic.write_json(directory / CONFIG, _config(about, counts))
    atomic.write_text(directory / CARD, card(about, counts))
    return proof


def card(about: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    """The model card.

    Args:
        about: a run in ``results.json``, also with ``data`` (its data set) and ``recalibrated`` (from how many batches
            statistics were estimated anew, since its accuracy was measured)
        counts: ``parameters``, and how many of them are ``nonzero``
    """
    built = about.get("model")
    title = _words(built.get("name")) if isinstance(built, Mapping) else "A sparse model"
    rows = "".join(f"| {what} | {value} |\n" for what, value in _facts(about, counts))
    return (
        f"---\n{_front_matter(about)}---\n\n# {title}\n\nMade sparse while it trained, by regrow {__version__}.\n\n"
        f"| | |\n|---|---|\n{rows}\n{_remarks(about)}## Loading\n\n{_loading(built)}"
    )


def _counts(model: nn.Module) -> dict[str, int]:
    own = names.parameters(model).values()
    return {"parameters": sum(p.numel() for p in own), "nonzero": sum(int(p.detach().count_nonzero()) for p in own)}


def _config(about: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, Any]:
    keys = ("model", "method", "seed", "density", "data")
    return {"library_name": "regrow", "regrow": __version__, **{k: about[k] for k in keys if k in about}, **counts}


def _front_matter(about: Mapping[str, Any]) -> str:
    """In JSON, which YAML reads, so that no name can mean anything else."""
    images = isinstance(about.get("model"), Mapping)
    judged, task = _judged(about)
    tags = ["regrow", "sparse", "pruning", "pytorch", *([task] if images else [])]
    lines: dict[str, Any] = {"library_name": "regrow", "tags": tags}
    if images:
        lines["pipeline_tag"] = task
    accuracy, data = about.get("accuracy"), about.get("data")
    if isinstance(accuracy, float) and isinstance(data, str) and images:
        lines["model-index"] = [{
            "name": _words(about["model"].get("name")),
            "results": [{
                "task": {"type": task},
                "dataset": {"name": data, "type": data},
                "metrics": [{"type": judged, "value": accuracy, "name": f"{judged} on the test split"}],
            }],
        }]  # fmt: skip
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items())


def _judged(about: Mapping[str, Any]) -> tuple[str, str]:
    """What the number under ``accuracy`` is, and the task that it is of, as the hub calls it."""
    name = str(about.get("metric") or "accuracy")
    if name in _TASKS:
        return name, _TASKS[name]
    return "accuracy", f"{_thing(about.get('model'))}-classification"


def _thing(built: Any) -> str:
    """What a network takes: an image or a text."""
    return thing_of(built.get("shape") if isinstance(built, Mapping) else None)


def _facts(about: Mapping[str, Any], counts: Mapping[str, int]) -> list[tuple[str, str]]:
    found = [("parameters", f"{counts['parameters']:,}, of which {counts['nonzero']:,} are not zero")]

    def number(key: str, what: str, form: str) -> None:
        value = about.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found.append((what, form.format(value)))

    number("dense_parameters", "parameters of the dense model", "{:,}")
    count = about.get("test_images")
    judged, thing = _judged(about)[0], _thing(about.get("model"))
    number("accuracy", f"{judged} on {count:,} test {thing}s" if isinstance(count, int) else f"test {judged}", "{:.2%}")
    number("density", "density of what was sparsified", "{:.1%}")
    number("inference_flops", f"FLOPs of {'a' if thing == 'text' else 'an'} {thing}", "{:,.0f}")
    number("dense_flops", "of the dense model", "{:,.0f}")
    number("latency", "seconds of a batch", "{:.2e}")
    number("dense_latency", "of the dense model", "{:.2e}")
    number("training_cost", "training FLOPs, × dense training", "{:.2f}")
    number("steps", "training steps", "{:,}")
    number("seed", "seed", "{}")
    for key, what in (("method", "method"), ("data", "data"), ("finished", "trained until")):
        if isinstance(about.get(key), str):
            found.append((what, _words(about[key])))
    environment = about.get("environment")
    if isinstance(environment, Mapping):
        used = [
            f"{key} {_words(environment[key])}" for key in ("regrow", "torch", "device", "cpu") if key in environment
        ]
        found.append(("trained with", ", ".join(used)))
    return found


def _remarks(about: Mapping[str, Any]) -> str:
    batches = about.get("recalibrated")
    if not batches:
        return ""
    return f"After the accuracy was measured, batch norms got new statistics from {batches} training batches.\n\n"


def _loading(built: Any) -> str:
    shape = built.get("shape") if isinstance(built, Mapping) else None
    if not isinstance(shape, list) or not shape:
        call = f'regrow.load(build(), "{WEIGHTS}").eval()  # build() is yours, and makes the dense network'
        return f"```python\nimport regrow\n\nmodel = {call}\n```\n"
    options = {k: v for k, v in dict(built.get("options") or {}).items() if k != "pretrained"}
    call = ", ".join(
        [repr(built.get("name")), repr(built.get("classes")), repr(shape[0]), *([f"**{options!r}"] if options else [])]
    )
    sides = " × ".join(map(str, shape))
    takes = (
        f"It takes `input_ids` and `attention_mask`, int64 (batch, {sides}), of the tokenizer that it was trained with."
        if _thing(built) == "text"
        else f"It takes images of {sides} (channels, height, width) as float32, {_normalised(built)}."
    )
    return (
        f"```python\nimport regrow\nfrom regrow.zoo.models import build\n\ndense = build({call})\n"
        f'model = regrow.load(dense, "{WEIGHTS}").eval()  # thin, where channels were removed\n```\n\n'
        f"{takes}\n"
    )


def _normalised(built: Mapping[str, Any]) -> str:
    mean, std = built.get("mean"), built.get("std")
    if not isinstance(mean, list) or not isinstance(std, list):
        return "as the data set of the run gives them"
    numbers = (", ".join(f"{n:.6g}" for n in values if isinstance(n, int | float)) for values in (mean, std))
    return "for each channel: (pixel value from 0 to 255 - mean) / std, with mean {} and std {}".format(*numbers)


def _words(value: Any) -> str:
    """A text from a file as part of a line of Markdown."""
    text = " ".join(str(value).split())
    return "".join("\\" + c if c in "|<>`*[]\\" else c for c in text)[:200]
