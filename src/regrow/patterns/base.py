"""What every pattern offers the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

from torch import Tensor, nn

PATTERNS: dict[str, type[Pattern]] = {}


class Pattern(ABC):
    """A frozen dataclass of options; it holds no model. Scores and masks have the shapes of the parameters."""

    name: ClassVar[str]

    @abstractmethod
    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that this pattern sparsifies, by canonical name, in the model's order.

        Raises:
            UserError: where an option names nothing in the model, or nothing is left to sparsify.
        """

    @abstractmethod
    def counts(self, model: nn.Module) -> dict[str, tuple[int, int]]:
        """(active, total) entries of each of these parameters once the target is reached.

        Raises:
            UserError: where the target cannot be met.
        """

    @abstractmethod
    def choose(
        self, scores: Callable[[str], Tensor], counts: Mapping[str, int], among: Mapping[str, Tensor], spare: bool
    ) -> dict[str, Tensor]:
        """The legal selection of the highest scores.

        Args:
            scores: gives the fp32 scores of a parameter.
            counts: how many entries of each parameter; only their sum matters where the scope is global.
            among: bool, the candidates.
            spare: whether every parameter must keep at least one entry.

        Returns:
            bool masks with exactly these counts.
        """


def register(cls: type[Pattern]) -> type[Pattern]:
    """Makes a pattern known under its `name`."""
    PATTERNS[cls.name] = cls
    return cls


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's and DistributedDataParallel's wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def canonical(name: str) -> str:
    """A parameter's or module's name without the marks of compiled submodules."""
    return name.replace("_orig_mod.", "")
