"""The training loop: what it writes, what each option does, and what it refuses."""

import errno
import json
import os
import sys

import pytest
import torch
from torch import nn

import fixed_latency
import regrow
import tiny_recipe as tiny
from regrow import UserError, storage
from regrow.training import loop
from regrow.training import run as run_module
from regrow.training.recipe import differences, load, shipped
from regrow.training.stepping import train_step
from regrow.zoo.models import build
from regrow.zoo.networks import DigitsCNN


def run(tmp_path, *overrides, extra="", **options):
    """Train the tiny recipe; its directory and results."""
    out = tmp_path / "run"
    found = loop.train(load(tiny.write(tmp_path, extra), overrides), out, quiet=True, **options)
    return out, found


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def saved_model(out):
    return storage.load(build("digits-cnn", 10, 1, width=4), out / "model")


def test_a_run_leaves_what_the_documentation_says(tmp_path):
    out, found = run(tmp_path)
    names = sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
    assert names == ["checkpoint", "metrics.jsonl", "model", "recipe.yaml", "results.json", "structure.json"]
    assert load(out / "recipe.yaml") == load(tiny.write(tmp_path))
    assert json.loads((out / "results.json").read_text()) == found
    [entry] = found["runs"]
    documented = {
        "method",
        "seed",
        "accuracy",
        "density",
        "sparsity",
        "training_cost",
        "inference_flops",
        "dense_flops",
    }
    documented |= {"dense_flops", "seconds", "steps", "explore_steps"}
    documented |= {"parameters", "dense_parameters", "bytes", "dense_bytes", "saved_bytes", "model", "test_images"}
    documented |= {"environment", "finished", "dense_gradients"}
    assert entry.keys() == documented | {
        "label",
        "validation_accuracy",
        "by_phase",
        "run",
        "cost_steps",
        "planned_seconds",
    }
    assert entry["cost_steps"] is entry["planned_seconds"] is None
    assert (entry["method"], entry["steps"], entry["explore_steps"]) == ("iee", 30, 6)
    assert entry["density"] == pytest.approx(0.2, abs=1e-3)
    assert sum(entry["by_phase"].values()) == pytest.approx(entry["training_cost"])
    assert 0 < entry["inference_flops"] < entry["dense_flops"]
    assert found["summary"][0]["label"] == "iee"


def test_metrics(tmp_path):
    out, found = run(tmp_path)
    lines = metrics(out)
    assert [line["step"] for line in lines] == [5, 9, 10, 15, 18, 20, 25, 27, 30, 30, 30]
    assert [line["split"] for line in lines if "split" in line] == ["val"] * 4 + ["test"]
    assert [line["phase"] for line in lines] == ["improve", "estimate", "estimate", "explore"] + ["fixed"] * 7
    for line in lines:
        assert {"step", "epoch", "phase", "loss", "lr", "density", "seconds", "cost"} <= line.keys()
    assert lines[-1]["accuracy"] == found["runs"][0]["accuracy"]
    assert lines[-1]["cost"] == pytest.approx(found["runs"][0]["training_cost"])
    assert [line["cost"] for line in lines] == sorted(line["cost"] for line in lines)


def test_the_saved_model_is_the_one_that_was_measured(tmp_path):
    out, found = run(tmp_path)
    model = saved_model(out).eval()
    data = regrow.data.named.load("generated:1x8x8:10:160", batch_size=16)
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.test.epoch(0))
    assert right / data.test.examples == pytest.approx(found["runs"][0]["accuracy"])
    structure = json.loads((out / "structure.json").read_text())
    parameters = dict(model.named_parameters())
    assert [update["update"] for update in structure["history"]] == [1, 2]
    for layer in structure["layers"]:
        assert int((parameters[layer["name"]] != 0).sum()) == layer["active"] == layer["start_active"]
        assert layer["total"] == parameters[layer["name"]].numel()


