"""Tokenizers of pre-trained models, read from files on this machine: nothing is executed, and nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrow import extras, regular, schema
from regrow.errors import UserError
from regrow.inputs import first_line

FILES = ("tokenizer.json", "vocab.txt")  # the first that is there counts
_OPTIONS = "tokenizer_config.json"  # beside a vocab.txt: whether it is of lower-case words
_AT_ONCE = 1024  # texts
_WAY_OUT = "give the folder of a model as transformers saves it"


class TextTokenizer:
    """Turns texts into the numbers of their tokens.

    Args:
        folder: has a ``tokenizer.json``, or a ``vocab.txt`` of WordPiece as BERT has it

    Raises:
        UserError: it has neither, or what it has cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        extras.require("text", "a tokenizer", "tokenizers")
        file = next((folder / name for name in FILES if (folder / name).exists()), None)
        if file is None:
            raise UserError(
                f"{folder} has no {' or '.join(FILES)}, which say what the tokens of a text are: {_WAY_OUT}"
            )
        content = _read(file)
        try:
            self._tokenizer = _of_json(content) if file.suffix == ".json" else _of_words(content, file)
            # "padding" is where such a file says which number stands for nothing
            self.padding = int((self._tokenizer.padding or {}).get("pad_id", 0))
            self._tokenizer.no_padding()
        except UserError:
            raise
        except Exception as error:  # whatever the library raises of a file that is damaged
            raise UserError(f"{file} is no tokenizer that can be read: {first_line(error)}") from error
        self.folder = folder
        self.size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)

    def numbers(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """The numbers of the tokens of each text, cut to a length and padded to it.

        Returns:
            int32 (texts, length), each below `size`; and how many of them count, int64 (texts,), at least 1.

        Raises:
            UserError: the length is too short for what begins and ends every text.
        """
        around = self._tokenizer.num_special_tokens_to_add(False)
        if length <= around:
            raise UserError(
                f"length={length} leaves no token of a text, as {around} begin and end each: {around + 1} at least"
            )
        found = torch.full((len(texts), length), self.padding, dtype=torch.int32)
        counts = torch.ones(len(texts), dtype=torch.int64)
        self._tokenizer.enable_truncation(max_length=length)
        for start in range(0, len(texts), _AT_ONCE):
            for row, encoded in enumerate(self._tokenizer.encode_batch(texts[start : start + _AT_ONCE]), start):
                numbers = torch.tensor(encoded.ids, dtype=torch.int32)
                found[row, : len(numbers)] = numbers
                counts[row] = max(1, len(numbers))
        return found, counts


def _read(file: Path) -> bytes:
    try:
        return regular.read_bytes(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error


def _of_json(content: bytes) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_buffer(content)


def _of_words(content: bytes, file: Path) -> Any:
    from tokenizers.implementations import BertWordPieceTokenizer

    words = content.decode("utf-8").splitlines()
    options: Any = {}
    if (said := file.with_name(_OPTIONS)).exists():
        options = schema.parse_json(_read(said), said, _WAY_OUT)
    lower = bool(options.get("do_lower_case", True)) if isinstance(options, dict) else True
    return BertWordPieceTokenizer({word: number for number, word in enumerate(words)}, lowercase=lower)
