"""What a block is worth is what the loss without it says, exactly; and the model is as it was afterwards."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow.coupling.couple import couple
from regrow.errors import UserError
from regrow.losses import MeanLoss, classification
from regrow.patterns.block_losses import BlockLosses, shared_out

SOURCE = torch.Generator().manual_seed(7)
DATA = [(torch.randn(n, 1, 6, 6, generator=SOURCE), torch.randint(0, 5, (n,), generator=SOURCE)) for n in (8, 8, 5)]


class Net(nn.Module):
    """Branches with a norm at their end, before their first layer, and with a bias only; each can be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.post = nn.Sequential(
            nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 1), nn.BatchNorm2d(8),
        )  # fmt: skip
        self.pre = nn.Sequential(
            nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 10, 3, padding=1), nn.ReLU(), nn.Conv2d(10, 8, 1),
        )  # fmt: skip
        self.plain = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 1))
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)
        self.without: tuple[str, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for name in ("post", "pre", "plain"):
            x = x + self.get_submodule(name)(x) if name not in self.without else x
        return self.head(self.dropout(x).mean((2, 3)))


NAMES = ("post", "pre", "plain")  # in the order of the blocks


def network() -> Net:
    torch.manual_seed(3)
    model = Net()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    return model


@torch.no_grad()
def brute_force(model: Net, *without: str) -> float:
    """The mean loss over all examples, of a copy that leaves branches out, with norms as in training."""
    model = copy.deepcopy(model).train()
    model.dropout.eval()
    model.without = without
    total = sum(float(nn.functional.cross_entropy(model(x), y)) * len(y) for x, y in DATA)
    return total / sum(len(y) for _, y in DATA)


def everything(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}


def measured(model: Net, **keep: Tensor) -> dict[str, float]:
    coupling = couple(model, DATA[0][0], blocks=True)
    measure = BlockLosses(model, coupling, MeanLoss(model, list(DATA), classification, None, 0))
    all_of = {group.id: torch.ones(group.size, dtype=torch.bool) for group in coupling.groups}
    found = measure({**all_of, **keep}, coupling.blocks)
    return {name: found[block] for name, block in zip(NAMES, coupling.blocks, strict=True)}


def test_losses_are_those_of_brute_force_and_nothing_changes() -> None:
    model = network()
    model.train()
    model(DATA[0][0]).sum().backward()
    before, grads = everything(model), {name: p.grad for name, p in model.named_parameters()}
    state, shapes = torch.get_rng_state(), {name: p.data_ptr() for name, p in model.named_parameters()}
    whole = brute_force(model)
    found = measured(model)
    assert found == pytest.approx({name: brute_force(model, name) - whole for name in NAMES}, abs=1e-6)
    assert len(set(found.values())) == 3
    assert all(torch.equal(value, before[name]) for name, value in everything(model).items())
    assert all(p.grad is grads[name] for name, p in model.named_parameters())
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == shapes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())


def test_what_is_out_already_stays_out() -> None:
    model = network().train()
    coupling = couple(model, DATA[0][0], blocks=True)
    gone = {m: torch.zeros(coupling[m].size, dtype=torch.bool) for m in coupling.blocks[0].members}
    found = measured(model, **gone)
    assert found["post"] == 0
    assert found["pre"] == pytest.approx(brute_force(model, "post", "pre") - brute_force(model, "post"), abs=1e-6)


def test_modes_are_those_of_training() -> None:
    model = network()
    for x, _ in DATA:
        model(x)
    model.eval()
    with torch.no_grad():
        found = measured(model)
        losses = []
        for without in ((), ("plain",)):
            model.without = without
            losses.append(sum(float(nn.functional.cross_entropy(model(x), y)) * len(y) for x, y in DATA) / 21)
    assert found["plain"] == pytest.approx(losses[1] - losses[0], abs=1e-6)


def test_a_loss_that_is_not_finite_counts_as_the_largest_that_is() -> None:
    model = network()
    coupling = couple(model, DATA[0][0], blocks=True)
    keep = {group.id: torch.ones(group.size, dtype=torch.bool) for group in coupling.groups}

    def measure(*losses: float) -> list[float]:
        given = iter(losses)
        fake = MeanLoss(model, [DATA[0]], lambda *_: torch.tensor(next(given)), None, 0)
        return list(BlockLosses(model, coupling, fake)(keep, coupling.blocks).values())

    assert measure(1.0, 3.0, math.inf, 1.5) == [2.0, 2.0, 0.5]
    assert measure(math.nan, 3.0, 4.0, 1.5) == []
    assert BlockLosses(model, coupling, MeanLoss(model, [DATA[0]], classification, None, 0))(keep, ()) == {}


@pytest.mark.parametrize(("loss", "own", "factor"), [(9.0, 3.0, 1.0), (3.0, 0.0, 0.5), (-1.0, 0.0, 0.0)])
def test_members_are_worth_the_loss_together(loss: float, own: float, factor: float) -> None:
    coupling = couple(network(), DATA[0][0], blocks=True)
    block = coupling.blocks[0]
    scores = {group.id: torch.arange(group.size, dtype=torch.float32) for group in coupling.groups}
    among = {name: torch.ones(len(values), dtype=torch.bool) for name, values in scores.items()}
    (inner,) = block.inner
    among[inner][4:] = False  # 0 + 1 + 2 + 3 = 6 are in question
    found = shared_out(scores, among, {block: loss})
    assert found[block.id].tolist() == [own]
    assert torch.equal(found[inner].double(), scores[inner].double() * factor)
    assert all(found[name] is scores[name] for name in scores if name not in block.members)
    together = sum(float(found[name][among[name]].sum()) for name in block.members)
    assert together == pytest.approx(max(0.0, loss))


