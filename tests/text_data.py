"""Sixty short texts whose label a few words tell, the vocabulary that they are written in, and a recipe for them."""

from __future__ import annotations

import random
from pathlib import Path

WORDS = {"good": ("fine", "great", "lovely", "warm"), "bad": ("awful", "dull", "poor", "cold")}
FILLERS = ("the", "film", "plot", "is", "was", "and", "so", "it", "cast")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_texts(folder: Path, count: int = 60) -> Path:
    """Writes ``train.tsv``, ``test.tsv`` and ``vocab.txt`` into a folder that it makes."""
    folder.mkdir(parents=True)
    chance = random.Random(0)
    for split, number in (("train", count), ("test", count // 3)):
        lines = []
        for index in range(number):
            label = ("good", "bad")[index % 2]
            words = [*chance.choices(FILLERS, k=chance.randint(1, 5)), chance.choice(WORDS[label])]
            chance.shuffle(words)
            lines.append(f"{label}\t{' '.join(words)}\n")
        (folder / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
    words = [*SPECIAL, *FILLERS, *WORDS["good"], *WORDS["bad"]]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return folder


BERT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32,
    "max_position_embeddings": 16,
}  # fmt: skip

RECIPE = """\
task: text-classification
model: {{name: "hf:bert", options: {{tokenizer: "{folder}", {options}}}}}
data: {{name: "text:{folder},length=8", batch_size: 8, val_fraction: 0.2}}
steps: 36
method: {{name: iee, h: 4, j: 2, q: 3}}
pattern: {{sparsity: 0.5}}
optimizer: {{name: adamw, lr: 0.01}}
train: {{log_every: 6, eval_every: 0, threads: 1, latency_batch: 2, latency_seconds: 1}}
"""


def write_recipe(directory: Path) -> Path:
    """Writes the texts into ``directory/texts``, and a recipe for a tiny BERT as a file beside it."""
    folder = write_texts(directory / "texts")
    options = ", ".join(f"{key}: {value}" for key, value in BERT.items())
    path = directory / "tiny.yaml"
    path.write_text(RECIPE.format(folder=folder, options=options), encoding="utf-8")
    return path
