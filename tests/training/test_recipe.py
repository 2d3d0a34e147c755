"""Recipes: layers, names, types, messages, and that what is printed reads back the same."""

import itertools
import math
import os
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny_recipe as tiny
from regrow import IEE, Budget, RigL, UserError
from regrow.training.optimizers import OPTIMIZERS, SCHEDULES, MultiStep, OneCycle, Step
from regrow.training.recipe import (
    differences,
    load,
    merge,
    override_tree,
    parse,
    registries,
    shipped,
    tree_of,
    with_method,
)
from regrow.training.typed import leaves, plain, typed


@pytest.fixture
def recipe_file(tmp_path):
    return tiny.write(tmp_path, "compare: {rigl: {interval: 4}, slow: {name: rigl, interval: 8}}\n")


# --- reading


def test_values_and_defaults(recipe_file):
    recipe = load(recipe_file)
    assert recipe.method == IEE(h=3, j=2, q=3)
    assert (recipe.method_name, recipe.optimizer_name, recipe.schedule_name) == ("iee", "sgd", "cosine")
    assert recipe.total_steps(10.0) == 30
    assert recipe.optimizer.momentum == 0.9
    assert recipe.pattern.distribution == "erk"


@pytest.mark.parametrize("name", shipped())
def test_print_config_reads_back(name, tmp_path):
    recipe = load(name)
    path = tmp_path / "again.yaml"
    path.write_text(recipe.to_yaml())
    assert load(path) == recipe
    assert load(path).to_yaml() == recipe.to_yaml()


def test_the_shipped_recipes_are_those_of_the_documentation():
    cifar = [f"cifar10-wrn22-2-{m}" for m in ("dense", "gmp", "iee", "rigl", "set", "static")]
    imagenet = [f"imagenet-resnet50-erk{s}-{m}" for s in (80, 90) for m in ("iee", "rigl")]
    budgets = [("resnet50", 55), ("resnet50", 30), ("mobilenetv1", 60), ("mobilenetv1", 42)]
    channels = [f"imagenet-{name}-latency{share}" for name, share in budgets]
    channels += ["digits-channels", "cifar10-wrn22-2-channels"]
    detection = [f"shapes-ssd-{m}" for m in ("dense", "iee", "channels")] + ["shapes-fcn-channels"]
    detection += [f"voc-ssd512-resnet50-latency{share}" for share in (50, 30)]
    assert shipped() == sorted([*cifar, *imagenet, *channels, *detection, "digits-iee", "digits-rigl"])


NEEDED = {  # options without a default
    "weights": {"sparsity": 0.5}, "channels": {"latency": 0.5}, "blocks": {"shape": [2, 1], "sparsity": 0.5},
}  # fmt: skip


def test_every_registered_class_reads_back_its_defaults():
    for section, classes in registries().items():
        for cls in classes.values():
            required = NEEDED.get(getattr(cls, "name", ""), {})
            built = typed(cls, required, section)
            assert typed(cls, plain(built), section) == built
            assert dict(leaves(cls)).keys() >= required.keys()


def test_cifar_is_the_papers_recipe():
    recipe = load("cifar10-wrn22-2-iee")
    total, per_epoch = recipe.total_steps(382.0), 382.0
    assert total == 97_656
    drops = [
        s
        for s in range(1, total)
        if recipe.schedule.factor(s, total, 382.0) < recipe.schedule.factor(s - 1, total, 382.0)
    ]
    assert drops == [30_000, 60_000, 90_000]
    assert round(50_000 * recipe.data.val_fraction) == 1_000
    rates = [
        recipe.optimizer.lr * recipe.schedule.factor(s, total, per_epoch) for s in (0, 29_999, 30_001, 60_001, 97_000)
    ]
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.004, 0.0008])
    assert recipe.data.batch_size == 128
    assert recipe.pattern.sparsity == 0.9
    for method in ("iee", "rigl", "set", "gmp"):
        for source in (load(f"cifar10-wrn22-2-{method}"), with_method(recipe, method)):
            assert source.method.timeline(total).until == 75_000


def test_imagenet_is_the_papers_recipe():
    recipe = load("imagenet-resnet50-erk80-rigl")
    total, per_epoch = 31_200, 312.0
    factors = [recipe.schedule.factor(int(e * per_epoch), total, per_epoch) for e in (2.5, 6, 31, 71, 91)]
    assert factors == pytest.approx([0.5, 1, 0.1, 0.01, 0.001], rel=2e-3)
    assert recipe.data.batch_size * recipe.train.accumulate * 8 == 4096
    assert recipe.pattern.sparsity == 0.8
    assert recipe.method == RigL(interval=100)


