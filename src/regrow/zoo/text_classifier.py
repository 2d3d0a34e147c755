"""Classifiers of texts on encoders of transformers: from a folder with weights, or a kind of model with random ones.

Of a folder only JSON and safetensors are read: nothing in it is executed, and nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regrow import extras, regular, schema
from regrow.errors import UserError, nearest
from regrow.schema import shown
from regrow.tokens import FILES, TextTokenizer

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_WAY_OUT = "give a folder as save_pretrained of transformers writes it"
# of a configuration: what names code, kernels or files to fetch, or is decided here
_REFUSED = ("auto_map", "quantization_config", "attn_implementation", "experts_implementation", "dtype", "torch_dtype",
            "architectures", "transformers_version", "model_type", "num_labels", "id2label", "label2id")  # fmt: skip
_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # names in files of the first BERTs
_POOLER = "pooler."
_BUFFER = "position_ids"  # in files of earlier versions: the numbers from 0 on
_PADDED = 4  # one in so many tokens of an example is padding


class TextClassifier(nn.Module):
    """An encoder, and a linear layer on the mean of its last states over the tokens that count.

    The mean is what sentence encoders are trained for (MiniLM, MPNet), and serves those that were trained to fill gaps
    (BERT, RoBERTa) as well as their first token does.

    Args:
        encoder: a model of transformers, whose output has ``last_hidden_state`` (B, length, size).
        classes: how many there are.
    """

    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        config = encoder.config
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # of the first token, which nothing here looks at
        self.encoder = encoder
        self.head = nn.Linear(config.hidden_size, classes)
        self.vocabulary = int(config.vocab_size)
        self.positions: int | None = getattr(config, "max_position_embeddings", None)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, classes) of numbers of tokens (B, length), and a mask that is 1 where they count, else 0."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        counts = attention_mask.unsqueeze(-1).to(states.dtype)
        return self.head((states * counts).sum(1) / counts.sum(1))

    def example(self, length: int, batch: int) -> dict[str, Tensor]:
        """A reproducible random batch on the CPU, of texts of which a quarter is padding.

        Raises:
            UserError: the encoder takes no texts of this length.
        """
        if self.positions is not None and length > self.positions:
            raise UserError(
                f"texts are padded to {length} tokens, but the model takes {self.positions} at most: name the data set "
                f"text:PATH,length={self.positions}, or less"
            )
        random = torch.Generator().manual_seed(0)
        mask = torch.ones(batch, length, dtype=torch.int64)
        mask[:, length - length // _PADDED :] = 0
        return {
            "input_ids": torch.randint(self.vocabulary, (batch, length), generator=random),
            "attention_mask": mask,
        }


def text_classifier(name: str, classes: int, options: Mapping[str, Any]) -> TextClassifier:
    """The model ``hf:NAME``.

    Args:
        name: a kind of model that transformers has (``bert``), which gets random weights; or a folder with a
            ``config.json`` and a ``model.safetensors``. A folder that is called as a kind is ``./bert``.
        classes: of the data.
        options: values of the configuration, in the place of the folder's or the kind's. ``tokenizer``: a folder with
            the one to use, whose size is then that of the vocabulary of random weights.

    Raises:
        UserError: there is no such model, an option is none of its configuration, or its files are damaged.
    """
    extras.require("text", f"the model hf:{name}")
    found = configured(name, options)
    encoder, tokenizer = _encoder(name, found), found.tokenizer
    if found.folder is not None:
        _load(encoder, found.folder)
    model = TextClassifier(encoder, classes)
    if tokenizer is not None and tokenizer.size > model.vocabulary:
        raise UserError(
            f"the tokenizer in {tokenizer.folder} has {tokenizer.size:,} tokens, but the model hf:{name} only "
            f"{model.vocabulary:,}: give the one that it was made with"
        )
    return model


def folder_of(name: str) -> Path | None:
    """The folder that ``hf:NAME`` means; None where it is a kind of model.

    Raises:
        UserError: it is neither.
    """
    from transformers import CONFIG_MAPPING

    if name in CONFIG_MAPPING:
        return None
    folder = Path(name).expanduser()
    if os.sep not in name and not folder.is_dir():
        raise UserError(
            f"hf:{shown(name)} is no folder, and no kind of model of transformers{nearest(name, CONFIG_MAPPING)}; "
            "models are not downloaded: give the folder that has one"
        )
    if not (folder / _CONFIG).exists():
        raise UserError(f"hf:{shown(name, 400)}: there is no {_CONFIG} in that folder: {_WAY_OUT}")
    return folder


def _tokenizer_in(folder: Path | None, named: object) -> TextTokenizer | None:
    """The tokenizer of a model: the one that ``model.options.tokenizer`` names, else the one in its folder, if any.

    Raises:
        UserError: it cannot be read.
    """
    if named is not None:
        return TextTokenizer(Path(str(named)).expanduser())
    there = folder is not None and any((folder / file).exists() for file in FILES)
    return TextTokenizer(folder) if there and folder is not None else None


@dataclass(frozen=True)
class Configured:
    """What a model ``hf:NAME`` is: ``hf:KIND`` with ``values`` as options is the same network, without any file.

    Attributes:
        kind: as transformers calls it.
        values: of its configuration, where they differ from those of its kind.
        folder: that has its weights; None: they are random.
        tokenizer: in the folder, or named by an option; None where there is none.
    """

    kind: str
    values: Mapping[str, Any]
    folder: Path | None
    tokenizer: TextTokenizer | None


def configured(name: str, options: Mapping[str, Any]) -> Configured:
    """What ``hf:NAME`` with these options is.

    Raises:
        UserError: there is no such model, an option is none of its configuration, or its files are damaged.
    """
    from transformers import CONFIG_MAPPING

    folder, options = folder_of(name), dict(options)
    tokenizer = _tokenizer_in(folder, options.pop("tokenizer", None))
    if folder is None and tokenizer is not None:
        options.setdefault("vocab_size", tokenizer.size)
    values: dict[str, Any] = {"model_type": name}
    if folder is not None:
        content = schema.parse_json(_bytes(folder / _CONFIG), folder / _CONFIG, _WAY_OUT)
        if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
            raise UserError(f"{folder / _CONFIG} names no model_type: {_WAY_OUT}")
        if content.get("quantization_config"):
            raise UserError(f"{folder} holds quantised weights: give those in full precision")
        values = content
    kind = str(values["model_type"])
    if kind not in CONFIG_MAPPING:
        raise UserError(f"transformers has no kind of model {shown(kind)!r}{nearest(kind, CONFIG_MAPPING)}")
    usual = CONFIG_MAPPING[kind]()
    known = {key: value for key, value in usual.to_dict().items() if key not in _REFUSED and not key.startswith("_")}
    names = {**{key: key for key in known}, **getattr(usual, "attribute_map", {})}
    for option in options:
        if option not in names:
            raise UserError(f"'hf:{kind}' has no option {option!r}{nearest(option, known)}")
    given = {names[key]: value for key, value in {**values, **options}.items() if key in names}
    changed = {key: value for key, value in given.items() if key in known and value != known[key]}
    return Configured(kind, changed, folder, tokenizer)


def _encoder(name: str, found: Configured) -> nn.Module:
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    config = CONFIG_MAPPING[found.kind].from_dict(dict(found.values))
    made = MODEL_MAPPING.get(type(config), None)
    texts = hasattr(config, "vocab_size") and hasattr(config, "hidden_size")
    if made is None or isinstance(made, list | tuple) or not texts or getattr(config, "is_encoder_decoder", False):
        raise UserError(f"the model hf:{name} is no encoder of texts alone: take one such as bert, roberta or mpnet")
    # where it has none of torch's own kernels, the plain one
    config._attn_implementation = "sdpa" if getattr(made, "_supports_sdpa", False) else "eager"
    encoder: nn.Module = made(config)
    return encoder


@torch.no_grad()
def _load(encoder: nn.Module, folder: Path) -> None:
    """Puts the weights of a folder into an encoder; those of heads are left out.

    Raises:
        UserError: there are none, or they are those of another model.
    """
    file = folder / _WEIGHTS
    saved = _tensors(file)
    prefix = f"{getattr(encoder, 'base_model_prefix', '')}."
    if any(name.startswith(prefix) for name in saved):  # of a model with a head
        saved = {name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}
    own = dict(encoder.state_dict())
    parts = {name.partition(".")[0] for name in own}
    for name in saved:  # of a part of the encoder, so not of a head
        if name not in own and name.partition(".")[0] in parts and not name.endswith(_BUFFER):
            raise UserError(f"{file} has a tensor {name!r}, which a {type(encoder).__name__} does not have: {_WAY_OUT}")
    for name, value in own.items():
        if name.startswith(_POOLER):  # is not kept
            continue
        if name not in saved:
            raise UserError(f"{file} has no tensor {name!r}, which its {_CONFIG} asks for: {_WAY_OUT}")
        if saved[name].shape != value.shape:
            raise UserError(
                f"the tensor {name!r} has shape {tuple(saved[name].shape)} in {file}, but {tuple(value.shape)} by its "
                f"{_CONFIG} and model.options"
            )
        value.copy_(saved[name])


def _tensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load

    if not file.exists():
        raise UserError(
            f"{file} does not exist, and other files of weights are not read, as they can run code or come in parts: "
            "save the model by save_pretrained(..., max_shard_size='100GB')"
        )
    try:
        saved = load(_bytes(file))
    except UserError:
        raise
    except Exception as error:  # whatever the library raises of a file that is damaged
        raise UserError(f"{file} is damaged, or no file of safetensors") from error
    renamed = {}
    for name, value in saved.items():
        for old, new in _OLD.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        renamed[name] = value
    return renamed


def _bytes(file: Path) -> bytes:
    try:
        return regular.read_bytes(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
