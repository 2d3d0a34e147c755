"""An average of a model's weights over its training steps that is as sparse, and as thin, as the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regrow import names
from regrow.errors import UserError
from regrow.surgery.resize import Index, gather, scatter
from regrow.units import Units

_UPDATES = ("update_parameters", "update")  # of torch's AveragedModel; of timm's ModelEmaV3


class SparseAverage:
    """Keeps torch's `AveragedModel`, timm's `ModelEmaV3` or the like in the structure of the model that it averages.

    An average alone is not sparse, as what is pruned fades from it slowly, and what is grown begins at zero in it.
    Here, after every update, what is out of use is zero, and what has come into use begins with the value that it has.
    The average has the model's full width, also while the model is thin. Its own ``state_dict`` is all that resuming
    needs.

    Made by `Sparsifier.average`.

    Args:
        model: that trains.
        units: its structure; None where nothing is sparsified.
        averaged: holds the average in ``.module``, a copy of the model at full width, and takes in a model by
            ``update_parameters(model)`` or ``update(model)``.
        sparse: gives a context in which the model computes as its active structure.
        stood_still: says whether that was frozen in the step just done, so that there is nothing to average.

    Raises:
        UserError: where it is no average of this model at full width.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Units | None,
        averaged: Any,
        sparse: Callable[[], AbstractContextManager[None]],
        stood_still: Callable[[], bool],
    ) -> None:
        update = next((getattr(averaged, name) for name in _UPDATES if hasattr(averaged, name)), None)
        if update is None or not isinstance(getattr(averaged, "module", None), nn.Module):
            raise UserError(
                f"{type(averaged).__name__} is no average of a model; give torch's AveragedModel or timm's ModelEmaV3"
            )
        if units is not None and units.ranks.several:
            raise UserError(
                "average() cannot follow sharded parameters: average the weights of a checkpoint, or use DDP"
            )
        self.averaged = averaged
        self._model, self._units, self._sparse, self._stood_still = model, units, sparse, stood_still
        self._update: Callable[..., Any] = update
        self._whole: nn.Module | None = None  # holds the values of a thin model at full width
        self._check()

    @property
    def module(self) -> nn.Module:
        """The average: at full width, zero outside the active structure."""
        return names.unwrap(self.averaged.module)

    @torch.no_grad()
    def update(self, *args: Any, **kwargs: Any) -> None:
        """Takes in the model after a step of the optimizer; nothing, where the active structure was frozen in it.

        Args:
            args: for the average's own update, after the model.
            kwargs: likewise, such as ``step=`` of `ModelEmaV3`.
        """
        if self._stood_still():
            return
        self._check()
        average = names.tensors(self.module)
        masks = self._masks(average)
        arrived = {name: mask & (average[name] == 0) for name, mask in masks.items()}
        with self._sparse():
            model = self._at_full_width()
            self._update(model, *args, **kwargs)
            live = names.tensors(model)
            for name, new in arrived.items():
                value = torch.where(new, live[name].to(average[name]), average[name])
                average[name].copy_(value.masked_fill_(~masks[name], 0))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside it, the model computes with the averaged weights, thin where it is thin: for evaluating and saving.
        Afterwards everything is as it was, bit for bit."""
        with self._sparse():
            live = {name: tensor.detach().clone() for name, tensor in names.tensors(self._model).items()}
            self.apply()
            try:
                yield
            finally:
                self._write(live)

    @torch.no_grad()
    def apply(self) -> None:
        """Gives the model the averaged weights for good: at the end of training, before ``compact()``."""
        self._check()
        average = names.tensors(self.module)
        masks, index = self._masks(average), self._index()
        for name, mask in masks.items():  # the structure may have changed since the last update
            average[name] = average[name].masked_fill(~mask, 0)
        self._write({name: gather(value, _on(value.device, index.get(name, ()))) for name, value in average.items()})

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in names.tensors(self._model).items():
            tensor.copy_(values[name])

    def _at_full_width(self) -> nn.Module:
        """The model, or where it is thin, one of full width that holds its values, and zeros elsewhere."""
        index = self._index()
        if not index:
            return self._model
        if self._whole is None:
            self._whole = copy.deepcopy(self.module)
        live = names.tensors(self._model)
        for name, whole in names.tensors(self._whole).items():
            if name in index:
                scatter(whole.data.zero_(), live[name].data.to(whole), _on(whole.device, index[name]))
            else:
                whole.copy_(live[name])
        return self._whole

    def _masks(self, average: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of the average's tensors: bool, what of them is active."""
        found = self._units.active_of(average) if self._units else {}
        return {name: mask.to(average[name].device) for name, mask in found.items()}

    def _index(self) -> Mapping[str, Index]:
        """What a thin model has of its tensors."""
        return self._units.index() if self._units else {}

    def _check(self) -> None:
        """Refuses a model and an average that do not fit each other.

        Raises:
            UserError: naming the first tensor that does not.
        """
        average, live, index = names.tensors(self.module), names.tensors(self._model), self._index()
        if list(average) != list(live):
            other = next(iter(set(average) ^ set(live)), "the order of the tensors")
            raise UserError(f"the average is of another model: {other!r} does not match")
        states = self._units.states if self._units else {}
        for name, tensor in live.items():
            shape = average[name].shape
            thin = list(shape)
            for dim, stays in index.get(name, ()):
                thin[dim] = stays.numel()
            if thin != list(tensor.shape) or (name in states and states[name].flags.shape != shape):
                raise UserError(
                    f"the average has {name!r} of shape {tuple(shape)}, but the model of {tuple(tensor.shape)}: make "
                    "it of the dense model, before attaching, and apply() it before compact()"
                )


def _on(device: torch.device, index: Index) -> Index:
    return tuple((dim, stays.to(device)) for dim, stays in index)