def test_numbers_that_yaml_reads_as_text(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(tiny.TINY.replace("lr: 0.05", "lr: 1e-3"))
    assert load(path).optimizer.lr == 1e-3


def test_a_step_count_stays_a_whole_number(recipe_file):
    assert load(recipe_file, ["--method.update_end", "20"]).method.update_end == 20
    assert isinstance(load(recipe_file, ["--method.update_end", "20"]).method.update_end, int)
    assert load(recipe_file, ["--method.update_end", "0.5"]).method.update_end == 0.5


# --- layers


def test_overrides(recipe_file):
    words = ["--method.h", "5", "--seed=7", "--method.budget.start", "0.2", "--pattern.exclude", "head,features.0.0"]
    recipe = load(recipe_file, words)
    assert recipe.method == IEE(h=5, j=2, q=3, budget=Budget("cosine", 0.2))
    assert recipe.seed == 7
    assert tuple(recipe.pattern.exclude) == ("head", "features.0.0")


def test_steps_and_epochs_replace_each_other(recipe_file):
    assert load(recipe_file, ["--epochs", "2"]).total_steps(9.0) == 18
    assert load(recipe_file, ["--epochs", "0.5"]).total_steps(9.0) == 4


def test_another_name_replaces_the_section(recipe_file):
    assert load(recipe_file, ["--method.name", "rigl"]).method == RigL(interval=4)  # what the compare section says
    assert load(recipe_file, ["--method.name", "set"]).method.interval == 100
    assert load(recipe_file, ["--optimizer.name", "adamw"]).optimizer.lr == OPTIMIZERS["adamw"]().lr
    assert load(recipe_file, ["--optimizer.name", "sgd"]).optimizer.lr == 0.05


def test_base(tmp_path):
    tiny.write(tmp_path)
    (tmp_path / "child.yaml").write_text("base: tiny.yaml\nmethod: {name: rigl, interval: 3}\nseed: 4\n")
    (tmp_path / "grandchild.yaml").write_text("base: child.yaml\nmethod: {interval: 5}\n")
    recipe = load(tmp_path / "grandchild.yaml")
    assert (recipe.method, recipe.seed, recipe.optimizer.lr) == (RigL(interval=5), 4, 0.05)


def test_a_distribution_is_replaced_as_a_whole():
    merged = merge({"pattern": {"distribution": {"a": 0.1}}}, {"pattern": {"distribution": {"b": 0.2}}})
    assert merged == {"pattern": {"distribution": {"b": 0.2}}}


def test_variants(recipe_file):
    recipe = load(recipe_file)
    assert with_method(recipe, "slow").method == RigL(interval=8)
    assert with_method(recipe, "iee") == recipe
    assert with_method(recipe, "set", steps=9).total_steps(1.0) == 9
    with pytest.raises(UserError, match="unknown method 'slaw'; did you mean 'slow'"):
        recipe.variant("slaw")


def test_differences_name_the_key_and_skip_the_harmless(recipe_file):
    one = load(recipe_file).resolved()
    other = load(recipe_file, ["--method.budget.start", "0.2", "--train.log_every", "1", "--seed", "3"]).resolved()
    assert list(differences(one, other)) == ["seed", "method.budget.start"]


# --- schedules


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_stay_within_the_peak(name):
    schedule = SCHEDULES[name]()
    factors = [schedule.factor(step, 100, 10.0) for step in range(100)]
    assert all(0 < f <= 1 for f in factors)
    assert max(factors) == pytest.approx(1.0, abs=1e-3)


def test_milestones_in_epochs_and_fractions_agree():
    epochs, shares = MultiStep(milestones=(3.0, 6.0)), MultiStep(milestones=(0.3, 0.6))
    for step in range(100):
        assert epochs.factor(step, 100, 10.0) == shares.factor(step, 100, 10.0)
    assert [Step(every=2.0, gamma=0.5).factor(s, 100, 10.0) for s in (0, 19, 20, 40)] == [1, 1, 0.5, 0.25]


def test_onecycle_ends_where_it_says():
    cycle = OneCycle(peak=0.5, initial=0.1, final=0.01)
    assert cycle.factor(0, 101, 10.0) == pytest.approx(0.1)
    assert cycle.factor(100, 101, 10.0) == pytest.approx(0.01)


# --- messages


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--method.hh 3", "unknown key 'method.hh'; did you mean 'method.h'?"),
        ("--method.nmae rigl", "unknown key 'method.nmae'; did you mean 'method.name'?"),
        ("--lr 3", "unknown key 'lr'; did you mean 'optimizer.lr'?"),
        ("--epoch 3", "unknown key 'epoch'; did you mean 'epochs'?"),
        ("--optimizer.alpha 1", "unknown key 'optimizer.alpha'; valid keys are optimizer.lr, optimizer.weight_decay"),
        ("--method.budget.stort 0.3", "unknown key 'method.budget.stort'; did you mean 'method.budget.start'?"),
        ("--method.budget 3", "method.budget must be a mapping with shape, start, not '3'"),
        ("--method rigl", "method is 'rigl', but must be a mapping of keys to values: write --method.name rigl"),
        ("--method=rigl --seed 3", "write --method.name rigl, or in a file method: {name: rigl}"),
        ("--method RigL", "write --method.name rigl, or"),
        (
            "--pattern erk",
            "unknown pattern 'erk'; valid names are blocks, channels, nm, weights; write --pattern.name NAME",
        ),
        ("--method mine:Gentle", "write --method.name mine:Gentle"),
        ("--optimizer adamw", "write --optimizer.name adamw"),
        ("--schedule step", "write --schedule.name step"),
        ("--model wrn22-2", "write --model.name wrn22-2"),
        ("--data cifar10", "write --data.name cifar10"),
        ("--train 3", "train is '3', but must be a mapping of keys to values: write --train.KEY VALUE"),
        ("--compare [a]", "compare is ['a'], but must be a mapping"),
        ("--method.h many", "method.h must be a whole number, not 'many'"),
        ("--method.h 1.5", "method.h must be a whole number, not '1.5'"),
        ("--method.h null", "method.h must be a whole number, not 'null'"),
        ("--method.h 0", "method: h is 0, but must be a whole number of steps, at least 1"),
        ("--method.name ieee", "unknown method 'ieee' in method.name; did you mean 'iee'?"),
        ("--schedule.name cos", "unknown schedule 'cos' in schedule.name; did you mean 'cosine'?"),
        ("--schedule.name constant --schedule.gamma 1", "unknown key 'schedule.gamma'"),
        ("--train.precision fp8", "train.precision must be one of fp32, bf16, fp16, not 'fp8'"),
        ("--train.ema 1", "train.ema must be greater than 0 and at most 0.999999, not 1"),
        ("--train.accumulate 0", "train.accumulate must be at least 1, not 0"),
        ("--train.clip_norm inf", "train.clip_norm must be a number or null, not 'inf'"),
        ("--optimizer.nesterov true --optimizer.momentum 0", "optimizer.nesterov needs a momentum"),
        ("--seed -1", "seed must be between 0 and 2147483647, not -1"),
        ("--steps 3 --epochs 2", "give either epochs or steps, not both"),
        ("--criterion magnitud", "unknown criterion 'magnitud'; did you mean 'magnitude'?"),
        ("--pattern.sparsity 1", "pattern: sparsity is 1.0, but must lie in [0, 1)"),
        ("--compare.rigl.h 3", "unknown key 'compare.rigl.h'"),
        ("--compare.new.interval 3", "unknown method 'new' in compare.new.name"),
        ("--seed", "--seed needs a value"),
        ("seed 3", "cannot read 'seed'"),
        ("--method.h 3 --method.h.x 3", "contradicts an earlier override"),
        ("--train.accumulate null", "train.accumulate must be a whole number, not 'null'"),
    ],
)
def test_messages(recipe_file, words, message):
    with pytest.raises(UserError) as error:
        load(recipe_file, words.split())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "a recipe must be a mapping"),
        ("", "model.name is missing"),
        ("model: {name: x}\nmodel: {name: y}\n", "line 2 is not valid YAML: the key 'model' is given twice"),
        ("a: [1\n", "is not valid YAML"),
        ("{1: 2}\n", "keys must be text"),
        ("base: 3\n", "base must be the name or path of a recipe, not 3"),
        ("base: r.yaml\n", "is its own base"),
        ("base: digits\n", "no shipped recipe 'digits'"),
        ("a: 2001-99-99 00:00:00\n", "is not valid YAML"),
        ("epochs: 1\nsteps: !!int ''\n", "line 2 is not valid YAML: '' cannot be read as int"),
        ("name: !!bool maybe\n", "line 1 is not valid YAML: 'maybe' cannot be read as bool"),
        ("steps: !!timestamp 5\n", "line 1 is not valid YAML: '5' cannot be read as timestamp"),
        ("steps: !!float [1]\n", "is not valid YAML"),
        ("a: !!python/object:os.system {}\n", "is not valid YAML"),
        (
            "steps: 1\nmethod: {name: dense}\npattern: {sparsity: 0}\nmodel: &m {options: {x: *m}}\n",
            "r.yaml, line 4: a value contains itself",
        ),
        ("steps: .inf\n", "steps must be a finite number, not inf"),
    ],
)
def test_bad_files(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load("r.yaml")
    assert message in str(error.value) or text == ""
    assert "\n" not in str(error.value)


# ten of ten of ten …: nine lines, and 10^9 values once they are written out
_LISTS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in itertools.pairwise("abcdefghi")
)
_MAPPINGS = "a: &a {k: 1, l: 2, m: 3, n: 4}\n" + "".join(
    f"{new}: &{new} {{{', '.join(f'{key}: *{old}' for key in 'klmn')}}}\n"
    for old, new in itertools.pairwise("abcdefghijkl")
)
_MERGES = "a: &a {k: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n" for old, new in itertools.pairwise("abcdefghi")
)
_DEEP = "[" * 5000 + "]" * 5000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_LISTS, "has more than 50,000 values, once its aliases are written out"),
        (_MAPPINGS, "has more than 50,000 values, once its aliases are written out"),
        (_MERGES, "has more than 50,000 values, once its aliases are written out"),
        ("a: &a {b: {c: [1, *a]}}\n", "line 1: a value contains itself"),
        ("a: &a\n  <<: *a\n", "line 1: a value contains itself"),
        (f"a: {_DEEP}\n", "is nested too deeply"),
        ("a: " + "{a: " * 40 + "1" + "}" * 40 + "\n", "is nested too deeply"),
        ("- " * 3000 + "1\n", "is nested too deeply"),
        ("a: " + "9" * 5000 + "\n", "is not valid YAML"),
    ],
)
def test_a_document_is_not_larger_than_it_looks(tmp_path, text, message):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    if len(text) < 1000:  # on the command line, too
        with pytest.raises(UserError, match=r"too deeply|more than|itself|mapping|not valid"):
            load(tiny.write(tmp_path), [f"--model.options={{x: {{{text.replace(chr(10), ', ')}}}}}"])


