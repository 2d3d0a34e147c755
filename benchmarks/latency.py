"""How well latency tables predict whole thin models: random thin ResNet-50s, none of which was used for fitting.

    pip install 'regrow[export]'
    python benchmarks/latency.py --out benchmarks/results/latency.json

For each runtime a table of the dense model is measured as `regrow profile` does it (torchvision's ResNet-50 on 8 images
of 224×224, one thread), and then ten thin models: about 20% to 90% of the channels, every group up to a quarter off.
An error is the difference of predicted and measured latency relative to the measured one; median and worst are taken
without signs.

The file is written after each runtime. Runtimes that it has already, for the same settings and machine, are not
measured again; `--again` does. About five minutes for each of the two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torchvision

from regrow import profiling
from regrow.latency.machine import Machine


def measured(runtime: str, settings: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    start = time.monotonic()
    torch.manual_seed(settings["seed"])
    size = settings["pixels"]
    found = profiling.run(
        torchvision.models.get_model(settings["model"], weights=None), torch.randn(settings["batch"], 3, size, size),
        runtime=runtime, threads=settings["threads"], time_limit=settings["time_limit"], check=settings["models"],
        progress=True, seed=settings["seed"],
    )  # fmt: skip
    assert not found.note, found.note
    return {
        **errors([abs(check.error) for check in found.checks]),
        "machine": machine,
        "seconds": time.monotonic() - start,
        "dense": {"predicted": found.table.model(), "measured": found.table.measured},
        "widths_measured": sum(grid.seconds.size for grid in found.table.grids.values()),
        "models": [asdict(check) | {"error": check.error} for check in found.checks],
    }


def errors(values: list[float]) -> dict[str, float]:
    return {"median_error": statistics.median(values), "worst_error": max(values)}


def write(result: dict[str, Any], out: Path | None) -> None:
    every = [abs(model["error"]) for part in result["runtimes"].values() for model in part["models"]]
    result = errors(every) | result
    text = json.dumps(result, indent=2)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--runtimes", default="eager,onnxruntime")
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds for each runtime")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="measure runtimes that the file has already")
    parser.add_argument("--quick", action="store_true", help="ResNet-18, 64×64, 20 seconds: to see that it runs")
    args = parser.parse_args()
    settings = {
        "model": "resnet18" if args.quick else "resnet50", "pixels": 64 if args.quick else 224, "batch": 8,
        "threads": 1, "models": args.models, "time_limit": 20.0 if args.quick else args.time_limit, "seed": args.seed,
    }  # fmt: skip
    before: dict[str, Any] = {}
    if args.out and args.out.exists() and not args.again:
        before = json.loads(args.out.read_text())
        before = before["runtimes"] if before["settings"] == settings else {}
    result: dict[str, Any] = {"settings": settings, "runtimes": {}}
    for runtime in args.runtimes.split(","):
        machine = asdict(Machine.here(runtime))
        if runtime in before and before[runtime]["machine"] == machine:
            result["runtimes"][runtime] = before[runtime]
        else:
            result["runtimes"][runtime] = measured(runtime, settings, machine)
        write(result, args.out)


if __name__ == "__main__":
    main()
