"""Channels of a model in which single modules are compiled, before or after attaching: as in the plain one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import regrow
from channel_engine import DATA, IEE, network
from masked_and_thin import deviation, random_keep
from regrow.coupling.couple import couple
from regrow.latency.network import network_of

PARTS = ("stem", "first", "head")  # the last is a layer of its own
PATTERNS = {
    "thin": regrow.Channels(flops=0.5, round_to=1),
    "masked": regrow.Channels(flops=0.5, round_to=1, thin=False),
    "single weights": regrow.Weights(0.5),
}
METHODS = {"iee": IEE, "oneshot": regrow.methods.OneShot()}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch._dynamo")


def compile_parts(model: nn.Module) -> nn.Module:
    for name in PARTS:
        setattr(model, name, torch.compile(getattr(model, name), backend="eager"))
    return model


def attach(model, pattern, method):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=PATTERNS[pattern], method=METHODS[method], total_steps=20, example_inputs=DATA[0][0]
    )
    return optimizer, sparsifier


def train(model, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def outcome(sparsifier):
    """All that a run leaves behind, by name."""
    masks = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    cost, widths = sparsifier.training_cost(), sparsifier.widths()
    sparsifier.finalize()
    return masks, (cost, widths, sparsifier.history, regrow.names.parameters(sparsifier.model))


def assert_equal(mine, reference):
    for tensors, others in ((mine[0], reference[0]), (mine[1][-1], reference[1][-1])):
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert mine[1][:-1] == reference[1][:-1]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("when", ["before attaching", "after attaching"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_training_is_that_of_the_plain_model(pattern, method, when):
    plain = network()
    optimizer, reference = attach(plain, pattern, method)
    train(plain, optimizer, DATA[:20])

    model = network()
    if when == "before attaching":
        compile_parts(model)
    optimizer, sparsifier = attach(model, pattern, method)
    if when == "after attaching":
        compile_parts(model)
    train(model, optimizer, DATA[:20])
    assert_equal(outcome(sparsifier), outcome(reference))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_saved_compiled_and_loaded_plain_and_back(pattern, tmp_path):
    model = compile_parts(network())
    optimizer, sparsifier = attach(model, pattern, "iee")
    train(model, optimizer, DATA[:20])
    if pattern == "single weights":
        sparsifier.finalize()
    else:
        sparsifier.compact()
    regrow.save(model, tmp_path / "compiled")
    images = DATA[30][0]
    expected = model.eval()(images)
    plain = regrow.load(network(seed=7), tmp_path / "compiled").eval()
    assert torch.equal(plain(images), expected)
    regrow.save(plain, tmp_path / "plain")
    for name in ("compiled", "plain"):
        again = regrow.load(compile_parts(network(seed=8)), tmp_path / name).eval()
        assert torch.equal(again(images), expected)
    files = [(tmp_path / name / "manifest.json").read_text() for name in ("compiled", "plain")]
    assert files[0] == files[1]


@pytest.mark.parametrize("pattern", ["thin", "masked"])
def test_a_plain_run_goes_on_compiled(pattern):
    """The checkpoint is taken in the middle of exploring, when statistics of norms wait."""
    plain = network()
    optimizer, reference = attach(plain, pattern, "iee")
    train(plain, optimizer, DATA[:9])
    assert reference.phase == "explore"
    with reference.full_width():
        weights, momenta = plain.state_dict(), optimizer.state_dict()
        weights = {name: value.clone() for name, value in weights.items()}
        momenta = {**momenta, "state": {k: {n: v.clone() for n, v in s.items()} for k, s in momenta["state"].items()}}
        checkpoint = reference.state_dict()
    train(plain, optimizer, DATA[9:20])

    model = compile_parts(network(seed=9))
    optimizer, sparsifier = attach(model, pattern, "iee")
    with sparsifier.full_width():
        marked = {regrow.names.canonical(name): name for name in model.state_dict()}
        model.load_state_dict({marked[name]: value for name, value in weights.items()})
        optimizer.load_state_dict(momenta)
        sparsifier.load_state_dict(checkpoint)
    train(model, optimizer, DATA[9:20])
    assert_equal(outcome(sparsifier), outcome(reference))


def test_coupling_and_latency_have_plain_names():
    images = DATA[0][0]
    plain, model = network(), compile_parts(network())
    coupling = couple(model, images)
    assert coupling.ids == couple(plain, images).ids
    assert [[part.name for part in group.slices] for group in coupling.groups] == [
        [part.name for part in group.slices] for group in couple(plain, images).groups
    ]
    assert deviation(model, coupling, random_keep(coupling, 0.5), (images,)) < 1e-5
    assert network_of(model, images) == network_of(plain, images)
    assert couple(model, images, forbid=["first.0"]).ids == couple(plain, images, forbid=["first.0"]).ids
