"""How much of common kinds of models can go where channels may go that are normalised together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import SwinTransformer

from regrow import names
from regrow.coupling.couple import Coupling, couple
from regrow.surgery.width import entries

transformers = pytest.importorskip("transformers")

TOKENS = torch.arange(24).reshape(2, 12) % 90 + 3
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TEXT = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VIT = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
       "num_attention_heads": 4}  # fmt: skip
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}


class Recurrent(nn.Module):
    """A classifier of sequences by an LSTM of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(99, 12), nn.LSTM(12, 16, 2, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(self.embed(tokens))[0][:, -1])
        return out


def _transformer(kind: str, config: str, options: dict[str, Any]) -> nn.Module:
    model: nn.Module = getattr(transformers, kind)(getattr(transformers, config)(**options))
    return model


def staying(model: nn.Module, coupling: Coupling) -> dict[str, int]:
    """Parameter → how many of its entries belong to no channel, of those that have any."""
    none = {group.id: torch.zeros(group.size, dtype=torch.bool) for group in coupling.groups}
    for mask in none.values():
        mask[0] = True  # a group keeps one
    kept = coupling.kept(none)
    one = {group.id: mask.roll(1) for (group, mask) in zip(coupling.groups, none.values(), strict=True)}
    other = coupling.kept(one)
    result = {}
    for name, p in names.parameters(model).items():
        both = entries(p, kept.get(name, {})) & entries(p, other.get(name, {}))
        if left := int(both.sum()):
            result[name] = left
    return result


# what makes it, what it takes, and what of it cannot go: the biases of outputs, and the tables whose rows are tokens
MODELS = {
    "vit": (lambda: _transformer("ViTForImageClassification", "ViTConfig", VIT), IMAGES, {"classifier.bias": 2}),
    "swin": (lambda: _transformer("SwinForImageClassification", "SwinConfig", SWIN), IMAGES, {"classifier.bias": 2}),
    "swin of torchvision": (
        lambda: SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=5), IMAGES, {"head.bias": 5}
    ),
    "llama": (
        lambda: _transformer("LlamaForCausalLM", "LlamaConfig", {**TEXT, "num_key_value_heads": 2}), TOKENS, {}
    ),
    "bert": (
        lambda: _transformer("BertForSequenceClassification", "BertConfig", TEXT), TOKENS, {"classifier.bias": 2}
    ),
    "lstm": (Recurrent, TOKENS, {"head.bias": 5}),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_all_but_the_biases_of_outputs_can_go(name: str) -> None:
    torch.manual_seed(0)
    make, x, stays = MODELS[name]
    model = make().eval()
    keyword = {"input_ids": x} if x is TOKENS else {"pixel_values": x}
    inputs = keyword if type(model).__module__.startswith("transformers") else x
    coupling = couple(model, inputs, normalised=True)
    assert staying(model, coupling) == stays
    assert sum(stays.values()) < 0.01 * sum(p.numel() for p in model.parameters())
