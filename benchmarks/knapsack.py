"""How long the channel knapsacks take on a ResNet-50.

    python benchmarks/knapsack.py --out benchmarks/results/knapsack.json

`grouped` on groups in steps of 8 channels with real costs (5 coupled groups, 32 inner ones), `joint` on all pairs of 12
levels with a latency and a parameter budget, both as in tests/budgets/test_knapsack.py; processor time of one thread,
median over budgets from 20% to 80% of dense.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "channels"))
from test_knapsack import costs_of, resnet50_groups, resnet50_layers

from regrow.budgets.knapsack import LayerCosts, grouped, joint

FRACTIONS = (0.2, 0.3, 0.4, 0.55, 0.7, 0.8)


def time_grouped() -> list[float]:
    seconds = []
    for seed, fraction in enumerate(FRACTIONS * 3):
        values, costs = resnet50_groups(np.random.default_rng(seed))
        budget = fraction * math.fsum(cost[-1] for cost in costs)
        start = time.process_time()
        grouped(values, costs, budget)
        seconds.append(time.process_time() - start)
    return seconds


def time_joint() -> tuple[list[float], list[float]]:
    values, layers = resnet50_layers(12)
    names = ("latency", "params")
    layers = [LayerCosts(x.source, x.target, {name: x.costs[name] for name in names}) for x in layers]
    dense = costs_of([11] * len(values), layers, dict.fromkeys(names, 0.0))
    seconds, gaps = [], []
    for fraction in FRACTIONS:
        start = time.process_time()
        found = joint(values, layers, {"latency": fraction * dense["latency"], "params": 0.6 * dense["params"]})
        seconds.append(time.process_time() - start)
        gaps.append(found.gap)
    return seconds, gaps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    dynamic = time_grouped()
    program, gaps = time_joint()
    results = {
        "grouped_median_ms": 1e3 * statistics.median(dynamic),
        "grouped_worst_ms": 1e3 * max(dynamic),
        "joint_median_s": statistics.median(program),
        "joint_worst_s": max(program),
        "joint_worst_gap": max(gaps),
    }
    text = json.dumps(results, indent=1)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
