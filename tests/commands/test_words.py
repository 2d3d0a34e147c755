"""The words of the command line: what says nothing is refused, in one sentence that names the option."""

from __future__ import annotations

import pytest

from regrow.cli import main
from regrow.commands.words import seeds_of, vary_of


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize(
    "words",
    [
        "demo --out", "train digits-iee --out", "train digits-iee --label", "compare digits-iee --methods",
        "compare digits-iee --seeds", "inspect wrn22-2 --exclude", "inspect wrn22-2 --data-shape",
        "inspect wrn22-2 --distribution", "profile wrn22-2 --out", "report runs --out",
    ],
)  # fmt: skip
def test_empty_values(words: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words.split(), value]) == 2
    option = words.split()[-1]
    said = capsys.readouterr()
    assert said.err.startswith(f"regrow: argument {option}: is empty")
    assert (said.out, said.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("text", ["0,0", "0,00", "1,2,01"])
def test_seeds_are_told_apart_by_number(text: str) -> None:
    with pytest.raises(ValueError, match=r"--seeds names '\d' twice"):
        seeds_of(text)


def test_a_table_is_for_latency(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "digits-cnn", "--channels", "--flops", "0.5", "--table", "file"]) == 2
    assert "--table prices latency: add --latency, or drop it" in capsys.readouterr().err


def test_commas_inside_of_brackets_are_part_of_a_value() -> None:
    found = vary_of(["schedule.milestones=[30, 60],[0.5]", "method.budget={shape: linear, start: 0.2}, x", "seed="])
    assert found == {
        "schedule.milestones": [[30, 60], [0.5]],
        "method.budget": [{"shape": "linear", "start": 0.2}, "x"],
        "seed": [],
    }
