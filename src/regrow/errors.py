"""What regrow raises when it is asked for something that cannot be done."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# what torch says of tensors that do not fit
_TOO_LARGE = (
    "can't allocate memory", "out of memory", "Storage size calculation overflowed", "multiplication overflow",
)  # fmt: skip

_PUNCTUATION = re.compile(r"[\W_]+")
_PER_CENT = re.compile(r"(\d{1,3}(?:\.\d{1,9})?) ?%")
_PREFIX = 3  # letters that tell a name by its beginning


class UserError(ValueError):
    """Bad input: one clear sentence that names the thing and the way out (exit code 2 on the command line)."""


@contextmanager
def about(label: str) -> Iterator[None]:
    """Errors inside it begin with what they are about, where that has a name."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{label}: {error}" if label else str(error)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that something is too large for the memory, which torch says in several ways."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error) if isinstance(error, RuntimeError) else ""
    return any(words in text for words in _TOO_LARGE)


def closest(word: str, valid: Iterable[str]) -> str | None:
    """The valid name that is probably meant by another, whatever its case and punctuation; None where none is close.

    >>> closest("ERK", ["er", "erk"]), closest("mag", ["l2", "magnitude"]), closest("x", ["er", "erk"])
    ('erk', 'magnitude', None)
    """
    names = sorted(valid)
    for form in (str, _folded):
        by_form = {form(name): name for name in reversed(names)}
        close = difflib.get_close_matches(form(word), by_form, n=1)
        if close:
            return by_form[close[0]]
    begun = [name for name in names if len(_folded(word)) >= _PREFIX and _folded(name).startswith(_folded(word))]
    return begun[0] if len(begun) == 1 else None


def _folded(word: str) -> str:
    return _PUNCTUATION.sub("", word).casefold()


def nearest(word: str, valid: Iterable[str]) -> str:
    """A hint for an unknown name: ``"; did you mean 'x'?"``, or the valid names where none is close."""
    names = sorted(valid)
    close = closest(word, names)
    if close is not None:
        return f"; did you mean {close!r}?"
    return f"; valid names are {', '.join(names)}" if names else ""


def percent(number: object) -> str:
    """A hint for a share that was given in per cent: ``"; did you mean 0.5 (50%)?"``, or nothing for other numbers.

    >>> percent(50), percent("50 %"), percent("50"), percent(101)
    ('; did you mean 0.5 (50%)?', '; did you mean 0.5 (50%)?', '', '')
    """
    if isinstance(number, str) and (match := _PER_CENT.fullmatch(number)):
        number = float(match[1])
    if isinstance(number, bool) or not isinstance(number, int | float) or not 1 < number <= 100:
        return ""
    return f"; did you mean {number / 100:g} ({number:g}%)?"


def thing_of(shape: object) -> str:
    """What an example of this shape is, in messages: a ``"text"``, of which only the length is known, else an
    ``"image"``, also where nothing is known."""
    return "text" if isinstance(shape, (list, tuple)) and len(shape) == 1 else "image"
