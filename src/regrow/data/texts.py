"""Texts with one label each: files with a label, a tab and a text a line, tokenised once and padded to one length."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from regrow import regular
from regrow.data.batches import BatchSource
from regrow.data.decode import folder_at
from regrow.data.splits import DataSet, Settings, validation_split
from regrow.errors import UserError, nearest
from regrow.schema import shown
from regrow.tokens import TextTokenizer

TextBatch = tuple[dict[str, Tensor], Tensor]

_LENGTH = 128  # tokens of a text, where neither settings nor name say
_MOST_LENGTH = 8192
_MOST_BYTES = 2**30  # of a file
_MOST_TOKENS = 2**31  # of a split, with what it is padded by
_FORM = "each line is a label, a tab and a text"


@dataclass(kw_only=True)
class TextSource(BatchSource):
    """Batches (inputs, labels): inputs ``input_ids`` and ``attention_mask``, int64 (batch, length); labels (batch,).

    Attributes:
        numbers: of tokens, int32 (N, length), padded.
        counts: how many of them count, int64 (N,).
        labels: int64 (N,); indices: which of the N belong to this source.
    """

    numbers: Tensor
    counts: Tensor
    labels: Tensor
    indices: Tensor

    @property
    def examples(self) -> int:
        return len(self.indices)

    def epoch(self, k: int, start: int = 0) -> Iterator[TextBatch]:
        places = torch.arange(self.numbers.shape[1])
        for positions, mine, _ in self._batches(k, start):
            chosen = self.indices[positions[mine]]
            there = places < self.counts[chosen].unsqueeze(1)
            yield {"input_ids": self.numbers[chosen].long(), "attention_mask": there.long()}, self.labels[chosen]


def texts(settings: Settings, path: str) -> DataSet:
    """The data set ``text:PATH``: a folder with ``train.tsv``, ``test.tsv`` and, if there is one, ``val.tsv``.

    Args:
        settings: ``tokenizer``: the folder of the one that the model was made with; ``length`` in tokens, to which
            texts are cut and padded (128).
        path: the folder.

    Raises:
        UserError: naming the file and the line that is wrong.
    """
    if settings.tokenizer is None:
        raise UserError(
            f"the data set 'text:{path}' needs the tokenizer of its model: take model.name hf:PATH, whose folder has "
            "one, or give model.options.tokenizer beside hf:TYPE"
        )
    length = settings.length or _LENGTH
    if length > _MOST_LENGTH:
        raise UserError(f"length={length} of the data set 'text:{path}' is too long: at most {_MOST_LENGTH:,} tokens")
    root = folder_at(path)
    tokenizer = TextTokenizer(folder_at(settings.tokenizer))
    classes, lines = _splits(root)
    number_of = {name: number for number, name in enumerate(classes)}
    labels = {split: torch.tensor([number_of[label] for label, _ in rows]) for split, rows in lines.items()}
    encoded = {}
    for split, rows in lines.items():
        if len(rows) * length > _MOST_TOKENS:
            raise UserError(f"{root / split}.tsv has too many texts for length={length}: make it shorter")
        encoded[split] = tokenizer.numbers([text for _, text in rows], length)
    kept, held_out = validation_split(labels["train"], settings, has_val="val" in lines)

    def source(split: str, indices: Tensor | None = None, training: bool = False) -> TextSource:
        return TextSource(
            batch_size=settings.batch_size,
            seed=settings.seed,
            training=training,
            numbers=encoded[split][0],
            counts=encoded[split][1],
            labels=labels[split],
            indices=torch.arange(len(labels[split])) if indices is None else indices,
        )

    return DataSet(
        len(classes),
        (length,),
        train=source("train", kept, training=True),
        val=source("val") if "val" in lines else source("train", held_out),
        test=source("test"),
        classes=classes,
        task="text-classification",
    )


_Rows = list[tuple[str, str]]


def _splits(root: Path) -> tuple[tuple[str, ...], dict[str, _Rows]]:
    """The classes of the training texts in alphabetical order, and the labels and texts of each split."""
    lines: dict[str, _Rows] = {}
    classes: Sequence[str] = ()
    for split in ("train", "test", "val"):
        file = root / f"{split}.tsv"
        if split == "val" and not file.exists():
            continue
        lines[split] = []
        for number, label, text in _rows(file):
            if split != "train" and label not in classes:
                raise UserError(
                    f"{file}, line {number}: the label {shown(label)!r} occurs in no line of train.tsv"
                    f"{nearest(label, classes)}"
                )
            lines[split].append((label, text))
        if not lines[split]:
            raise UserError(f"{file} is empty: {_FORM}")
        if split == "train":
            classes = sorted({label for label, _ in lines[split]})
            if len(classes) < 2:
                raise UserError(f"{file} has the one label {shown(classes[0])!r} alone: there is nothing to learn")
    return tuple(classes), lines


def _rows(file: Path) -> Iterator[tuple[int, str, str]]:
    """Number, label and text of each line that is not blank."""
    for number, line in enumerate(_read(file).split(b"\n"), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            raise UserError(f"{file}, line {number} is no text in UTF-8: save the file as one") from error
        if not text.strip():
            continue
        label, tab, said = text.partition("\t")
        if not tab:
            raise UserError(f"{file}, line {number} has no tab: {_FORM}")
        if not label.strip() or not said.strip():
            raise UserError(f"{file}, line {number} has an empty {'text' if label.strip() else 'label'}: {_FORM}")
        yield number, label.strip(), said.strip()


def _read(file: Path) -> bytes:
    try:
        with regular.opened(file) as opened:
            if os.fstat(opened.fileno()).st_size > _MOST_BYTES:
                raise UserError(f"{file} is larger than {_MOST_BYTES // 2**20:,} MiB, and is kept in memory: split it")
            return opened.read()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