@pytest.mark.parametrize(
    "words",
    [
        "--method.name rigl --method.interval 5",
        "--method.name set --method.interval 5 --optimizer.name adam",
        "--method.name static --optimizer.name adamw --optimizer.decay_norms false",
        "--method.name gmp --method.interval 5 --optimizer.name rmsprop",
        "--method.name oneshot --method.h 4",
        "--optimizer.name muon",
        "--optimizer.name schedulefree-sgd --schedule.name constant",
        "--optimizer.name schedulefree-adamw --schedule.name constant --train.ema 0.9",
        "--train.precision bf16 --train.label_smoothing 0.1 --schedule.name onecycle",
        "--train.accumulate 2 --train.clip_norm 0.5 --schedule.name step",
        "--train.ema 0.9 --train.recalibrate 3",
        "--criterion taylor --data.val_fraction 0",
    ],
)
def test_options_work_and_keep_the_sparsity(tmp_path, words):
    out, found = run(tmp_path, *words.split())
    model = saved_model(out)
    total = kept = 0
    for name, p in model.named_parameters():
        if name.endswith("weight") and p.dim() > 1:
            total, kept = total + p.numel(), kept + int((p != 0).sum())
    assert kept / total <= found["runs"][0]["density"] + 1e-9
    assert found["runs"][0]["density"] == pytest.approx(0.2, abs=1e-3)


@pytest.mark.parametrize("asked", [False, True])
def test_the_memory_format_of_training_images_is_what_was_asked_for(tmp_path, monkeypatch, asked):
    seen, forward = set(), DigitsCNN.forward

    def spy(self, x):
        if self.training and len(x) == 16:
            seen.add(x.is_contiguous(memory_format=torch.channels_last))
        return forward(self, x)

    monkeypatch.setattr(DigitsCNN, "forward", spy)
    run(tmp_path, "--data.name", "generated:3x8x8:10:160", "--train.channels_last", str(asked).lower())
    assert seen == {asked}


def test_dense_removes_nothing(tmp_path):
    out, found = run(tmp_path, "--method.name", "dense")
    [entry] = found["runs"]
    assert (entry["density"], entry["training_cost"]) == (1.0, 1.0)
    assert entry["inference_flops"] == entry["dense_flops"]
    assert all((p != 0).all() for name, p in saved_model(out).named_parameters() if p.dim() > 1)


def test_without_a_validation_split_the_test_set_is_seen_once(tmp_path):
    out, found = run(tmp_path, "--data.val_fraction", "0")
    assert [line["split"] for line in metrics(out) if "split" in line] == ["test"]
    assert found["runs"][0]["validation_accuracy"] is None


