"""The page as text: complete, self-contained, escaped, written at once."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_runs import write_compare

from regrow.cli import main
from regrow.errors import UserError
from regrow.report.page import write

Make = Callable[..., Path]
HOSTILE = '</script><img src="https://evil.example/x.png" onerror="alert(1)"><!--%{x}&amp;'


class Page(HTMLParser):
    """Tags with their attributes, and the text of styles, scripts and everything else."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "path", "rect", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def text(self, tag: str) -> str:
        return " ".join(self.texts.get(tag, []))

    def plots(self) -> dict[str, Any]:
        names = [attrs["data-plot"] for tag, attrs in self.tags if tag == "script" and "data-plot" in attrs]
        data = [json.loads(text) for text in self.texts["script"] if text.startswith('{"data"')]
        return dict(zip([str(name) for name in names], data, strict=True))


@pytest.fixture(scope="module")
def compare_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("page")
    directory = write_compare(base / "compare", ["dense", "static", "rigl", "iee"], [0, 1, 2], steps=300)
    return write([directory], base / "deep" / "report.html")


def test_tells_the_result_and_draws_every_figure(compare_page: Path) -> None:
    page = Page(compare_page)
    assert re.fullmatch(r"IEE reaches 97\.\d% with 10% of the weights", page.text("h1"))
    assert list(page.plots()) == [f"plot-{k}" for k in ("tradeoff", "phases", "curves", "iou", "survival", "layers")]
    drawn = [attrs for tag, attrs in page.tags if tag == "div" and attrs.get("class") == "plot"]
    assert [attrs["id"] for attrs in drawn] == list(page.plots())
    assert all(attrs["role"] == "img" and len(attrs["aria-label"] or "") > 60 for attrs in drawn)
    assert "Difference to Dense" in page.text("th")
    assert sum(tag == "tr" for tag, _ in page.tags) == 1 + 4 + 1 + 12
    assert sum(tag == "h1" for tag, _ in page.tags) == 1
    assert "distribution: erk" in page.text("code")


def test_asks_the_network_for_nothing(compare_page: Path) -> None:
    page = Page(compare_page)
    for tag, attrs in page.tags:
        for key in ("src", "href", "srcset", "action", "poster", "data", "xlink:href"):
            assert key not in attrs, (tag, attrs)
    assert not re.search(r"@import|url\(", page.text("style"))
    markup = re.sub(r"<script>.*?</script>", "", compare_page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert "http:" not in markup
    assert "https:" not in markup
    policy = next(attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs)
    assert (policy or "").startswith("default-src 'none'; ")


def test_strings_from_files_stay_text(make_run: Make, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "iee", 0, label=HOSTILE)
    structure = json.loads((run / "structure.json").read_text())
    structure["layers"][0]["name"] = HOSTILE
    (run / "structure.json").write_text(json.dumps(structure))
    (run / "recipe.yaml").write_text(f"note: '{HOSTILE}'\n")
    page = Page(write([run, make_run(tmp_path / HOSTILE.replace("/", "_"), "rigl", 0, steps=100)], tmp_path / "r.html"))
    assert not any(tag == "img" for tag, _ in page.tags)
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert HOSTILE in page.text("code")
    assert set(page.plots()) == {f"plot-{k}" for k in ("tradeoff", "phases", "curves", "iou", "survival", "layers")}
    assert sum(tag == "script" for tag, _ in page.tags) == 6 + 2


@pytest.mark.parametrize("label", [HOSTILE, "\u2028]]>", 'it\'s "so" & so', "{{ 7 * 7 }}{% raw %}"])
def test_figures_cannot_end_their_script_and_keep_their_values(make_run: Make, tmp_path: Path, label: str) -> None:
    page = Page(write([make_run(tmp_path / "run", "iee", 0, steps=100, label=label)], tmp_path / "r.html"))
    for text in (text for text in page.texts["script"] if text.startswith('{"data"')):
        assert not set("<>&'\u2028") & set(text)
    shown = {trace["legendgroup"] for trace in page.plots()["plot-curves"]["data"]}
    assert shown == {label}


def test_static_run_has_no_updates(make_run: Make, tmp_path: Path) -> None:
    page = Page(write([make_run(tmp_path / "run", "static", 0, steps=100)], tmp_path / "r.html"))
    assert list(page.plots()) == ["plot-phases", "plot-curves", "plot-layers"]
    assert "No updates: these runs keep one structure" in page.text("p")
    assert "Difference" not in page.text("th")


def test_dense_only(make_run: Make, tmp_path: Path) -> None:
    page = Page(write([make_run(tmp_path / "run", "dense", 0, steps=100)], tmp_path / "r.html"))
    assert page.text("h1").startswith("Dense training reaches")
    assert "No sparse layers" in page.text("p")


def test_results_only(make_run: Make, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "iee", 0, steps=100, accuracy=None, validation_accuracy=None)
    for name in ("metrics.jsonl", "structure.json", "recipe.yaml"):
        (run / name).unlink()
    page = Page(write([run], tmp_path / "r.html"))
    assert "accuracy was not measured" in page.text("h1")
    assert list(page.plots()) == ["plot-phases"]
    assert "No step has been logged." in page.text("p")
    assert not any(tag == "details" for tag, _ in page.tags)


def test_unfinished_run_is_shown_as_such(make_run: Make, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "iee", 0, steps=100, finished=False)
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 55, "lo')
    page = Page(write([run], tmp_path / "r.html"))
    assert page.text("h1") == "This run is unfinished"
    assert "plot-curves" in page.plots()
    assert "unfinished" in page.text("span")


def test_bad_input_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text("{")
    out = tmp_path / "out" / "r.html"
    with pytest.raises(UserError, match=r"results\.json is not valid JSON"):
        write([tmp_path / "run"], out)
    assert not out.parent.exists()


def test_out_that_cannot_be_written(make_run: Make, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "static", 0, steps=50)
    with pytest.raises(UserError, match="is a directory; give the report a file name"):
        write([run], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write([run], tmp_path / "file" / "r.html")


def test_a_pipe_takes_the_page_and_stays_a_pipe(
    make_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, pipe, got = make_run(tmp_path / "run", "static", 0, steps=50), tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    assert main(["report", str(run), "--out", str(pipe)]) == 0
    reader.join(timeout=600)
    assert got == [write([run], tmp_path / "r.html").read_bytes()]
    assert pipe.is_fifo()


def test_a_failed_write_leaves_the_old_page(make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = make_run(tmp_path / "run", "static", 0, steps=50), tmp_path / "r.html"
    out.write_text("old")

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(UserError, match="No space left on device"):
        write([run], out)
    assert out.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "run"]


def test_the_same_runs_give_the_same_page(make_run: Make, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "iee", 0, steps=100)
    first = write([run], tmp_path / "a.html").read_bytes()
    assert write([run], tmp_path / "b.html").read_bytes() == first
