"""Where a model starts from: saved models, files of tensors, and what is said of those that do not fit."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import regrow
import tiny_recipe as tiny
from regrow import UserError
from regrow.cli import main
from regrow.training.initial import start_from
from regrow.training.recipe import load
from regrow.training.run import Run
from regrow.zoo.models import build


def network(classes: int = 10, seed: int = 0) -> nn.Module:
    return build("digits-cnn", classes, 1, seed=seed, width=4)


def state(**changes):
    return {**network(seed=5).state_dict(), **changes}


def same(model, tensors) -> bool:
    return all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())


WRAPPED = {
    "plain": lambda found: found,
    "model": lambda found: {"model": found, "epoch": 3, "optimizer": {"state": {}}},
    "state_dict": lambda found: {"state_dict": found, "best": 0.5, "args": [1, "x"]},
    "model_state_dict": lambda found: {"model_state_dict": found},
    "parallel": lambda found: {f"module.{name}": value for name, value in found.items()},
    "compiled": lambda found: {f"_orig_mod.{name}": value for name, value in found.items()},
    "both": lambda found: {"model": {f"module._orig_mod.{name}": value for name, value in found.items()}},
    "compiled parts": lambda found: {name.replace("features.", "features._orig_mod."): v for name, v in found.items()},
    "parameters": lambda found: {name: nn.Parameter(v, v.is_floating_point()) for name, v in found.items()},
    "without counters": lambda found: {name: v for name, v in found.items() if "num_batches" not in name},
    "other dtype": lambda found: {name: v.double() if v.is_floating_point() else v for name, v in found.items()},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_files_of_tensors(tmp_path, kind):
    expected = state()
    torch.save(WRAPPED[kind](expected), tmp_path / "dense.pt")
    model = network()
    start_from(model, str(tmp_path / "dense.pt"), 10)
    assert same(model, expected)


def test_old_files_of_torch_and_safetensors(tmp_path):
    torch.save(state(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state(), tmp_path / "dense.safetensors")
    for name in ("old.pth", "dense.safetensors"):
        model = network()
        start_from(model, str(tmp_path / name), 10)
        assert same(model, state())


def test_saved_models_and_runs(tmp_path):
    source = network(seed=5)
    regrow.save(source, tmp_path / "run" / "model")
    for place in ("run", "run/model"):
        model = network()
        start_from(model, str(tmp_path / place), 10)
        assert same(model, source.state_dict())


def test_a_run_starts_from_a_file(tmp_path):
    for seed in (0, 1):
        torch.save(network(seed=40 + seed).state_dict(), tmp_path / f"dense{seed}.pt")
    words = ["--model.weights", str(tmp_path / "dense{seed}.pt"), "--method.name", "dense", "--seed", "1"]
    run = Run(load(tiny.write(tmp_path), words), "x")
    assert same(run.model, network(seed=41).state_dict())


class Evil:
    def __reduce__(self):
        return exec, ("open('pwned', 'w').close()",)


BAD = [
    (lambda p: p.write_bytes(b""), "is damaged, or neither a file of tensors by torch.save nor one of safetensors"),
    (lambda p: p.write_bytes(b"PK\3\4" + b"x" * 99), "is damaged, or neither a file of tensors"),
    (lambda p: p.write_text("weights\n"), "is damaged, or neither a file of tensors|holds other Python objects"),
    (lambda p: p.write_bytes(pickle.dumps(Evil())), "holds other Python objects than tensors"),
    (lambda p: torch.save(Evil(), p), "holds other Python objects than tensors, which are not read"),
    (lambda p: torch.save(network(), p), "holds other Python objects than tensors, which are not read"),
    (lambda p: torch.save([1, 2], p), "holds no tensors by name: save model.state_dict()"),
    (lambda p: torch.save({}, p), "holds no tensors by name"),
    (lambda p: torch.save({"epoch": 3, **state()}, p), "holds a int under 'epoch', where a tensor of the model"),
    (lambda p: torch.save(state(**{"head.weight": [1.0]}), p), "holds a list under 'head.weight'"),
    (lambda p: torch.save(state(extra=torch.ones(1)), p), "has a tensor 'extra', which the model does not have"),
    (lambda p: torch.save({"a": torch.ones(1)}, p), "has no tensor 'features.0.0.weight', which the model has"),
    (lambda p: torch.save({k: v for k, v in state().items() if k != "head.bias"}, p), "has no tensor 'head.bias'"),
    (
        lambda p: torch.save(build("digits-cnn", 10, 1, width=3).state_dict(), p),
        r"the tensor 'features.0.0.weight' has shape \(3, 1, 3, 3\) in .*, but \(4, 1, 3, 3\) in the model",
    ),
    (lambda p: torch.save(state(**{"head.weight": torch.ones(10, 8).to_sparse()}), p), "something else than a plain"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_what_does_not_fit(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    write, message = BAD[number]
    write(tmp_path / "dense.pt")
    model = network()
    with pytest.raises(UserError, match=message) as error:
        start_from(model, "dense.pt", 10)
    assert "\n" not in str(error.value)
    assert same(model, network().state_dict())
    assert not (tmp_path / "pwned").exists()


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist: give a run directory, a model saved by regrow, or"):
        start_from(network(), str(tmp_path / "nowhere"), 10)
    with pytest.raises(UserError, match=r"holds no saved model: manifest\.json cannot be read"):
        start_from(network(), str(tmp_path), 10)


@pytest.mark.parametrize("kind", ["file", "saved", "thin"])
@pytest.mark.parametrize("classes", [7, 100])
def test_a_head_of_other_classes_is_named(tmp_path, kind, classes):
    source = build("digits-cnn", classes, 1, width=16)
    place = tmp_path / "dense.pt"
    if kind == "file":
        torch.save(source.state_dict(), place)
    elif kind == "saved":
        regrow.save(source, place)
    else:
        optimizer = torch.optim.SGD(source.parameters(), 0.1)
        sparsifier = regrow.Sparsifier(
            source, optimizer, pattern=regrow.Channels(flops=0.4, round_to=1), method="uniform", total_steps=1,
            example_inputs=torch.randn(2, 1, 8, 8),
        )  # fmt: skip
        regrow.save(sparsifier.compact(), place)
    model = build("digits-cnn", 10, 1, width=16)
    with pytest.raises(UserError) as error:
        start_from(model, str(place), 10)
    assert f"is of a model with {classes} classes, but the data has 10: the head 'head.weight'" in str(error.value)


@pytest.mark.parametrize("option", ["num_classes", "in_channels", "in_chans"])
def test_what_follows_from_the_data_is_no_option(tmp_path, option, capsys):
    words = ["train", str(tiny.write(tmp_path)), "--out", str(tmp_path / "out"), f"--model.options.{option}", "7"]
    assert main(words) == 2
    said = f"regrow: model.options.{option} follows from the data (generated:1x8x8:10:160): leave it out\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("option", ["spec", "seed", "options", "function"])
def test_an_option_may_have_any_name(tmp_path, option, capsys):
    words = ["train", str(tiny.write(tmp_path)), "--out", str(tmp_path / "out"), f"--model.options.{option}", "7"]
    assert main(words) == 2
    assert f"'digits-cnn' has no option '{option}'" in capsys.readouterr().err
