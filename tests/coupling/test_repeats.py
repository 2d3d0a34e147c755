"""A second call is only taken for the first where every operation, operand and number is the same."""

import pytest
import torch
from torch import nn

from regrow.coupling.repeats import Script
from regrow.coupling.trial import Trial
from regrow.inputs import Inputs
from regrow.tracing.trace import Recorder

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    """Does the same in both modes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(()))

    def between(self, x):
        return x

    def forward(self, x):
        return self.between(torch.relu_(self.linear(x).unsqueeze(1).flatten(1))).softmax(-1)


def other_operation(self, x):
    return x.exp() if self.training else x.sin()


def other_scalar(self, x):
    return x * (2.0 if self.training else 3.0)


def other_type_of_scalar(self, x):
    return x * (2.0 if self.training else 2)


def other_constant(self, x):
    return x * torch.tensor(2.0 if self.training else 3.0)


def other_operand(self, x):
    return x + (x * 2 if self.training else self.linear.bias)


def more_operations(self, x):
    return x + 1 if self.training else x


def fewer_operations(self, x):
    return x if self.training else x + 1


def looks_at_numbers(self, x):
    return x + 1 if self.training and max(x.flatten().tolist()) > -9 else x


def branches_by_numbers(self, x):
    return x + 1 if self.training and bool(x.max() > -9) else x


def counts_calls(self, x):
    return x * self.count.add_(1)


def replaces_data(self, x):
    self.count.data = self.count.data + 1
    return x * self.count


def returns_another(self, x):
    return (x + 1, x + 2)[self.training]  # both are computed


def norm_over_batch(self, x):
    return nn.functional.batch_norm(x, torch.zeros(4), torch.ones(4), training=self.training)


DIFFERENT = [other_operation, other_scalar, other_type_of_scalar, other_constant, other_operand, more_operations,
             fewer_operations, looks_at_numbers, branches_by_numbers, counts_calls, replaces_data, returns_another,
             norm_over_batch]  # fmt: skip


def same_operations(self, x):
    return x * torch.tensor(2.0) + self.linear.bias.exp()


def drops_nothing(self, x):
    return nn.functional.dropout(x, 0.0, self.training)


def reads_a_number_in_both(self, x):
    return x * float(x.detach().sum())


def writes_into_its_own(self, x):
    return torch.zeros(2, 4).add_(x).mul_(2).view(4, 2).reshape(2, 4)


SAME = [same_operations, drops_nothing, reads_a_number_in_both, writes_into_its_own]


def is_repeated(between):
    model = type("Made", (Layer,), {"between": between})().eval()
    inputs = Inputs.of(X.clone())
    plain = lambda func, args, kwargs: func(*args, **kwargs)  # noqa: E731
    script = Script(model, inputs, plain)

    def run(execute):
        with torch.no_grad(), Recorder(execute=execute):
            return inputs(model)

    script.end(run(script))
    model.train()
    return script.is_repeated(run, model, inputs)


@pytest.mark.parametrize("between", DIFFERENT)
def test_whatever_differs_is_seen(between):
    assert not is_repeated(between)


@pytest.mark.parametrize("between", SAME)
def test_the_same_is_seen(between):
    assert is_repeated(between)


@pytest.mark.parametrize("between", [*DIFFERENT, *SAME])
def test_trials_compute_what_differs(between, monkeypatch):
    """Both modes run, whether what training mode does is computed or not."""
    monkeypatch.setattr("regrow.coupling.trial.LARGE", 0)
    model = type("Made", (Layer,), {"between": between})()
    trial = Trial(model, Inputs.of(X), float("inf"))
    assert trial.untrained == ""
    assert trial._alike is (between in SAME)
