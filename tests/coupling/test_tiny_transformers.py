"""Channels of tiny models of transformers, from configurations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import regrow
from masked_and_thin import random_keep
from regrow.coupling.couple import couple
from regrow.coupling.seen import difference
from regrow.surgery import resize

transformers = pytest.importorskip("transformers")

TOKENS = torch.arange(24).reshape(2, 12) % 90 + 3
SHAPE = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}

MODELS = {
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config", {"vocab_size": 99, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64},
        {"transformer.h.0.attn.c_attn": 4, "transformer.h.0.mlp.c_fc": 128},
    ),
    "llama": (
        "LlamaForCausalLM", "LlamaConfig", {**SHAPE, "num_key_value_heads": 2},
        {"model.layers.0.self_attn.q_proj": 2, "model.layers.0.mlp.gate_proj": 64},
    ),
    "bert": (
        "BertForSequenceClassification", "BertConfig", SHAPE,
        {"bert.encoder.layer.0.attention.self.query": 4, "bert.encoder.layer.0.intermediate.dense": 64,
         "bert.pooler.dense": 32},
    ),
    "t5": (
        "T5ForConditionalGeneration", "T5Config", T5,
        {"encoder.block.0.layer.0.SelfAttention.q": 4, "encoder.block.0.layer.1.DenseReluDense.wi": 64,
         "decoder.block.0.layer.0.SelfAttention.q": 4, "decoder.block.0.layer.1.EncDecAttention.q": 4,
         "decoder.block.0.layer.2.DenseReluDense.wi": 64},
    ),
    "vit": (
        "ViTForImageClassification", "ViTConfig",
        {**{k: v for k, v in SHAPE.items() if k != "vocab_size"}, "image_size": 16, "patch_size": 8},
        {"vit.layers.0.attention.q_proj": 4, "vit.layers.0.mlp.fc1": 64},
    ),
}  # fmt: skip


def built(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A model with random weights, and what it takes."""
    torch.manual_seed(0)
    kind, config, options, _ = MODELS[name]
    model = getattr(transformers, kind)(getattr(transformers, config)(**options))
    if name == "vit":
        return model.eval(), {"pixel_values": torch.randn(2, 3, 16, 16)}
    return model.eval(), {"input_ids": TOKENS} | ({"decoder_input_ids": TOKENS} if name == "t5" else {})


def logits(model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODELS)
def test_heads_and_hidden_layers_can_go(name: str) -> None:
    model, inputs = built(name)
    coupling = couple(model, inputs)
    assert {group.id: group.size for group in coupling.groups} == MODELS[name][3]
    keep = random_keep(coupling, 0.5)
    masked, thin = copy.deepcopy(model).double(), copy.deepcopy(model).double()
    resize.zero(masked, coupling, keep)
    resize.compact(thin, coupling, keep)
    assert difference([logits(masked, inputs)], [logits(thin, inputs)]) < 1e-10


WIDTHS = {  # one attribute counts the width of queries and of values, so that they go together
    "gpt2": {"transformer.h.0.attn.c_attn": 8},
    "llama": {"model.layers.0.self_attn.q_proj": 4},  # in pairs, by its rotary embeddings
    "bert": {"bert.encoder.layer.0.attention.self.query": 8},
    "t5": {"encoder.block.0.layer.0.SelfAttention.q": 8, "decoder.block.0.layer.0.SelfAttention.q": 8,
           "decoder.block.0.layer.1.EncDecAttention.q": 8},
    "vit": {"vit.layers.0.attention.q_proj": 8},
}  # fmt: skip


@pytest.mark.parametrize("name", WIDTHS)
def test_heads_can_lose_width(name: str, tmp_path) -> None:
    model, inputs = built(name)
    coupling = couple(model, inputs, heads="width")
    assert {g.id: g.size for g in coupling.groups if "tt" in g.id} == WIDTHS[name]
    keep = random_keep(coupling, 0.5)
    masked, thin = copy.deepcopy(model).double(), copy.deepcopy(model).double()
    resize.zero(masked, coupling, keep)
    resize.compact(thin, coupling, keep)
    assert difference([logits(masked, inputs)], [logits(thin, inputs)]) < 1e-12
    assert not torch.equal(logits(model.double(), inputs), logits(thin, inputs))
    regrow.save(thin, tmp_path / "thin")
    assert torch.equal(logits(regrow.load(model, tmp_path / "thin"), inputs), logits(thin, inputs))
