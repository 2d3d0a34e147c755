"""What a trace holds, worked out by hand, and what of a model it must not touch."""

import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regrow.coupling.couple import couple
from regrow.errors import UserError
from regrow.inputs import Inputs
from regrow.latency.network import network_of, units_of
from regrow.tracing.flops import count_flops, flops_of
from regrow.tracing.replica import on_meta, replica_of
from regrow.tracing.trace import ModelTrace, ModuleStack, Operation, Recorder, TimeLimit, record


class Function(nn.Module):
    """A module with a weight, a buffer and a forward pass of the test's choice."""

    def __init__(self, function, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))
        self.register_buffer("scale", torch.ones(()))
        self.kept = torch.zeros(2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.weight, x)


@torch.no_grad()
def traced(function, *shape: int) -> ModelTrace:
    return record(Function(function, *shape), Inputs.of(torch.randn(3, 4)))


def test_operations_in_order_with_shapes_and_owners():
    trace = traced(lambda w, x: F.linear(x, w).relu_().t(), 6, 4)
    assert [op.name for op in trace.operations] == ["t", "mm", "relu_", "t"]
    turned, product, relu, out = trace.operations
    weight = trace.parameters["weight"]
    assert turned.operands == [weight]
    assert turned.out.storage == weight.storage
    assert (tuple(weight.shape), tuple(turned.out.shape)) == ((6, 4), (4, 6))
    assert product.args == (trace.inputs[0], turned.out)
    assert relu.out == relu.args[0] == product.out  # in place: the same tensor
    assert out.out.number != relu.out.number
    assert out.out.storage == relu.out.storage
    assert [tuple(value.shape) for value in trace.constants] == [(6, 4), (), (2,)]


def test_parts_of_a_parameter_have_their_offset():
    trace = traced(lambda w, x: x @ w.chunk(2)[1].t(), 6, 4)
    weight, product = trace.parameters["weight"], trace.operations[-1]
    assert (product.args[1].storage, product.args[1].offset) == (weight.storage, 3 * 4)


@pytest.mark.parametrize("function", [lambda x: x + 1, lambda x: x.clone(), lambda x: x @ x.new_ones(4, 4)])
def test_memory_that_is_used_again_is_not_taken_for_what_it_held(function):
    def forward(w: Tensor, x: Tensor) -> Tensor:
        for _ in range(20):
            x = function(x)
        return x

    trace = traced(forward, 1)
    made = [op.out for op in trace.operations]
    assert len({value.number for value in made}) == len({value.storage for value in made}) == len(made)


def test_tensors_inside_lists_are_operands():
    trace = traced(lambda w, x: torch.cat([x, w, x]), 1, 4)
    assert trace.operations[-1].args[0] == [trace.inputs[0], trace.parameters["weight"], trace.inputs[0]]
    assert trace.operations[-1].operands == trace.operations[-1].args[0]


def test_the_innermost_module_is_known_and_exceptions_leave_it():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(5, 4)))
    stack, seen, x = ModuleStack(model), [], torch.randn(2, 4)

    def see(operation: Operation) -> None:
        seen.append((operation.name, operation.module))

    with torch.no_grad(), pytest.raises(RuntimeError), Recorder(see, stack=stack):
        model(x)
    assert seen == [("t", "0"), ("addmm", "0"), ("relu", "1.0"), ("t", "1.1")]
    assert stack.last == "1.1"
    with torch.no_grad(), pytest.raises(TimeLimit, match=r"^0$"), Recorder(stack=stack, deadline=time.process_time()):
        model(x)


def test_the_numbers_and_tensors_of_the_innermost_module():
    class Shaped(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.shape, self.parts, self.mixed, self.flag = 4, (2, 6), [3, 5], (1, "a"), True

        def forward(self, x, *, scale):
            return x * scale

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.width, self.inner = 7, Shaped()

        def forward(self, x):
            return self.inner(x + 1, scale=x)

    model = Around()
    stack, seen, x = ModuleStack(model), [], torch.ones(2)

    def see(operation: Operation) -> None:
        seen.append((operation.name, stack.integers(), stack.lists(), [float(t[0]) for t in stack.given()]))

    with torch.no_grad(), Recorder(see, stack=stack):
        model(x)
    lists = {"shape": [2, 6], "parts": [3, 5]}
    assert seen == [("add", {"width": 7}, {}, [1.0]), ("mul", {"heads": 4}, lists, [2.0, 1.0])]


def test_an_executor_stands_for_the_operations():
    def zeros(func, args, kwargs):
        return func(*args, **kwargs).zero_()

    with torch.no_grad(), Recorder(execute=zeros):
        out = torch.ones(2) + torch.ones(2)
    assert out.tolist() == [0.0, 0.0]


def test_a_replica_shares_what_is_on_the_cpu_but_no_buffer():
    model = Function(lambda w, x: x, 6, 4)
    copy = replica_of(model)
    assert copy.weight.data_ptr() == model.weight.data_ptr()
    assert copy.scale.data_ptr() != model.scale.data_ptr()
    assert copy.kept.data_ptr() != model.kept.data_ptr()
    assert all(t.is_meta for t in (*replica_of(model, on_meta).state_dict().values(), replica_of(model, on_meta).kept))


def convolutions(before, between) -> nn.Module:
    class Convolutions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(between(self.norm(self.first(before(x)))))

    return Convolutions()


@pytest.mark.parametrize(
    "between",
    [torch.relu, lambda x: F.max_pool2d(x, 2), lambda x: F.dropout(x, 0.5, False).flatten(2).unflatten(2, (6, 6))],
)
def test_channels_are_followed_in_inference_mode_too(between):
    # nothing is taken apart there before the recorder sees it
    class Inferring(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                return super().forward(x)

    model = Inferring(convolutions(lambda x: x, between))
    groups = couple(model, torch.randn(2, 3, 8, 8)).groups
    assert [(group.id, group.size) for group in groups] == [("0.first", 8)]


@pytest.mark.parametrize("in_place", [lambda x: x.mul_(2), lambda x: x.add_(1), lambda x: x.clamp_(0)])
def test_inputs_that_the_model_changes_stay_as_they_were(in_place):
    x = torch.randn(2, 3, 8, 8)
    given = x.clone()
    model = convolutions(in_place, torch.relu)
    for read in (couple, count_flops, network_of):
        read(model, x)
        assert torch.equal(x, given), read


def test_flops_and_latency_are_read_from_one_trace():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()  # fmt: skip
    image = torch.randn(1, 3, 6, 6)
    with torch.no_grad():
        trace = record(model, Inputs.of(image))
    assert flops_of(trace, 1, {"0.weight", "5.weight"}) == count_flops(model, image)
    assert units_of(trace) == network_of(model, image)
    assert [unit.name for unit in units_of(trace).units] == ["0", "mean:3", "5"]


@pytest.mark.parametrize("caught", [Exception, RuntimeError, (ValueError, Exception)])
def test_a_model_that_goes_on_after_exceptions_cannot_go_on_after_its_time(caught):
    class Careless(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            try:
                return super().forward(x)
            except caught:
                return x

    with pytest.raises(UserError, match="took more than 0 s"):
        couple(Careless(4, 4), torch.randn(2, 4), time_limit=0)
