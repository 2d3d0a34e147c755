"""Matrices are found by what they do: whatever the class of their module, what multiplies is sparsified."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from regrow import Sparsifier, Weights
from regrow.errors import UserError
from regrow.matrices import EMBEDDING, FROZEN, NO_PRODUCT, PARAMETRIZED, UNKNOWN, find
from regrow.tracing.flops import count_flops


class Own(nn.Module):
    """Parameters under names of the test's choice, and a function of them and the input."""

    def __init__(self, function: Callable[..., Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self._parameters.values())


def found(model: nn.Module, x: Tensor | tuple[Tensor, ...]) -> tuple[str, ...]:
    return find(model, count_flops(model, x)).names


def by_expert(x: Tensor, router: Tensor, up: Tensor, down: Tensor) -> Tensor:
    chosen = F.linear(x, router).argmax(-1)
    return torch.bmm(torch.bmm(x[:, None], up[chosen]), down[chosen])[:, 0]


def convolved(x: Tensor, taps: Tensor) -> Tensor:
    return F.conv1d(x[:, None], taps)


def shared(x: Tensor, m: Tensor) -> Tensor:
    return (x @ m) @ m.t()


@pytest.mark.parametrize(
    ("model", "matrices"),
    [
        (Own(lambda x, kernel, bias: torch.addmm(bias, x, kernel), kernel=(8, 4), bias=(4,)), ("kernel",)),
        (Own(lambda x, a: torch.einsum("bi,hid->bhd", x, a), a=(2, 8, 3)), ("a",)),
        (Own(by_expert, router=(3, 8), up=(3, 8, 16), down=(3, 16, 8)), ("router", "up", "down")),
        (Own(lambda x, w: torch.bmm(x.view(4, 1, 8), w), w=(4, 8, 2)), ("w",)),
        (Own(lambda x, w: sum(x @ one for one in w), w=(4, 8, 2)), ("w",)),
        (Own(convolved, taps=(5, 1, 3)), ("taps",)),
        (Own(shared, m=(8, 3)), ("m",)),
        (Own(lambda x, position_table: x @ position_table, position_table=(8, 3)), ("position_table",)),
        (Own(lambda x, low, high: x @ low @ high, low=(8, 2), high=(2, 8)), ("low", "high")),
        (Own(lambda x, w: F.linear(x, w.half().float()), w=(3, 8)), ("w",)),
    ],
    ids=["addmm", "einsum", "chosen experts", "bmm", "loop", "conv", "shared", "name", "low rank", "cast"],
)  # fmt: skip
def test_what_multiplies_is_found_in_any_module(model: nn.Module, matrices: tuple[str, ...]) -> None:
    assert found(model, torch.randn(4, 8)) == matrices


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (Own(lambda x, w: x + w, w=(4, 8)), "w"),
        (Own(lambda x, w: x * w, w=(4, 8)), "w"),
        (Own(lambda x, w, m: (x + w.sigmoid()) @ m, w=(4, 8), m=(8, 8)), "w"),
        # what attends is data, also where it is the larger of the two, in a batch of one
        (Own(lambda x, w, m: F.linear(F.layer_norm(w, (8,)), m) @ x.t(), w=(50, 8), m=(8, 8)), "m"),
    ],
    ids=["added", "scaled", "position", "queries"],
)
def test_what_does_not_multiply_is_dense_with_the_reason(model: nn.Module, name: str) -> None:
    sorted_out = find(model, count_flops(model, torch.randn(4, 8)))
    assert sorted_out.dense == {name: NO_PRODUCT}


