"""What regrow reads are regular files: a pipe, which would make it wait for ever, is refused by whatever reads it."""

import os

import pytest
from torch import nn

import regrow
from regrow import regular
from regrow.errors import UserError
from regrow.latency.table import LatencyTable
from regrow.report import runs
from regrow.training import checkpoint, initial, results
from regrow.training.rundir import CHECKPOINT

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")


def test_regular_files_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"12")
    (tmp_path / "link").symlink_to("file")
    assert regular.read_bytes(tmp_path / "link") == b"12"
    for other in (tmp_path, "/dev/null", "/dev/zero", tmp_path / "none"):
        with pytest.raises(OSError, match=r"no regular file|Is a directory|No such file"):
            regular.read_bytes(other)


READERS = {
    "run/results.json": lambda place: runs.read([place / "run"]),
    "run/structure.json": lambda place: runs.read([place / "run"]),
    "run/metrics.jsonl": lambda place: runs.read([place / "run"]),
    "run/recipe.yaml": lambda place: runs.read([place / "run"]),
    f"run/{CHECKPOINT}": lambda place: checkpoint.load(place / "run", None),
    "results.json": lambda place: results.result_of(place / "results.json"),
    "scan.json": lambda place: regrow.Scan.load(place / "scan.json"),
    "table.json": lambda place: LatencyTable.load(place / "table.json"),
    "weights.pt": lambda place: initial.start_from(None, str(place / "weights.pt"), 2),
    "model/manifest.json": lambda place: regrow.load_tensors(place / "model"),
    "model/model.safetensors": lambda place: regrow.load_tensors(place / "model"),
}


@pytest.mark.parametrize("file", READERS)
def test_pipes_are_refused(tmp_path, file):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    (tmp_path / "run" / "results.json").write_text('{"runs": []}')
    regrow.save(nn.Linear(2, 2), tmp_path / "model")
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"no regular file|is damaged or no checkpoint"):
        READERS[file](tmp_path)