# ---- in a run ----

OPTIONS: dict[str, Any] = {"flops": 0.35, "round_to": 2, "min_channels": 0.6, "blocks": "loss"}


def attached(model: nn.Module, method: Any, given: Any = None, **options: Any) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    given = {"batches": DATA, **(given or {})}
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=regrow.Channels(**{**OPTIONS, **options}), method=method, criterion="taylor",
        total_steps=60, example_inputs=DATA[0][0], **given,
    )  # fmt: skip
    return sparsifier, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        x, y = DATA[step % 2]
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("thin", [True, False])
def test_the_block_that_the_loss_can_spare_goes(thin: bool) -> None:
    """One shot, where all else keeps its width: the selection is given the loss without each block, and takes the best
    set of blocks within the budget, as brute force finds it."""
    model = network()
    sparsifier, optimizer = attached(model, regrow.OneShot(h=4), flops=0.7, min_channels=0.99, thin=thin)
    units, seen = sparsifier._units, []
    counts = units._counts

    def spy(among: Any, scores: Any, limits: Any, grow: bool) -> Any:
        seen.append((scores, {name: brute_force(model, name) for name in NAMES}, brute_force(model), limits))
        return counts(among, scores, limits, grow)

    units._counts = spy
    train(model, optimizer, 4)
    ((scores, without, whole, limits),) = seen
    blocks = dict(zip(NAMES, units.coupling.blocks, strict=True))
    for name, block in blocks.items():
        worth = sum(float(scores[member].double().sum()) for member in block.members)
        assert worth == pytest.approx(max(0.0, without[name] - whole), abs=2e-6)
    choices = [[n for i, n in enumerate(NAMES) if number & 1 << i] for number in range(8)]
    fitting = [
        gone for gone in choices
        if units.prices.cost({m: 0 for n in gone for m in blocks[n].members})["flops"] <= limits["flops"]
    ]  # fmt: skip
    best = min(fitting, key=lambda gone: sum(max(0.0, without[name] - whole) for name in gone))
    assert best
    assert [name for name, block in blocks.items() if not units.widths()[block.id][0]] == best


def test_exploration_brings_back_by_the_loss_without() -> None:
    """Where a block may come back, everything is there, and it alone is skipped."""
    model = network()
    sparsifier, optimizer = attached(
        model, regrow.IEE(h=3, j=2, q=2, update_end=1.0, start="criterion", start_steps=3), flops=0.25
    )
    units = sparsifier._units
    grown = []
    worth = units._worth

    def spy(among: Any, scores: Any, role: str) -> Any:
        found = worth(among, scores, role)
        if role == "grow":
            lost = [i for i, block in enumerate(units.coupling.blocks) if not bool(among[block.id].any())]
            grown.append(len(lost))
            whole = brute_force(model)
            for i in lost:
                together = sum(float(found[m].double().sum()) for m in units.coupling.blocks[i].members)
                assert together == pytest.approx(max(0.0, brute_force(model, NAMES[i]) - whole), abs=2e-6)
        return found

    units._worth = spy
    train(model, optimizer, 60)
    assert any(grown)
    (now, end) = units.costs()["flops"]
    assert now <= end * (1 + 1e-9)


def test_a_method_that_grows_at_random_does_not_ask_the_loss() -> None:
    model = network()
    asked = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        asked.append(batch)
        return classification(model, batch)[0]

    sparsifier, optimizer = attached(model, regrow.MEST(interval=5), {"loss": loss})
    train(model, optimizer, 20)
    assert asked
    assert sparsifier.history


def test_a_loss_that_fails_leaves_the_model_as_it_was() -> None:
    model = network()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if not model.post[0].weight.numel():
            raise RuntimeError("no")
        return classification(model, batch)[0]

    _sparsifier, optimizer = attached(model, regrow.OneShot(h=4), {"loss": loss})
    train(model, optimizer, 3)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match="no"):
        train(model, optimizer, 1)
    assert {name: p.shape for name, p in model.named_parameters()} == shapes
    assert not any("forward" in vars(module) for module in model.modules())


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"batches": None}, r"blocks='loss' measures the loss of the model, so give Sparsifier batches=, a few batches"),
    ({"batches": []}, "batches is empty: give a few batches of data"),
    ({"batches": DATA[0][0]}, r"batches is of type Tensor, but must be a list of batches, or yield a few"),
    ({"loss": 3}, r"loss is 3, but must be a function of \(model, batch\), or None for classification"),
    ({"blocks": True}, r"batches= is for patterns that measure losses, Channels\(blocks='loss'\): leave it out"),
    ({"blocks": True, "batches": None, "loss": classification}, "loss= is for patterns that measure losses"),
    ({"criterion": "magnitude"}, "scores by criterion 'magnitude' are no changes of the loss: use criterion='taylor'"),
    ({"blocks": "losses"}, "blocks"),
]


@pytest.mark.parametrize(("given", "sentence"), REFUSED)
def test_what_is_refused_at_the_door(given: dict[str, Any], sentence: str) -> None:
    model = network()
    rest = {"batches": DATA, "criterion": "taylor", "loss": None, **given}
    blocks = rest.pop("blocks", "loss")

    def attach() -> None:
        pattern = regrow.Channels(**{**OPTIONS, "blocks": blocks})
        regrow.Sparsifier(
            model, torch.optim.SGD(model.parameters(), lr=0.1), pattern=pattern, method=regrow.OneShot(h=4),
            total_steps=60, example_inputs=DATA[0][0], **rest,
        )  # fmt: skip

    with pytest.raises(UserError, match=sentence):
        attach()
