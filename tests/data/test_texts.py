"""Texts from tab-separated files: batches, splits, and what is refused at the door."""

import os

import pytest
import torch

from regrow import UserError
from regrow.data import texts
from regrow.data.named import load
from text_data import FILLERS, SPECIAL, WORDS, write_texts

NUMBER_OF = {word: n for n, word in enumerate([*SPECIAL, *FILLERS, *WORDS["good"], *WORDS["bad"]])}


@pytest.fixture
def folder(tmp_path):
    return write_texts(tmp_path / "texts")


def loaded(folder, suffix=",length=8", **options):
    return load(f"text:{folder}{suffix}", tokenizer=str(folder), **{"batch_size": 8, **options})


def test_a_batch_has_the_numbers_of_the_words_and_padding(folder):
    data = loaded(folder, ",length=6")
    assert (data.num_classes, data.classes, data.shape, data.task) == (2, ("bad", "good"), (6,), "text-classification")
    assert [source.examples for source in (data.train, data.val, data.test)] == [54, 6, 20]
    (inputs, labels), *_ = data.test.epoch(0)
    lines = [line.split("\t") for line in (folder / "test.tsv").read_text().splitlines()[:8]]
    assert labels.tolist() == [data.classes.index(label) for label, _ in lines]
    for row, mask, (_, text) in zip(inputs["input_ids"], inputs["attention_mask"], lines, strict=True):
        numbers = [NUMBER_OF[word] for word in ["[CLS]", *text.split()[:4], "[SEP]"]]
        assert row.tolist() == numbers + [NUMBER_OF["[PAD]"]] * (6 - len(numbers))
        assert mask.tolist() == [1] * len(numbers) + [0] * (6 - len(numbers))
    assert {part.dtype for part in inputs.values()} == {torch.int64}


def test_a_batch_depends_on_seed_epoch_and_place_alone(folder):
    data, again, other = (loaded(folder, seed=seed) for seed in (1, 1, 2))
    late = list(data.train.epoch(3, start=2))
    for (x, y), (x2, y2) in zip(late, list(again.train.epoch(3))[2:], strict=True):
        assert torch.equal(y, y2)
        assert all(torch.equal(x[key], x2[key]) for key in x)
    assert not torch.equal(late[0][0]["input_ids"], next(other.train.epoch(3, start=2))[0]["input_ids"])
    halves = [next(data.train.shard(rank, 2).epoch(0))[0]["input_ids"] for rank in range(2)]
    together = next(loaded(folder, seed=1, batch_size=16).train.epoch(0))[0]["input_ids"]
    assert torch.equal(torch.cat(halves), together)


def test_validation_texts_of_its_own_are_taken_as_they_are(folder):
    (folder / "val.tsv").write_bytes("\ufeffgood\tthe film is great\r\n\r\nbad\tso\tdull\r\n".encode())
    data = loaded(folder)
    assert [source.examples for source in (data.train, data.val)] == [60, 2]
    (inputs, labels), *_ = data.val.epoch(0)
    assert labels.tolist() == [1, 0]
    assert inputs["attention_mask"].sum(1).tolist() == [6, 4]  # a tab after the first is a space
    with pytest.raises(UserError, match="has a validation set of its own: leave val_fraction out"):
        loaded(folder, val_fraction=0.2)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("train", b"good\tfine\nno tab here\n", r"train\.tsv, line 2 has no tab: each line is a label, a tab"),
        ("train", b"good\tfine\n\n\tdull\n", r"train\.tsv, line 3 has an empty label"),
        ("test", b"good\t \n", r"test\.tsv, line 1 has an empty text"),
        ("test", b"good\tfine\ngoood\tfine\n", r"test\.tsv, line 2: the label 'goood' .* did you mean 'good'"),
        ("val", b"other\tfine\n", r"val\.tsv, line 1: the label 'other' occurs in no line"),
        ("train", b"good\tfine\nbad\t\xff\n", r"train\.tsv, line 2 is no text in UTF-8"),
        ("train", b"good\tfine\n", r"train\.tsv has the one label 'good' alone"),
        ("test", b"\n", r"test\.tsv is empty"),
    ],
)  # fmt: skip
def test_what_a_file_must_not_have(folder, file, content, said):
    (folder / f"{file}.tsv").write_bytes(content)
    with pytest.raises(UserError, match=said):
        loaded(folder)


def test_files_that_are_none_or_too_large_are_refused(folder, monkeypatch):
    monkeypatch.setattr(texts, "_MOST_BYTES", 100)
    with pytest.raises(UserError, match=r"train\.tsv is larger than 0 MiB"):
        loaded(folder)
    (folder / "train.tsv").unlink()
    with pytest.raises(UserError, match=r"train\.tsv cannot be read: No such file or directory"):
        loaded(folder)
    os.mkfifo(folder / "train.tsv")
    with pytest.raises(UserError, match=r"train\.tsv cannot be read: it is no regular file"):
        loaded(folder)


@pytest.mark.parametrize(
    ("suffix", "options", "said"),
    [
        ("", {"tokenizer": None}, "needs the tokenizer of its model: take model.name hf:PATH"),
        (",length=1", {}, "length=1 leaves no token of a text, as 2 begin and end each: 3 at least"),
        (",length=9999", {}, "length=9999 of the data set .* is too long: at most 8,192 tokens"),
        (",size=8", {}, "size=8 does not apply to the data set"),
        (",lenght=8", {}, "unknown option 'lenght' of the data set .*; did you mean 'length'"),
        (",length=8", {"batch_size": 64}, "batch_size=64 is more than the 54 training texts of"),
    ],
)
def test_what_settings_must_not_say(folder, suffix, options, said):
    with pytest.raises(UserError, match=said):
        load(f"text:{folder}{suffix}", **{"batch_size": 8, "tokenizer": str(folder), **options})


def test_images_have_no_length():
    with pytest.raises(UserError, match="length=8 does not apply to the data set 'digits': leave it out"):
        load("digits,length=8", batch_size=8)
