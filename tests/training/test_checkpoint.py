"""Checkpoints: what is damaged or does not fit is refused in one sentence before anything goes on from it."""

import pytest
import torch

import attack_checkpoints as attack
from regrow import UserError
from regrow.training import checkpoint, rundir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A stopped run of each kind, made when it is asked for."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = attack.Stopped(tmp_path_factory.mktemp("stopped"), attack.KINDS[kind])
        return made[kind]

    return get


def with_edit(run, place, change, **more):
    """The outcome of going on after a change by somebody who makes a new checksum."""
    state = torch.load(checkpoint.path_in(run.out), weights_only=True)
    change(state)
    state[checkpoint.CHECKSUM] = checkpoint.checksum(state)
    torch.save(state, checkpoint.path_in(run.out))
    try:
        return run.resumed(place)
    finally:
        checkpoint.path_in(run.out).write_bytes(run.bytes)


def group(key, value):
    return lambda state: state["optimizer"]["param_groups"][0].__setitem__(key, value)


def entry(key, value):
    def change(state):
        entries = state["optimizer"]["state"]
        entries[0][key] = value(entries[0][key]) if callable(value) else value

    return change


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("iee, sgd", group("momentum", "0.9"), "optimizer.param_groups.0.momentum is '0.9', but 0.9 in the recipe"),
        ("iee, sgd", group("nesterov", 0), "optimizer.param_groups.0.nesterov is 0, but False in the recipe"),
        ("iee, sgd", group("params", [0, 0]), "optimizer.param_groups.0 has other parameters than the model"),
        ("iee, sgd", entry("momentum_buffer", lambda t: t[:1]), "optimizer.state.0.momentum_buffer is float32 [1, "),
        (
            "iee, sgd",
            entry("momentum_buffer", lambda t: t.double()),
            "is float64 [4, 1, 3, 3], but a step",
        ),
        ("iee, sgd", entry("exp_avg", 1), "optimizer.state.0.exp_avg is there in only one of checkpoint and optimizer"),
        ("iee, sgd", lambda s: s["optimizer"]["state"].update({99: {}}), "optimizer.state.99 is of no parameter"),
        (
            "iee, sgd",
            lambda s: s["optimizer"]["param_groups"].clear(),
            "the optimizer has 0 groups, but 1 in",
        ),
        (
            "iee, sgd",
            lambda s: s["model"].pop("head.bias"),
            "model.head.bias is there in only one of",
        ),
        ("iee, sgd", lambda s: s.update(step=9), "it is at step 9, but its sparsifier at 6"),
        (
            "iee, sgd",
            lambda s: s["start_active"].update({"head.weight": 10**6}),
            "'head.weight' starts with 1000000",
        ),
        ("iee, sgd", lambda s: s["recipe"].update({"seed": 3}), "seed differs from the recipe"),
        ("rigl, adamw, ema", entry("step", torch.tensor(-3.0)), "optimizer.state.0.step is -3 after 6 steps"),
        ("rigl, adamw, ema", entry("step", 6.0), "optimizer.state.0.step is 6.0, which no step leaves there"),
        (
            "rigl, adamw, ema",
            entry("exp_avg_sq", lambda t: -t - 1),
            "exp_avg_sq is an average of squares, but",
        ),
        ("rigl, adamw, ema", lambda s: s.update(ema=None), "ema is there in only one of checkpoint and recipe"),
        ("rigl, adamw, ema", lambda s: s["ema"].update(n_averaged=torch.zeros(2)), "ema.n_averaged is float32 [2]"),
        ("schedule-free", group("k", -1), "optimizer.param_groups.0.k is -1, which no step leaves there"),
        ("schedule-free", group("weight_sum", float("inf")), "optimizer.param_groups.0.weight_sum is inf"),
        ("channels, rmsprop", lambda s: s["start_widths"].clear(), "start_widths has other names than the model"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, stopped, kind, change, message):
    with pytest.raises(UserError) as error:
        with_edit(stopped(kind), tmp_path, change)
    assert message in str(error.value)


@pytest.mark.parametrize("kind", attack.KINDS)
def test_checkpoints_from_before_checksums_are_read(tmp_path, stopped, kind):
    run = stopped(kind)
    state = {key: value for key, value in run.state.items() if key not in ("checksum", "processes")}
    torch.save({**state, "version": 1}, checkpoint.path_in(run.out))
    try:
        assert run.resumed(tmp_path) == run.right
    finally:
        checkpoint.path_in(run.out).write_bytes(run.bytes)


def test_an_edit_that_leaves_the_checksum_is_noticed(tmp_path, stopped):
    run = stopped("iee, sgd")
    for change in (
        lambda s: s["model"]["head.bias"].view(-1)[0].add_(1e-3),
        lambda s: s.update(label="other"),
        lambda s: s["sparsifier"]["weights"]["head.weight"]["memory"].neg_(),
        lambda s: s["loss"].__setitem__(0, 1.0),
    ):
        state = torch.load(checkpoint.path_in(run.out), weights_only=True)
        change(state)
        torch.save(state, checkpoint.path_in(run.out))
        with pytest.raises(UserError, match="is damaged, or was edited: its checksum differs: start anew with another"):
            run.resumed(tmp_path)
        checkpoint.path_in(run.out).write_bytes(run.bytes)


def test_options_that_a_newer_optimizer_has_are_those_of_the_recipe(tmp_path, stopped):
    run = stopped("iee, sgd")
    assert with_edit(run, tmp_path, lambda s: s["optimizer"]["param_groups"][0].pop("fused")) == run.right


@pytest.mark.parametrize(("kind", "count"), [("edited", 60), ("flipped", 20)])
def test_random_damage_is_refused(tmp_path, kind, count):
    assert attack.attack(count, kind, tmp_path, spare=["sparsifier"]) == []


def test_a_run_goes_on_from_what_a_kill_at_any_operation_leaves(tmp_path):
    tried, wrong = attack.kills(tmp_path, every=23)
    assert wrong == []
    assert tried > 4


@pytest.mark.parametrize(
    ("content", "line"),
    [(b'{"step": 4}\n\xff\n', 2), (b"[]\n" * 9, 1), (b'{"step": 4}\n{"step": "5"}\n', 2), (b"{" * 5000 + b"\n", 1)],
)
def test_damaged_metrics_are_noticed_before_a_run_goes_on(tmp_path, content, line):
    path = tmp_path / rundir.METRICS
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"metrics.jsonl is damaged: line {line} is no object with a step: delete that"):
        rundir.Metrics(path, lines=2)
    assert path.read_bytes() == content
    rundir.Metrics(path, lines=0).close()
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("begun", "here", "device", "sentence"),
    [
        (
            1,
            2,
            "cpu",
            "was begun by one process, and 2 processes would train another model: continue it with `regrow train ",
        ),
        (
            2,
            1,
            "cpu",
            "by 2 processes, and one process would .* "
            "`ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 -m regrow train --out ",
        ),
        (
            4,
            8,
            "cuda",
            "begun by 4 processes, and 8 processes would .* `torchrun --nproc-per-node 4 -m regrow train --out ",
        ),
    ],
)
def test_another_number_of_processes_is_refused(tmp_path, begun, here, device, sentence):
    from regrow.training.resume import check_processes

    check_processes(begun, begun, torch.device(device), tmp_path)
    check_processes(None, here, torch.device(device), tmp_path)
    with pytest.raises(UserError, match=sentence):
        check_processes(begun, here, torch.device(device), tmp_path)


def test_a_checkpoint_knows_its_processes(stopped):
    assert stopped("iee, sgd").state["processes"] == 1
