from __future__ import annotations

import pytest
import torch
from torch import nn

from engine import attach, batches, network, train
from regrow.optim_state import KEEPS_ZERO, KINDS, keeps_zero, tensors, unwrap, update_state_for


def test_mend_by_hand() -> None:
    param = torch.tensor([1.0, 2.0, 3.0, 4.0])
    state = {
        "exp_avg": torch.tensor([0.1, 0.2, 0.3, 0.4]),
        "exp_avg_sq": torch.tensor([4.0, 2.0, 0.5, 0.0]),
        "z": torch.tensor([9.0, 9.0, 9.0, 9.0]),
        "step": torch.tensor(5.0),
        "momentum_buffer": None,
    }
    trainable = torch.tensor([True, False, True, True])
    before = torch.tensor([True, True, False, False])
    update_state_for(state, param, trainable, before, restarted=torch.tensor([False, True, False, True]))
    assert torch.equal(state["exp_avg"], torch.tensor([0.1, 0, 0, 0]))
    assert state["exp_avg_sq"].tolist() == [4, 2, 0.5, 3]  # kept; never estimated: the mean of 4 and 2
    assert state["z"].tolist() == [9, 2, 9, 4]
    assert state["step"] == 5


def test_adams_first_step_of_a_grown_weight_is_not_too_large() -> None:
    """The reason for keeping second moments: with both at zero, it is 3.2 learning rates."""
    lr, steps = 0.01, []
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr)
    sparsifier = attach(model, optimizer)

    def note() -> None:
        if sparsifier.phase == "explore":
            steps.append({n: p.detach().clone() for n, p in model.named_parameters()})

    train(model, optimizer, batches(11), note)
    start, first = steps[0], steps[1]
    moved = torch.cat([(first[n] - start[n])[~mask].abs() for n, mask in sparsifier.masks.items()])
    assert moved.median() < lr
    assert moved.max() < 3 * lr


def test_unknown_state_of_the_parameters_shape_is_named() -> None:
    param = torch.zeros(3)
    with pytest.warns(UserWarning, match="'whatever' is unknown to regrow"):
        assert [kind for _, kind, _ in tensors({"whatever": torch.zeros(3), "other": torch.zeros(2)}, param)] == [
            "keep"
        ]


@pytest.mark.parametrize("name", sorted(KEEPS_ZERO))
def test_optimizers_in_the_table_do_keep_zeros(name) -> None:
    kind = getattr(torch.optim, name.rpartition(".")[2])
    assert f"{kind.__module__}.{kind.__qualname__}" == name
    for decay in (0.0, 0.1):
        p = nn.Parameter(torch.tensor([0.0, 1.0]))
        optimizer = kind([p], lr=0.1, weight_decay=decay)
        assert keeps_zero(optimizer, optimizer.param_groups[0], torch.float32)
        for _ in range(20):
            p.grad = torch.tensor([0.0, 1.0])
            optimizer.step()
        assert p[0] == 0
        assert p[1] != 1
        known = {k for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor) and v.shape == p.shape}
        assert known <= set(KINDS)
    if KEEPS_ZERO[name]:
        optimizer = kind([p], lr=0.1, **{KEEPS_ZERO[name]: 0.0})
        assert not keeps_zero(optimizer, optimizer.param_groups[0], torch.float32)


def test_a_subclass_is_not_taken_for_its_parent() -> None:
    class Noisy(torch.optim.SGD):
        pass

    optimizer = Noisy(network().parameters(), 0.1)
    assert not keeps_zero(optimizer, optimizer.param_groups[0], torch.float32)


def test_unwrap() -> None:
    class Wrapper:
        def __init__(self, optimizer: object) -> None:
            self.optimizer = optimizer

    optimizer = torch.optim.SGD(network().parameters(), 0.1)
    assert unwrap(Wrapper(optimizer)) is optimizer
