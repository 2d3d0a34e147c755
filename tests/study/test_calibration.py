"""How long steps take: each probe is in the phases that it is there for, and what is measured makes sense."""

import dataclasses
import math

import pytest

import tiny_recipe as tiny
from regrow import UserError
from regrow.methods import Dense, Static
from regrow.study import calibration
from regrow.study.calibration import Probe
from regrow.training.recipe import load


@pytest.fixture
def recipe(tmp_path):
    return load(tiny.write(tmp_path), tiny.CHANNELS)


def widths(probe):
    return {name: (int(p.shape[0])) for name, p in probe.run.model.named_parameters()}


def test_probes_are_in_the_phases_that_they_time(recipe):
    probe = Probe(recipe, calibration._updating(1.0), None)
    whole = widths(Probe(recipe, Dense(), None))
    length = calibration._CYCLE
    for _ in range(2):
        phases, thin = [], []
        for place in range(length):
            span = probe.run.timeline.phase_at(probe.run.sparsifier.step_count)
            phases.append(span.phase)
            thin.append(widths(probe) != whole)
            assert (span.start < probe.run.step < span.end - 1) == (place in calibration._PLAIN)
            assert (probe.run.step == span.end - 1) == (place in calibration._LAST)
            assert {"explore": "removed"}.get(span.phase, "active") == span.trains
            probe._work()
        assert phases == ["estimate"] * 3 + ["improve"] * 3 + ["explore"] * 3
        assert thin == [True] * 6 + [False] * 3
    assert len(probe.run.sparsifier.history) == 2


def test_probes_without_updates(recipe):
    even = Probe(recipe, Static(), None)
    assert even.run.sparsifier.phase == "fixed"
    chosen = Probe(recipe, calibration._updating(calibration._AHEAD), None, calibration._AHEAD)
    assert chosen.run.sparsifier.phase == "fixed"
    assert widths(chosen) != widths(Probe(recipe, Dense(), None))
    chosen.turn(3, counts=False)
    assert chosen.turns == []
    chosen.turn(3)
    chosen.turn(3)
    assert [len(turn) for turn in chosen.turns] == [3, 3]
    assert chosen.usual() > 0
    assert chosen.run.sparsifier.phase == "fixed"


def test_what_is_measured(recipe, monkeypatch):
    monkeypatch.setattr(calibration, "_ROUNDS", (1, 1))
    other = dataclasses.replace(recipe, pattern=dataclasses.replace(recipe.pattern, solver="grouped"))
    found = calibration.measure([recipe, other], None)
    assert len(found) == 2
    for times in found:
        assert times.target == pytest.approx(0.4)
        for name, seconds in dataclasses.asdict(times).items():
            assert math.isfinite(seconds)
            assert seconds >= 0 if name in ("scoring", "prune", "explore", "grow") else seconds > 0
    assert (found[0].dense, found[0].even) == (found[1].dense, found[1].even)


def test_an_accumulated_step_is_one(recipe):
    batches = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, accumulate=2, clip_norm=1.0, ema=0.9))
    probe = Probe(batches, Static(), None)
    probe.turn(2)
    assert (probe.run.step, probe.run.sparsifier.step_count, len(probe.turns[0])) == (2, 2, 2)


def test_a_budget_that_cannot_be_met(recipe):
    impossible = dataclasses.replace(recipe, pattern=dataclasses.replace(recipe.pattern, flops=0.001))
    with pytest.raises(UserError, match=r"flops=0\.001 cannot be met"):
        calibration.measure([impossible], None)
