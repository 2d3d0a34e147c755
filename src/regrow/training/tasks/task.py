"""What a task of training is: a new one is a subclass with `register`, in a file of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from regrow.errors import UserError
from regrow.training.measures import Measure

if TYPE_CHECKING:
    from regrow.data.splits import DataSet
    from regrow.training.sections import TrainSection

Batch = tuple[Any, Any]
Teach = Callable[[Tensor, Tensor, Tensor], Tensor]


class Task(ABC):
    """How a batch of the data becomes a loss, and what is said of how good a model is.

    Attributes:
        name: in recipes (``task: detection``), and of the data sets that it trains on.
        measure: what the number under ``accuracy`` is.
        has_teachers: whether its models can learn from another one (the recipe's section ``distill``).
        loss_in_eval: whether `loss` can also be told in eval mode, of the model as it computes there.
    """

    name: ClassVar[str]
    measure: ClassVar[Measure]
    has_teachers: ClassVar[bool] = False
    loss_in_eval: ClassVar[bool] = False

    def check(self, settings: TrainSection) -> None:  # noqa: B027 (nothing to refuse is usual)
        """Refuse settings that say nothing to this task, before anything is built.

        Args:
            settings: the recipe's section ``train``

        Raises:
            UserError: naming the key.
        """

    def check_data(self, data: DataSet, name: str) -> None:
        """Refuse data of another task.

        Args:
            data: the data set
            name: of it, in the recipe

        Raises:
            UserError: saying which task it is for.
        """
        if data.task != self.name:
            raise UserError(f"the data set {name!r} is for {data.task}, not {self.name}: say task: {data.task}")

    @abstractmethod
    def check_model(self, model: nn.Module, example: Any, classes: int, name: str) -> None:
        """Refuse a model that does not do what this task needs of it.

        Args:
            model: in full size
            example: a batch of one example, as `regrow.inputs.Inputs.of` takes it
            classes: of the data
            name: of the model, in the recipe

        Raises:
            UserError: saying what is needed.
        """

    @abstractmethod
    def loss(
        self, forward: Any, batch: Batch, device: torch.device, settings: TrainSection, teach: Teach | None = None
    ) -> Tensor:
        """The loss of a batch, a scalar on the device.

        Args:
            forward: the model in training mode, wrapped as it trains
            batch: as the data set has it
            device: of the model
            settings: the recipe's section ``train``
            teach: makes of the loss by the labels, the logits and the images what is trained by, where a teacher has
                a share in it; only for tasks that have teachers
        """

    @abstractmethod
    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch], device: torch.device, accelerator: Any
    ) -> dict[str, Any]:
        """How good the model is: ``accuracy``, the measure as a fraction, and what else is known beside it.

        Args:
            model: it is put into eval mode meanwhile
            batches: this process's share of a split
            device: of the model
            accelerator: Accelerate's, of the processes that evaluate together; all of them call this
        """

    def pictures(self, model: nn.Module, data: DataSet, device: torch.device) -> Mapping[str, Any] | None:
        """What a page can show of the model at work, as JSON; None where there is nothing to see."""
        return None


def check_output(output: object, wanted: tuple[int, ...], name: str, thing: str) -> None:
    """Refuse a model that gives anything but a tensor of this shape.

    Args:
        output: of one example
        wanted: its shape
        name: of the model, in the recipe
        thing: what the example is: an ``"image"`` or a ``"text"``

    Raises:
        UserError: saying what was found.
    """
    if not isinstance(output, Tensor) or output.shape != wanted:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"the model {name!r} gives {found} for one {thing}, but a tensor {wanted} is needed")


TASKS: dict[str, Task] = {}


def register(cls: type[Task]) -> type[Task]:
    """Makes a task known to recipes by its name."""
    TASKS[cls.name] = cls()
    return cls
