"""What a run has left behind, to be compared with what another has."""

import json
from pathlib import Path

from regrow import storage

TIMES = {
    "finished",
    "seconds",
    "train_seconds",
    "train_ratio",
    "latency",
    "latency_ratio",
    "dense_latency",
    "throughput",
}


def without_time(value):
    if isinstance(value, dict):
        return {k: without_time(v) for k, v in value.items() if k not in TIMES}
    return [without_time(v) for v in value] if isinstance(value, list) else value


def outcome(out: Path):
    """All that a run leaves behind, but for the time it took."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    results, structure = (json.loads((out / name).read_text()) for name in ("results.json", "structure.json"))
    results["recipe"]["train"].pop("checkpoint_steps")
    weights = (out / "model" / storage.WEIGHTS).read_bytes()
    return without_time([results, structure, lines]), weights
