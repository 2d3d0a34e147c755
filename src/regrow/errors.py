"""What regrow raises when it is asked for something that cannot be done."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: one clear sentence that names the thing and the way out (exit code 2 on the command line)."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """A hint for an unknown name: ``"; did you mean 'x'?"``, or the valid names where none is close."""
    names = sorted(valid)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; valid names are {', '.join(names)}" if names else ""
