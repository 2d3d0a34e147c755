"""Errors of what is typical, and of whole models; the margin that they make together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from regrow.latency.spread import Spread, fit_error, typical, typical_error


def test_the_lower_quartile_is_typical():
    assert typical([1.0, 1.0, 1.0, 9.0, 50.0]) == 1.0


@pytest.mark.parametrize("n", [6, 15, 45])
def test_the_error_of_the_lower_quartile_is_about_what_chance_makes_it(n):
    drawn = np.exp(0.2 * np.random.default_rng(0).standard_normal((1000, n)))
    true = np.std([typical(row) for row in drawn]) / np.exp(-0.6745 * 0.2)
    assert np.mean([typical_error(row) for row in drawn]) == pytest.approx(true, rel=0.3)


def test_bursts_in_a_third_of_the_samples_are_no_error():
    assert typical_error([1.0, 1.0, 3.0] * 5) == 0.0
    assert typical_error([1.0, 3.0, 3.0] * 5) > 0.3
    assert typical_error([1.0]) == typical_error([0.0, 0.0]) == 0.0


def test_the_error_of_a_fit_has_its_degrees_of_freedom():
    error, freedom = fit_error([1.1, 1.8, 3.0], [1.0, 2.0, 3.0], fitted=2)
    assert (error, freedom) == (pytest.approx(math.hypot(0.1, 0.1)), 1)
    assert fit_error([1.0], [2.0], fitted=1) == (None, 0)


def test_the_margin_is_that_of_nine_cases_in_ten():
    assert Spread().margin(0.02) == pytest.approx(1.645 * math.hypot(0.02, 0.1), rel=1e-3)  # fitted to nothing
    fitted = Spread(wholes=0.03, freedom=3)
    assert fitted.margin(0.0) == pytest.approx(2.353 * 0.03, rel=1e-3)  # Student's t
    steady = Spread(reference=0.04, dense=0.01, wholes=0.0, freedom=3)
    assert steady.margin(0.02) == pytest.approx(1.645 * math.hypot(0.02, 0.01, 0.02), rel=1e-3)