def test_the_same_recipe_gives_the_same_run(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = run(tmp_path / "a")[0], run(tmp_path / "b")[0]
    name = f"model/{storage.WEIGHTS}"
    assert (one / name).read_bytes() == (two / name).read_bytes()


def test_accumulated_gradients_are_those_of_the_large_batch(tmp_path):
    recipe = load(tiny.write(tmp_path), ["--train.accumulate", "4"])
    assert loop.Run(recipe, "iee").steps_per_epoch == 9 / 4
    grads = []
    for accumulate, words in ((1, []), (4, ["--train.accumulate", "4"])):
        part = loop.Run(load(tiny.write(tmp_path), ["--model.options.width", "2", *words]), "iee")
        part.model.eval()  # batch statistics differ between the two
        seen = []
        part.optimizer.optimizer.register_step_pre_hook(
            lambda o, *_, seen=seen: seen.append([p.grad.clone() for g in o.param_groups for p in g["params"]])
        )
        stream = part.stream.starting_at(0)
        if accumulate == 1:
            images, labels = (torch.cat(parts) for parts in zip(*(next(stream) for _ in range(4)), strict=True))
            stream = iter([(images, labels)])
        train_step(part, stream)
        grads.append(seen[0])
    for one, four in zip(*grads, strict=True):
        torch.testing.assert_close(one, four, rtol=1e-4, atol=1e-6)


def test_clipping_sees_only_what_trains(tmp_path):
    part = loop.Run(load(tiny.write(tmp_path), ["--train.clip_norm", "0.001"]), "iee")
    norms = []

    def record(optimizer, *_):
        params = [p for group in optimizer.param_groups for p in group["params"]]
        norms.append(nn.utils.get_total_norm([p.grad for p in params if p.grad is not None]))

    part.optimizer.optimizer.register_step_pre_hook(record)
    stream = part.stream.starting_at(0)
    for _ in range(8):  # through estimate, improve and explore
        train_step(part, stream)
    assert torch.stack(norms).numpy() == pytest.approx([0.001] * 8, rel=1e-2)


@pytest.mark.parametrize("freeze", [True, False])
def test_the_average_takes_in_every_step_that_trains_the_structure(tmp_path, freeze):
    """A step of frozen exploration leaves it as it was; all others are in it, as the active structure."""
    words = ["--train.ema", "0.5", "--method.freeze", str(freeze).lower()]
    part = loop.Run(load(tiny.write(tmp_path), words), "iee")
    stream = part.stream.starting_at(0)
    average = None
    for step in range(1, 20):
        train_step(part, stream)
        if not (freeze and step in (6, 7, 8, 14, 15, 16)):
            with part.sparsifier.sparse():
                now = {name: p.detach().clone() for name, p in part.model.named_parameters()}
            average = now if average is None else {
                n: torch.where((a == 0) | (now[n] == 0), now[n], 0.5 * a + 0.5 * now[n]) for n, a in average.items()
            }  # fmt: skip
        for name, p in part.ema.module.named_parameters():
            torch.testing.assert_close(p.data, average[name].data, rtol=1e-5, atol=1e-7, msg=f"{name}, step {step}")


def test_a_criterion_of_the_users(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_criteria.py").write_text(
        "def small(weight): return -weight.abs()\ndef wrong(a, b, c): return a\n"
        "def weight_times_gradient(weight, grad): return (weight * grad).abs()\n"
    )
    own, built_in = [], []
    for words, kept in ((["my_criteria:weight_times_gradient"], own), (["taylor"], built_in)):
        (tmp_path / words[0].replace(":", "-")).mkdir()
        out, _ = run(tmp_path / words[0].replace(":", "-"), "--criterion", *words)
        kept.append((out / "model" / storage.WEIGHTS).read_bytes())
    assert own == built_in
    part = loop.Run(load(tiny.write(tmp_path), ["--criterion", "my_criteria:small"]), "iee")
    assert part.sparsifier.criterion.name == "small"
    for spec, message in (
        ("my_criteria:wrong", r"criterion 'my_criteria:wrong' must be a function of \(weight\) or \(weight, grad\)"),
        ("my_criteria:smal", "there is no 'smal' in 'my_criteria'; did you mean 'small'"),
        ("nowhere_at_all:f", "the module 'nowhere_at_all' cannot be imported"),
    ):
        with pytest.raises(UserError, match=message):
            loop.Run(load(tiny.write(tmp_path), ["--criterion", spec]), "iee")
    sys.modules.pop("my_criteria")


def test_evaluation_during_exploration_sees_the_active_structure(tmp_path):
    part = loop.Run(load(tiny.write(tmp_path)), "iee")
    trainer = loop.Trainer(part, None, None, quiet=True)
    stream = part.stream.starting_at(0)
    while part.sparsifier.phase != "explore":
        train_step(part, stream)
    train_step(part, stream)
    before = {name: p.clone() for name, p in part.model.state_dict().items()}
    with trainer._evaluated_model() as model:
        for name, mask in part.sparsifier.masks.items():
            assert not dict(model.named_parameters())[name][~mask].any()
    for name, p in part.model.state_dict().items():
        assert torch.equal(p, before[name]), name


def test_divergence_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"training diverged: the loss is (nan|inf) before step 5; try a lower optimizer.lr"
    ):
        run(tmp_path, "--optimizer.lr", "1e18")
    out = tmp_path / "run"
    assert not (out / ".lock").exists()
    with pytest.raises(UserError, match=f"train.clip_norm, again with --out {out}$"):  # which may be used again
        run(tmp_path, "--optimizer.lr", "1e18")
    with pytest.raises(UserError, match=f"train.clip_norm, with another --out than {out}$"):
        run(tmp_path, "--optimizer.lr", "1e18", "--train.checkpoint_steps", "1")
    with pytest.raises(UserError, match="already holds a run"):
        run(tmp_path)
    (out / "checkpoint" / "state.pt").unlink()
    assert run(tmp_path)[1]["runs"][0]["steps"] == 30


