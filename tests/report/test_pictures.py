"""Pictures of what a detector finds: drawn where they are, escaped, and refused where they are damaged."""

import json
from pathlib import Path

import pytest
from fake_runs import write_run

from regrow import UserError
from regrow.report import pictures
from regrow.report.page import render
from regrow.report.runs import read

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SHOWN = {
    "split": "val",
    "classes": ["<b>cat", "dog"],
    "images": [{
        "width": 40, "height": 20, "png": PIXEL,
        "found": [{"box": [1, 2, 11, 8], "label": 1, "score": 0.875}],
        "truth": [{"box": [1, 2, 10, 8], "label": 0}, {"box": [5, 5, 4, 9], "label": 7}],
    }],
}  # fmt: skip


def run_with(tmp_path: Path, content: object) -> Path:
    directory = write_run(tmp_path / "run", "iee", 0)
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / "pictures.json").write_text(text)
    results = json.loads((directory / "results.json").read_text())
    results["runs"][0] |= {"metric": "mAP", "mAP50": 0.991}
    (directory / "results.json").write_text(json.dumps(results))
    return directory


def test_boxes_are_drawn_where_they_are(tmp_path: Path) -> None:
    [run] = read([run_with(tmp_path, SHOWN)]).runs
    part = pictures.part(run)
    assert part is not None
    [frame] = part.content
    assert (frame.uri, frame.width, frame.height) == (f"data:image/png;base64,{PIXEL}", 40, 20)
    assert [(b.x, b.y, b.width, b.height, b.label, b.dashed) for b in frame.boxes] == [
        (1, 2, 9, 6, "<b>cat", True), (5, 5, 0, 4, "7", True), (1, 2, 10, 6, "dog 0.88", False),
    ]  # fmt: skip
    assert frame.alt == "Found: dog 0.88. There: <b>cat and 7."


def test_the_page_names_the_metric_and_escapes_classes(tmp_path: Path) -> None:
    page = render(read([run_with(tmp_path, SHOWN)]))
    assert "% mAP with 10% of the weights</h1>" in page
    assert "<title>&lt;b&gt;cat</title>" in page
    assert "<b>cat" not in page
    assert ">mAP50</th>" in page
    assert ">99.1%</td>" in page
    assert ">Accuracy</th>" not in page


def test_a_run_without_pictures_has_no_part(tmp_path: Path) -> None:
    [run] = read([write_run(tmp_path / "run", "iee", 0)]).runs
    assert pictures.part(run) is None
    assert pictures.part(None) is None


@pytest.mark.parametrize(
    "content", ["{", {**SHOWN, "images": [{**SHOWN["images"][0], "png": 'x"><script>'}]}, {"split": "val"}]
)
def test_damaged_pictures_are_refused(tmp_path: Path, content: object) -> None:
    directory = run_with(tmp_path, content)
    with pytest.raises(UserError, match=r"pictures\.json is .*restore it or delete it"):
        render(read([directory]))
