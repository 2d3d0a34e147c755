"""Notices when a sparsifier loses hold of its parameters, instead of letting a model train dense in silence."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from regrow import names
from regrow.errors import UserError

if TYPE_CHECKING:
    from regrow.units import Units


_REPLACED = (
    "{} is not the parameter any more that regrow was attached to (the model was sharded, or its parameters were "
    "replaced): attach after that, or detach() this sparsifier"
)


class Watch:
    """Looks whether the parameters still are the model's, and are trained by nobody else.

    Args:
        model: that holds them.
        parameters: the sparsified ones, by canonical name.
        optimizers: that may train them.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], optimizers: Sequence[Optimizer]
    ) -> None:
        modules = names.modules(model)
        self._model = weakref.ref(model)
        self._links = _links(model, parameters)
        self._places = []
        for name, param in parameters.items():
            owner, _, key = name.rpartition(".")
            self._places.append((name, modules[owner]._parameters, key, param))
        self._names = {id(param): name for name, param in parameters.items()}
        self._known = {id(one) for one in optimizers}
        self.stepping = False  # inside the step of a known optimizer, which may hand over to others

    def check(self) -> None:
        """Refuses to go on with parameters that are no longer the model's.

        Raises:
            UserError: naming the first.
        """
        for name in self._replaced().values():
            raise UserError(_REPLACED.format(name))
        if any(children.get(key) is not child for children, key, child in self._links):
            self._check_modules()

    def _replaced(self) -> dict[int, str]:
        """The id of what now stands in the place of a parameter → its name."""
        return {id(holder.get(key)): name for name, holder, key, param in self._places if holder.get(key) is not param}

    def _check_modules(self) -> None:
        """Looks whether modules have been replaced by others, or only wrapped, as `torch.compile` does with parts."""
        model = self._model()
        if model is None:
            return
        held = {id(param) for param in model.parameters()}
        for name, _, _, param in self._places:
            if id(param) not in held:
                raise UserError(_REPLACED.format(name))
        self._links = _links(model, [name for name, *_ in self._places])

    def hook(self) -> RemovableHandle:
        """Looks at the steps of all optimizers, as another than the known ones has no hook of its own."""
        seen = weakref.ref(self)

        def before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            watch = seen()
            said = watch._taken_by(optimizer) if watch is not None else ""
            if said:
                del watch
                gc.collect()  # a sparsifier that only its own optimizer still holds has been given up
                if seen() is not None:
                    raise UserError(said)

        # where nobody removes it, what stays behind holds nothing and does nothing
        return register_optimizer_step_pre_hook(before_step)

    def _taken_by(self, optimizer: Optimizer) -> str:
        """What there is to say of an optimizer that is about to step; "" for one that has no part in this."""
        if self.stepping or id(optimizer) in self._known:
            return ""
        replaced = self._replaced()
        for group in optimizer.param_groups:
            for param in group["params"]:
                if id(param) in replaced:
                    return _REPLACED.format(replaced[id(param)])
                if id(param) in self._names and param.grad is not None:
                    return (
                        f"{self._names[id(param)]} would be trained by an optimizer that regrow is not attached to, "
                        "while a sparsifier holds it: detach() that one, and attach to the new optimizer (or to both)"
                    )
        return ""


def _links(model: nn.Module, parameters: Iterable[str]) -> list[tuple[Mapping[str, nn.Module | None], str, nn.Module]]:
    """The children of a module, the name of one, and that one, for all modules on the way to these parameters."""
    modules = names.modules(model)
    paths = {name.rpartition(".")[0] for name in parameters}
    paths |= {path[:end] for path in paths for end, letter in enumerate(path) if letter == "."}
    found: list[tuple[Mapping[str, nn.Module | None], str, nn.Module]] = []
    for path in sorted(paths - {""}):
        above, _, key = path.rpartition(".")
        children = modules[above]._modules if above in modules else {}
        child = children.get(key)
        if child is not None:
            found.append((children, key, child))
    return found


class OwnHook:
    """A hook of one model that calls a method, for as long as somebody else holds the object that has it. Copies of the
    model have a hook that does nothing, and so has a graph of torch.compile's.

    Args:
        method: bound; takes what the hook is called with, and returns nothing.
    """

    def __init__(self, method: Callable[..., Any] | None = None) -> None:
        self._method = None if method is None else weakref.WeakMethod(method)

    def __call__(self, *args: object) -> None:
        """Calls the method."""
        method = None if self._method is None or torch.compiler.is_compiling() else self._method()
        if method is not None:
            method(*args)

    def __deepcopy__(self, memo: object) -> OwnHook:
        return type(self)()

    def __reduce__(self) -> tuple[type[OwnHook], tuple[()]]:
        return type(self), ()


class OnTrial(OwnHook):
    """A hook of a model that knows whether what it holds at present is only on trial, and does nothing else.

    Args:
        method: bound; says it.
    """

    def __call__(self, *args: object) -> None:
        """Does nothing."""

    @classmethod
    def warn(cls, model: nn.Module) -> None:
        """Warns whoever is about to write a model to a file while removed units are explored in it.

        Warns:
            UserWarning: saying what would be written, and how to write the active structure.
        """
        for hook in names.unwrap(model)._state_dict_pre_hooks.values():
            says = hook._method() if isinstance(hook, cls) and hook._method is not None else None
            if says is not None and says():
                warnings.warn(
                    "removed units are on trial in this model at present, and are written as if they were in use: "
                    "write it inside `with sparsifier.sparse():`, which leaves the active structure",
                    stacklevel=3,
                )


class WidthGuard:
    """A hook on loading into model or optimizer that refuses while the model is thin: shapes that agree by chance would
    be taken for others. What is there already may be loaded again, as Accelerate does; copies of it let all pass.

    Args:
        units: that say whether the model is thin now; not kept alive, as the model keeps its hooks.
    """

    SENTENCE = (
        "the model trains thin, so its shapes depend on when: save and load model, optimizer and sparsifier inside "
        "`with sparsifier.full_width():`"
    )

    def __init__(self, units: Units | None = None) -> None:
        self._units = None if units is None else weakref.ref(units)

    @property
    def _thin(self) -> bool:
        units = self._units() if self._units is not None else None
        return units is not None and units.resized

    def __call__(self, owner: nn.Module | Optimizer, state: Any, *args: object) -> None:
        """Refuses; called by a model or an optimizer that is about to load.

        Raises:
            UserError: saying what to do.
        """
        if self._thin:
            held = owner.state.values() if isinstance(owner, Optimizer) else [*owner.parameters(), *owner.buffers()]
            if not _places(state) <= _places(list(held)):
                raise UserError(self.SENTENCE)

    def check(self) -> None:
        """Refuses to save.

        Raises:
            UserError: saying what to do.
        """
        if self._thin:
            raise UserError(self.SENTENCE)

    def __deepcopy__(self, memo: object) -> WidthGuard:
        return WidthGuard()

    def __reduce__(self) -> tuple[type[WidthGuard], tuple[()]]:
        return WidthGuard, ()


def _places(value: Any) -> set[tuple[int, torch.Size]]:
    """Where the tensors of a structure lie in memory."""
    return {(t.data_ptr(), t.shape) for t in tree_leaves(value) if isinstance(t, Tensor) and t.numel() > 1}