def test_points_in_time_lie_inside_the_run(tmp_path):
    for words, message in (
        (["--schedule.warmup", "4"], r"schedule.warmup 4 is in epochs, but the run has only 3.33333"),
        (["--schedule.name", "multistep", "--schedule.milestones", "0.5,9"], "schedule.milestones 9 is in epochs"),
        (["--schedule.name", "step", "--schedule.every", "30"], "schedule.every 30 is in epochs"),
        (["--schedule.name", "onecycle", "--schedule.peak", "5"], "schedule.peak 5 is in epochs"),
    ):
        with pytest.raises(UserError, match=message):
            run(tmp_path, *words)
        assert not (tmp_path / "run").exists()
    run(tmp_path, "--schedule.warmup", "3")


def test_costs_can_be_those_of_another_length(tmp_path):
    (tmp_path / "own").mkdir()
    own = run(tmp_path / "own")[1]["runs"][0]
    out, found = run(tmp_path, "--train.cost_steps", "60")
    [entry] = found["runs"]
    assert entry["cost_steps"] == 60
    assert entry["training_cost"] == pytest.approx(own["training_cost"] / 2)
    assert sum(entry["by_phase"].values()) == pytest.approx(entry["training_cost"])
    assert metrics(out)[-1]["cost"] == pytest.approx(entry["training_cost"])


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    flush = os.fsync

    def full(descriptor):
        if os.fstat(descriptor).st_size > 5000:  # larger than the other files
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"^the checkpoint .*state\.pt cannot be written: No space left on device$"):
            run(tmp_path)
    assert list((tmp_path / "run" / "checkpoint").iterdir()) == []


def test_sparsity_and_method_are_all_that_differs_between_the_imagenet_recipes():
    for method in ("iee", "rigl"):
        pair = [load(f"imagenet-resnet50-erk{s}-{method}").resolved() for s in (80, 90)]
        assert list(differences(*pair)) == ["pattern.sparsity"]
    pair = [load(f"imagenet-resnet50-erk90-{method}").resolved() for method in ("iee", "rigl")]
    assert {key.partition(".")[0] for key in differences(*pair)} == {"method"}


# one of these, as both methods run on the smaller network too
LARGE = [n for n in shipped() if n.startswith("cifar") and not n.endswith("channels")] + ["imagenet-resnet50-erk90-iee"]
THIN = ["cifar10-wrn22-2-channels", "imagenet-resnet50-latency55", "imagenet-mobilenetv1-latency42"]


def test_the_latency_is_all_that_differs_between_the_recipes_of_channels():
    for name, shares in (("resnet50", (55, 30)), ("mobilenetv1", (60, 42))):
        pair = [load(f"imagenet-{name}-latency{share}").resolved() for share in shares]
        assert list(differences(*pair)) == ["pattern.latency"]
        assert [one["pattern"]["latency"] for one in pair] == [share / 100 for share in shares]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", THIN)
def test_large_recipes_of_channels_run(tmp_path, monkeypatch, name):
    monkeypatch.setattr("regrow.profiling.profile", fixed_latency.profile)
    words = ["--steps", "4", "--data.batch_size", "2", "--train.log_every", "4", "--train.threads", "1"]
    words += ["--method.h", "1", "--method.j", "1", "--method.q", "1", "--data.val_fraction", "0.1"]
    words += ["--train.latency_batch", "1"]
    classes = 1000 if name.startswith("imagenet") else 10
    if name.startswith("imagenet"):
        words += ["--schedule.warmup", "0.05"]
    recipe = load(name, [*words, "--data.name", f"generated:3x32x32:{classes}:24"])
    found = loop.train(recipe, tmp_path / "run", quiet=True)
    [update] = json.loads((tmp_path / "run" / "structure.json").read_text())["history"]
    assert update["latency"] <= recipe.pattern.latency
    assert 0 < found["runs"][0]["density"] < 1


