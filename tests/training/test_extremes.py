"""Numbers at their extremes: what is accepted also runs. benchmarks/reliability/recipes.py walks all of them."""

import pytest

import tiny_recipe as tiny
from regrow.cli import main
from regrow.training.recipe import load, registries
from regrow.training.sections import DataSection, TopSection, TrainSection
from regrow.training.typed import leaves

LARGE = ["1e39", "1e308", "9" * 400, "9" * 5000, "inf", "nan", "-1e308", "1e999"]
# words → what the sentence says; all of them were tracebacks once, or the end of the memory
REFUSED = [
    ("--optimizer.momentum 1", "optimizer.momentum must be between 0 and 0.999999, not 1.0"),
    ("--optimizer.name rmsprop --optimizer.alpha 1", "optimizer.alpha must be between 0 and 0.999999, not 1.0"),
    (
        "--optimizer.name schedulefree-sgd --optimizer.momentum 1",
        "optimizer.momentum must be greater than 0 and at most",
    ),
    ("--optimizer.name muon --optimizer.momentum 1", "optimizer.momentum must be between 0 and 0.999999"),
    ("--optimizer.name adam --optimizer.eps 1e-50", "optimizer.eps must be at least 1e-30, not 1e-50"),
    ("--optimizer.lr 1e39", "optimizer.lr must be a number between ±1e+18, not 1e+39"),
    ("--optimizer.weight_decay 1e9", "optimizer.weight_decay must be at most 1000000, not 1000000000.0"),
    ("--method.update_end 1e18", "update_end=1e+18 lies outside the run of 30 steps"),
    ("--method.update_end 1.5", "update_end=1.5 lies outside the run of 30 steps"),
    ("--train.recalibrate 1000000000000", "train.recalibrate must be at most 1000000, not 1000000000000"),
    ("--train.accumulate 65536", "train.accumulate must be at most 4096, not 65536"),
    ("--train.latency_batch 1000000", "train.latency_batch must be at most 4096, not 1000000"),
    ("--steps 10000000000000", "steps must be at most 1000000000000"),
    ("--seed 99999999999999999999", "seed must be between 0 and 2147483647, not 99999999999999999999"),
    ("--method.budget.start nan", "method.budget.start must be a number, not 'nan'"),
    ("--data.name generated:99999999999999999999", "is not generated:N or generated:CxHxW:CLASSES:N"),
    ("--data.name generated:1x8x8:4:999999999", "too large to keep in memory: at most 8,589,934,592 pixels"),
    ("--data.name generated:1x8x8:99999999:48", "too large to keep in memory"),
    ("--model.options.width 0", "the width of 'digits-cnn' must be at least 1, not 0"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_refused_before_anything_runs(tmp_path, capsys, words, message):
    given = ["train", str(tiny.write(tmp_path)), "--out", str(tmp_path / "out"), *words.split()]
    assert main(given) == 2
    _, err = capsys.readouterr()
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def numbers():
    """Every key of every section that takes a number, with the name of the section's class."""
    for section, cls in (("", TopSection), ("data", DataSection), ("train", TrainSection)):
        yield from ((section, "", key, hint) for key, hint in leaves(cls))
    for section, classes in registries().items():
        for name, cls in classes.items():
            yield from ((section, name, key, hint) for key, hint in leaves(cls))


KEYS = [(s, n, key) for s, n, key, hint in numbers() if any(word in str(hint) for word in ("int", "float"))]


@pytest.mark.parametrize(("section", "name", "key"), KEYS)
def test_no_number_is_too_large_for_a_sentence(tmp_path, capsys, section, name, key):
    dotted = f"{section}.{key}" if section else key
    words = ["train", str(tiny.write(tmp_path)), "--print_config"]
    if name:
        words += [f"--{section}.name", name]
    if section == "pattern" and name == "channels" and key != "flops":
        words += ["--pattern.flops", "0.5"]
    for value in LARGE:
        assert main([*words, f"--{dotted}={value}"]) == 2, value
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith("regrow: ")
        assert len(err) < 400


@pytest.mark.parametrize(
    "words",
    [
        ["--train.eval_every", "5e-324"],
        ["--optimizer.lr", "5e-324", "--optimizer.momentum", "0.999999"],
        ["--optimizer.name", "adamw", "--optimizer.eps", "1e-30", "--optimizer.betas", "0,0"],
        ["--schedule.warmup", "5e-324", "--train.clip_norm", "5e-324"],
        ["--schedule.name", "step", "--schedule.every", "5e-324", "--schedule.gamma", "5e-324"],
        ["--train.recalibrate", "1000000", "--train.log_every", "1000000000000"],
        ["--method.shadow_every", "1000000000000", "--method.q", "0"],
    ],
)
def test_what_is_accepted_runs(tmp_path, words):
    given = ["train", str(tiny.write(tmp_path)), "--out", str(tmp_path / "out"), "--quiet", "--no-report", *words]
    assert main(given) == 0
    assert load(tmp_path / "out" / "recipe.yaml") == load(tmp_path / "tiny.yaml", words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "TINY", "--seeds", "9" * 5000], "--seeds must be whole numbers such as 0,1,2, not '9999"),
        (["compare", "TINY", "--jobs", "9" * 50], "argument --jobs: '9999"),
        (["inspect", "digits-cnn", "--data-shape", f"1,8,{'9' * 5000}"], "--data-shape must be channels, height and"),
        (["inspect", "digits-cnn", "--data-shape", "1,8,99999999"], "--data-shape must be channels, height and width"),
        (["inspect", "digits-cnn", "--channels", "--flops", "0.5", "--round-to", "9" * 50], "argument --round-to: '99"),
        (["inspect", f"wrn{'9' * 5000}-1"], "unknown model 'wrn9999"),
        (["profile", "digits-cnn", "--out", "t.json", "--check", "9" * 400], "argument --check: '9999"),
    ],
)
def test_the_command_lines_own_numbers(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert main([str(tiny.write(tmp_path)) if word == "TINY" else word for word in words]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert (out, err.count("\n")) == ("", 1)
