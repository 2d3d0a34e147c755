"""A reference kernel says how fast the machine is, and does not take chance for drift."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from regrow.latency.reference import Reference


def ticked(seconds) -> Reference:
    """A reference whose ticks take these seconds; of each tick's runs the others take longer."""
    runs = iter([t for one in seconds for t in (9 * one, 1.5 * one, one, 2 * one)])
    reference = Reference(SimpleNamespace(seconds=lambda *_: next(runs)), lambda: None)
    for _ in seconds:
        reference.tick()
    return reference


def test_the_fastest_run_after_a_first_counts():
    reference = ticked([3.0, 4.0])
    assert reference.seconds == [3.0, 4.0]
    assert reference.now == 1


def test_a_slow_drift_is_followed():
    true = np.linspace(1.0, 2.0, 60)
    reference = ticked(1e-4 * true)
    assert reference.drift == pytest.approx(1.9 / 1.1 - 1, rel=0.03)
    assert reference.slowness()[3:-3] == pytest.approx(true[3:-3] / np.quantile(true, 0.25), rel=1e-3)
    assert reference.spread < 0.005


def test_a_step_is_followed_at_once():
    reference = ticked([1e-4] * 40 + [1.5e-4] * 20)
    assert reference.drift == pytest.approx(0.5)
    assert reference.slowness() == pytest.approx([1.0] * 40 + [1.5] * 20)
    assert reference.spread == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_chance_is_no_drift(seed):
    noise = np.exp(0.1 * np.random.default_rng(seed).standard_normal(120))
    reference = ticked(1e-4 * noise)
    assert reference.drift == 0.0
    assert (reference.slowness() == 1.0).all()
    assert reference.spread == pytest.approx(0.1, rel=0.35)


def test_single_bursts_are_neither_drift_nor_spread():
    seconds = np.full(60, 1e-4)
    seconds[::9] = 1e-3
    reference = ticked(seconds)
    assert (reference.drift, reference.spread) == (0.0, 0.0)


def test_drift_of_less_than_two_in_a_hundred_is_left():
    assert ticked([1.0] * 30 + [1.015] * 30).drift == 0.0
    assert ticked([1.0] * 30 + [1.025] * 30).drift == pytest.approx(0.025)


@pytest.mark.parametrize("seconds", [[1.0], [1.0, 2.0, 3.0], [0.0] * 20])
def test_few_ticks_and_coarse_clocks_say_nothing(seconds):
    reference = ticked(seconds)
    assert reference.drift == 0.0
    assert (reference.slowness() == 1.0).all()