def test_aliases_within_reason_are_fine(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        tiny.TINY + "compare:\n  slow: &slow {name: rigl, interval: 8}\n  slower: {<<: *slow, interval: 9}\n"
    )
    assert load(path).compare["slower"] == {"name": "rigl", "interval": 9}


def test_a_recipe_is_a_file_of_modest_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.yaml")
    Path("link.yaml").symlink_to("/dev/zero")
    Path("large.yaml").write_text("#" * 250_001)
    Path("folder.yaml").mkdir()
    for base in ("/dev/zero", "link.yaml", "/dev/null", "large.yaml", "folder.yaml"):
        Path("r.yaml").write_text(f"base: {base}\n")
        for source in ("r.yaml", base):
            with pytest.raises(UserError, match=r"no regular file|too large for a recipe|Is a directory|either epochs"):
                load(source)
    with pytest.raises(UserError, match=r"cannot read the recipe .*pipe\.yaml: it is no regular file"):
        load("pipe.yaml")
    Path("0.yaml").write_text("seed: 1\n")
    for number in range(1, 30):
        Path(f"{number}.yaml").write_text(f"base: {number - 1}.yaml\n")
    with pytest.raises(UserError, match="has more than 16 bases"):
        load("29.yaml")
    Path("sub").mkdir()
    Path("turning.yaml").write_text("base: sub/../turning.yaml\n")
    with pytest.raises(UserError, match="has more than 16 bases"):
        load("turning.yaml")
    with pytest.raises(UserError, match="nested too deeply"):
        load("digits-iee", [f"--{'.'.join('a' * 2000)}=1"])


