"""Numbers and names as people read them: 88.4%, +0.6, 0.13×, 12.3 s, IEE."""

from __future__ import annotations

import re

NOTHING = "–"

_NAMES = {
    "acdc": "AC/DC", "chase": "Chase", "dense": "Dense", "dsr": "DSR", "gap": "GaP", "gmp": "GMP", "granet": "GraNet",
    "halp": "HALP", "iee": "IEE", "mest": "MEST", "oneshot": "One-shot", "rigl": "RigL", "set": "SET", "snfs": "SNFS",
    "srste": "SR-STE", "static": "Static", "ste": "STE", "uniform": "Uniform",
}  # fmt: skip


def name(label: str) -> str:
    """How a label is written: the methods as their papers write them, everything else as it is.

    iee → ``IEE``; iee, sparsity 0.95 → ``IEE, sparsity 0.95``; iee (runs-2) → ``IEE (runs-2)``
    """
    method, *rest = re.split(r"(?=, | \()", label, maxsplit=1)
    return "".join([_NAMES.get(method, method), *rest])


def accuracy(fraction: float | None, digits: int = 1) -> str:
    """0.8842 → ``88.4%``; None → a dash."""
    return NOTHING if fraction is None else f"{fraction * 100:.{digits}f}%"


def share(fraction: float | None) -> str:
    """A density, with as many digits as it needs: 1 → ``100%``, 0.05 → ``5%``, 0.123 → ``12.3%``, 0.001 → ``0.1%``."""
    if fraction is None:
        return NOTHING
    percent = fraction * 100
    text = f"{percent:.1f}" if percent >= 1 else f"{percent:.2g}"
    return (text.removesuffix(".0") if "." in text else text) + "%"


def signed(points: float | None) -> str:
    """A difference of accuracies in percentage points with its sign: 0.0061 → ``+0.6``; under 0.1 points two digits."""
    if points is None:
        return NOTHING
    value = round(points * 100, 2)
    digits = 1 if abs(value) >= 0.1 or value == 0 else 2
    return f"{value:+.{digits}f}".replace("-", "−") if value else "0.0"


def points(difference: float) -> str:
    """The size of a difference without its sign: −0.0061 → ``0.6 points``."""
    return f"{signed(abs(difference)).removeprefix('+')} points"


def times(ratio: float | None) -> str:
    """A multiple of dense: 0.134 → ``0.13×``, 0.0123 → ``0.012×``, 12.34 → ``12.3×``."""
    if ratio is None:
        return NOTHING
    if ratio >= 10:
        return f"{ratio:.1f}×"
    return f"{ratio:.2f}×" if ratio >= 0.1 or ratio == 0 else f"{ratio:.2g}×"


def seconds(value: float | None) -> str:
    """12.34 → ``12.3 s``, 75 → ``1 min 15 s``, 7300 → ``2 h 02 min``."""
    if value is None:
        return NOTHING
    if value < 59.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count(value: float | None) -> str:
    """12345 → ``12,345``."""
    return NOTHING if value is None else f"{value:,.0f}"


def megabytes(value: float | None) -> str:
    """Bytes, in millions: 102_400_000 → ``102 MB``, 3_210_000 → ``3.2 MB``, 26_848 → ``0.027 MB``."""
    if value is None:
        return NOTHING
    size = value / 1e6
    return f"{size:,.0f} MB" if size >= 99.5 else f"{size:.1f} MB" if size >= 0.95 else f"{size:.2g} MB"


def plural(number: int, word: str) -> str:
    """1, run → ``1 run``; 12, run → ``12 runs``."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def listing(words: list[str]) -> str:
    """a, b → ``a and b``; a, b, c → ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def printable(text: str) -> str:
    """The text with a replacement character for each byte of a file's name that is not UTF-8."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)
