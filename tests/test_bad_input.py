"""Bad input through the real command: exit code 2, one sentence on stderr, nothing written."""

import os
import pickle
import subprocess
import sys

import pytest
import torch

import tiny_recipe as tiny
from regrow.cli import main
from regrow.training import checkpoint

MODELS = """
from torch import nn
def text(num_classes): return "model"
def wrong_outputs(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
def breaks(num_classes): raise RuntimeError("no\\nway")
def two_outputs(num_classes):
    class Two(nn.Linear):
        def forward(self, x): return super().forward(x.flatten(1)), 1
    return Two(64, num_classes)
"""


def tree(directory):
    """Every file below a directory, with its content."""
    return {str(p.relative_to(directory)): p.read_bytes() if p.is_file() else None for p in directory.rglob("*")}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with a good recipe, bad ones, a stopped run and other people's files; the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    tiny.write(tmp_path)
    (tmp_path / "bad_models.py").write_text(MODELS)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "broken.yaml").write_text("model: {name: x\n")
    (tmp_path / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    (tmp_path / "loop.yaml").write_text("base: loop.yaml\n")
    (tmp_path / "orphan.yaml").write_text("base: nowhere\n")
    (tmp_path / "object.yaml").write_text("seed: !!python/object/apply:os.system ['touch pwned']\n")
    (tmp_path / "huge.yaml").write_text("#" * 1_000_001)
    (tmp_path / "file").write_text("")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "images" / "train" / "cat").mkdir(parents=True)
    yield tmp_path
    sys.modules.pop("bad_models", None)