# --- anything at all

_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 300), st.floats(), st.text(max_size=8),
    st.sampled_from(["iee", "rigl", "sgd", "adam", "erk", "0.5", "1e-3", "null", "[1, 2]", "{a: 1}", "-1", "digits"]),
)  # fmt: skip
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_KEYS = st.sampled_from(
    ["model", "data", "epochs", "steps", "seed", "criterion", "method", "pattern", "optimizer", "schedule", "train",
     "compare", "base", "model.name", "model.options", "data.batch_size", "method.name", "method.h", "method.budget",
     "method.budget.start", "pattern.sparsity", "pattern.distribution", "pattern.exclude", "optimizer.name",
     "optimizer.lr", "optimizer.betas", "schedule.name", "schedule.milestones", "train.ema", "train.clip_norm",
     "train.precision", "compare.rigl"]
)  # fmt: skip
_QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def _plant(tree, key, value):
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            return
    tree[last] = value


@pytest.mark.parametrize(
    ("recipe", "key"),
    [("digits-channels", "pattern.flops"), ("digits-iee", "model.weights"), ("digits-iee", "train.clip_norm"),
     ("digits-iee", "method.shadow_speed"), ("digits-iee", "data.val_fraction")],
)  # fmt: skip
@pytest.mark.parametrize("written", ["--{} null", "--{}=null"])
def test_null_takes_a_value_back(recipe, key, written):
    more = ["--pattern.params", "0.5"] if key == "pattern.flops" else []
    found = load(recipe, [*written.format(key).split(), *more]).resolved()
    section, name = key.split(".")
    assert found[section][name] is None


