"""What every pattern offers the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from regrow import hints

if TYPE_CHECKING:
    from regrow.criteria import Criterion
    from regrow.saliency import Scoring
    from regrow.state import WeightState
    from regrow.tracing.flops import ModelFlops
    from regrow.units import Units

PATTERNS: dict[str, type[Pattern]] = {}


@dataclass(frozen=True)
class Attached:
    """What units are attached to.

    Attributes:
        states: of the sparsified parameters.
        optimizers: that train them.
        criterion: for pruning and growing.
        scorings: what the method scores in which phase.
        agree: makes codes (uint8) equal on all ranks.
        seed: of everything drawn at random.
        on_resize: called after parameters have changed their shapes; None where nobody needs to know.
    """

    states: Mapping[str, WeightState]
    optimizers: Sequence[Optimizer]
    criterion: Criterion
    scorings: Mapping[str, tuple[Scoring, ...]]
    agree: Callable[[Tensor], Tensor]
    seed: int
    on_resize: Callable[[], None] | None = None


@dataclass(frozen=True)
class Selection:
    """What a pattern of single entries does with the parameters of a model.

    Attributes:
        parameters: what is sparsified, by canonical name, in the model's order.
        dense: name → why not, for all others of two or more dimensions.
        flops: of the model at the example; None without one, or where it does not run on it.
        note: what there is to say about how they were found, or "".
        decided: which of the reasons somebody has decided for, in options or in what the model is for.
        axes: parameter → its axis that `choose` is to see as the last.
    """

    parameters: dict[str, nn.Parameter]
    dense: dict[str, str]
    flops: ModelFlops | None = None
    note: str = ""
    decided: frozenset[str] = frozenset()
    axes: Mapping[str, int] = field(default_factory=dict)


class Pattern(ABC):
    """A frozen dataclass of options; it holds no model.

    Attributes:
        blind: whether removed units get no gradient that says what they would be worth.
    """

    name: ClassVar[str]
    blind: ClassVar[bool] = False

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


class EntryPattern(Pattern):
    """A pattern of entries of single parameters, each to its own count. Scores and masks have the parameters' shapes.

    Attributes:
        unit_size: entries of a unit.
    """

    unit_size: int = 1

    @abstractmethod
    def select(self, model: nn.Module, example_inputs: Any = None) -> Selection:
        """The parameters that this pattern sparsifies, and those that stay dense.

        Args:
            model: stays as it is.
            example_inputs: one batch, which tells what the model multiplies with; None where there is none.

        Raises:
            UserError: where an option names nothing in the model, or nothing is left to sparsify.
        """

    @abstractmethod
    def counts_of(self, parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
        """(active, all) units of each of the selected parameters once the target is reached.

        Raises:
            UserError: where the target cannot be met.
        """

    def parameters(self, model: nn.Module, example_inputs: Any = None) -> dict[str, nn.Parameter]:
        """Those that `select` takes, by canonical name, in the model's order."""
        return self.select(model, example_inputs).parameters

    def counts(self, model: nn.Module, example_inputs: Any = None) -> dict[str, tuple[int, int]]:
        """`counts_of` them."""
        return self.counts_of(self.parameters(model, example_inputs))

    def choose(
        self,
        scores: Callable[[str], Tensor],
        counts: Mapping[str, int],
        candidates: Mapping[str, Tensor],
        occupied: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """The legal selection of the highest scores. Every parameter keeps something. Where `select` names an axis for
        a parameter, all tensors have it as their last.

        Args:
            scores: gives the fp32 scores of a parameter's entries.
            counts: how many units of each parameter to choose; only their sum matters where layers are ranked together.
            candidates: bool, the entries that may be chosen.
            occupied: bool, the entries that stay whatever is chosen; no candidates among them.

        Returns:
            bool masks of what is chosen, with exactly these counts, `occupied` not among it.
        """
        return {name: self.best(scores(name), k, candidates[name], occupied[name]) for name, k in counts.items()}

    @abstractmethod
    def best(self, scores: Tensor, k: int, candidates: Tensor, occupied: Tensor) -> Tensor:
        """The same for one parameter, with tensors of its shape."""

    def bind(self, model: nn.Module, example_inputs: Any = None) -> Units:
        from regrow.units import EntryUnits

        return EntryUnits(self, model, example_inputs)


def register(cls: type[Pattern]) -> type[Pattern]:
    """Makes a pattern known under its `name`."""
    PATTERNS[cls.name] = cls
    return cls
