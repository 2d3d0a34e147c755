"""IEE for channels against HALP, uniform scaling and the dense network, on CIFAR-10 at 16x16, at 50% and 30% latency.

    regrow profile wrn16-2 --data-shape 3,16,16 --batch 128 --threads 1 --out benchmarks/studies/wrn16-2.json
    python benchmarks/channel_study.py --out studies/channels --jobs 2

IEE trains from scratch, and for 30% also from the dense network, as gradually as HALP. From scratch its groups keep
30% of their channels at least, and it replaces few and only early: chosen on the validation split of seed 0 at 30%.

Needs CIFAR-10 (see `data.name: cifar10` in docs/recipes.md). Every run is a directory of its own under --out; the same
command goes on where it was. HALP starts from the dense network of the same seed and trains as long again, as in its
paper, and its pre-training counts as its training. Accuracies are of the test split, which nothing is chosen on.
Writes benchmarks/results/channels.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from regrow.training.statistics import paired

HERE = Path(__file__).parent
RECIPE = HERE / "studies" / "channels.yaml"
RESULTS = HERE / "results" / "channels.json"
SEEDS = (0, 1, 2)
BUDGETS = (0.5, 0.3)
GRADUAL = [
    "--method.start",
    "criterion",
    "--method.ramp",
    "0.0",
    "--method.update_end",
    "0.57",
]  # as long as HALP prunes
PRETRAINED = ("halp", "iee-pretrained")


def plan(out: Path, table: Path) -> list[list[tuple[str, list[str]]]]:
    """Stages of (name of a run, its overrides); a stage needs those before it."""
    dense = [(f"dense-seed{seed}", ["--method.name", "dense", "--seed", str(seed)]) for seed in SEEDS]
    sparse: list[tuple[str, list[str]]] = []
    for seed in SEEDS:
        for budget in BUDGETS:
            shared = ["--seed", str(seed), "--pattern.latency", str(budget), "--pattern.table", str(table)]
            name = f"{round(100 * budget)}-seed{seed}"
            sparse.append((f"iee-{name}", [*shared, "--pattern.min_channels", "0.3"]))
            sparse.append((f"uniform-{name}", [*shared, "--method.name", "uniform"]))
            weights = ["--model.weights", str(out / f"dense-seed{seed}" / "model")]
            if budget == min(BUDGETS):
                sparse.append((f"iee-pretrained-{name}", [*shared, *weights, *GRADUAL]))
            sparse.append((f"halp-{name}", [*shared, "--method.name", "halp", "--pattern.solver", "grouped",
                                            *weights]))  # fmt: skip
    return [dense, sparse]


def run(out: Path, name: str, overrides: list[str]) -> dict[str, Any]:
    directory = out / name
    if not (directory / "results.json").is_file():
        words = [sys.executable, "-m", "regrow", "train", str(RECIPE), *overrides, "--out", str(directory)]
        words += ["--label", name.partition("-seed")[0], "--quiet", "--no-report", "--resume"]
        directory.parent.mkdir(parents=True, exist_ok=True)
        with (out / f"{name}.log").open("w", encoding="utf-8") as log:
            subprocess.run(words, check=True, stdout=log, stderr=log)
    found: dict[str, Any] = json.loads((directory / "results.json").read_text(encoding="utf-8"))["runs"][0]
    print(f"{name}: {found['accuracy']:.4f} in {found['seconds']:.0f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("studies/channels"))
    parser.add_argument("--table", type=Path, default=HERE / "studies" / "wrn16-2.json")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="names of runs that begin so")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    runs: dict[str, dict[str, Any]] = {}
    for stage in plan(args.out.resolve(), args.table.resolve()):
        chosen = [one for one in stage if one[0].startswith(args.only) or one[0].startswith("dense")]
        with ThreadPoolExecutor(args.jobs) as pool:
            futures = {name: pool.submit(run, args.out, name, overrides) for name, overrides in chosen}
            runs |= {name: future.result() for name, future in futures.items()}
    if args.only:
        return
    print(json.dumps(summary := summarise(runs), indent=1))
    RESULTS.write_text(json.dumps({"summary": summary, "runs": runs}, indent=1) + "\n", encoding="utf-8")


def summarise(runs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds, and the difference of IEE to each rival at the same budget."""
    labels = sorted({name.partition("-seed")[0] for name in runs})
    rows = []
    for label in labels:
        mine = [runs[f"{label}-seed{seed}"] for seed in SEEDS]
        dense = [runs[f"dense-seed{seed}"] for seed in SEEDS]
        spent = [
            (r["train_seconds"] + (d["train_seconds"] if label.startswith(PRETRAINED) else 0)) / d["train_seconds"]
            for r, d in zip(mine, dense, strict=True)
        ]
        row: dict[str, Any] = {
            "label": label,
            "accuracy": [r["accuracy"] for r in mine],
            "mean": sum(r["accuracy"] for r in mine) / len(mine),
            "latency_ratio": sum(r["latency"] / r["dense_latency"] for r in mine) / len(mine),
            "training_cost_flops": sum(r["training_cost"] + label.startswith(PRETRAINED) for r in mine) / len(mine),
            "training_seconds_x_dense": sum(spent) / len(spent),
        }
        kind, _, budget = label.rpartition("-")
        rivals = {"halp": ("iee", "iee-pretrained"), "uniform": ("iee",)}.get(kind, ())
        for ours in rivals:
            if f"{ours}-{budget}" in labels:
                own = {seed: runs[f"{ours}-{budget}-seed{seed}"]["accuracy"] for seed in SEEDS}
                ahead = paired(own, dict(zip(SEEDS, row["accuracy"], strict=True)))
                row[f"{ours.replace('-', '_')}_ahead_by"] = ahead._asdict()
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