@pytest.mark.parametrize("name", LARGE)
def test_large_recipes_run(tmp_path, name):
    """A few steps of everything the recipe asks for, on generated images and with short phases."""
    words = ["--steps", "5", "--data.batch_size", "2", "--train.log_every", "4", "--train.threads", "1"]
    shape, classes = ("3x32x32", 10) if name.startswith("cifar") else ("3x32x32", 1000)
    if name.startswith("imagenet"):
        words += ["--schedule.warmup", "0.05", "--schedule.milestones", "0.3,0.7,0.9"]
    words += ["--data.name", f"generated:{shape}:{classes}:24", "--data.val_fraction", "0.1"]
    short = {"iee": ["h", "j", "q"], "rigl": ["interval"], "set": ["interval"], "gmp": ["interval"]}
    words += [w for key in short.get(name.rpartition("-")[2], []) for w in (f"--method.{key}", "1")]
    recipe = load(name, words)
    found = loop.train(recipe, tmp_path / "run", quiet=True)
    sparsity = 0.0 if name.endswith("dense") else recipe.pattern.sparsity
    assert found["runs"][0]["sparsity"] == pytest.approx(sparsity, abs=1e-4)


def channel_model(out):
    return storage.load(build("digits-cnn", 10, 1, width=8), out / "model")


def test_a_run_of_channels(tmp_path):
    out, found = run(tmp_path, *tiny.CHANNELS)
    [entry] = found["runs"]
    assert not (out / "latency.json").exists()
    assert entry["latency_predicted"] is None
    assert entry["latency_batch"] == 8
    assert entry["throughput"] == pytest.approx(8 / entry["latency"])
    assert 0 < entry["train_seconds"] < entry["seconds"]
    assert entry["inference_flops"] <= 0.4 * entry["dense_flops"]
    model = channel_model(out).eval()
    assert regrow.tracing.flops.count_flops(model, torch.zeros(1, 1, 8, 8)).total == entry["inference_flops"]
    data = regrow.data.named.load("generated:1x8x8:10:160", batch_size=16)
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.test.epoch(0))
    assert right / data.test.examples == pytest.approx(entry["accuracy"])
    structure = json.loads((out / "structure.json").read_text())
    widths = {one["group"]: (one["before"], one["start"], one["after"]) for one in structure["widths"]}
    assert list(widths) == ["features.0.0", "features.1.0", "features.3.0", "features.4.0"]
    for group, (before, start, after) in widths.items():
        assert model.get_submodule(group).out_channels == after
        assert (before, start) == ((8, 5) if before == 8 else (16, 9))
    assert len(structure["history"]) == 2
    assert all(record["flops"] <= 0.4 for record in structure["history"])
    assert {"latency", "train_seconds", "throughput", "latency_ratio", "train_ratio"} <= found["summary"][0].keys()
    assert found["summary"][0]["train_ratio"] is None  # without a dense run


@pytest.mark.parametrize(
    "words",
    [
        "--method.name uniform",
        "--method.name static --pattern.solver grouped",
        "--method.name gmp --method.interval 5",
        "--method.name oneshot --method.criterion l2",
        "--method.name oneshot --method.h 4 --optimizer.name adamw",
        "--method.name halp --method.prunings 3 --method.interval 4",
        "--method.ramp 0.1 --train.precision bf16 --train.accumulate 2 --train.recalibrate 2",
        "--pattern.thin false --train.ema 0.9",
        "--pattern.distribution uniform --pattern.params 0.5",
    ],
)
def test_methods_of_channels_meet_the_budget(tmp_path, words):
    out, found = run(tmp_path, *tiny.CHANNELS, *words.split())
    [entry] = found["runs"]
    total = regrow.tracing.flops.count_flops(channel_model(out), torch.zeros(1, 1, 8, 8)).total
    assert total == entry["inference_flops"] <= 0.4 * entry["dense_flops"]


WHOLE = (*tiny.CHANNELS, "--model.name", "wrn10-1", "--model.options", "{}", "--pattern.blocks", "loss",
         "--method.start", "criterion", "--method.start_steps", "2")  # fmt: skip