def _good_or_refused(make):
    """Success, after which the recipe reads back the same, or one sentence."""
    recipe = message = None
    try:
        recipe = make()
    except UserError as error:
        message = str(error)
    if recipe is None:
        assert message
        assert "\n" not in message
        return
    assert parse(yaml.safe_load(recipe.to_yaml())) == recipe
    assert math.isfinite(recipe.optimizer.lr)


@_QUICK
@given(changes=st.lists(st.tuples(_KEYS, _VALUES), max_size=4))
def test_any_change_of_a_recipe_is_good_or_refused(changes):
    tree = yaml.safe_load(tiny.TINY)
    for key, value in changes:
        _plant(tree, key, value)
    _good_or_refused(lambda: parse(tree))


@_QUICK
@given(changes=st.lists(st.tuples(_KEYS, _SCALARS.map(str)), max_size=4))
def test_any_override_is_good_or_refused(changes):
    words = [f"--{key}={value}" for key, value in changes]
    _good_or_refused(lambda: parse(merge(yaml.safe_load(tiny.TINY), override_tree(words))))


@_QUICK
@given(words=st.lists(st.text(max_size=10), max_size=4))
def test_any_words_are_good_or_refused(words):
    _good_or_refused(lambda: parse(merge(yaml.safe_load(tiny.TINY), override_tree(words))))


@_QUICK
@given(text=st.text(alphabet="abcmethod:{}[]&*!|>-# \n\"'01.,", max_size=60))
def test_any_text_is_good_or_refused(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "r.yaml"
    path.write_text(text)
    _good_or_refused(lambda: parse(tree_of(path)))


# --- channels


def test_what_a_label_changes_about_the_recipe(tmp_path):
    text = "compare: {halp: {prunings: 2, interval: 3, recipe: {pattern: {solver: grouped}, model: {weights: x}}}}\n"
    path = tiny.write(tmp_path, text)
    recipe = load(path, tiny.CHANNELS)
    path.write_text(recipe.to_yaml())
    for found in (with_method(recipe, "halp"), load(path, ["--method.name", "halp"])):
        assert (found.method.prunings, found.method.interval) == (2, 3)
        assert (found.pattern.solver, found.pattern.flops, found.model.weights) == ("grouped", 0.4, "x")
    assert (recipe.pattern.solver, recipe.model.weights) == ("joint", None)
    own = load(path, ["--method.name", "halp", "--pattern.solver", "joint"])
    assert own.pattern.solver == "joint"  # what is said on the command line counts
    assert with_method(own, "halp") == own
    assert parse(yaml.safe_load(recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--compare.halp.recipe.data.name digits",
            "compare.halp.recipe has the key 'data', but runs that",
        ),
        ("--compare.halp.recipe.model.name x", "compare.halp.recipe has the key 'model.name', but runs that are"),
        ("--compare.halp.recipe 3", "compare.halp.recipe must be a mapping"),
        ("--pattern.table {a: 1}", "pattern: table is {'a': 1}, but must be the path of a latency table"),
        ("--pattern.sparsity 0.5", "unknown key 'pattern.sparsity'"),
        ("--pattern.flops 0", "pattern: flops is"),
        ("--train.latency_batch 0", "train.latency_batch must be at least 1, not 0"),
    ],
)
def test_messages_about_channels(tmp_path, words, message):
    key, _, value = words.partition(" ")
    with pytest.raises(UserError) as error:
        load(tiny.write(tmp_path), [*tiny.CHANNELS, key, value])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--compare.halp.recipe.pattern.solvr", "x"],
            "compare.halp.recipe: unknown key 'pattern.solvr'; did you mean",
        ),
        (["--pattern.params", "0.5"], "compare.halp.recipe: pattern: solver='grouped' knows one budget only"),
        (["--compare.halp.recipe.optimizer.lr", "-1"], "compare.halp.recipe: optimizer.lr must be greater than 0"),
        (
            ["--compare.halp.recipe.criterion", "tailor"],
            "compare.halp.recipe: unknown criterion 'tailor'; did you mean",
        ),
    ],
)
def test_an_entry_of_compare_is_checked_by_who_uses_it(tmp_path, words, message):
    path = tiny.write(tmp_path, "compare: {halp: {prunings: 2, interval: 3, recipe: {pattern: {solver: grouped}}}}\n")
    recipe = load(path, [*tiny.CHANNELS, *words])
    assert with_method(recipe, "oneshot").method_name == "oneshot"
    with pytest.raises(UserError) as error:
        with_method(recipe, "halp")
    assert str(error.value).startswith(message)