def test_queries_are_not_taken_for_the_weight_of_a_layer() -> None:
    class Perceiver(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seeds = nn.Parameter(torch.randn(60, 8))
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            seeds = F.layer_norm(self.seeds, (8,)).expand(len(x), -1, -1)
            return self.attention(seeds, x, x)[0]

    for batch in (1, 3):
        model = Perceiver()
        flops = count_flops(model, torch.randn(batch, 5, 8))
        assert find(model, flops).names == ("attention.in_proj_weight", "attention.out_proj.weight")
        assert flops.by_parameter["attention.in_proj_weight"] == 2 * 8 * 8 * (60 + 5 + 5)


@pytest.mark.parametrize(
    ("layer", "x", "names"),
    [
        (nn.LSTM(4, 6, proj_size=2), (5, 3, 4), ("weight_ih_l0", "weight_hh_l0", "weight_hr_l0")),
        (nn.GRU(4, 6, 2), (5, 3, 4), ("weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1")),
        (
            nn.RNN(4, 6, bidirectional=True), (5, 3, 4),
            ("weight_ih_l0", "weight_hh_l0", "weight_ih_l0_reverse", "weight_hh_l0_reverse"),
        ),
        (nn.LSTMCell(4, 6), (3, 4), ("weight_ih", "weight_hh")),
    ],
    ids=["lstm", "gru", "rnn", "cell"],
)  # fmt: skip
def test_recurrent_layers(layer: nn.Module, x: tuple[int, ...], names: tuple[str, ...]) -> None:
    assert find(layer).names == names
    flops = count_flops(layer, torch.randn(x))
    assert find(layer, flops).names == names
    assert all(flops.by_parameter[name] for name in names)


class Tied(nn.Module):
    def __init__(self, embed: nn.Module, table: nn.Parameter) -> None:
        super().__init__()
        self.embed = embed
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = table

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.mix(self.embed(tokens)))


def by_class() -> Tied:
    embed = nn.Embedding(11, 8)
    return Tied(embed, embed.weight)


def by_function() -> Tied:
    embed = Own(lambda tokens, words: F.embedding(tokens, words), words=(11, 8))
    return Tied(embed, embed.words)


def by_index() -> Tied:
    embed = Own(lambda tokens, words: words[tokens], words=(11, 8))
    return Tied(embed, embed.words)


@pytest.mark.parametrize("make", [by_class, by_function, by_index])
def test_embeddings_are_dense_also_where_the_head_is_tied_to_them(make: Callable[[], Tied]) -> None:
    model = make()
    sorted_out = find(model, count_flops(model, torch.zeros(2, 3, dtype=torch.long)))
    (table,) = sorted_out.dense
    assert table.startswith("embed.")
    assert sorted_out.dense == {table: EMBEDDING}
    assert sorted_out.names == ("mix.weight",)
    assert list(Weights(0.5, include=[table]).parameters(model)) == [table]


def test_without_an_example_shape_and_name_tell() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(4, 8))
            self.experts = nn.Parameter(torch.randn(3, 4, 8))
            self.lora_A = nn.Parameter(torch.randn(2, 8))
            self.gate_proj = nn.ParameterList([torch.randn(4, 4)])
            for name, shape in {
                "pos_embed": (5, 8), "relative_position_bias_table": (9, 2), "cls": (2, 8), "layer_scale": (8, 2),
                "row": (1, 8), "column": (8, 1), "stem": (1, 6, 8),
            }.items():  # fmt: skip
                setattr(self, name, nn.Parameter(torch.randn(shape)))
            self.tokens = nn.Embedding(5, 8)
            self.norm = nn.LayerNorm((4, 8))

    sorted_out = find(Layers())
    assert sorted_out.names == ("kernel", "experts", "lora_A", "gate_proj.0")
    assert sorted_out.dense == dict.fromkeys(
        ("pos_embed", "relative_position_bias_table", "cls", "layer_scale", "row", "column", "stem"), UNKNOWN
    ) | {"tokens.weight": EMBEDDING, "norm.weight": UNKNOWN, "norm.bias": UNKNOWN}


def test_what_the_example_did_not_reach_is_judged_by_shape_and_name() -> None:
    model = nn.ModuleDict({"used": nn.Linear(8, 8), "spare": Own(lambda x: x, kernel=(8, 8), position=(8, 8))})
    model.forward = lambda x: model["used"](x)  # type: ignore[method-assign]
    sorted_out = find(model, count_flops(nn.Linear(8, 8), torch.randn(1, 8)))
    assert sorted_out.names == ("used.weight", "spare.kernel")
    assert sorted_out.dense == {"spare.position": UNKNOWN}


