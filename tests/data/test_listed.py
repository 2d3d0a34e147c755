"""Lists of files: their text, and names that lead out of the data set's folder."""

import pytest

from regrow.data import listed
from regrow.errors import UserError


def test_lines(tmp_path):
    file = tmp_path / "list.txt"
    file.write_bytes(b"\xef\xbb\xbfa\r\n\r\n b \n")
    assert listed.lines(file) == ["a", "b"]
    file.write_bytes(b"\xff\xfea\x00")
    with pytest.raises(UserError, match=r"list\.txt is no text in UTF-8: save it as one"):
        listed.lines(file)
    with pytest.raises(UserError, match=r"other\.txt cannot be read: No such file"):
        listed.lines(tmp_path / "other.txt")


def test_names_stay_inside(tmp_path):
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    for place in ("secret", "set/other", "set/images/a"):
        (tmp_path / place).touch()
    (root / "images" / "link").symlink_to(tmp_path / "secret")

    def found(name):
        return listed.inside(root, root / "images", name, root / "list.txt")

    assert found("a") == root / "images" / "a"
    assert found("../other").samefile(root / "other")
    assert found("link").samefile(tmp_path / "secret")
    for name in ("../../secret", f"{tmp_path}/secret", "a/../../../secret"):
        with pytest.raises(UserError, match=r"list\.txt lists .*secret, which is outside of .*set: name images in"):
            found(name)
    for name in ("b", "", "a\0", "\ud800", "x" * 5000):
        with pytest.raises(UserError, match=r"which .*list\.txt lists, does not exist"):
            found(name)
