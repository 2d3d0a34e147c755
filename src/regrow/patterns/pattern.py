"""What every pattern offers the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from regrow import hints

if TYPE_CHECKING:
    from regrow.units import Units

PATTERNS: dict[str, type[Pattern]] = {}


class Pattern(ABC):
    """A frozen dataclass of options; it holds no model.

    Attributes:
        blind: whether removed units get no gradient that says what they would be worth.
        measures: the option that has losses measured, as it is written; "" where none does.
    """

    name: ClassVar[str]
    blind: ClassVar[bool] = False

    @property
    def measures(self) -> str:
        return ""

    def __post_init__(self) -> None:
        """Refuses options of other types than their annotations say, or outside their range.

        Raises:
            UserError: naming the option.
        """
        hints.check(self)

    def check_example(self, example_inputs: Any) -> None:  # noqa: B027 (most patterns need none)
        """Refuses a missing batch, where the pattern needs one.

        Raises:
            UserError: saying what it is for.
        """

    @abstractmethod
    def bind(self, model: nn.Module, example_inputs: Any = None) -> Units:
        """Finds what there is to sparsify in a model, and checks that the target can be met.

        Args:
            model: stays as it is.
            example_inputs: one batch, in any form that `regrow.inputs.Inputs.of` takes; only some patterns need it.

        Raises:
            UserError: where the pattern does not fit the model.
        """


def register(cls: type[Pattern]) -> type[Pattern]:
    """Makes a pattern known under its `name`."""
    PATTERNS[cls.name] = cls
    return cls