def check(place, capsys, words, message):
    before = tree(place)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.startswith("regrow: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert out == ""
    assert tree(place) == before


RECIPES = [
    ("missing.yaml", "cannot read the recipe missing.yaml: No such file or directory"),
    ("digits-ie", "no shipped recipe 'digits-ie'; did you mean 'digits-iee'?"),
    ("empty", "no shipped recipe 'empty'"),
    ("binary.yaml", "binary.yaml is not a recipe: it is no text file"),
    ("list.yaml", "a recipe must be a mapping of keys to values, not [1, 2]"),
    ("empty.yaml", "give either epochs or steps"),
    ("broken.yaml", "broken.yaml, line 2 is not valid YAML"),
    ("twice.yaml", "twice.yaml, line 2 is not valid YAML: the key 'seed' is given twice"),
    ("loop.yaml", "recipe loop.yaml is its own base"),
    ("orphan.yaml", "no shipped recipe 'nowhere'"),
    ("object.yaml", "object.yaml, line 1 is not valid YAML"),
    ("huge.yaml", "huge.yaml is too large for a recipe"),
]


@pytest.mark.parametrize(("recipe", "message"), RECIPES)
def test_recipes(place, capsys, recipe, message):
    check(place, capsys, ["train", recipe, "--out", "out"], message)


OVERRIDES = [
    ("--epoch 3", "unknown key 'epoch'; did you mean 'epochs'?"),
    ("--method.hh 3", "unknown key 'method.hh'; did you mean 'method.h'?"),
    ("--optimizer.betas 0.9,0.99", "unknown key 'optimizer.betas'"),
    ("--schedule.gamma 0.1", "unknown key 'schedule.gamma'"),
    ("--method.name magic", "unknown method 'magic' in method.name; valid names are acdc, chase, dense, dsr, gap"),
    ("--method.h -3", "method: h is -3, but must be a whole number of steps, at least 1"),
    ("--method.h 300", "total_steps=30 is too short for one update"),
    ("--method.update_end 3.5", "update_end"),
    ("--pattern.sparsity 1.5", "pattern: sparsity is 1.5, but must lie in [0, 1)"),
    ("--pattern.sparsity 90%", "pattern.sparsity must be a number, not '90%'; did you mean 0.9 (90%)?"),
    ("--data.val_fraction 12.5%", "did you mean 0.125 (12.5%)?"),
    ("--pattern.sparsity lots", "pattern.sparsity must be a number, not 'lots'"),
    ("--pattern.distribution erg", "distribution 'erg' is unknown; did you mean 'er'?"),
    ("--pattern.distribution={nothing: 0.5}", "nothing"),
    ("--pattern.exclude nothing", "nothing"),
    ("--criterion taylr", "unknown criterion 'taylr'; did you mean 'taylor'?"),
    ("--optimizer.lr 0", "optimizer.lr must be greater than 0, not 0"),
    ("--train.ema 1.5", "train.ema must be greater than 0 and at most 0.999999"),
    ("--train.precision fp16", "train.precision fp16 needs a GPU"),
    ("--method.name RigL", "did you mean 'rigl'?"),
    ("--pattern.name Weights", "did you mean 'weights'?"),
    ("--pattern.distribution ERK", "distribution 'ERK' is unknown; did you mean 'erk'?"),
    ("--criterion L2", "unknown criterion 'L2'; did you mean 'l2'?"),
    ("--steps 0", "steps must be at least 1, not 0"),
    ("--epochs 1 --steps 1", "give either epochs or steps, not both"),
    ("--seed", "--seed needs a value"),
    ("--compare.rigl.h 3", "unknown key 'compare.rigl.h'"),
    ("--model.name wrn23-2", "'wrn23-2': the depth of a WideResNet is 6n + 4"),
    ("--model.name digits-cmn", "unknown model 'digits-cmn'; did you mean 'digits-cnn'?"),
    ("--model.options.depth 3", "'digits-cnn' has no option 'depth'"),
    ("--model.name torchvision:resnet51", "torchvision has no model 'resnet51'"),
    ("--model.name torchvision:resnet18 --model.options {}", "takes images of 3 channels, not 1"),
    ("--model.name bad_models:text --model.options {}", "returned a str, not a torch.nn.Module"),
    ("--model.name bad_models:breaks --model.options {}", "cannot be built: no"),
    ("--model.name bad_models:nothing --model.options {}", "there is no 'nothing' in 'bad_models'"),
    ("--model.name bad_models:wrong_outputs --model.options {}", "gives (1, 3) for one image, but a tensor (1, 10)"),
    ("--model.name bad_models:two_outputs --model.options {}", "gives tuple for one image"),
    ("--model.name no_such_package:f --model.options {}", "the module 'no_such_package' cannot be imported"),
    ("--data.name mnist", "unknown data set 'mnist'"),
    ("--data.name folder:nowhere", "nowhere"),
    ("--data.name folder:images", "images"),
    ("--data.name imagenet:nowhere", "nowhere"),
    ("--data.name generated:0", "generated"),
    ("--data.batch_size 1000", "batch_size=1000 is more than the 144 training images"),
    ("--data.size 4", "size=4 does not apply to the data set"),
    ("--data.val_fraction 0.95", "data.val_fraction must be between 0 and 0.9, not 0.95"),
    ("--out file", "file is a file: choose another --out"),
    ("--out foreign", "foreign holds something else than a run (thesis.tex): choose another --out"),
    ("--out /proc/nowhere/run", "cannot write to /proc/nowhere/run"),
    ("--resume", "--resume needs --out"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), OVERRIDES)
def test_train(place, capsys, words, message):
    pieces = [words] if "{nothing" in words else words.split()
    out = [] if pieces[0] in ("--out", "--resume", "--seed") else ["--out", "out"]
    check(place, capsys, ["train", "tiny.yaml", *pieces, *out], message)


COMMANDS = [
    ("tran digits-iee", "there is no command 'tran'; did you mean 'train'?"),
    ("--nonsense", "unknown option --nonsense"),
    ("train", "train needs a RECIPE: a YAML file, or one of cifar10-wrn22-2-channels"),
    ("train tiny.yaml other.yaml", "unrecognized arguments: other.yaml"),
    ("compare tiny.yaml --methods iee,magic", "unknown method 'magic'"),
    ("compare tiny.yaml --methods ,", "--methods is empty"),
    ("compare tiny.yaml --methods iee,iee", "--methods names 'iee' twice"),
    ("compare tiny.yaml --seeds one", "--seeds must be whole numbers such as 0,1,2, not 'one'"),
    ("compare tiny.yaml --jobs 0", "--jobs must be at least 1, not 0"),
    ("compare tiny.yaml --jobs many", "invalid int value: 'many'"),
    ("compare tiny.yaml --match size", "invalid choice: 'size'"),
    (
        "compare tiny.yaml --match time",
        "--match time is for thin channels: with pattern weights, steps under masks take",
    ),
    ("compare tiny.yaml --methods iee,rigl", "total_steps=30 is too short for one update"),
    ("compare tiny.yaml --out foreign", "foreign holds something else than a comparison (thesis.tex)"),
    ("compare tiny.yaml --out file", "file is a file: choose another --out"),
    ("inspect wrn22-2 --sparsity 2", "sparsity is 2.0, but must lie in [0, 1)"),
    ("inspect wrn22-2 --distribution x", "distribution 'x' is unknown"),
    ("inspect wrn22-2 --data-shape 3,32", "--data-shape must be channels, height and width such as 3,32,32"),
    ("inspect wrn22-2 --exclude nothing", "nothing"),
    ("inspect wrn22-2 --sparsity 90%", "invalid float value: '90%'; did you mean 0.9 (90%)?"),
    ("inspect wrn22-2 --classes 0", "--classes must be at least 1, not 0"),
    ("inspect digits-cnn --flops 0.5", "--flops is for channels: add --channels"),
    ("inspect digits-cnn --channels --sparsity 0.5", "--sparsity is not for channels: drop it, or drop --channels"),
    ("inspect digits-cnn --channels --latency 0.5", "--latency needs --table, which `regrow profile` writes"),
    ("inspect digits-cnn --channels --flops 0.001", "flops=0.001 cannot be met"),
    ("inspect digits-cnn --channels --flops 0.5 --round-to 0", "round_to is 0"),
    ("inspect digits-cnn --channels --exclude nothing", "is named 'nothing'"),
    ("inspect resnet", "unknown model 'resnet'; did you mean 'torchvision:resnet"),
    ("inspect resnet50", "unknown model 'resnet50'; did you mean 'torchvision:resnet50' or 'timm:resnet50'?"),
    ("inspect ResNet50 --channels", "did you mean 'torchvision:resnet50' or 'timm:resnet50'?"),
    ("profile vit_b_16 --out x.json", "unknown model 'vit_b_16'; did you mean 'torchvision:vit_b_16'?"),
    ("train digits-iee --model.name mobilenetv1_100", "did you mean 'timm:mobilenetv1_100'?"),
    ("train digits-iee --method rigl", "must be a mapping of keys to values: write --method.name rigl, or in a file"),
    ("compare digits-iee --pattern channels", "write --pattern.name channels"),
    ("inspect bad_models:text", "the input shape of 'bad_models:text' is not known: give one, such as --data-shape"),
    ("inspect bad_models:texd", "there is no 'texd' in 'bad_models'; did you mean 'text'?"),
    ("inspect no_such:f", "'no_such:f': the module 'no_such' cannot be imported: No module named 'no_such'"),
    ("inspect torchvison:resnet18", "No module named 'torchvison'; did you mean 'torchvision:resnet18'?"),
    ("inspect :f", "':f' is not of the form package.module:callable"),
    ("inspect ..up:f", "'..up:f' is not of the form package.module:callable"),
    ("inspect bad_models:a:b", "'bad_models:a:b' is not of the form package.module:callable"),
    ("inspect timm:xyzzy", "timm has no model 'xyzzy'; timm.list_models() lists what it has"),
    ("inspect timm:resnet5", "timm has no model 'resnet5'; did you mean 'resnet50"),
    ("inspect torchvision:xyzzy", "torchvision has no model 'xyzzy'; torchvision.models.list_models() lists what"),
    ("inspect torchvision:keypointrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn needs more than boxes to train on"),
    ("inspect torchvision:r3d_18", "r3d_18 is a model for video, but only those for images, detection and"),
    ("inspect torchvision:raft_large", "raft_large is a model for optical flow, but only those for images"),
    ("train tiny.yaml --method.update_end 1 --out out", "for the whole run write update_end=1.0"),
    ("compare tiny.yaml --compare.a/b.name rigl", "compare has the key 'a/b', but it names files"),
    ("compare tiny.yaml --compare.mine:Own.h 3", "a class of your own is compare.LABEL.name: mine:Own"),
    ("compare tiny.yaml --compare={../x:{name:rigl}}", "compare has the key '../x"),
    ("inspect", "the following arguments are required: MODEL"),
    ("report", "the following arguments are required: RUN_DIR"),
    ("report nowhere", "nowhere does not exist"),
    ("report empty", "empty holds no run"),
    ("report file", "file is a file"),
]


@pytest.mark.parametrize(("words", "message"), COMMANDS)
def test_commands(place, capsys, words, message):
    check(place, capsys, words.split(), message)


class Evil:
    """Unpickling this would leave a file behind."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


def _truncated(path):
    path.write_bytes(path.read_bytes()[:1000])


def _edited(**changes):
    def damage(path):
        state = {**torch.load(path, weights_only=True), **changes}
        torch.save({**state, "checksum": checkpoint.checksum(state)}, path)

    return damage


CHECKPOINTS = [
    (_truncated, "state.pt is damaged or no checkpoint of regrow"),
    (lambda path: path.write_bytes(b""), "state.pt is damaged or no checkpoint of regrow"),
    (lambda path: path.write_bytes(pickle.dumps(Evil())), "state.pt is damaged or no checkpoint of regrow"),
    (lambda path: torch.save({"state_dict": {}}, path), "state.pt is not a checkpoint of regrow"),
    (lambda path: torch.save([1], path), "state.pt is not a checkpoint of regrow"),
    (_edited(version=99), "has format version 99, this regrow reads 1 and 2: update regrow"),
    (_edited(model={}), "is there in only one of checkpoint and model; start anew with another --out"),
    (_edited(optimizer={}), "state.pt is damaged: optimizer.state is missing: start anew with another --out"),
    (_edited(sparsifier={"format": 0}), "it is at step 30, but its sparsifier at None"),
    (_edited(step="x"), "state.pt is damaged: step should be a valid integer"),
    (_edited(step=31), "it is at step 31, but the run has only 30"),
    (_edited(loss=[0.0, -1, 0.0]), "state.pt is damaged: loss"),
    (_edited(seconds=float("inf")), "state.pt is damaged: seconds should be a finite number"),
    (_edited(start_active={"x": 1}), "start_active has other names than the model"),
    (_edited(surprise=1), "state.pt is damaged: surprise does not belong there"),
    (
        _edited(processes=2),
        "was begun by 2 processes, and one process would train another model: continue it with "
        "`ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 -m regrow train --out run --resume`, "
        "or start anew with another --out",
    ),
    (lambda path: (path.parents[1] / "recipe.yaml").write_text("a: [\n"), "recipe.yaml cannot be read"),
    (lambda path: (path.parents[1] / "recipe.yaml").write_text("a: 1\n"), "a differs from the recipe"),
]


@pytest.mark.parametrize(("damage", "message"), CHECKPOINTS)
def test_checkpoints(place, capsys, damage, message):
    assert main(["train", "tiny.yaml", "--out", "run", "--quiet", "--no-report"]) == 0
    (place / "run" / "results.json").unlink()
    damage(place / "run" / "checkpoint" / "state.pt")
    check(place, capsys, ["train", "tiny.yaml", "--out", "run", "--resume"], message)


def test_a_run_is_neither_overwritten_nor_continued_with_another_recipe(place, capsys):
    assert main(["train", "tiny.yaml", "--out", "run", "--quiet", "--no-report"]) == 0
    check(place, capsys, ["train", "tiny.yaml", "--out", "run"], "run already holds a run: continue it with --resume")
    other = ["train", "tiny.yaml", "--seed", "5", "--out", "run", "--resume"]
    check(place, capsys, other, "seed differs from the recipe that run was started with")
    check(place, capsys, ["compare", "tiny.yaml", "--methods", "iee", "--out", "run"], "run holds something else than")


@pytest.mark.parametrize(
    "words",
    [
        ["train", "tiny.yaml", "--method.h", "300", "--out", "out"],
        ["train", "missing.yaml"],
        ["inspect", "wrn22-2", "--sparsity", "2"],
    ],
)
def test_the_real_command(place, words):
    before = tree(place)
    done = subprocess.run([sys.executable, "-m", "regrow", *words], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert tree(place) == before


def test_debug_shows_the_traceback(place):
    with pytest.raises(ValueError, match=r"cannot read the recipe missing\.yaml"):
        main(["train", "missing.yaml", "--debug"])
