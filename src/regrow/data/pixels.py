"""What pixels of an image file mean as bytes of red, green and blue: Pillow clips whatever has more than 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

_GREY = ("1", "L", "LA", "La")
_PHOTOMETRIC, _BITS = 262, 258  # tags of TIFF


def rgb(image: Image.Image) -> tuple[Image.Image, bool]:
    """An opened image as 8-bit RGB, and whether it has no colours.

    Grey levels of 16 bits (or 12, in TIFF) are scaled from their whole range to 0…255, floats from 0 (black) to 1
    (white). Transparency is left out: pixels keep the colours that the file gives them.

    Args:
        image: of any kind that Pillow opens; of several frames, the first.

    Raises:
        ValueError: for values that have no agreed white: whole numbers of 32 bits or with a sign, floats outside 0…1.
    """
    levels = _wide_grey(image)
    if levels is not None:
        return _from_levels(levels).convert("RGB"), True
    if image.mode == "La":
        return image.convert("LA").convert("RGB"), True
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB"), False  # the direct way is the same, with a warning
    return image.convert("RGB"), image.mode in _GREY


def _wide_grey(image: Image.Image) -> np.ndarray | None:
    """Grey levels of more than 8 bits as float64 (H, W) from 0 to 1; None for what has 8 bits or fewer."""
    if image.mode == "F":
        levels = np.asarray(image, dtype=np.float64)
        wrong = "floats that are not finite"
        if np.isfinite(levels).all():
            wrong = f"floats from {levels.min():.4g} to {levels.max():.4g}"
        if not ((levels * 255 >= -0.5) & (levels * 255 <= 255.5)).all():
            raise ValueError(
                f"its grey levels are {wrong}, but must be from 0 (black) to 1 (white): scale them, or save it with "
                "8 or 16 bits a pixel"
            )
    elif image.mode.startswith("I;16"):
        bits = 12 if _tag(image, _BITS, (16,)) == (12,) else 16
        levels = np.asarray(image).astype(np.float64) / (2**bits - 1)
    elif image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits, which Pillow holds in 32
        levels = np.asarray(image).astype(np.float64) / 65535
    elif image.mode == "I":
        raise ValueError(
            "its grey levels are whole numbers of 32 bits or with a sign, of which none is agreed to be white: save it "
            "with 8 or 16 bits a pixel"
        )
    else:
        return None
    return 1 - levels if _tag(image, _PHOTOMETRIC, 1) == 0 else levels  # Pillow inverts 8 bits and fewer only


def _tag(image: Image.Image, number: int, default: Any) -> Any:
    return getattr(image, "tag_v2", {}).get(number, default)


def _from_levels(levels: np.ndarray) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.rint(levels * 255).clip(0, 255).astype(np.uint8))
