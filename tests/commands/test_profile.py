"""`profile` and `regrow profile`: real measurements of tiny nets, kept short."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import fixed_latency
from regrow import cli, profiling
from regrow.commands import profile as command
from regrow.errors import UserError
from regrow.latency import busy
from regrow.latency.network import network_of
from regrow.latency.spread import Spread
from regrow.latency.table import LatencyTable
from regrow.profiling import Check, Profile, profile, thin_copies


class Small(nn.Module):
    """A stem, a residual block with a depthwise and a grouped convolution, and a head."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.deep = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.wide = nn.Conv2d(width, 2 * width, 1)
        self.grouped = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=width // 4)
        self.back = nn.Conv2d(2 * width, width, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.back(torch.relu(self.grouped(self.wide(self.deep(x)))))
        return self.head(self.drop(x.mean((2, 3))))


class Stubborn(nn.Module):
    """None of its channels can go: the code counts on every one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).mean((2, 3))
        return self.head(y.view(-1, 4, 4).softmax(2).reshape(-1, 16))


def stubborn(num_classes: int = 10) -> nn.Module:
    return Stubborn()


EXAMPLE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def skip_without(runtime: str) -> None:
    if runtime == "onnxruntime":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name, reason="the extra `export` is not installed")


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
def test_a_profile_is_a_table_and_checks_and_leaves_everything_as_it_was(runtime):
    skip_without(runtime)
    torch.manual_seed(5)
    model = Small().train()
    model.deep.eval()
    model(EXAMPLE).sum().backward()
    modes = {name: module.training for name, module in model.named_modules()}
    values = {name: value.clone() for name, value in model.state_dict().items()}
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    before, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        table, checks = profile(model, EXAMPLE, runtime=runtime, time_limit=0.5, check=2, progress=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, grads[name]) for name, p in model.named_parameters())
    assert (table.machine.runtime, table.batch, table.threads) == (runtime, 2, 1)
    assert set(table.grids) == {unit.key for unit in network_of(model, EXAMPLE).units}
    assert len(checks) == 2
    assert all(0 < seconds < math.inf for pair in checks for seconds in pair)


def test_thin_copies_have_rounded_widths_and_kinds_of_layers_that_the_table_knows():
    model = Small(64)
    keys = {unit.key for unit in network_of(model, EXAMPLE).units}
    copies, note = thin_copies(model, EXAMPLE, (0.2, 0.5, 0.9, 0.2), seed=3)
    assert note == ""
    widths = [[module.out_channels for module in copy.modules() if isinstance(module, nn.Conv2d)] for copy in copies]
    for copy, (stem, deep, wide, grouped, back) in zip(copies, widths, strict=True):
        assert stem == deep == back
        assert stem % 8 == 0
        assert wide == grouped
        assert copy.grouped.out_channels // copy.grouped.groups == 8  # whole groups go
        assert {unit.key for unit in network_of(copy, EXAMPLE).units} <= keys
    assert widths[0] != widths[3]
    assert sum(widths[0]) < sum(widths[1]) < sum(widths[2])
    again, _ = thin_copies(model, EXAMPLE, (0.2,), seed=3)
    assert all(torch.equal(a, b) for a, b in zip(again[0].parameters(), copies[0].parameters(), strict=True))
    assert model.stem.out_channels == 64


def test_a_model_that_cannot_be_thinned_is_checked_as_it_is_with_a_sentence():
    with pytest.warns(UserWarning, match="no thin copies could be made to check the table with, as nothing in the"):
        table, checks = profile(Stubborn(), EXAMPLE, time_limit=1, progress=False)
    assert len(checks) == 1
    assert table.model() == pytest.approx(table.measured)


def test_fitting_and_checking_use_different_models(monkeypatch):
    seen: dict[str, list[nn.Module]] = {}

    def measured(model, x, *, thin, **_):
        seen["fitted"] = list(thin)
        return made

    def verified(table, models, x, **_):
        seen["checked"] = list(models)
        return [(1.0, 1.0) for _ in models]

    made, _ = profile(Small(), EXAMPLE, time_limit=0.5, check=1, progress=False)
    monkeypatch.setattr(profiling, "measure", measured)
    monkeypatch.setattr(profiling, "verify", verified)
    profile(Small(), EXAMPLE, check=5, progress=False)
    assert (len(seen["fitted"]), len(seen["checked"])) == (4, 5)
    assert not {id(model) for model in seen["fitted"]} & {id(model) for model in seen["checked"]}


def test_the_median_error_is_without_signs():
    checks = (Check(0.5, 1.1, 1.0), Check(0.5, 0.7, 1.0), Check(0.5, 1.0, 1.0))
    assert [round(check.error, 6) for check in checks] == [0.1, -0.3, 0.0]
    assert Profile(None, checks).median_error == pytest.approx(0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runtime": "eagr"}, r"there is no runtime 'eagr'; did you mean 'eager'\?"),
        ({"threads": 0}, "threads must be at least 1, not 0"),
        ({"threads": 4096}, "threads must be at most [0-9]+, the cores of this machine, not 4096"),
        ({"check": 0}, "check must be at least 1, not 0"),
        ({"time_limit": 0.0}, "time_limit must be a positive number of seconds, not 0"),
        ({"time_limit": float("nan")}, "time_limit must be a positive number of seconds, not nan"),
        ({"example": (EXAMPLE, EXAMPLE)}, r"does not run on inputs of shapes \(2, 3, 12, 12\), \(2, 3, 12, 12\)"),
        ({"example": EXAMPLE[:0]}, r"the example has the shape \(0, 3, 12, 12\)"),
        ({"example": EXAMPLE[:, :2]}, r"does not run on inputs of shape \(2, 2, 12, 12\)"),
        ({"model": nn.Softmax(1)}, "no layers whose latency could be measured"),
    ],
)
def test_bad_input_is_one_sentence(change, message):
    given = {"model": Small(), "example": EXAMPLE, "progress": False} | change
    with pytest.raises(UserError, match=message) as caught:
        profile(given.pop("model"), given.pop("example"), **given)
    assert "\n" not in str(caught.value)


def test_a_runtime_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime needs .*\(onnxruntime\): pip install 'regrow\[export\]'"):
        profile(Small(), EXAMPLE, runtime="onnxruntime")


# --- the command


TINY = ("--data-shape", "3,12,12", "--time-limit", "0.3", "--batch", "2", "--check", "2")


@pytest.mark.parametrize("runtime", ["eager", pytest.param("onnxruntime", marks=pytest.mark.thorough)])
def test_the_command_saves_a_table_and_closes_with_checks(runtime, tmp_path, capsys):
    skip_without(runtime)
    out = tmp_path / "new" / "table.json"
    assert cli.main(["profile", "test_profile:Small", *TINY, "--runtime", runtime, "--out", str(out)]) == 0
    table = LatencyTable.load(out)
    assert (table.batch, table.threads, table.machine.runtime) == (2, 1, runtime)
    assert [path.name for path in out.parent.iterdir()] == ["table.json"]
    printed, error = capsys.readouterr()
    assert re.match(r"measuring for up to \S+ s, then checking\n", error)  # where no terminal shows a bar
    assert f"2 images of 3×12×12, {runtime}, one thread" in printed
    assert "thin model 2" in printed
    assert "thin model 3" not in printed
    assert "median error" in printed
    assert printed.count(" ± ") == 2  # one a thin model
    assert "± holds in nine of ten cases" in printed
    assert f"saved to {out}" in printed


def test_the_command_refuses_a_busy_machine_unless_it_may_not(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(busy, "LIMITS", busy.Limits(dense=-1.0, units=-1.0))
    words = ["profile", "test_profile:Small", *TINY, "--out", str(tmp_path / "table.json")]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert "this machine is too busy to measure latency: " in error
    assert "(--allow-busy) accepts it all the same" in error
    assert not list(tmp_path.iterdir())
    assert cli.main([*words, "--allow-busy"]) == 0
    assert LatencyTable.load(tmp_path / "table.json").interval() is not None


def test_a_prediction_has_its_margin_and_the_machine_a_sentence():
    assert command.with_margin(0.012, (0.0112, 0.0128)) == "12.00 ± 0.800"
    assert command.with_margin(0.012, None) == "12.00"
    assert command.steadiness(Spread(reference=0.02)).endswith("how steady the machine was, spread by 2.0%")
    assert command.steadiness(Spread(0.02, 0.3)).endswith("2.0%, after a drift of 30% that was divided out")


def test_inspect_predicts_a_latency_with_its_margin(tmp_path, capsys):
    dense = fixed_latency.table_of(Small(), torch.zeros(2, 3, 12, 12))
    replace(dense, spread=Spread(wholes=0.1, freedom=4)).save(tmp_path / "table.json")
    words = ["--channels", "--latency", "0.6", "--table", str(tmp_path / "table.json"), "--data-shape", "3,12,12"]
    assert cli.main(["inspect", "test_profile:Small", *words]) == 0
    found = re.search(r"; predicted latency ([0-9.]+) ± ([0-9.]+) ms", capsys.readouterr().out)
    predicted, margin = (float(word) for word in found.groups())
    assert predicted <= 600 * dense.measured
    assert margin == pytest.approx(0.2132 * predicted, abs=1e-3)


def test_the_command_says_why_there_are_no_thin_models(tmp_path, capsys):
    out = tmp_path / "table.json"
    assert cli.main(["profile", "test_profile:stubborn", *TINY, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "the dense model" in printed
    assert "no thin copies could be made to check the table with" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--runtime", "onxruntime"), "there is no runtime 'onxruntime'; did you mean 'onnxruntime'?"),
        (("--batch", "0"), "--batch must be at least 1, not 0"),
        (("--threads", "-1"), "--threads must be at least 1, not -1"),
        (("--threads", "4096"), "--threads must be at most "),
        (("--classes", "0"), "--classes must be at least 1, not 0"),
        (("--check", "0"), "--check must be at least 1, not 0"),
        (("--time-limit", "-3"), "--time-limit must be a positive number of seconds, not -3"),
        (("--time-limit", "inf"), "--time-limit must be a positive number of seconds, not inf"),
        (("--batch", "many"), "argument --batch: invalid int value: 'many'"),
        (("--data-shape", "3,12"), "--data-shape must be channels, height and width"),
        (("--out", "{dir}"), "is a directory: name a file, such as {dir}/table.json"),
        (("--out", "{dir}/file/table.json"), "is not a directory that you may write to"),
    ],
)
def test_the_command_refuses_bad_input_with_exit_code_2(words, message, tmp_path, capsys):
    (tmp_path / "file").touch()
    given = [word.format(dir=tmp_path) for word in words]
    out = [] if "--out" in given else ["--out", str(tmp_path / "table.json")]
    assert cli.main(["profile", "test_profile:Small", *TINY, *given, *out]) == 2
    error = capsys.readouterr().err
    assert message.format(dir=tmp_path) in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_the_command_writes_into_a_pipe(tmp_path, monkeypatch):
    table, _ = profile(Small(), EXAMPLE, time_limit=0.5, check=1, progress=False)
    monkeypatch.setattr(profiling, "run", lambda *_, **__: profiling.Profile(table, (), "made up"))
    monkeypatch.setattr(command, "_print", lambda *_: None)
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    assert cli.main(["profile", "test_profile:Small", *TINY, "--out", str(tmp_path / "pipe")]) == 0
    reader.join(timeout=600)
    assert LatencyTable.from_json(json.loads(got[0])).to_json() == table.to_json()
    assert (tmp_path / "pipe").is_fifo()


def test_the_command_needs_out(capsys):
    assert cli.main(["profile", "digits-cnn"]) == 2
    assert "the following arguments are required: --out" in capsys.readouterr().err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["profile", "--help"])
    assert "regrow profile torchvision:resnet50 --out latency.json" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["measure", "verify"])
def test_an_interruption_writes_nothing_and_keeps_what_was_there(stage, tmp_path, monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(profiling, stage, interrupted)
    new, old = tmp_path / "new" / "table.json", tmp_path / "old.json"
    old.write_text("before")
    for out in (new, old):
        assert cli.main(["profile", "test_profile:Small", *TINY, "--out", str(out)]) == 130
        assert "interrupted" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert old.read_text() == "before"


def test_a_table_can_be_kept_inside_other_files(tmp_path):
    table, _ = profile(Small(), EXAMPLE, time_limit=0.5, check=1, progress=False)
    content = table.to_json()
    assert json.loads(json.dumps(content)) == content
    torch.save({"table": content}, tmp_path / "checkpoint.pt")
    read = LatencyTable.from_json(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["table"])
    assert read.to_json() == content
    assert read.model() == table.model()
