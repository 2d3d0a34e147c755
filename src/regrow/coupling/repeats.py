"""Does a model in training mode do the very same as in eval mode? Where dropout keeps all and no norm learns from the
batch, it does, and then it need not be computed twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map_only

from regrow.inputs import Inputs, output_tensors
from regrow.tracing.trace import Value, Values, held

Execute = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


class Differs(BaseException):
    """A call does something else than the one before. It is no `Exception`, or a model could go on after it."""


@dataclass(frozen=True)
class _Step:
    """One operation: what it was asked, what it returned, and how its results lie in memory."""

    func: Any
    asked: list[tuple[type, Any]]
    spec: TreeSpec
    out: Any
    forms: dict[int, tuple[tuple[int, ...], torch.dtype]]  # number of a tensor → strides and type


class _Numbered:
    """Numbers all tensors of one call; what the model, its inputs and operations have not given is kept: numbers that
    its code has made into a tensor."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.values = Values()
        self.foreign: list[Tensor] = []
        self._known = {self.values.of(t).number for t in (*held(model), *inputs.tensors)}

    def asked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[tuple[type, Any]], TreeSpec]:
        """What an operation is asked: a list with the type of each, and how it is nested."""
        leaves, spec = tree_flatten((args, kwargs))
        return [(type(x), self._operand(x) if isinstance(x, Tensor) else x) for x in leaves], spec

    def _operand(self, tensor: Tensor) -> Value:
        value = self.values.of(tensor)
        if value.number not in self._known:
            self._known.add(value.number)
            self.foreign.append(tensor.detach().clone())
        return value

    def given(self, out: Any) -> Any:
        """The same for what it returns."""
        out = tree_map_only(Tensor, self.values.of, out)
        self._known |= {value.number for value in tree_leaves(out) if isinstance(value, Value)}
        return out


class Script:
    """Writes down what one call of a model executes, so that another can be held against it.

    Args:
        model: that is called.
        inputs: that it is called with.
        execute: executes an operation.

    Attributes:
        steps: all operations.
        foreign: tensors that its code has made of numbers.
        returned: the tensors that the model has returned.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, execute: Execute) -> None:
        self.steps: list[_Step] = []
        self.foreign: list[Tensor] = []
        self.returned: list[Value] = []
        self._model, self._inputs, self._execute = model, inputs, execute
        self._numbered = _Numbered(model, inputs)
        self._before = self._state()
        self._outside = {self._numbered.values.of(t).storage for t in (*held(model), *inputs.tensors)}
        self._pure = True

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Executes and writes down an operation."""
        asked, spec = self._numbered.asked(args, kwargs)
        out = self._execute(func, args, kwargs)
        given = self._numbered.given(out)
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.layout is torch.strided]
        forms = {self._numbered.values.of(t).number: (t.stride(), t.dtype) for t in results}
        if _writes(func):
            self._pure &= not any(isinstance(x, Value) and x.storage in self._outside for _, x in asked)
        self.steps.append(_Step(func, asked, spec, given, forms))
        return out

    def end(self, out: Any) -> None:
        """Writes down what the model has returned."""
        self.returned = [self._numbered.values.of(t) for t in output_tensors(out)]
        self.foreign = self._numbered.foreign
        self._pure &= self._before == self._state()
        del self._model, self._inputs

    def _state(self) -> list[tuple[int, int]]:
        every = (*held(self._model), *self._inputs.tensors)
        return [(t.data_ptr(), t._version) for t in every if t.layout is torch.strided and not t.is_inference()]

    def is_repeated(self, call: Callable[[Repeat], Any], model: nn.Module, inputs: Inputs) -> bool:
        """Whether another call executes and returns the very same, so that its numbers are the same.

        Args:
            call: calls the model, where operations are executed by what it is given.
            model, inputs: that are called, in the state that they had before the first call.
        """
        repeat = Repeat(self, _Numbered(model, inputs))
        try:
            return self._pure and repeat.ends(call(repeat))
        except (Differs, Exception):  # numbers may have been wanted, which it does not compute
            return False


class Repeat:
    """Follows a call of a model step by step as long as it does what another has done, without computing: as all that
    went in is the same, so is what comes out.

    Args:
        script: of the other call.
        numbered: of this one.
    """

    def __init__(self, script: Script, numbered: _Numbered) -> None:
        self._script, self._numbered = script, numbered
        self._done = 0

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns tensors without numbers.

        Raises:
            Differs: it is another operation, or on something else.
        """
        steps = self._script.steps
        asked, spec = self._numbered.asked(args, kwargs)
        if self._done >= len(steps):
            raise Differs
        step = steps[self._done]
        self._done += 1
        if func is not step.func or spec != step.spec or asked != step.asked:
            raise Differs
        out = self._returned(step, args, kwargs)
        if self._numbered.given(out) != step.out:
            raise Differs
        return out

    def _returned(self, step: _Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _writes(step.func):
            if not (isinstance(step.out, Value) and args and isinstance(args[0], Tensor)):
                raise Differs
            return args[0]  # what it writes into, or the numbers below say otherwise
        given = {x.storage for _, x in step.asked if isinstance(x, Value)}
        if any(isinstance(x, Value) and x.storage in given for x in tree_leaves(step.out)):  # a view of it
            return step.func(*args, **kwargs)

        def empty(value: Value) -> Tensor:
            strides, dtype = step.forms[value.number]  # of others than strided tensors it knows none
            return torch.empty_strided(value.shape, strides, dtype=dtype, device="meta")

        return tree_map_only(Value, empty, step.out)

    def ends(self, out: Any) -> bool:
        """Whether it has come to the same end."""
        mine, theirs = self._numbered.foreign, self._script.foreign
        return (
            self._done == len(self._script.steps)
            and [self._numbered.values.of(t) for t in output_tensors(out)] == self._script.returned
            and len(mine) == len(theirs)
            and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
        )


def _writes(func: Any) -> bool:
    return isinstance(func, torch._ops.OpOverload) and func._schema.is_mutable