def test_products_of_each_group_with_its_own_matrix_are_known() -> None:
    def grouped(x: Tensor, w: Tensor) -> Tensor:
        ends = torch.tensor([16, 48], dtype=torch.int32, device=x.device)
        return F.grouped_mm(x.bfloat16(), w.bfloat16(), offs=ends).float()

    flops = count_flops(Own(grouped, w=(2, 16, 32)), torch.randn(48, 16))
    assert flops.by_parameter == {"w": 2.0 * 16 * 32}
    assert flops.uncounted == {}


@torch.library.custom_op("regrow_tests::product", mutates_args=())
def product(x: Tensor, w: Tensor) -> Tensor:
    return x @ w


def test_what_an_unknown_op_does_with_a_parameter_is_judged_by_shape_and_name() -> None:
    model = Own(lambda x, kernel, position: product(x, kernel * 2) + position, kernel=(8, 8), position=(4, 8))
    flops = count_flops(model, torch.randn(4, 8))
    assert flops.uncounted == {"regrow_tests.product": 1}
    assert (find(model, flops).names, find(model, flops).dense) == (("kernel",), {"position": NO_PRODUCT})


def test_weights_that_a_layer_computes_stay_dense() -> None:
    old = torch.nn.utils.spectral_norm(nn.Linear(8, 8))
    new = torch.nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 8, 1))
    model = nn.Sequential(old, nn.Unflatten(1, (8, 1)), new, nn.Flatten(), nn.Linear(8, 2))
    dense = {
        "0.weight_orig": PARAMETRIZED,
        "2.parametrizations.weight.original0": PARAMETRIZED,
        "2.parametrizations.weight.original1": PARAMETRIZED,
    }
    for flops in (None, count_flops(model, torch.randn(3, 8))):
        assert find(model, flops).dense == dense
        assert find(model, flops).names == ("4.weight",)


def test_a_complex_layer_stays_dense_with_the_reason_and_refuses_only_where_it_is_asked_for() -> None:
    model = nn.ModuleDict({"wave": nn.Linear(4, 4, dtype=torch.complex64), "plain": nn.Linear(4, 4)})
    reason = "is complex64, and only real floating-point weights can be sparsified"
    assert find(model).dense == {"wave.weight": reason}
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(UserError, match=r"wave.weight is torch.complex64 .* exclude=\['wave.weight'\]"):
        Sparsifier(model, sgd, pattern=Weights(0.5, include=["wave", "plain"]), method="static", total_steps=5)
    sparsifier = Sparsifier(model, sgd, pattern=Weights(0.5), method="static", total_steps=5)
    assert sparsifier.layer_density() == {"plain.weight": 0.5}


def test_what_does_not_train() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).requires_grad_(False)
    model[1].requires_grad_(True)
    sorted_out = find(model)
    assert (sorted_out.names, sorted_out.dense, sorted_out.first) == (("1.weight",), {"0.weight": FROZEN}, "0.weight")


MODELS = ["resnet18", "vit_b_16", "swin_t", "convnext_tiny", "efficientnet_b0", "shufflenet_v2_x0_5", "inception_v3"]


@pytest.mark.parametrize("name", MODELS)
def test_of_image_models_it_finds_torchs_own_layers_and_nothing_else(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, **({"init_weights": False} if name[0] == "i" else {}))
    layers = [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear | nn.MultiheadAttention)
        for name in ("weight", "in_proj_weight")
        if getattr(module, name, None) is not None
    ]
    assert list(find(model).names) == layers


def test_a_transformer_of_ones_own_layers_trains_sparse_and_its_cost_is_known() -> None:
    torch.manual_seed(0)
    mix = [Own(lambda x, weight, bias: x @ weight + bias, weight=(16, 16), bias=(16,)) for _ in range(3)]
    model = nn.Sequential(nn.Embedding(9, 16), *mix)
    tokens = torch.randint(9, (2, 5))
    adam = torch.optim.AdamW(model.parameters())
    pattern = Weights(0.75, "erk")
    sparsifier = Sparsifier(model, adam, pattern=pattern, method="static", total_steps=3, example_inputs=tokens)
    for _ in range(3):
        model(tokens).square().mean().backward()
        adam.step()
        adam.zero_grad()
    for layer in mix:
        assert int((layer.weight == 0).sum()) == 192
    assert sparsifier.training_cost()["total"] == pytest.approx(0.25)
