"""Latency tables: interpolation, files, fingerprints."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import attack_tables
from fixed_latency import table_of
from regrow.errors import UserError
from regrow.latency.machine import Machine
from regrow.latency.network import Key, Network, Unit, follow_norms, network_of
from regrow.latency.spread import Spread
from regrow.latency.table import Grid, LatencyTable
from regrow.schema import seal

CONV = Key("conv", (8, 8), (3, 3), (1, 1), (1, 1), (1, 1), tail=("batch_norm", "relu_"))
POOL = Key("mean", (8, 8))


def table() -> LatencyTable:
    units = (
        Unit("a", CONV, 3, 32),
        Unit("b", CONV, 32, 64, ("a",)),
        Unit("mean:7", POOL, 64, 64, ("b",)),
    )
    grids = {
        CONV: Grid((3, 16, 32), (16, 64), np.array([[1.0, 3.0], [2.0, 6.0], [4.0, 12.0]])),
        POOL: Grid((16, 64), (0,), np.array([[0.1], [0.4]])),
    }
    return LatencyTable(Machine.here("eager"), 4, 1, Network(units, {}), grids)


def test_interpolation_is_bilinear_and_exact_at_measured_points():
    made = table()
    grid = made.grids[CONV]
    for row, c_in in enumerate(grid.c_in):
        for column, c_out in enumerate(grid.c_out):
            assert made.latency(CONV, c_in, c_out) == grid.seconds[row, column]
    assert made.latency("b", 24, 40) == pytest.approx((2 + 6 + 4 + 12) / 4)
    assert made.latency(CONV, 16, 28) == pytest.approx(3.0)
    assert made.latency(CONV, 1, 8) == 1.0  # no cheaper below the smallest point
    assert made.latency(CONV, 48, 64) == pytest.approx(18.0)  # continued beyond the last
    assert made.latency(POOL, 40, 40) == pytest.approx(0.25)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, 2.0])
def test_started_steps_cost_their_share_and_measured_points_stay_exact(share):
    grid = Grid((16, 64), (0,), np.array([[1.0], [4.0]]), stairs=(share, 0.0))
    assert grid.at(16, 16) == 1.0
    assert grid.at(32, 32) == 2.0
    assert grid.at(64, 64) == 4.0
    assert grid.at(24, 24) == pytest.approx(1.5 + 0.5 * share)
    assert grid.at(63, 63) == pytest.approx((63 + share) / 16)


def test_a_model_is_the_sum_of_its_units_at_given_widths():
    made = table()
    assert made.model() == pytest.approx(made.latency(CONV, 3, 32) + 12.0 + 0.4)
    thin = made.model({"a": (3, 16), "b": (16, 16)})
    assert thin == pytest.approx(1.0 + 2.0 + 0.1)  # the pool follows b
    scaled = replace(made, correction=2.0, other=5.0)
    assert scaled.model({"a": (3, 16), "b": (16, 16)}) == pytest.approx(2 * thin + 5.0)
    assert scaled.predict(made.network) == pytest.approx(scaled.model())


def test_unknown_units_and_layers_are_named():
    with pytest.raises(UserError, match="has no unit layer9: measure it"):
        table().latency("layer9", 1, 1)
    with pytest.raises(UserError, match="has no unit conv 9x9"):
        table().latency(replace(CONV, size=(9, 9)), 1, 1)
    with pytest.raises(UserError, match="has no layer c: it was measured for another model"):
        table().model({"c": (1, 1)})


def test_save_and_load_are_exact(tmp_path):
    made = replace(table(), correction=1.25, other=0.5, measured=3.0, spread=Spread(0.01, 0.2, 0.03, 0.04, 3))
    made.grids[CONV] = replace(made.grids[CONV], error=0.05)
    made.save(tmp_path / "deep" / "table.json")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["table.json"]
    read = LatencyTable.load(tmp_path / "deep" / "table.json")
    assert read.network == made.network
    assert (read.machine, read.batch, read.threads) == (made.machine, 4, 1)
    assert (read.correction, read.other, read.measured) == (1.25, 0.5, 3.0)
    for key, grid in made.grids.items():
        assert (read.grids[key].c_in, read.grids[key].c_out) == (grid.c_in, grid.c_out)
        assert np.array_equal(read.grids[key].seconds, grid.seconds)
        assert read.grids[key].error == grid.error
    assert read.model() == made.model()
    assert read.spread == made.spread
    assert read.interval() == made.interval()


def test_an_interval_is_around_the_prediction(monkeypatch):
    made = replace(table(), correction=2.0, other=5.0)
    assert made.interval() is None  # made up: nobody knows
    made = replace(made, spread=Spread(wholes=0.1, freedom=4))
    thin = {"a": (3, 16), "b": (16, 16)}
    for middle, pair in ((made.model(), made.interval()), (made.model(thin), made.interval(thin))):
        assert pair == pytest.approx((middle * (1 - 0.2132), middle * (1 + 0.2132)), rel=1e-4)
    assert made.interval(made.network) == made.interval()
    seen = []
    monkeypatch.setattr(Spread, "margin", lambda _, units: seen.append(units) or 3.0)
    made.grids[CONV], made.grids[POOL] = replace(made.grids[CONV], error=0.1), replace(made.grids[POOL], error=0.5)
    assert made.interval() == (0.0, 4 * made.model())
    convs, pool = (2 * (made.grids[CONV].at(3, 32) + made.grids[CONV].at(32, 64)), 2 * made.grids[POOL].at(64, 64))
    assert seen == pytest.approx([np.hypot(0.1 * convs, 0.5 * pool) / made.model()])
    with pytest.raises(UserError, match="has no layer c"):
        made.interval({"c": (1, 1)})


def test_a_table_of_version_1_is_read_and_knows_no_interval(tmp_path):
    content = replace(table(), spread=Spread()).to_json() | {"version": 1}
    del content["spread"]
    for grid in content["grids"]:
        del grid["error"]
    (tmp_path / "old.json").write_text(json.dumps(seal(content)))
    read = LatencyTable.load(tmp_path / "old.json")
    assert read.model() == table().model()
    assert (read.spread, read.interval()) == (None, None)
    assert read.to_json()["version"] == 3


def test_every_truncation_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "table.json"
    table().save(path)
    text = path.read_text()
    for cut in range(0, len(text) - 2, 37):
        path.write_text(text[:cut])
        with pytest.raises(UserError, match=r"is not valid JSON.*, perhaps cut short: measure it again"):
            LatencyTable.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="other"), "is not a latency table: make one with `regrow profile`"),
        (lambda c: c.update(version=99), "has format version 99, this regrow reads 1, 2, 3: measure it again"),
        (lambda c: c.update(version=True), "has format version True, this regrow reads 1, 2, 3"),
        (lambda c: c.update(spread={}), r"is damaged: spread\.reference is missing"),
        (
            lambda c: c.update(spread={"reference": 0.1, "drift": 0.0, "dense": 0.1, "wholes": 0.1, "freedom": 0}),
            "is damaged: spread has an error of whole models without degrees of freedom",
        ),
        (lambda c: c["grids"][0].update(error=-0.5), r"grids\.0\.error should be greater than or equal to 0"),
        (lambda c: c.pop("grids"), "is damaged: grids is missing: measure it again"),
        (
            lambda c: c["grids"][0]["seconds"].pop(),
            r"grids\.0 has seconds that do not fit its channel",
        ),
        (lambda c: c["grids"][0]["c_in"].reverse(), r"is damaged: grids\.0 has channel counts that do not rise"),
        (
            lambda c: c["grids"][0]["seconds"][0].__setitem__(0, -1.0),
            r"\.0\.0 should be greater than or equal to 0",
        ),
        (
            lambda c: c["grids"][0]["seconds"][0].__setitem__(0, float("inf")),
            r"\.0\.0 should be a finite number",
        ),
        (lambda c: c["grids"].pop(), "is damaged: it has no grid for the unit 'mean:7': measure it again"),
        (lambda c: c["grids"].append(c["grids"][0]), "is damaged: it has two grids for one kind of unit"),
        (lambda c: c["units"][0].update(surprise=1), r"is damaged: units\.0\.surprise does not belong there"),
        (lambda c: c["units"][1].update(c_in=2**40), r"is damaged: units\.1\.c_in should be less than"),
        (lambda c: c.update(machine=3), "is damaged: machine should be a valid dictionary"),
        (lambda c: c.update(correction=None), "is damaged: correction should be a valid number"),
        (lambda c: c.update(other=float("nan")), "is damaged: other should be a finite number"),
        (lambda c: c.update(batch=True), "is damaged: batch should be a valid integer"),
        (lambda c: c["machine"].update(cpu="Z80", cores=64), r"measured elsewhere \(cpu Z80, here .*; cores 64, here"),
    ],
)
def test_foreign_and_damaged_tables_are_refused_in_one_sentence(tmp_path, change, message):
    path = tmp_path / "table.json"
    table().save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(seal(content)))
    with pytest.raises(UserError, match=message):
        LatencyTable.load(path)


def test_an_edit_is_noticed_and_taken_where_it_is_meant(tmp_path):
    path = tmp_path / "table.json"
    table().save(path)
    content = json.loads(path.read_text())
    content["other"] = 7.0
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match='its checksum differs: measure it again, or delete its key "checksum" if you'):
        LatencyTable.load(path)
    content.pop("checksum")
    path.write_text(json.dumps(content))
    assert LatencyTable.load(path).other == 7.0


@pytest.mark.parametrize("kind", ["damaged", "flipped"])
def test_random_damage_is_refused_or_harmless(tmp_path, kind):
    assert attack_tables.attack(150, kind, tmp_path) == []


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none.json cannot be read \(No such file"):
        LatencyTable.load(tmp_path / "none.json")


def test_a_table_from_elsewhere_is_taken_with_a_warning_if_asked_for(tmp_path):
    path = tmp_path / "table.json"
    replace(table(), machine=replace(Machine.here("eager"), cpu="Z80")).save(path)
    with pytest.warns(UserWarning, match="measured elsewhere"):
        assert LatencyTable.load(path, allow_other_machine=True).machine.cpu == "Z80"


def test_a_failed_save_keeps_the_old_table(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    table().save(path)
    before = path.read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match=r"cannot be written to .*table.json \(No space left on device\)"):
        table().save(path)
    assert path.read_text() == before
    assert len(list(tmp_path.iterdir())) == 1


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.short = nn.Conv2d(3, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(torch.relu_(self.bn1(self.conv1(x))))
        y = torch.relu(y + self.short(x))
        y = torch.cat([y, y], 1)[:, :8]
        return self.fc(y.mean((2, 3))).cumsum(1)


def test_trace_finds_units_with_their_tails_and_sources():
    model = Block().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    network = network_of(model, torch.randn(2, 3, 8, 8))
    found = [(u.name.split(":")[0], str(u.key), u.c_in, u.c_out, u.sources, u.fixed) for u in network.units]
    assert found == [
        ("conv1", "conv 8x8 k3x3 p1x1 +batch_norm +relu_", 3, 8, (), False),
        ("conv2", "conv-depthwise 8x8 k3x3 p1x1 bias", 8, 8, ("conv1",), False),
        ("short", "conv 8x8 k1x1 bias +add +relu", 3, 8, (), False),
        ("cat", "cat 8x8", 16, 16, ("conv2", "conv2"), False),
        ("mean", "mean 8x8", 8, 8, (), False),
        ("fc", "linear bias", 8, 5, (), True),
    ]
    assert network.unpriced == {"cumsum": 1}
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Tokens(nn.Module):
    """Patches, then a transformer's MLP on tokens and one on channels that come last."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.fc1, self.fc2 = nn.Linear(16, 24), nn.Linear(24, 16)
        self.up, self.down = nn.Linear(16, 40, bias=False), nn.Linear(40, 16, bias=False)
        self.back = nn.ConvTranspose2d(16, 16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.fc2(nn.functional.gelu(self.fc1(x)))
        y = torch.sigmoid(self.up(x.view(-1, 2, 2, 16)))
        y = self.down(y * y)
        return self.back(y.permute(0, 3, 1, 2)).mean((2, 3))


def test_trace_follows_channels_that_come_last_and_counts_tokens():
    network = network_of(Tokens(), torch.randn(5, 3, 8, 8))
    found = [(u.name.split(":")[0], str(u.key), u.c_in, u.c_out, u.sources, u.own) for u in network.units]
    assert found == [
        ("patch", "conv 8x8 k4x4 s4x4 bias", 3, 16, (), True),
        ("fc1", "linear 4 bias +gelu", 16, 24, ("patch",), False),
        ("fc2", "linear 4 bias +add", 24, 16, ("fc1",), False),
        ("up", "linear 4 +sigmoid", 16, 40, ("patch",), False),  # as fc2, whose output is added to it
        ("mul", "mul 2x2", 40, 40, ("up",), False),
        ("down", "linear 4", 40, 16, ("up",), False),
        ("mean", "mean 3x3", 16, 16, ("down",), False),
    ]
    assert network.unpriced == {"conv": 1}  # transposed


class Heads(nn.Module):
    """Attention with heads of 4 features, after a norm."""

    def __init__(self, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(12)
        self.qkv = nn.Linear(12, 3 * 4 * heads)
        self.proj = nn.Linear(4 * heads, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, 4)).permute(2, 0, 3, 1, 4)
        k, v = k[..., :5, :], v[..., :5, :]
        return x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_attention_has_the_heads_of_the_layer_before_it_and_a_norm_the_features_of_its_source():
    network = network_of(nn.Sequential(nn.Linear(12, 12), Heads()), torch.randn(2, 7, 12))
    found = [(u.name.split(":")[0], str(u.key), u.c_in, u.c_out, u.sources) for u in network.units]
    assert found == [
        ("0", "linear 7 bias", 12, 12, ()),
        ("layer_norm", "layer_norm 7", 12, 12, ("0",)),
        ("1.qkv", "linear 7 bias", 12, 36, ("0",)),
        ("attention", "attention 7x4 k5x4", 3, 3, ("1.qkv",)),
        ("1.proj", "linear 7 bias +add", 12, 12, ()),
    ]
    assert network.unpriced == {}


class Normed(nn.Module):
    """A norm that stands alone, with an activation that only it feeds, and one in the tail of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.first, self.tail, self.plain = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        y = self.tail(self.b(nn.functional.silu(self.first(x))))
        return x * y + self.plain(x)


def test_what_follows_norms_that_are_not_run():
    model, x = Normed(), torch.randn(2, 3, 4, 4)
    network = network_of(model, x)
    assert [u.name for u in network.units] == ["a", "batch_norm:1", "silu:2", "b", "mul:5", "batch_norm:6", "add:7"]
    norms = {"first": True, "tail": True, "plain": True}
    assert follow_norms(model, x, norms, network) == {"batch_norm:1": "first", "silu:2": "first"}
    assert follow_norms(model, x, {"first": False}, network) == {"batch_norm:1": "first"}
    assert follow_norms(model, x, {}, network) == {}
    assert follow_norms(model, x, norms, Network(network.units[1:], {})) == {}  # of another model


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_attention_is_priced_by_its_heads(heads):
    x = torch.randn(2, 7, 12)
    made = table_of(Heads(), x)
    thin = network_of(Heads(heads), x)
    widths = {u.name: (u.c_in, u.c_out) for u in thin.units if u.key.kind == "linear"}
    attention = next(unit for unit in thin.units if unit.key.kind == "attention")
    assert attention.c_in == heads
    assert made.predict(thin) == made.model(widths)
    less = made.latency(attention.key, 3, 3) - made.latency(attention.key, heads, heads)
    assert less == pytest.approx((3 - heads) * 28e-9)  # a nanosecond for each of 7·4 numbers of a head


def test_tables_that_count_attention_into_the_rest_still_predict():
    x = torch.randn(2, 7, 12)
    made = table_of(Heads(), x)
    kept = tuple(unit for unit in made.network.units if unit.key.kind == "linear")
    old = replace(made, network=Network(kept, {"native_layer_norm": 1}), grids={u.key: made.grids[u.key] for u in kept})
    assert old.predict(network_of(Heads(), x)) == old.model()
    missing = replace(made, grids={key: made.grids[key] for key in made.grids if key != Key("layer_norm", (7,))})
    other = replace(missing, grids={**missing.grids, Key("layer_norm", (9,)): made.grids[Key("layer_norm", (7,))]})
    with pytest.raises(UserError, match="has no unit layer_norm 7"):  # of a kind that it prices
        other.predict(network_of(Heads(), x))


def test_grouped_convolutions_whose_groups_come_and_go_are_one_kind():
    example = torch.randn(1, 32, 8, 8)
    keys = {c: network_of(nn.Conv2d(c, c, 3, groups=c // 4), example[:, :c]).units[0].key for c in (32, 16, 8)}
    assert keys[32] == keys[16] == keys[8]
    assert str(keys[32]) == "conv-groups-of-4 8x8 k3x3 bias"
    assert [keys[32].groups_at(c) for c in (32, 16, 8, 4)] == [8, 4, 2, 1]
    assert network_of(nn.Conv2d(32, 64, 3, groups=8), example).units[0].key.groups == 8


def test_what_thinning_changes_in_a_unit_does_not_make_it_unknown():
    regrouped = replace(CONV, groups=0, per_group=4)
    made = table()
    thin = Network((Unit("b", regrouped, 16, 16, ("a",)), Unit("mean:7", replace(POOL, size=(7,)), 16, 16)), {})
    assert made.predict(thin) == pytest.approx(made.latency("b", 16, 16) + made.latency("mean:7", 16, 16))
    with pytest.raises(UserError, match="has no unit conv 9x9"):
        made.predict(Network((Unit("b", replace(CONV, size=(9, 9)), 16, 16),), {}))


def test_a_table_goes_through_plain_values():
    made = replace(table(), correction=1.25, other=0.5, measured=3.0)
    content = made.to_json()
    assert json.loads(json.dumps(content)) == content
    read = LatencyTable.from_json(content)
    assert read.network == made.network
    assert read.model() == made.model()
    assert read.to_json() == content
    for damaged in (None, [], {}, {"format": "other"}):
        with pytest.raises(UserError, match=r"^this is not a latency table: make one with `regrow profile`$"):
            LatencyTable.from_json(damaged)
    with pytest.raises(UserError, match=r"^the latency table is damaged: batch should be .* 1: measure it again$"):
        LatencyTable.from_json(content | {"batch": 0})
    with pytest.raises(UserError, match=r"^the latency table in model/ is damaged"):
        LatencyTable.from_json(content | {"units": 3}, name="in model/")


def test_trace_refuses_what_does_not_run():
    with pytest.raises(UserError, match=r"does not run on inputs of shape \(2, 4, 8, 8\)"):
        network_of(Block(), torch.randn(2, 4, 8, 8))


def test_the_margin_is_that_of_the_dense_model():
    assert table().margin() is None
    made = replace(table(), spread=Spread(wholes=0.1, freedom=4))
    assert made.margin() == pytest.approx(made.interval()[1] / made.model() - 1)
