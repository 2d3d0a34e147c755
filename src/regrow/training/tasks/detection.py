"""Images with boxes: the losses of the model itself, and mean average precision."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from regrow import batchnorm, extras
from regrow.errors import UserError
from regrow.inputs import first_line
from regrow.quiet import evaluating
from regrow.training.measures import MAP, Measure
from regrow.training.tasks.task import Batch, Task, Teach, register
from regrow.zoo.detectors import Detector

if TYPE_CHECKING:
    from regrow.data.splits import DataSet
    from regrow.training.sections import TrainSection

Found = dict[str, Tensor]

_SHOWN = 6  # images on the page
_SIDE = 320  # pixels that they are shown with, at most
_LEAST_SCORE = 0.3  # of boxes that are shown
_BOX = 7  # numbers of a box in a table: image, x1, y1, x2, y2, label, and score or whether it is ignored


@register
class Detection(Task):
    """Batches of lists of images and targets; models are detectors (see `regrow.zoo.detectors.Detector`)."""

    name: ClassVar[str] = "detection"
    measure: ClassVar[Measure] = MAP

    def check(self, settings: TrainSection) -> None:
        extras.require("detection", "task: detection")
        for key, said in (
            ("label_smoothing", "losses are those of the detector"),
            ("compile", "what a detector does with boxes compiles anew for every image"),
            ("channels_last", "images are a list"),
        ):
            if getattr(settings, key):
                raise UserError(f"train.{key} does not apply to task: detection, as {said}: leave it out")

    def check_model(self, model: nn.Module, example: Tensor, classes: int, name: str) -> None:
        if not isinstance(model, Detector):
            raise UserError(
                f"the model {name!r} is no detector: take shapes-ssd, ssd512-resnet50 or one of torchvision's, or "
                "return a regrow.zoo.detectors.Detector from your own callable"
            )
        images = list(example)
        target = {"boxes": example.new_tensor([[1.0, 1.0, 9.0, 9.0]]), "labels": torch.tensor([classes - 1])}
        target = {key: value.to(example.device) for key, value in target.items()}
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluating(model):
                model(example)
                model.train()
                _sum_of(_with_still_norms(model, images, [target]), name)
        except UserError:
            raise
        except Exception as error:  # whatever the model's own code raises
            raise UserError(f"the model {name!r} cannot be trained on boxes: {first_line(error)}") from error

    def loss(
        self, forward: Any, batch: Batch, device: torch.device, settings: TrainSection, teach: Teach | None = None
    ) -> Tensor:
        images, targets = on(device, batch)
        return _sum_of(forward(images, targets), "its model")

    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch], device: torch.device, accelerator: Any
    ) -> dict[str, Any]:
        found: list[Found] = []
        truth: list[Found] = []
        with _exactly(model, device):
            for batch in batches:
                images, targets = on(device, batch)
                found += model(images)
                truth += targets
        return average_precision(*together(found, truth, accelerator))

    def pictures(self, model: nn.Module, data: DataSet, device: torch.device) -> Mapping[str, Any] | None:
        source = data.val if len(data.val) else data.test
        images, targets = next(iter(source.shard(0, 1).epoch(0)))
        images, targets = images[:_SHOWN], targets[:_SHOWN]
        with _exactly(model, device):
            found = model([image.to(device) for image in images])
        shown = [picture(*parts) for parts in zip(images, found, targets, strict=True)]
        return {"split": "val" if len(data.val) else "test", "classes": list(data.classes), "images": shown}


@contextmanager
def _exactly(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside it, the model evaluates in single precision: boxes need more digits than half precision has."""
    with evaluating(model), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def on(device: torch.device, batch: Batch) -> tuple[list[Tensor], list[Found]]:
    """A batch on a device."""
    images, targets = batch
    moved = [{key: value.to(device, non_blocking=True) for key, value in one.items()} for one in targets]
    return [image.to(device, non_blocking=True) for image in images], moved


def _sum_of(losses: Any, name: str) -> Tensor:
    if not isinstance(losses, Mapping) or not losses:
        raise UserError(
            f"{name!r} returns {type(losses).__name__} in training mode, but a detector returns a dict of losses"
        )
    return torch.stack([torch.as_tensor(loss) for loss in losses.values()]).sum()


