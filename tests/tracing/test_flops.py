"""FLOPs against numbers worked out by hand and torch's own counter."""

import copy
import random
import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from regrow.errors import UserError
from regrow.tracing.flops import ModelFlops, count_flops


def nonzero(flops: ModelFlops) -> dict[str, float]:
    return {name: value for name, value in flops.by_parameter.items() if value}


class Lambda(nn.Module):
    """A module with a weight and a forward pass of the test's choice."""

    def __init__(self, function, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))
        self.function = function

    def forward(self, x):
        return self.function(self.weight, x)


def test_small_conv_net_exactly():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False),
        nn.Conv2d(8, 12, 1, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )
    flops = count_flops(model, torch.randn(4, 3, 16, 16))
    expected = {
        "0.weight": 2.0 * 16 * 16 * 8 * 3 * 9,
        "4.weight": 2.0 * 4 * 4 * 8 * 1 * 9,  # depthwise
        "5.weight": 2.0 * 4 * 4 * 12 * 2,  # 4 groups of 2 channels each
        "8.weight": 2.0 * 12 * 5,
    }
    assert nonzero(flops) == expected
    assert flops.by_parameter.keys() == dict(model.named_parameters()).keys()
    assert flops.total == sum(expected.values())
    assert flops.other == 0
    assert flops.uncounted == {}


@pytest.mark.parametrize("shape", [(3, 4), (3, 7, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_of_any_rank(shape, bias):
    flops = count_flops(nn.Linear(4, 6, bias=bias), torch.randn(*shape))
    positions = 7 if len(shape) == 3 else 1
    assert nonzero(flops) == {"weight": 2.0 * 4 * 6 * positions}


def test_transposed_convolution():
    flops = count_flops(nn.ConvTranspose2d(4, 6, 2, stride=2), torch.randn(1, 4, 5, 5))
    assert nonzero(flops) == {"weight": 2.0 * 25 * 4 * 6 * 4}


def test_bias_is_never_the_weight_of_an_op():
    # as many entries in the bias as in the weight
    assert nonzero(count_flops(nn.Linear(1, 6), torch.randn(2, 1))) == {"weight": 12.0}


def test_tied_weights_appear_once_with_both_uses():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    flops = count_flops(model, torch.randn(2, 4))
    assert flops.by_parameter == {"0.weight": 2 * 2.0 * 16}


def test_tied_embedding_counts_only_the_product():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 4)
            self.out = nn.Linear(4, 11, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, tokens):
            return self.out(self.embed(tokens))

    flops = count_flops(Tied(), torch.zeros(2, 3, dtype=torch.long))
    assert flops.by_parameter == {"embed.weight": 2.0 * 3 * 4 * 11}


@pytest.mark.parametrize(
    "function",
    [
        lambda w, x: F.linear(x, w),
        lambda w, x: x @ w.t(),
        lambda w, x: x @ w.transpose(0, 1).contiguous(),
        lambda w, x: torch.einsum("bi,oi->bo", x, w),
        lambda w, x: F.linear(x, w * torch.ones_like(w)),
        lambda w, x: F.linear(x, w.double().float()),
        lambda w, x: F.linear(x, F.normalize(w, dim=1)),
        lambda w, x: torch.bmm(x[:, None], w.t().expand(len(x), -1, -1)),
        lambda w, x: torch.mv(w, x[0]) * 5,
    ],
    ids=["linear", "matmul", "contiguous", "einsum", "masked", "cast", "normalised", "bmm", "mv"],
)
def test_functional_use_of_a_parameter(function):
    batch = 1 if "mv" in function.__code__.co_names else 3
    flops = count_flops(Lambda(function, 6, 4), torch.randn(batch, 4))
    assert flops.by_parameter == {"weight": 2.0 * 6 * 4}


def test_input_that_has_passed_a_parameter_is_not_that_parameter():
    # with a batch of one, the sum has as many entries as the position embedding
    model = Lambda(lambda w, x: F.linear(x + w, torch.ones(5, 4)), 1, 4)
    flops = count_flops(model, torch.randn(1, 4))
    assert (flops.by_parameter, flops.other) == ({"weight": 0.0}, 40.0)


def test_weight_norm_and_pruned_modules():
    from torch.nn.utils import prune

    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    assert nonzero(count_flops(normed, torch.randn(2, 4))) == {"parametrizations.weight.original1": 24.0}
    pruned = prune.random_unstructured(nn.Linear(4, 3), "weight", 0.5)
    assert nonzero(count_flops(pruned, torch.randn(2, 4))) == {"weight_orig": 24.0}


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention(need_weights):
    width, tokens = 16, 5
    x = torch.randn(3, tokens, width)
    attention = nn.MultiheadAttention(width, 2, batch_first=True).eval()
    flops = count_flops(attention, (x, x, x), {"need_weights": need_weights})
    assert nonzero(flops) == {
        "in_proj_weight": 2.0 * tokens * width * 3 * width,
        "out_proj.weight": 2.0 * tokens * width * width,
    }
    assert flops.other == 2 * 2.0 * tokens * tokens * width  # queries with keys, probabilities with values
    assert flops.uncounted == {}


def test_fused_attention_and_encoder_layer_are_counted():
    x = torch.randn(2, 5, 16)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    flops = count_flops(layer, x)
    assert flops.by_parameter["linear1.weight"] == 2.0 * 5 * 16 * 32
    assert flops.other == 4.0 * 5 * 5 * 16
    heads = torch.randn(2, 4, 5, 8)
    attention = Lambda(lambda _, q: F.scaled_dot_product_attention(q, q, q), 1)
    assert count_flops(attention, heads).other == 4.0 * 4 * 5 * 5 * 8


def test_lstm():
    flops = count_flops(nn.LSTM(8, 16, batch_first=True), torch.randn(3, 5, 8))
    assert nonzero(flops) == {"weight_ih_l0": 2.0 * 5 * 8 * 64, "weight_hh_l0": 2.0 * 5 * 16 * 64}


def test_resnet50_equals_torchs_counter():
    model = torchvision.models.resnet50().to("meta")
    flops = count_flops(model, torch.randn(1, 3, 224, 224))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, 224, 224, device="meta"))
    assert flops.total == counter.get_total_flops() == 8_178_368_512
    assert flops.other == 0
    weights = {n for n, p in model.named_parameters() if p.dim() > 1}
    assert nonzero(flops).keys() == weights


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda w, x: torch.fft.rfft(x).real.sum() * w, "aten._fft_r2c"),
        (
            lambda w, x: F.grid_sample(x[:, None, None], torch.zeros(2, 1, 1, 2), align_corners=False) * w,
            "aten.grid_sampler_2d",
        ),
        (lambda w, x: torchvision.ops.nms(x[:, :4].abs(), x[:, 0], 0.5) * w, "torchvision.nms"),
        (lambda w, x: torch.cdist(x, x) * w, "aten._cdist_forward"),
    ],
)
def test_op_without_a_rule_is_reported_by_name(function, name):
    flops = count_flops(Lambda(function, 1), torch.randn(2, 4))
    assert flops.uncounted == {name: 1}
    assert flops.total == 0


