"""The file that keeps how long steps take: read as it was written, damage said, what it depends on."""

import json

import pytest

import tiny_recipe as tiny
from regrow import UserError
from regrow.plan import StepTimes
from regrow.study import step_times
from regrow.training.recipe import load

TIMES = {"a": StepTimes(0.1, 0.05, 1 / 30, 0.11, 0.0, 0.2, 0.01, 0.1 + 0.2, 0.4), "b": StepTimes(*[1.0] * 9)}


def test_it_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "step_times.json"
    assert step_times.read(path) == {}
    step_times.write(path, TIMES)
    assert step_times.read(path) == TIMES


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], r"is not valid JSON \(line \d+\), perhaps cut short"),
        (lambda text: text.replace("0.05", "0.06"), "is damaged, or was edited: its checksum differs"),
        (lambda text: text.replace("0.05", "0.0"), r"is damaged: times\.a\.even should be greater than 0"),
        (lambda text: text.replace("0.05", "NaN"), r"is damaged: times\.a\.even should be a finite number"),
        (lambda text: text.replace('"scoring"', '"other"'), r"is damaged: times\.a\.scoring is missing"),
        (lambda text: text.replace("regrow-step-times", "regrow-latency"), "is damaged: format should be"),
        (lambda text: json.dumps({**json.loads(text), "checksum": None}), "is damaged: checksum should be"),
    ],
)
def test_damage_is_one_sentence(tmp_path, damage, said):
    path = tmp_path / "step_times.json"
    step_times.write(path, TIMES)
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=said) as raised:
        step_times.read(path)
    assert str(raised.value).startswith(str(path))
    assert str(raised.value).endswith(": put it back as it was, or choose another --out")
    assert "\n" not in str(raised.value)


def test_a_directory_in_its_place(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        step_times.read(tmp_path)


def test_what_a_step_depends_on(tmp_path):
    path = tiny.write(tmp_path)
    recipe = load(path, tiny.CHANNELS)

    def same(*words, ranking=True):
        other = load(path, [*tiny.CHANNELS, *words])
        return step_times.key_of(other, ranking) == step_times.key_of(recipe, ranking)

    alike = {"method.name": "halp", "steps": "40", "seed": "1", "optimizer.lr": "1", "model.weights": "x",
             "train.planned_seconds": "2.0", "schedule.name": "constant"}  # fmt: skip
    for key, value in alike.items():
        assert same(f"--{key}", value)
    unlike = {"data.batch_size": "8", "pattern.flops": "0.5", "optimizer.name": "adam", "train.threads": "2",
              "train.precision": "bf16", "model.options.width": "4"}  # fmt: skip
    for key, value in unlike.items():
        assert not same(f"--{key}", value)
    for key, value in (("pattern.solver", "grouped"), ("criterion", "magnitude")):
        assert not same(f"--{key}", value)
        assert same(f"--{key}", value, ranking=False)
