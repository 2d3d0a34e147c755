"""A machine that is too busy is refused, one that is only in use is not; with a clock that is made up."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from test_measure import EXAMPLE, MadeUp, net

from regrow.errors import UserError
from regrow.latency import busy
from regrow.latency import measure as module
from regrow.latency.busy import Limits, refuse_if_busy
from regrow.latency.measure import measure
from regrow.latency.network import network_of

THIN = [net(24, 56), net(16, 48), net(16, 32), net(8, 16)]


class Disturbed(MadeUp):
    """Everything takes a factor longer that depends on the number of executions so far."""

    def factor(self, number: int) -> float:
        raise NotImplementedError

    def next(self) -> float:
        self.calls += 1
        return self.factor(self.calls)

    def sample(self, key, c_in, c_out, repeats):
        return [self.price(key, c_in, c_out) * self.next() for _ in range(repeats)]

    def whole(self, model, example):
        passes = super().whole(model, example)
        return lambda: passes() * self.next()

    def reference(self):
        return lambda: 1e-4 * self.next()


class Bursts(Disturbed):
    """In a third of the time, two and a half times as slow."""

    def factor(self, number):
        return 2.5 if number % 150 < 50 else 1.0


class Interrupted(Disturbed):
    """Every third execution, at random, takes three times as long."""

    def __init__(self, batch, threads):
        super().__init__(batch, threads)
        self.random = np.random.default_rng(0)

    def factor(self, number):
        return 3.0 if self.random.random() < 1 / 3 else 1.0


class Drifting(Disturbed):
    """Half as slow again by and by, and back."""

    def factor(self, number):
        return 1.25 - 0.25 * float(np.cos(2 * np.pi * number / 1500))


class Overrun(Interrupted):
    """Whatever is done takes from once to many times as long."""

    def factor(self, number):
        return float(np.exp(abs(1.2 * self.random.standard_normal())))


@pytest.fixture
def limits(monkeypatch):
    monkeypatch.setattr(busy, "LIMITS", Limits())


def measured(monkeypatch, kind, **options):
    monkeypatch.setitem(module.RUNTIMES, "eager", kind)
    return measure(net(), EXAMPLE, thin=THIN, progress=False, **options)


def true(model) -> float:
    return MadeUp(2, 1).whole(model, EXAMPLE)()


@pytest.mark.parametrize("kind", [Bursts, Interrupted, Drifting])
def test_a_machine_in_use_is_not_refused_and_its_table_is_right(kind, monkeypatch, limits):
    table = measured(monkeypatch, kind)
    assert table.spread is not None
    prices = {model: table.predict(network_of(model, EXAMPLE)) for model in [net(24, 40), net(16, 24), net()]}
    dense = table.model() / true(net())
    for model, price in prices.items():
        assert price / dense == pytest.approx(true(model), rel=0.07)
        low, high = table.interval(network_of(model, EXAMPLE))
        assert low <= dense * true(model) <= high


def test_drift_is_divided_out_and_stored(monkeypatch, limits):
    table = measured(monkeypatch, Drifting)
    assert table.spread.drift == pytest.approx(0.45, abs=0.08)
    without = measured(monkeypatch, MadeUp)
    assert without.spread.drift == 0.0
    assert table.spread.reference < 0.02


def test_a_machine_that_is_too_busy_is_refused_with_what_was_seen_and_a_way_out(monkeypatch, limits):
    with pytest.raises(UserError, match="this machine is too busy to measure latency: ") as caught:
        measured(monkeypatch, Overrun)
    for words in ("close other programs, give it more time (time_limit=", "(table=)", "allow_busy=True"):
        assert words in str(caught.value)
    assert "threads=1" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_may_be_accepted_and_says_how_far_it_is_off(monkeypatch, limits):
    table = measured(monkeypatch, Overrun, allow_busy=True)
    low, high = table.interval()
    assert (high - low) / table.model() > 0.3
    steady = measured(monkeypatch, MadeUp).interval()
    assert (steady[1] - steady[0]) / sum(steady) < 0.1


def reference(seconds, drift=0.0, spread=0.0):
    return SimpleNamespace(seconds=seconds, drift=drift, spread=spread)


STEADY, ROUGH = reference([1e-4] * 9), [0.04, 0.09, 0.05, 0.07, 0.095, 0.08]


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ((ROUGH, 0.0, STEADY), "the dense model took from 40 ms to 95 ms in 6 passes;"),
        (([0.04] * 6, 0.25, STEADY), "uncertain, for the dense model by 25% in all;"),
        (([0.04] * 6, 0.0, reference([1.0] * 9, drift=2.5)), "work became 3.5 times as slow as before;"),
        (([0.04] * 6, 0.0, reference([1.0, 2.0] * 9, spread=0.6)), "piece of work took from 1e+03 ms to 2e+03 ms"),
    ],
)  # fmt: skip
def test_what_was_seen(given, seen, limits):
    with pytest.raises(UserError) as caught:
        refuse_if_busy(*given, threads=2)
    assert seen in str(caught.value)
    assert "close other programs, measure with threads=1, give it more time" in str(caught.value)


def test_a_few_samples_refuse_nothing(limits):
    refuse_if_busy(ROUGH[:4], 0.1, reference([1.0, 9.0], drift=5.0, spread=2.0), threads=1)
