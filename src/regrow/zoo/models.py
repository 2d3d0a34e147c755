"""Models by name: built-in networks, timm, torchvision, encoders of transformers, or a callable of the user's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import torch
from torch import nn

from regrow.errors import UserError, closest, nearest
from regrow.importing import call_accepting, import_callable
from regrow.inputs import first_line
from regrow.zoo.detectors import family_of, fill, is_torchvision_detector, torchvision_detector
from regrow.zoo.networks import DigitsCNN, WideResNet
from regrow.zoo.segmenters import SmallSegmenter, is_torchvision_segmenter, torchvision_segmenter
from regrow.zoo.ssd import shapes_ssd, ssd512_resnet50
from regrow.zoo.text_classifier import TextClassifier, configured, folder_of, text_classifier
from regrow.zoo.vit import VisionTransformer

GIVEN = ("num_classes", "in_channels", "in_chans")  # what a model is told of the data, and is no option of a recipe
# name → what builds it, and the side of the images that it is made for
_LENGTH = 128  # tokens of a text, where nobody says
_SEGMENTED = 520  # pixels of the side that torchvision's networks for segmentation are made for
_OTHER_TASKS: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "shapes-ssd": (shapes_ssd, 64),
    "shapes-fcn": (SmallSegmenter, 64),
    "ssd512-resnet50": (ssd512_resnet50, 512),
}
_BUILT_IN = ("wrn22-2", "wrn10-2", "wrn16-4", "wrn28-10", "vit6-96", "digits-cnn", *_OTHER_TASKS)
_OTHERS = "others are timm:NAME, torchvision:NAME, hf:PATH or package.module:callable"
_WRN = re.compile(r"wrn(\d{1,4})-(\d{1,4})")
_VIT = re.compile(r"vit(\d{1,4})-(\d{1,4})")


def build(spec: str, num_classes: int, in_channels: int = 3, seed: int | None = None, **options: Any) -> nn.Module:
    """A freshly initialised model on the CPU, in training mode.

    Args:
        spec: ``wrn{depth}-{width}`` (e.g. ``wrn22-2``), ``vit{depth}-{width}``, ``digits-cnn``, ``timm:NAME``,
            ``torchvision:NAME``, or
            ``package.module:callable``, which is called with ``num_classes`` and ``in_channels`` (or ``in_chans``)
            where it accepts them. The current directory can be imported from. Detectors are ``shapes-ssd``,
            ``ssd512-resnet50`` and those of torchvision; they are a `regrow.zoo.detectors.Detector`. ``shapes-fcn`` and
            torchvision's networks for segmentation give classes of pixels. ``hf:PATH`` and ``hf:TYPE`` are a
            `regrow.zoo.text_classifier.TextClassifier`.
        num_classes: size of the output; of detectors, without a background.
        in_channels: channels of the images; torchvision's models take 3, and those of texts none of it.
        seed: seeds the initial weights and leaves the global random state alone; None: uses and advances the latter.
        **options: passed on to the model. ``pretrained=True`` downloads weights; nothing is ever downloaded without it.

    Raises:
        UserError: unknown name or option, or the model cannot be built with them.
    """
    return build_with(options, spec, num_classes, in_channels, seed)


def build_with(
    options: Mapping[str, Any], spec: str, num_classes: int, in_channels: int = 3, seed: int | None = None
) -> nn.Module:
    """`build` with options of any name."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        try:
            return _build(spec, num_classes, in_channels, dict(options))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"the model {spec!r} cannot be built: {first_line(error)}") from error


