"""Run and compare directories for the tests of the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_runs import write_compare, write_run


@pytest.fixture
def make_run() -> Callable[..., Path]:
    return write_run


@pytest.fixture
def make_compare() -> Callable[..., Path]:
    return write_compare
