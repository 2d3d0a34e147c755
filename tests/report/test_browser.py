"""The page in a real browser: every figure drawn, no error, nothing asked of the network."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_runs import facts, write_compare, write_run
from PIL import Image
from test_standing import write_grid
from test_widths import write_channels

from regrow.report.page import write

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=5000",
    "--dump-dom",
]
# what the browser asks for on its own account, whatever it shows
OWN = re.compile(r"(google(apis|usercontent)?|gvt1|gstatic)\.com$")


class Recorder:
    """A proxy that answers nobody and remembers whom it was asked for: the browser's only way out."""

    def __init__(self) -> None:
        self.hosts: list[str] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:  # closed
                return
            with connection:
                connection.settimeout(2)
                try:
                    request = connection.recv(4096).decode("latin-1")
                    connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                except OSError:
                    continue
            found = re.match(r"[A-Z]+ (?:https?://)?([^/:\s]+)", request)
            self.hosts += [found.group(1)] if found else []

    def asked(self) -> list[str]:
        return [host for host in self.hosts if not OWN.search(host)]


@pytest.fixture
def proxy() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.socket.close()


def browse(page: Path, proxy: Recorder, profile: Path, width: int = 1280, *more: str) -> tuple[str, list[str]]:
    """The document after its scripts ran, and what the console said."""
    options = [
        f"--user-data-dir={profile}",
        f"--proxy-server=http://{proxy.address}",
        f"--window-size={width},3000",
        *more,
    ]
    done = subprocess.run(
        [str(CHROMIUM), *FLAGS, *options, page.as_uri()], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def figures(dom: str) -> dict[str, str]:
    """What the browser put into each figure's place."""
    parts = re.split(r'<div class="plot[^"]*" id="plot-(\w+)"', dom)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("browser")
    compare = write_compare(base / "compare", ["dense", "static", "rigl", "iee"], [0, 1, 2], steps=300)
    hostile = write_run(base / "hostile", "iee", 0, steps=300, label='</script><img src="http://evil.example/x.png">')
    unfinished = write_run(base / "unfinished", "iee", 1, steps=300, finished=False)
    return write([compare, hostile, unfinished], base / "report.html")


@pytest.mark.parametrize("width", [1280, 500])  # no window is narrower
def test_every_figure_is_drawn_without_an_error(page: Path, proxy: Recorder, tmp_path: Path, width: int) -> None:
    dom, console = browse(page, proxy, tmp_path / "profile", width)
    drawn = figures(dom)
    assert list(drawn) == ["tradeoff", "phases", "curves", "iou", "survival", "layers"]
    for name, content in drawn.items():
        assert 'class="main-svg"' in content, name
        marks = (
            'class="trace bars"' if name == "phases" else "js-line" if name in ("curves", "iou") else 'class="point"'
        )
        assert marks in content, name
    assert console == []
    assert proxy.asked() == []


def test_the_diagram_of_ranks_is_drawn(proxy: Recorder, tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid", ["iee", "rigl", "dense"], [0.8, 0.9])
    dom, console = browse(write([grid], tmp_path / "report.html"), proxy, tmp_path / "profile", 500)
    drawn = figures(dom)
    assert next(iter(drawn)) == "ranks"
    assert len(re.findall('class="point[ "]', drawn["ranks"])) == 4  # a ring and a mean for each of two methods
    assert console == []


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sparse runs beside thin ones, with sizes, a machine, a remark and a model to load."""
    base = tmp_path_factory.mktemp("mixed")
    runs = [write_run(base / method, method, 0, steps=300, said=facts(method)) for method in ("dense", "rigl", "iee")]
    thin = [write_channels(base, "static", seed, 0.02, latency_predicted=0.01) for seed in (0, 1)]
    (runs[2] / "model").mkdir()
    (runs[2] / "model" / "manifest.json").write_text("{}")
    return write([*runs, *thin], base / "report.html")


def test_sparse_runs_beside_thin_ones(mixed: Path, proxy: Recorder, tmp_path: Path) -> None:
    dom, console = browse(mixed, proxy, tmp_path / "profile")
    keys = ["tradeoff", "phases", "latency", "prediction", "widths", "curves", "iou", "survival", "layers"]
    assert list(figures(dom)) == keys
    for name, content in figures(dom).items():
        assert 'class="main-svg"' in content, name
    assert console == []
    assert proxy.asked() == []


NARROW = """<iframe src="report.html" style="width:400px;height:3000px;border:0"></iframe><pre></pre><script>
addEventListener("load", () => setTimeout(() => {
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const right = (kind) => Math.max(...[...page.querySelectorAll(kind)].map((one) => one.getBoundingClientRect().right));
  const plots = page.querySelectorAll(".plot .main-svg").length;
  const sizes = {width: page.defaultView.innerWidth, needed: root.scrollWidth, plots,
    rightmost: Math.max(...["section", ".plot", ".plot .main-svg", ".tile", "h1", ".key", SELECTORS].map(right))};
  document.querySelector("pre").textContent = JSON.stringify(sizes);
}, 1500));
</script>"""


@pytest.mark.parametrize(("name", "more"), [("page", ".scroll"), ("mixed", ".scroll, .list, .remark, pre")])
def test_nothing_sticks_out_on_a_telephone(
    request: pytest.FixtureRequest, proxy: Recorder, tmp_path: Path, name: str, more: str
) -> None:
    frame = request.getfixturevalue(name).with_name("frame.html")
    frame.write_text(NARROW.replace("SELECTORS", json.dumps(more)), encoding="utf-8")
    dom, console = browse(frame, proxy, tmp_path / "profile", 800, "--allow-file-access-from-files")
    found = re.search(r"<pre>(.*)</pre>", dom)
    assert found is not None
    sizes = json.loads(found.group(1))
    assert (sizes["width"], sizes["needed"]) == (400, 400)
    assert 300 < sizes["rightmost"] <= 400
    assert sizes["plots"] >= 6
    assert console == []


def test_figures_follow_a_window_that_becomes_narrower(page: Path, proxy: Recorder, tmp_path: Path) -> None:
    image = tmp_path / "page.png"
    browse(page, proxy, tmp_path / "profile", 400, f"--screenshot={image}")  # loads at 500, the least, and shows 400
    with Image.open(image) as opened:
        assert opened.size == (400, 3000)
        margin = opened.convert("L").crop((392, 0, 400, 3000))  # half of the page's margin
    darkest, lightest = margin.getextrema()
    assert lightest - darkest <= 4  # nothing but the shadow of the cards


def test_an_error_or_a_request_would_be_seen(proxy: Recorder, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://evil.example/x.png"><script>missing();</script>')
    _, console = browse(page, proxy, tmp_path / "profile")
    assert any("missing is not defined" in line for line in console)
    assert proxy.asked() == ["evil.example"]


def test_the_page_itself_forbids_requests(page: Path, proxy: Recorder, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    script = '<script>fetch("http://evil.example/"); new Image().src = "http://evil.example/x.png";</script></body>'
    bad.write_text(page.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
    _, console = browse(bad, proxy, tmp_path / "profile")
    assert any("Content Security Policy" in line for line in console)
    assert proxy.asked() == []
