"""IEE's preview in memory, beyond what the lockstep with the reference engine shows."""

from __future__ import annotations

import torch
from torch import nn

import regrow
from engine import batches, loss_of, network


def memories(sparsifier: regrow.Sparsifier) -> dict[str, torch.Tensor]:
    return {name: state.memory.clone() for name, state in sparsifier._states.items()}


def moved(sparsifier: regrow.Sparsifier, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """How far one step moves the memory of what is out of use."""
    before = memories(sparsifier)
    optimizer.zero_grad()
    loss_of(model, batches(1)[0]).backward()
    optimizer.step()
    after = memories(sparsifier)
    return {name: (after[name] - before[name])[~mask] for name, mask in sparsifier.masks.items()}


def test_it_follows_the_learning_rate_of_groups_that_loading_has_replaced() -> None:
    """Loading an optimizer's state makes its groups anew; so do wrappers that load it into itself."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=regrow.Weights(0.7, "erk"), method=regrow.IEE(), total_steps=80
    )
    assert all((change != 0).any() for change in moved(sparsifier, model, optimizer).values())
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0
    assert all((change == 0).all() for change in moved(sparsifier, model, optimizer).values())


def test_memory_starts_at_nothing_from_scratch_and_at_the_trained_value_otherwise() -> None:
    for start in ("random", "criterion"):
        model = network()
        trained = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        sparsifier = regrow.Sparsifier(
            model, optimizer, pattern=regrow.Weights(0.7, "erk"), method=regrow.IEE(start=start), total_steps=80
        )
        moved(sparsifier, model, optimizer)  # at a learning rate of 0
        for name, memory in memories(sparsifier).items():
            out = ~sparsifier.masks[name]
            expected = torch.zeros_like(memory) if start == "random" else trained[name]
            assert torch.equal(memory[out], expected[out])


def test_fewer_gradients_count_by_the_root_of_their_spacing() -> None:
    """So that the noise of memory, a sum of independent terms, does not depend on how many gradients it takes."""
    changes = []
    for every in (1, 4):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        sparsifier = regrow.Sparsifier(
            model,
            optimizer,
            pattern=regrow.Weights(0.7, "erk"),
            method=regrow.IEE(shadow_every=every),
            total_steps=80,
        )
        optimizer.param_groups[0]["lr"] = 0.0
        for _ in range(3):
            moved(sparsifier, model, optimizer)
        assert not any(memory[~sparsifier.masks[name]].any() for name, memory in memories(sparsifier).items())
        optimizer.param_groups[0]["lr"] = 0.1
        changes.append(moved(sparsifier, model, optimizer))
    for name, change in changes[0].items():
        assert torch.equal(changes[1][name], 2 * change)
        assert (change != 0).any()