def test_what_is_wrong_with_a_recipe_is_not_blamed_on_its_comparison(tmp_path):
    path = tiny.write(tmp_path, "compare: {halp: {recipe: {pattern: {solver: grouped}}}}\n")
    for words, message in (
        (["--train.threads", "0"], "train.threads must be between 1 and 1024, not 0"),
        (["--data.batch_size", "0"], "data.batch_size must be at least 1, not 0"),
        (["--schedule.warmup", "-1"], "schedule.warmup must be at least 0, not -1.0"),
    ):
        with pytest.raises(UserError, match=f"^{message}$"):
            load(path, [*tiny.CHANNELS, *words])


@pytest.mark.parametrize("name", ["imagenet-resnet50-latency30", "imagenet-mobilenetv1-latency60"])
def test_imagenet_within_a_latency_is_halps_recipe(name):
    recipe = load(name)
    assert recipe.data.batch_size * recipe.train.accumulate * 8 == 1024
    assert recipe.top.epochs == 90
    sgd = recipe.optimizer
    assert (sgd.lr, sgd.momentum, sgd.weight_decay, sgd.decay_norms) == (1.024, 0.875, 3.05e-5, False)
    assert (recipe.schedule_name, recipe.schedule.warmup, recipe.train.label_smoothing) == ("cosine", 8, 0.1)
    assert recipe.method == IEE(h=150, j=150, q=150)
    halp = with_method(recipe, "halp")
    assert (halp.method.prunings, halp.method.interval, halp.pattern.solver) == (30, 40, "grouped")
    assert recipe.criterion == halp.criterion == "taylor"
    assert with_method(recipe, "oneshot").method.criterion == "l2"
    assert with_method(recipe, "uniform").method_name == "uniform"


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_an_optimizer_gets_all_of_its_options(name):
    layer = torch.nn.Linear(2, 2)
    recipe = OPTIMIZERS[name](lr=0.25, weight_decay=0.125, decay_norms=False)
    decayed, others = recipe.build(layer.named_parameters()).param_groups
    assert (decayed["params"], others["params"]) == ([layer.weight], [layer.bias])
    assert (decayed["lr"], decayed["weight_decay"], others["weight_decay"]) == (0.25, 0.125, 0.0)
    own = {key: value for key, value in plain(recipe).items() if key not in ("weight_decay", "decay_norms")}
    assert {key: list(v) if isinstance(v := decayed[key], tuple) else v for key in own} == own


_SCHEDULEFREE = "the schedule-free optimizers need one more package: pip install schedulefree"


@pytest.mark.parametrize(
    ("name", "module", "said"),
    [
        ("muon", "timm.optim.muon", "optimizer.name muon needs timm 1.0.20 or newer: pip install -U timm"),
        ("schedulefree-sgd", "schedulefree", _SCHEDULEFREE),
        ("schedulefree-adamw", "schedulefree", _SCHEDULEFREE),
    ],
)
def test_an_optimizer_whose_package_is_missing_says_what_to_install(name, module, said, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        OPTIMIZERS[name]().build(torch.nn.Linear(2, 2).named_parameters())