def test_blocks_by_the_loss_without_them(tmp_path):
    """The loss is that which the recipe trains by, on the first of its training batches."""
    one = run_module.Run(load(tiny.write(tmp_path), [*WHOLE, "--train.label_smoothing", "0.1"]), "x")
    measured = one.measured_by(one.recipe)
    batches, loss = list(measured["batches"]), measured["loss"]
    one.model.eval()
    for (x, y), (first, labels) in zip(batches, one.data.train.epoch(0), strict=False):
        assert torch.equal(x, first)
        expected = nn.functional.cross_entropy(one.model(first), labels, label_smoothing=0.1)
        assert torch.equal(loss(one.model, (x, y)), expected)
    assert len(batches) == 4
    out, _ = run(tmp_path, *WHOLE)
    structure = json.loads((out / "structure.json").read_text())
    assert sum(width["group"].startswith("block ") for width in structure["widths"]) == 3
    assert all(record["flops"] <= 0.4 for record in structure["history"])


def test_masked_and_thin_training_end_in_the_same_structure(tmp_path):
    found = []
    for thin in ("true", "false"):
        (tmp_path / thin).mkdir()
        out, _ = run(tmp_path / thin, *tiny.CHANNELS, "--pattern.thin", thin)
        found.append((json.loads((out / "structure.json").read_text())["widths"], channel_model(out).state_dict()))
    assert found[0][0] == found[1][0]
    for name, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][name], rtol=1e-4, atol=1e-5)


def test_dense_beside_channels(tmp_path):
    out, found = run(tmp_path, *tiny.CHANNELS, "--method.name", "dense")
    [entry] = found["runs"]
    assert (entry["density"], entry["training_cost"]) == (1.0, 1.0)
    assert min(entry["latency"], entry["dense_latency"]) > 0
    assert "widths" not in json.loads((out / "structure.json").read_text())
    assert found["summary"][0]["train_ratio"] == 1.0


def test_what_cannot_follow_widths_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^train.compile .*: set pattern.thin=false, which masks channels instead$"):
        run(tmp_path, *tiny.CHANNELS, "--train.compile", "true")
    assert not (tmp_path / "run").exists()


def test_the_average_of_a_thin_model_is_saved_thin(tmp_path):
    saved = []
    for thin in ("true", "false"):
        (tmp_path / thin).mkdir()
        out, _ = run(tmp_path / thin, *tiny.CHANNELS, "--pattern.thin", thin, "--train.ema", "0.8")
        saved.append(channel_model(out).state_dict())
    last = channel_model(run(tmp_path, *tiny.CHANNELS)[0]).state_dict()
    for name, value in saved[0].items():
        torch.testing.assert_close(value, saved[1][name], rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(value, last[name]) for name, value in saved[0].items())


def test_weights_to_start_from(tmp_path):
    for seed in (0, 3):
        (tmp_path / f"dense{seed}").mkdir()
        run(tmp_path / f"dense{seed}", "--method.name", "dense", "--seed", str(seed))
    for seed, spec in ((0, "dense0/run"), (3, "dense{seed}/run/model")):
        recipe = load(tiny.write(tmp_path), ["--seed", str(seed), "--model.weights", str(tmp_path / spec)])
        recipe_model = run_module.model_of(recipe, regrow.data.named.load("generated:1x8x8:10:160", batch_size=16))
        for name, value in saved_model(tmp_path / f"dense{seed}" / "run").state_dict().items():
            assert torch.equal(recipe_model.state_dict()[name], value)
    _, found = run(tmp_path, "--model.weights", str(tmp_path / "dense0" / "run"), "--method.name", "oneshot")
    assert found["recipe"]["model"]["weights"] == str(tmp_path / "dense0" / "run")
    with pytest.raises(UserError, match=r"^model.weights: nowhere does not exist"):
        load_and_build(tmp_path, "nowhere")
    with pytest.raises(UserError, match=r"^model.weights: the tensor .* has shape"):
        load_and_build(tmp_path, str(tmp_path / "dense0" / "run"), "--model.options.width", "3")


def load_and_build(tmp_path, weights, *words):
    return loop.Run(load(tiny.write(tmp_path), ["--model.weights", weights, *words]), "x")