def test_runs_on_the_cpu_where_meta_cannot():
    model = Lambda(lambda w, x: F.linear(x, w) * float(x.sum()), 6, 4)  # reads a value
    x = torch.randn(3, 4)
    assert count_flops(model, x).by_parameter == {"weight": 48.0}
    assert count_flops(model, x.to("meta")).by_parameter == {"weight": 48.0}
    rnn = nn.LSTM(8, 16, batch_first=True)
    rnn.register_forward_pre_hook(lambda module, args: float(args[0].sum()) and None)
    assert count_flops(rnn, torch.randn(3, 5, 8)).by_parameter["weight_hh_l0"] == 2.0 * 5 * 16 * 64


def test_compiled_model_and_inference_mode():
    x = torch.randn(2, 4)
    compiled = nn.Linear(4, 4)
    compiled.compile()
    assert count_flops(compiled, x).total == 32
    with torch.inference_mode():
        assert nonzero(count_flops(nn.Linear(4, 4), x)) == {"weight": 32.0}


@pytest.mark.parametrize("reads_value", [False, True], ids=["meta", "cpu"])
def test_nothing_is_changed(reads_value):
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            x += torch.rand(()) + (float(x.sum()) if reads_value else 0)
            return self.net(x)

    model, x = Stateful().train(), torch.randn(2, 1, 5, 5)
    model(x.clone()).sum().backward()
    before, given = copy.deepcopy(model.state_dict()), x.clone()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    rng, python = torch.get_rng_state(), random.getstate()
    count_flops(model, x)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(gradients[n], p.grad) for n, p in model.named_parameters())
    assert model.training
    assert model.net[1].training
    assert torch.equal(x, given)
    assert torch.equal(torch.get_rng_state(), rng)
    assert random.getstate() == python
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize("reads_value", [False, True], ids=["meta", "cpu"])
def test_no_warning(reads_value):
    model = Lambda(lambda w, x: F.linear(x, w) * (float(x.sum()) if reads_value else 1), 6, 4)
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # or torch would warn only the first time in this process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            count_flops(model, torch.ones(2, 4))
    finally:
        torch.set_warn_always(always)


def test_a_wrong_input_is_one_sentence():
    with pytest.raises(
        UserError, match=r"the model cannot be traced, as it does not run on the example input"
    ) as caught:
        count_flops(nn.Linear(4, 4), torch.randn(2, 5))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="lazy parameters"):
        count_flops(nn.LazyLinear(4), torch.randn(2, 5))


def test_inference_flops():
    flops = ModelFlops(total=110.0, by_parameter={"a": 60.0, "b": 40.0}, other=10.0)
    assert flops.inference({}) == 110.0
    assert flops.inference({"a": 0.5, "b": 0.0}) == 40.0
    with pytest.raises(KeyError, match="'c' is not a parameter"):
        flops.inference({"c": 0.5})