def _build(spec: str, num_classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    library, _, name = spec.partition(":")
    if library == "timm":
        import timm

        _check_timm(name)
        return timm.create_model(name, **{"pretrained": False} | options, num_classes=num_classes, in_chans=in_channels)
    if library == "torchvision":
        return _torchvision(name, num_classes, in_channels, options)
    if library == "hf":
        return text_classifier(name, num_classes, options)
    if name:
        function = import_callable(spec)
        model = call_accepting(
            function, spec, options, num_classes=num_classes, in_channels=in_channels, in_chans=in_channels
        )
        if not isinstance(model, nn.Module):
            raise UserError(f"{spec!r} returned a {type(model).__name__}, not a torch.nn.Module")
        return model
    return _built_in(spec, num_classes, in_channels, options)


def tokenizer_of(spec: str, options: Mapping[str, Any]) -> str | None:
    """The folder of the tokenizer that a model takes texts from; None for models of images, and where none is named."""
    library, _, name = spec.partition(":")
    if library != "hf":
        return None
    if (named := options.get("tokenizer")) is not None:
        return str(named)
    folder = folder_of(name)
    return None if folder is None else str(folder)


def on_its_own(spec: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Spec and options that build the same network without the files that its spec names; weights aside."""
    library, _, name = spec.partition(":")
    if library != "hf":
        return spec, dict(options)
    found = configured(name, options)
    return f"hf:{found.kind}", dict(found.values)


def default_shape(spec: str) -> tuple[int, ...]:
    """The shape that a named model is made for: (channels, height, width) of an image, or (length,) of a text.

    Raises:
        UserError: unknown name, or a ``package.module:callable``, whose shape only its author knows.
    """
    library, _, name = spec.partition(":")
    if library == "timm":
        import timm

        _check_timm(name)
        cfg = timm.models.get_pretrained_cfg(name)
        channels, height, width = cfg.input_size if cfg is not None and cfg.input_size else (3, 224, 224)
        return channels, height, width
    if library == "torchvision":
        import torchvision

        _check_torchvision(name)
        if is_torchvision_detector(name):
            return 3, family_of(name).size, family_of(name).size
        if is_torchvision_segmenter(name):
            return 3, _SEGMENTED, _SEGMENTED
        size = torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
        return 3, size, size
    if library == "hf":
        folder_of(name)  # that it is there comes first
        return (_LENGTH,)
    if name:
        import_callable(spec)  # that it is there comes first
        raise UserError(f"the input shape of {spec!r} is not known: give one, such as --data-shape 3,32,32")
    if spec == "digits-cnn":
        return 1, 8, 8
    if spec in _OTHER_TASKS:
        return 3, _OTHER_TASKS[spec][1], _OTHER_TASKS[spec][1]
    _check_built_in(spec)
    return 3, 32, 32


def example_input(
    model: nn.Module | str, shape: Sequence[int] | None = None, batch: int = 1, device: torch.device | str | None = None
) -> Any:
    """A reproducible random batch, as `regrow.inputs.Inputs.of` takes it: images (batch, *shape), or a dict for texts.

    Args:
        model: a model, or the spec of one.
        shape: (channels, height, width), or (length,); default: `default_shape` of the spec.
        batch: number of images or texts.
        device: to be on; default: that of the model.

    Raises:
        UserError: the shape is not known, or one of images for a model of texts.
    """
    if shape is None:
        if not isinstance(model, str):
            raise UserError("the input shape of the model is not known: give a shape such as 3x32x32")
        shape = default_shape(model)
    weight = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    place = torch.device("cpu" if weight is None else weight.device) if device is None else torch.device(device)
    if isinstance(model, TextClassifier):
        if len(shape) != 1:
            raise UserError("models hf:PATH take texts, but the data are images: take text:PATH, or another model")
        return {name: value.to(place) for name, value in model.example(shape[0], batch).items()}
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0)).to(place)


def _built_in(spec: str, num_classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    _check_built_in(spec)
    given = {"num_classes": num_classes, "in_channels": in_channels}
    if spec == "ssd512-resnet50":  # the only one with weights to begin with
        return call_accepting(ssd512_resnet50, spec, options, **given)
    if options.pop("pretrained", False):
        raise UserError(f"there are no pretrained weights for {spec!r}: drop pretrained, or choose a timm: model")
    if spec in _OTHER_TASKS:
        return call_accepting(_OTHER_TASKS[spec][0], spec, options, **given)
    if spec == "digits-cnn":
        return call_accepting(DigitsCNN, spec, options, **given)
    if match := _VIT.fullmatch(spec):
        return call_accepting(VisionTransformer, spec, options, depth=int(match[1]), width=int(match[2]), **given)
    depth, width = map(int, spec.removeprefix("wrn").split("-"))
    return call_accepting(WideResNet, spec, options, depth=depth, width=width, **given)


def _check_built_in(spec: str) -> None:
    if spec == "digits-cnn" or spec in _OTHER_TASKS or _VIT.fullmatch(spec):
        return
    match = _WRN.fullmatch(spec)
    if not match:
        raise UserError(f"unknown model {spec!r}{_elsewhere(spec) or nearest(spec, _BUILT_IN)} ({_OTHERS})")
    depth, width = int(match[1]), int(match[2])
    if depth < 10 or depth % 6 != 4 or width < 1:
        raise UserError(
            f"{spec!r}: the depth of a WideResNet is 6n + 4 (10, 16, 22, 28, 40, …) and its width at least 1"
        )


# --- libraries


def _elsewhere(name: str) -> str:
    """A hint for a name that is a library's; "" where no library has one like it, or a built-in network is closer."""
    names = _names_by_library()
    for same in (str, str.lower):
        found = [f"{library}:{same(name)}" for library, known in names.items() if same(name) in known]
        if found:
            return f"; did you mean {' or '.join(map(repr, found))}?"
    near = closest(name, _BUILT_IN)
    if near is None or near[:1] != name[:1]:  # only a part of it is near
        for library, known in names.items():
            if close := closest(name, known):
                return f"; did you mean '{library}:{close}'?"
    return ""


def _names_by_library() -> dict[str, set[str]]:
    """What the libraries that are installed have, by their prefix."""
    names: dict[str, set[str]] = {}
    with suppress(ImportError):
        import torchvision

        names["torchvision"] = set(torchvision.models.list_models(module=torchvision.models))
    with suppress(ImportError):
        import timm

        names["timm"] = set(timm.list_models())
    return names


def _check_timm(name: str) -> None:
    import timm

    if not timm.is_model(name):
        _unknown("timm", name, timm.list_models(), "timm.list_models()")


def _check_torchvision(name: str) -> None:
    import torchvision

    models = torchvision.models
    names = models.list_models(module=models)
    if name in names:
        return
    if is_torchvision_detector(name):
        family_of(name)
        return
    if is_torchvision_segmenter(name):
        return
    for kind in ("video", "optical_flow", "quantization"):
        if name in models.list_models(module=getattr(models, kind)):
            raise UserError(
                f"torchvision's {name} is a model for {kind.replace('_', ' ')}, but only those for images, "
                "detection and segmentation are supported, such as torchvision:resnet50"
            )
    _unknown("torchvision", name, names, "torchvision.models.list_models()")


def _unknown(library: str, name: str, names: Iterable[str], listing: str) -> NoReturn:
    close = closest(name, names)
    hint = f"{listing} lists what it has" if close is None else f"did you mean {close!r}?"
    raise UserError(f"{library} has no model {name!r}; {hint}")


def _torchvision(name: str, num_classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    import torchvision

    _check_torchvision(name)
    if in_channels != 3:
        raise UserError(
            f"torchvision's {name} takes images of 3 channels, not {in_channels}: use the same network from timm:"
        )
    if is_torchvision_detector(name):
        return torchvision_detector(name, num_classes, options)
    if is_torchvision_segmenter(name):
        return torchvision_segmenter(name, num_classes, options)
    pretrained = options.pop("pretrained", False)
    if name in ("inception_v3", "googlenet"):
        options = {"aux_logits": False, "init_weights": True} | options
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    if pretrained:
        fill(model, torchvision.models.get_model_weights(name).DEFAULT)  # a head of another size stays fresh
    return model
