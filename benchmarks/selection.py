"""How long selecting channels takes for whole models, and that the answer is the same on a busy machine.

    python benchmarks/selection.py --out benchmarks/results/selection.json

Budgets of FLOPs alone and of FLOPs and parameters, importance by magnitude at initialisation; ViT-B has the layers of
BERT-base, of which many cost and are worth nearly the same, which makes a search long. Processor time of one thread;
each selection is made a second time while ``--busy`` other processes run.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor, nn

from regrow.budgets.allocation import allocate
from regrow.budgets.pricing import Prices
from regrow.coupling.couple import couple
from regrow.groups import Group
from regrow.tracing.flops import count_flops

BUDGETS = ({"flops": 0.5}, {"flops": 0.6}, {"flops": 0.5, "params": 0.65})
STEP, LEAST = 8, 0.1


def models() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    images = torch.randn(1, 3, 224, 224)
    return {
        "resnet50": (torchvision.models.resnet50(), images),
        "densenet121": (torchvision.models.densenet121(), images),
        "mobilenet_v2": (torchvision.models.mobilenet_v2(), images),
        "vit_small_patch16_224": (timm.create_model("vit_small_patch16_224"), images),
        "vit_base_patch16_224": (timm.create_model("vit_base_patch16_224"), images),
    }


def importance(group: Group, parameters: dict[str, Tensor]) -> np.ndarray:
    """Squares of all weights that go with each channel, best first."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for part in group.slices:
        if part.name in parameters:
            along = parameters[part.name].detach().double().movedim(part.dim, 0)
            mine = part.channel >= 0
            total.index_add_(0, part.channel[mine], along.reshape(len(mine), -1).square().sum(1)[mine])
    return total.sort(descending=True).values.numpy()


def select(prices: Prices, values: dict[str, np.ndarray], budgets: dict[str, float]) -> tuple[dict[str, int], float]:
    """The counts, and processor seconds."""
    between = {g: (min(n, math.ceil(LEAST * n / STEP) * STEP), n) for g, n in prices.sizes.items()}
    asked = {kind: share * prices.dense[kind] for kind, share in budgets.items()}
    start = time.process_time()
    found = allocate(prices, values, between, asked, now=prices.sizes, round_to=STEP)
    seconds = time.process_time() - start
    assert all(prices.cost(found)[kind] <= limit for kind, limit in asked.items())
    return found, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--busy", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    for name, (model, example) in models().items():
        coupling = couple(model, example)
        prices = Prices.of(model, coupling, kinds=("flops", "params"), flops=count_flops(model, example))
        parameters = dict(model.named_parameters())
        values = {group.id: importance(group, parameters) for group in coupling.groups}
        for budgets in BUDGETS:
            counts, seconds = select(prices, values, budgets)
            loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)]
            try:
                again, _ = select(prices, values, budgets)
            finally:
                for loop in loops:
                    loop.kill()
                    loop.wait()
            kept = sum(float(values[g][:n].sum()) for g, n in counts.items())
            found.append({
                "model": name, "groups": len(values), "budgets": budgets, "seconds": round(seconds, 2),
                "importance_kept": round(kept / sum(float(v.sum()) for v in values.values()), 5),
                "same_when_busy": counts == again,
            })  # fmt: skip
            print(json.dumps(found[-1]), flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"selections": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
