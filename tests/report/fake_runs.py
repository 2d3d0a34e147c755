"""Run directories as training writes them, with made-up but lifelike numbers."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

LAYERS = [
    ("stem.conv.weight", [16, 1, 3, 3], 0.9),
    ("blocks.0.conv1.weight", [32, 16, 3, 3], 0.31),
    ("blocks.0.conv2.weight", [32, 32, 3, 3], 0.16),
    ("blocks.0.shortcut.weight", [32, 16, 1, 1], 0.62),
    ("blocks.1.conv1.weight", [64, 32, 3, 3], 0.082),
    ("blocks.1.conv2.weight", [64, 64, 3, 3], 0.041),
    ("head.weight", [10, 64], 0.44),
]
# final accuracy, training cost by phase, survival of grown weights at the first and last update
METHODS: dict[str, dict[str, Any]] = {
    "dense": {"accuracy": 0.982, "cost": {"fixed": 1.0}, "density": 1.0},
    "static": {"accuracy": 0.951, "cost": {"fixed": 0.13}, "density": 0.1},
    "set": {"accuracy": 0.958, "cost": {"estimate": 0.1, "fixed": 0.03}, "density": 0.1, "survival": (0.25, 0.45)},
    "rigl": {"accuracy": 0.966, "cost": {"estimate": 0.11, "fixed": 0.03}, "density": 0.1, "survival": (0.36, 0.55)},
    "iee": {
        "accuracy": 0.974,
        "cost": {"estimate": 0.033, "improve": 0.033, "explore": 0.22, "fixed": 0.033},
        "density": 0.1,
        "survival": (0.62, 0.9),
    },
}
RECIPE = "data: digits\nmodel: digits-cnn\nmethod: {method}\nseed: {seed}\nsparsity: 0.9\nsteps: {steps}\n"


def phase_at(method: str, step: int, steps: int) -> str:
    if step > 0.75 * steps or method in ("dense", "static"):
        return "fixed"
    return ("estimate", "improve", "explore")[(step - 1) // 30 % 3] if method == "iee" else "estimate"


def metrics(method: str, seed: int, steps: int, final: float, every: int = 5) -> list[dict[str, Any]]:
    rng = random.Random(f"{method}{seed}")
    total, rows = sum(METHODS[method]["cost"].values()), []
    for step in range(every, steps + 1, every):
        progress = step / steps
        phase = phase_at(method, step, steps)
        gap = math.exp(-7 * progress)
        loss = (0.05 + (1 - final) + 2.2 * gap) * (1 + rng.gauss(0, 0.06)) + (
            0.25 * (1 - progress) if phase == "explore" else 0
        )
        row = {"step": step, "epoch": step // 50, "phase": phase, "loss": max(loss, 0.01), "lr": 0.1 * (1 - progress)}
        row |= {"density": METHODS[method]["density"], "seconds": step * 0.02, "cost": total * progress}
        if step % 25 == 0:
            row |= {"accuracy": min(1.0, final - 0.85 * gap + rng.gauss(0, 0.004)), "split": "val"}
        rows.append(row)
    return rows


def structure(method: str, seed: int, steps: int) -> dict[str, Any]:
    rng = random.Random(f"{method}{seed}s")
    layers = []
    for name, shape, density in LAYERS:
        total = math.prod(shape)
        start = total if method == "dense" else round(total * density)
        active = min(total, round(start * rng.uniform(0.8, 1.2))) if method == "iee" else start
        layer = {"name": name, "shape": shape, "total": total, "start_active": start, "active": active}
        layers.append(layer | {"flops": 9.0 * total})
    cost = METHODS[method]["cost"]
    return {
        "layers": layers,
        "history": history(method, rng, steps),
        "training_cost": cost | {"total": sum(cost.values())},
        "method": method,
        "seed": seed,
        "label": method,
    }


def history(method: str, rng: random.Random, steps: int) -> list[dict[str, Any]]:
    if "survival" not in METHODS[method]:
        return []
    first, last = METHODS[method]["survival"]
    count = int(0.75 * steps / (90 if method == "iee" else 60))
    records = []
    for i in range(1, count + 1):
        share = min(first + (last - first) * i / count + rng.gauss(0, 0.015), 1.0)
        iou = 1 - (1 - share) * 0.4 * (1 - 0.8 * i / count)
        record = {"update": i, "step": round(0.75 * steps * i / count), "pruned": 100, "grown": 100, "density": 0.1}
        records.append(record | {"regrown": 20, "iou": iou, "survival": None if i == 1 else share})
    return records


def facts(method: str, **more: Any) -> dict[str, Any]:
    """What runs say of their size, builder and machine, beside what those of earlier versions said."""
    total = sum(math.prod(shape) for _, shape, _ in LAYERS)
    kept = total if method == "dense" else round(0.1 * total)
    apart = {"rigl": {"estimate": 0.02}, "iee": {"estimate": 0.02, "improve": 0.01}}
    environment = {"regrow": "0.2.0", "torch": "2.14.1", "python": "3.11.7", "system": "Linux x86_64", "device": "cpu"}
    return {
        "parameters": kept,
        "dense_parameters": total,
        "bytes": 4 * total,
        "dense_bytes": 4 * total,
        "saved_bytes": 4 * kept + total // 8,
        "dense_gradients": apart.get(method, {}),
        "model": {"name": "digits-cnn", "options": {}, "classes": 10, "shape": [1, 8, 8]},
        "test_images": 360,
        "environment": environment | {"cpu": "Fast <Processor>", "threads": 2, "processes": 1, "precision": "fp32"},
        "finished": "2026-11-26T06:27:24Z",
    } | more


def write_run(
    directory: Path,
    method: str,
    seed: int,
    steps: int = 600,
    finished: bool = True,
    said: dict[str, Any] | None = None,
    **result: Any,
) -> Path:
    """One run; without results and with half the metrics if it is not ``finished``. ``said`` and ``result`` are more
    keys of its record."""
    directory.mkdir(parents=True)
    facts = METHODS[method]
    noise = random.Random(seed).gauss(0, 0.003) + random.Random(f"{method}{seed}n").gauss(0, 0.0015)
    final = facts["accuracy"] + noise
    rows = metrics(method, seed, steps, final)
    rows = rows if finished else rows[: len(rows) // 2]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "structure.json").write_text(json.dumps(structure(method, seed, steps)))
    (directory / "recipe.yaml").write_text(RECIPE.format(method=method, seed=seed, steps=steps))
    if finished:
        record = {
            "method": method,
            "label": method,
            "seed": seed,
            "accuracy": final,
            "validation_accuracy": final - 0.002,
            "density": facts["density"],
            "sparsity": 1 - facts["density"],
            "training_cost": sum(facts["cost"].values()),
            "by_phase": facts["cost"],
            "inference_flops": 2.6e6 * (0.13 if facts["density"] < 1 else 1),
            "dense_flops": 2.6e6,
            "seconds": 12.0 + seed,
            "steps": steps,
            "explore_steps": 150 if method == "iee" else 0,
        }
        results = {"regrow": "0.1.0", "recipe": {}, "runs": [record | result | (said or {})], "summary": []}
        (directory / "results.json").write_text(json.dumps(results))
    return directory


def write_compare(directory: Path, methods: list[str], seeds: list[int], steps: int = 600) -> Path:
    records = []
    for method in methods:
        for seed in seeds:
            run = write_run(directory / "runs" / f"{method}-seed{seed}", method, seed, steps)
            records += [r | {"run": f"runs/{run.name}"} for r in json.loads((run / "results.json").read_text())["runs"]]
    (directory / "recipe.yaml").write_text("data: digits\nmodel: digits-cnn\nsparsity: 0.9\ndistribution: erk\n")
    (directory / "results.json").write_text(
        json.dumps({"regrow": "0.1.0", "recipe": {}, "runs": records, "summary": []})
    )
    return directory
