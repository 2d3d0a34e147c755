"""Latency tables that are computed instead of measured, so that no test depends on how busy the machine is."""

from math import prod

import numpy as np

from regrow.inputs import Inputs
from regrow.latency.machine import Machine
from regrow.latency.network import network_of
from regrow.latency.table import Grid, LatencyTable

_PER_PRODUCT, _PER_UNIT = 1e-9, 1e-7  # seconds


def table_of(model, example, *, threads=1, scale=1.0):
    """A table in which every unit costs what its widths and sizes multiply to, and a little."""
    network = network_of(model, example)
    grids = {}
    for unit in network.units:
        key = unit.key
        c_in, c_out = sorted({1, unit.c_in}), sorted({1, unit.c_out}) if key.two_sided else [0]
        area = prod(key.size) * (prod(key.kernel) if key.kind == "conv" else 1) / max(prod(key.stride), 1)
        products = np.array([[a * max(b, 1) * area for b in c_out] for a in c_in], dtype=float)
        seconds = scale * (_PER_UNIT + _PER_PRODUCT * products)
        grids[key] = Grid(tuple(c_in), tuple(c_out), seconds, step=8, stairs=(0.0, 0.0))
    made = LatencyTable(Machine.here("eager"), Inputs.of(example).batch, threads, network, grids)
    return LatencyTable(made.machine, made.batch, threads, network, grids, measured=made.model())


def profile(model, example, *, threads=1, **_):
    """In place of `regrow.profiling.profile`."""
    table = table_of(model, example, threads=threads)
    return table, [(table.measured, table.measured)]
