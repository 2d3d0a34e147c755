"""Without the extras: the core does all it does, and every command says what to install."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from regrow.extras import EXTRAS
from test_code_in_documents import blocks

ROOT = Path(__file__).parent.parent
IMPORTED_AS = {"scikit-learn": "sklearn", "pyyaml": "yaml", "pillow": "PIL", "faster-coco-eval": "faster_coco_eval"}
# read where they are chosen, which say themselves what to install
ASKED_FOR = {"schedulefree", "tensorboard"}

WITHOUT = f"""
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.partition(".")[0] in {sorted(package for packages in EXTRAS.values() for package in packages)}
        return None if absent else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
import torch
from torch import nn
import regrow
from regrow.cli import main
torch.set_num_threads(1)
torch.manual_seed(0)
"""

CHANNELS = """
def build():
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))

def thin(method=regrow.OneShot(), **budget):
    model, x = build(), torch.randn(4, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    pattern = regrow.Channels(round_to=4, **budget)
    sparsifier = regrow.Sparsifier(model, optimizer, pattern=pattern, method=method, total_steps=4, example_inputs=x)
    for _ in range(4):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    regrow.save(sparsifier.compact(), "thin")
    again = regrow.load(build(), "thin").eval()
    assert torch.equal(again(x), model.eval()(x))
    assert 0 < sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in build().parameters())
    print(sparsifier.summary())
"""

LATENCY = f"""
from regrow.profiling import profile
profile(build(), torch.randn(4, 3, 8, 8), time_limit=0.5, check=1, allow_busy=True)
sys.path.append({str(Path(__file__).parent)!r})
from fixed_latency import table_of  # what depends on a time must not depend on this machine's
table_of(build(), torch.randn(4, 3, 8, 8)).save("table.json")
thin(latency=0.7, table="table.json")
"""


def without_extras(code: str, directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT + code, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=directory, check=False)


def test_the_core_runs(tmp_path: Path) -> None:
    names = "for name in regrow.__all__: getattr(regrow, name)\n"
    budgets = "thin(flops=0.6)\nthin(params=0.6, flops=0.8)\n"
    done = without_extras(names + blocks("README.md")[0] + CHANNELS + budgets + LATENCY, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


COMMANDS = [
    "demo", "train digits-iee", "train digits-iee --help", "compare digits-iee", "inspect wrn22-2 --sparsity 0.9",
    "profile wrn22-2 --out table.json", "report runs", "scan digits-iee",
    "export runs --format pt2 --out model.pt2",
]  # fmt: skip


def test_commands_say_what_to_install(tmp_path: Path) -> None:
    done = without_extras("print([main(words.split()) for words in sys.argv[1:]])", tmp_path, *COMMANDS)
    assert done.stdout == f"{[2] * len(COMMANDS)}\n"
    for words, said in zip(COMMANDS, done.stderr.splitlines(), strict=True):
        needs = rf"regrow: `regrow {words.split()[0]}` needs packages that are not installed \(torchvision, .*\): "
        assert re.fullmatch(rf"{needs}pip install 'regrow\[train\]'", said)
    assert list(tmp_path.iterdir()) == []


INTEGRATIONS = """
import importlib
for host in ("lightning", "transformers"):
    try:
        importlib.import_module(f"regrow.integrations.{host}")
    except regrow.UserError as error:
        print(error)
"""


def test_integrations_say_what_to_install(tmp_path: Path) -> None:
    done = without_extras(INTEGRATIONS, tmp_path)
    assert done.stdout.splitlines() == [
        f"regrow.integrations.{host} needs packages that are not installed ({absent}): "
        "pip install 'regrow[integrations]'"
        for host, absent in (("lightning", "lightning"), ("transformers", "transformers, accelerate"))
    ]


BAR = """
from regrow.latency.whole import bar
sys.stderr.isatty = lambda: True
for shown in (True, False):
    with bar(shown, 2, "measuring") as advance:
        advance()
        advance()
"""


def test_help_and_the_bar_need_nothing(tmp_path: Path) -> None:
    code = "assert [main(words.split()) for words in sys.argv[1:]] == [0] * 4"
    done = without_extras(BAR + code, tmp_path, "--help", "--version", "train --help", "compare --help")
    assert done.returncode == 0
    assert done.stderr == "\nmeasuring 1/2\nmeasuring 2/2\n\x1b[K"  # where \r is read as the end of a line


def declared(requirements: list[str]) -> set[str]:
    names = [re.split(r"[\[<>=~ ;]", requirement)[0].lower() for requirement in requirements]
    return {IMPORTED_AS.get(name, name) for name in names}


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert {extra: set(packages) for extra, packages in EXTRAS.items()} == {
        extra: declared(extras[extra]) for extra in EXTRAS
    }
    core = declared(project["dependencies"])
    imported = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((node.module or "").partition(".")[0])
    third_party = imported - sys.stdlib_module_names - {"regrow"}
    assert third_party - ASKED_FOR <= core | {package for packages in EXTRAS.values() for package in packages}
    assert core <= third_party
