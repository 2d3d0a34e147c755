"""Tokenizers from files: both kinds, and what is refused."""

import pytest
import torch
from tokenizers.implementations import BertWordPieceTokenizer

from regrow import UserError
from regrow.tokens import TextTokenizer
from text_data import write_texts

TEXTS = ["the film is GREAT", "dull", "unheard of"]


@pytest.fixture
def folder(tmp_path):
    return write_texts(tmp_path / "texts")


def test_both_kinds_of_files_give_the_same(folder, tmp_path):
    words = TextTokenizer(folder)
    saved = BertWordPieceTokenizer(str(folder / "vocab.txt"))
    saved.enable_padding(pad_id=3)
    (tmp_path / "json").mkdir()
    saved.save(str(tmp_path / "json" / "tokenizer.json"))
    parsed = TextTokenizer(tmp_path / "json")
    assert (words.size, parsed.size, words.padding, parsed.padding) == (22, 22, 0, 3)
    numbers, counts = words.numbers(TEXTS, 7)
    assert numbers.tolist() == [[2, 5, 6, 8, 15, 3, 0], [2, 19, 3, 0, 0, 0, 0], [2, 1, 1, 3, 0, 0, 0]]
    assert counts.tolist() == [6, 3, 4]
    padded, same = parsed.numbers(TEXTS, 7)
    assert torch.equal(counts, same)
    assert padded.tolist() == [[2, 5, 6, 8, 15, 3, 3], [2, 19, 3, 3, 3, 3, 3], [2, 1, 1, 3, 3, 3, 3]]


def test_capitals_count_where_the_folder_says_so(folder):
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert TextTokenizer(folder).numbers(["GREAT great"], 4)[0].tolist() == [[2, 1, 15, 3]]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, r"has no tokenizer\.json or vocab\.txt, which say what the tokens of a text are"),
        ({"tokenizer.json": "{}"}, r"tokenizer\.json is no tokenizer that can be read: "),
        ({"tokenizer.json": "nothing"}, r"tokenizer\.json is no tokenizer that can be read: "),
        ({"vocab.txt": "the\nfilm\n"}, r"vocab\.txt is no tokenizer that can be read: "),
    ],
)
def test_what_is_no_tokenizer_is_refused(tmp_path, files, said):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        TextTokenizer(tmp_path)
