"""What a data set's own lists name: their lines, and files that have to lie in its folder."""

from __future__ import annotations

import os
from pathlib import Path

from regrow import regular
from regrow.errors import UserError
from regrow.schema import shown


def lines(file: Path) -> list[str]:
    """The lines of a text in UTF-8 that are not empty, without the spaces around them.

    Raises:
        UserError: it cannot be read, or is no such text.
    """
    try:
        text = regular.read_bytes(file).decode("utf-8-sig")  # as some editors begin a text
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text in UTF-8: save it as one") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def inside(root: Path, folder: Path, name: str, file: Path) -> Path:
    """Where an image, or what belongs to one, is by the name that a list gives it.

    Links in the folder may lead anywhere, as whoever made them could copy as well; names may not.

    Args:
        root: of the data set.
        folder: in it, that names count from.
        name: as the list has it.
        file: the list, in messages.

    Raises:
        UserError: it is not in the data set's folder, or not there.
    """
    place = folder / name
    if not Path(os.path.normpath(place)).is_relative_to(os.path.normpath(root)):
        raise UserError(f"{file} lists {shown(name)}, which is outside of {root}: name images in that folder alone")
    try:
        there = place.is_file()
    except OSError:  # of a name that no file can have
        there = False
    if not there:
        raise UserError(f"the file {shown(str(place), 400)}, which {file} lists, does not exist")
    return place
