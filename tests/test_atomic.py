"""Files appear whole or not at all; what is no ordinary file is written to and stays what it is."""

import os
import stat
import subprocess
import sys
import threading

import pytest

from regrow import UserError, atomic


def names(directory):
    return sorted(os.listdir(directory))


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture
def umask():
    """Sets the umask, and puts back the old one."""
    old = os.umask(0o022)
    yield os.umask
    os.umask(old)


def test_directories_are_made_and_nothing_else_is_left(tmp_path):
    atomic.write_json(tmp_path / "a" / "b.json", {"größe": 1})
    assert (tmp_path / "a" / "b.json").read_text(encoding="utf-8") == '{\n "gr\\u00f6\\u00dfe": 1\n}\n'
    atomic.write_text(tmp_path / "a" / "b.json", "größer")
    assert (tmp_path / "a" / "b.json").read_bytes() == "größer".encode()
    assert names(tmp_path / "a") == ["b.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
def test_an_error_while_writing_leaves_the_old_content(tmp_path, error):
    (tmp_path / "f").write_text("old")

    def write(name):
        with atomic.writing(tmp_path / name) as file:
            file.write(b"half")
            raise error

    for name in ("f", "new"):
        with pytest.raises(error):
            write(name)
    assert (tmp_path / "f").read_text() == "old"
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("operation", ["chmod", "fsync", "replace"])
def test_a_full_disk_names_the_file_that_was_asked_for(tmp_path, monkeypatch, operation):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, operation, full)
    with pytest.raises(OSError, match="No space left") as error:
        atomic.write_text(tmp_path / "f", "new")
    assert error.value.filename == str(tmp_path / "f")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("mask", "file_mode", "directory_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_permissions_follow_the_umask(tmp_path, umask, mask, file_mode, directory_mode):
    umask(mask)
    atomic.write_text(tmp_path / "f", "")
    with atomic.replacing(tmp_path / "g") as path:
        path.chmod(0o640)  # as a writer may do that knows no umask
    with atomic.new_directory(tmp_path / "d") as directory:
        (directory / "x").touch()
    assert [mode(tmp_path / name) for name in ("f", "g", "d")] == [file_mode, file_mode, directory_mode]


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o666])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path, umask, kept):
    (tmp_path / "f").write_text("old")
    (tmp_path / "f").chmod(kept)
    umask(0o022)
    atomic.write_text(tmp_path / "f", "new")
    assert mode(tmp_path / "f") == kept


@pytest.mark.parametrize("exists", [True, False])
def test_links_are_followed(tmp_path, exists):
    (tmp_path / "far").mkdir()
    if exists:
        (tmp_path / "far" / "f").write_text("old")
    (tmp_path / "near").symlink_to("far/f")
    (tmp_path / "nearer").symlink_to("near")
    atomic.write_text(tmp_path / "nearer", "new")
    assert (tmp_path / "nearer").is_symlink()
    assert (tmp_path / "near").is_symlink()
    assert (tmp_path / "far" / "f").read_text() == "new"
    assert [names(tmp_path), names(tmp_path / "far")] == [["far", "near", "nearer"], ["f"]]


def test_a_link_to_a_directory_is_followed(tmp_path):
    (tmp_path / "link").symlink_to("there")
    with atomic.new_directory(tmp_path / "link") as directory:
        (directory / "x").touch()
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "there") == ["x"]


def test_links_in_a_circle_are_an_error(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels"):
        atomic.write_text(tmp_path / "a", "x")


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path, linked):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    path = tmp_path / ("link" if linked else "pipe")
    atomic.check_file(path, "--out", "x")
    atomic.write_text(path, "text")
    reader.join(timeout=600)
    assert got == ["text"]
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    assert names(tmp_path) == ["link", "pipe"]


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("to", ["pipe", "file"])
def test_standard_output_is_written_to_in_order(tmp_path, path, to):
    if not os.path.exists(path):
        pytest.skip(f"there is no {path} here")
    code = f"from regrow import atomic; print('before'); atomic.write_text({path!r}, 'text\\n'); print('after')"
    if to == "pipe":
        said = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
    else:
        with (tmp_path / "said").open("w") as file:
            subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
        said = (tmp_path / "said").read_text()
    assert said == "before\ntext\nafter\n"


def test_places_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").touch()
    for path, message in (
        (tmp_path, f"--out {tmp_path} is a directory: name a file, such as {tmp_path}/x.json"),
        (tmp_path / "file" / "x", f"--out {tmp_path}/file/x cannot be written, as {tmp_path}/file is not a directory"),
        (tmp_path / "file" / "y" / "x", f"as {tmp_path}/file is not a directory that you may write to"),
    ):
        with pytest.raises(UserError) as error:
            atomic.check_file(path, "--out", "x.json")
        assert message in str(error.value)
    atomic.check_file(tmp_path / "new" / "er" / "x.json", "--out", "x.json")
    assert names(tmp_path) == ["file"]
