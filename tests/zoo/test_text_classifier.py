"""Classifiers of texts on encoders of transformers: from a folder, from a configuration, and what is refused."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from masked_and_thin import random_keep
from regrow import UserError
from regrow.coupling.couple import couple
from regrow.coupling.seen import difference
from regrow.surgery import resize
from regrow.zoo.models import build, example_input, on_its_own, tokenizer_of
from text_data import BERT, write_texts

transformers = pytest.importorskip("transformers")

VALUES = {**BERT, "vocab_size": 22}


def encoder():
    torch.manual_seed(1)
    return transformers.BertModel(transformers.BertConfig(**VALUES)).eval()


@pytest.fixture
def folder(tmp_path):
    """A tiny BERT as transformers saves it, and its vocabulary."""
    directory = write_texts(tmp_path / "bert")
    encoder().save_pretrained(directory)
    return directory


def inputs(length=8):
    ids = torch.tensor([[2, 5, 15, 3], [2, 19, 8, 3]])
    padded = torch.zeros(2, length, dtype=torch.int64)
    padded[:, :4] = ids
    return {"input_ids": padded, "attention_mask": (padded > 0).long()}


@torch.no_grad()
def test_it_is_a_linear_layer_on_the_mean_of_the_states_that_count(folder):
    model = build(f"hf:{folder}", 3, seed=0).eval()
    states = encoder()(**inputs(4)).last_hidden_state.mean(1)
    expected = states @ model.head.weight.T + model.head.bias
    for length in (4, 8, 16):
        torch.testing.assert_close(model(**inputs(length)), expected)
    assert not any("pooler" in name for name, _ in model.named_parameters())
    assert torch.equal(model.head.weight, build(f"hf:{folder}", 3, seed=0).head.weight)
    assert not torch.equal(model.head.weight, build(f"hf:{folder}", 3, seed=1).head.weight)


@torch.no_grad()
def test_weights_of_a_whole_model_and_of_old_names_are_found(folder):
    expected = build(f"hf:{folder}", 2, seed=0).eval()(**inputs())
    tensors = {f"bert.{name}": value for name, value in encoder().state_dict().items()}
    for ours, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
        tensors = {name.replace(ours, old): value for name, value in tensors.items()}
    tensors |= {"cls.predictions.bias": torch.zeros(22), "bert.embeddings.position_ids": torch.arange(16)}
    save_file(tensors, folder / "model.safetensors")
    assert torch.equal(build(f"hf:{folder}", 2, seed=0).eval()(**inputs()), expected)


def test_a_configuration_stands_for_its_folder(folder):
    name, options = on_its_own(f"hf:{folder}", {"hidden_dropout_prob": 0.0})
    assert (name, options) == ("hf:bert", {**VALUES, "hidden_dropout_prob": 0.0})
    model = build(name, 2, **options)
    shapes = {key: value.shape for key, value in build(f"hf:{folder}", 2).state_dict().items()}
    assert {key: value.shape for key, value in model.state_dict().items()} == shapes
    assert on_its_own("hf:bert", {**BERT, "tokenizer": str(folder)}) == ("hf:bert", VALUES)
    assert on_its_own("wrn10-1", {"dropout": 0.1}) == ("wrn10-1", {"dropout": 0.1})


def test_tokenizers_are_those_of_the_model(folder):
    assert tokenizer_of(f"hf:{folder}", {}) == str(folder)
    assert tokenizer_of(f"hf:{folder}", {"tokenizer": "elsewhere"}) == "elsewhere"
    assert tokenizer_of("hf:bert", {}) is None
    assert tokenizer_of("timm:resnet18", {}) is None


def test_a_configuration_names_no_code_and_no_kernels(folder):
    config = json.loads((folder / "config.json").read_text())
    foreign = {"auto_map": {"AutoModel": "mine.Model"}, "attn_implementation": "someone/kernel"}
    (folder / "config.json").write_text(json.dumps({**config, **foreign, "_attn_implementation": "someone/kernel"}))
    model = build(f"hf:{folder}", 2)
    assert type(model.encoder) is transformers.BertModel
    assert model.encoder.config._attn_implementation == "sdpa"
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))
    with pytest.raises(UserError, match="holds quantised weights"):
        build(f"hf:{folder}", 2)


def test_examples_are_texts_with_padding():
    model = build("hf:bert", 2, **VALUES)
    example = example_input(model, (8,), batch=2)
    assert {name: tuple(value.shape) for name, value in example.items()} == {
        "input_ids": (2, 8), "attention_mask": (2, 8),
    }  # fmt: skip
    assert example["attention_mask"].sum(1).tolist() == [6, 6]
    assert int(example["input_ids"].max()) < 22
    with pytest.raises(UserError, match=r"texts are padded to 17 tokens, but the model takes 16 at most: .*length=16"):
        example_input(model, (17,))
    with pytest.raises(UserError, match="models hf:PATH take texts, but the data are images"):
        example_input(model, (3, 8, 8))


@pytest.mark.parametrize("normalised", [False, True])
def test_thin_computes_what_masked_does(normalised):
    model = build("hf:bert", 2, seed=0, **VALUES).eval()
    coupling = couple(model, example_input(model, (8,)), normalised=normalised)
    sizes = {group.id: group.size for group in coupling.groups}
    layers = "encoder.encoder.layer"
    expected = {f"{layers}.{n}.attention.self.query": 4 for n in (0, 1)}
    expected |= {f"{layers}.{n}.intermediate.dense": 32 for n in (0, 1)}
    assert sizes == {**expected, **({"encoder.embeddings.LayerNorm": 16} if normalised else {})}
    if normalised:  # what a norm over fewer channels gives is no mask
        return
    keep = random_keep(coupling, 0.5)
    masked, thin = copy.deepcopy(model).double(), copy.deepcopy(model).double()
    resize.zero(masked, coupling, keep)
    resize.compact(thin, coupling, keep)
    with torch.no_grad():
        assert difference([masked(**inputs())], [thin(**inputs())]) < 1e-10


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("hf:bertt", {}, "'?hf:bertt'? is no folder, and no kind of model of transformers; did you mean 'bert'"),
        ("hf:/nowhere/at/all", {}, r"hf:/nowhere/at/all: there is no config\.json in that folder"),
        ("hf:bert", {**VALUES, "hidden_sise": 8}, "'hf:bert' has no option 'hidden_sise'; did you mean 'hidden_size'"),
        ("hf:bert", {**VALUES, "num_labels": 3}, "'hf:bert' has no option 'num_labels'"),
        ("hf:bert", {**VALUES, "tokenizer": "{}", "vocab_size": 20}, "has 22 tokens, but the model hf:bert only 20"),
        ("hf:t5", {"vocab_size": 22}, "the model hf:t5 is no encoder of texts alone"),
        ("hf:vit", {}, "the model hf:vit is no encoder of texts alone"),
    ],
)
def test_what_cannot_be_built_is_refused(tmp_path, name, options, said):
    if "tokenizer" in options:
        options = {**options, "tokenizer": str(write_texts(tmp_path / "texts"))}
    with pytest.raises(UserError, match=said):
        build(name, 2, **options)


def _without(name):
    def damage(folder, tensors):
        save_file({key: value for key, value in tensors.items() if name not in key}, folder / "model.safetensors")

    return damage


def _as_pickle(folder, tensors):
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


DAMAGES = {
    "a missing tensor": (_without("layer.1.output.dense.bias"), "has no tensor 'encoder.layer.1.output.dense.bias'"),
    "a pickle": (_as_pickle, r"model\.safetensors does not exist, and other files of weights are not read"),
    "no tensors": (
        lambda folder, _: (folder / "model.safetensors").write_bytes(b"x" * 99),
        r"model\.safetensors is damaged, or no file of safetensors",
    ),
    "another kind": (
        lambda folder, tensors: save_file(
            {**tensors, "embeddings.distance_embedding.weight": torch.zeros(3)}, folder / "model.safetensors"
        ),
        "has a tensor 'embeddings.distance_embedding.weight', which a BertModel does not have",
    ),
    "no kind": (lambda folder, _: (folder / "config.json").write_text("{}"), r"config\.json names no model_type"),
    "an unknown kind": (
        lambda folder, _: (folder / "config.json").write_text('{"model_type": "bertt"}'),
        "transformers has no kind of model 'bertt'; did you mean 'bert'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders_are_refused(folder, damage):
    harm, said = DAMAGES[damage]
    harm(folder, encoder().state_dict())
    with pytest.raises(UserError, match=said):
        build(f"hf:{folder}", 2)


def test_options_that_do_not_go_with_the_weights_are_refused(folder):
    with pytest.raises(UserError, match=r"has shape \(32, 16\) in .*, but \(8, 16\) by its config\.json"):
        build(f"hf:{folder}", 2, intermediate_size=8)