def _with_still_norms(model: nn.Module, images: list[Tensor], targets: list[Found]) -> Any:
    """What the model returns in training mode, with norms that learn nothing of it: one image has no variance."""
    batchnorm.hold_still(model)
    return model(images, targets)


def average_precision(found: list[Found], truth: list[Found]) -> dict[str, Any]:
    """Mean average precision as COCO has it, over classes and over overlaps (IoU) of 0.50 to 0.95.

    Args:
        found: for each image ``boxes`` (n, 4; x1, y1, x2, y2), ``scores`` (n,) and ``labels`` (n,)
        truth: for each image ``boxes``, ``labels`` and ``ignored`` (n,): what matches these counts neither way

    Returns:
        ``accuracy``: the mean average precision; ``metric``: its name; ``mAP50``: the same at an overlap of 0.50. All
        as fractions, 0.0 where there is nothing to find.
    """
    from torchmetrics.detection import MeanAveragePrecision

    # what all processes have found has been gathered by now
    measured = MeanAveragePrecision(backend="faster_coco_eval", sync_on_compute=False)
    measured.warn_on_many_detections = False
    keys = {"boxes": "boxes", "labels": "labels", "ignored": "iscrowd"}
    measured.update(
        [{key: value.cpu() for key, value in one.items()} for one in found],
        [{name: one[key].cpu().to(torch.int64) if key == "ignored" else one[key].cpu() for key, name in keys.items()}
         for one in truth],
    )  # fmt: skip
    result = measured.compute()
    return {
        "accuracy": max(0.0, float(result["map"])),  # -1 where there is nothing to find
        **MAP.entry,
        "mAP50": max(0.0, float(result["map_50"])),
    }


def together(found: list[Found], truth: list[Found], accelerator: Any) -> tuple[list[Found], list[Found]]:
    """What all processes have found in their images, and what there is, the images of the first process first."""
    if accelerator.num_processes == 1:
        return found, truth
    device = accelerator.device
    count = accelerator.gather(torch.tensor([len(found)], device=device)).tolist()
    first = sum(count[: accelerator.process_index])
    merged = []
    for part, last in ((found, "scores"), (truth, "ignored")):
        rows = accelerator.pad_across_processes(_table(part, last, first, device), dim=0, pad_index=-1)
        merged.append(_listed(accelerator.gather(rows), last, sum(count)))
    return merged[0], merged[1]


def _table(images: list[Found], last: str, first: int, device: torch.device) -> Tensor:
    """A row for each box, float64 (n + 1, 7); a row that is none keeps tables of nothing from being empty."""
    rows = [torch.full((1, _BOX), -1.0, dtype=torch.float64, device=device)]
    for number, one in enumerate(images, first):
        columns = [torch.full((len(one["labels"]),), float(number), device=device), *one["boxes"].T]
        rows.append(torch.stack([column.double() for column in (*columns, one["labels"], one[last])], 1))
    return torch.cat(rows)


def _listed(rows: Tensor, last: str, count: int) -> list[Found]:
    """The images of such a table."""
    kinds = {"scores": torch.float32, "ignored": torch.bool}
    images = []
    for number in range(count):
        own = rows[rows[:, 0] == number]
        images.append({"boxes": own[:, 1:5].float(), "labels": own[:, 5].long(), last: own[:, 6].to(kinds[last])})
    return images


def picture(image: Tensor, found: Found, truth: Found) -> dict[str, Any]:
    """An image with boxes as JSON: a PNG, what was found in it (score 0.3 and more), and what there is.

    Args:
        image: float (3, H, W) in 0…1
        found: boxes, labels and scores of the model
        truth: boxes and labels
    """
    from PIL import Image

    pixels = image.mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    small = Image.fromarray(pixels)
    small.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    small.save(file, "PNG")
    keep = found["scores"] >= _LEAST_SCORE
    rows = zip(
        found["boxes"][keep].tolist(), found["labels"][keep].tolist(), found["scores"][keep].tolist(), strict=True
    )
    there = zip(truth["boxes"].tolist(), truth["labels"].tolist(), strict=True)
    return {
        "width": image.shape[2],
        "height": image.shape[1],
        "png": base64.b64encode(file.getvalue()).decode("ascii"),
        "found": [{"box": box, "label": label, "score": score} for box, label, score in rows],
        "truth": [{"box": box, "label": label} for box, label in there],
    }
