"""What exported networks weigh and how fast they are: thin beside dense in ONNX Runtime, and sparse beside dense.

    python benchmarks/export.py            # under 3 minutes of one core; fills the tables of docs/export.md
    python benchmarks/export.py --tables   # fills them from results/export.json alone

Networks have random weights, and thin ones half of the channels of every group. Times are the processor's own, on one
thread, which other programs on the machine change least; contenders take turns, and the median of the turns counts.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import onnxruntime
import scipy.sparse
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import regrow
from regrow.coupling.couple import couple
from regrow.surgery import resize
from regrow.tracing.flops import count_flops

RESULTS = Path(__file__).parent / "results" / "export.json"
PAGE = Path(__file__).parent.parent / "docs" / "export.md"
SPARSITY = 0.95
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # and the images with which channels are followed
    "ResNet-50": (torchvision.models.resnet50, 64),
    "MobileNetV2": (torchvision.models.mobilenet_v2, 64),
    "ViT-Ti/16": (lambda: timm.create_model("vit_tiny_patch16_224"), 224),
}
LINEAR = [  # inputs, outputs, rows at a time, share of the weights that is removed
    (768, 3072, 1, 0.95), (768, 3072, 197, 0.95), (768, 3072, 197, 0.9), (768, 3072, 197, 0.8),
    (4096, 4096, 1, 0.95), (4096, 4096, 32, 0.95), (4096, 4096, 32, 0.9), (4096, 4096, 32, 0.8),
]  # fmt: skip
POINTWISE = [(64, 256, 56), (256, 1024, 14), (512, 2048, 7)]  # channels in and out, side of the image
END = "<!-- end -->"


def seconds(contenders: Sequence[Callable[[], object]], turns: int) -> list[float]:
    """The median turn of each; the first one warms up."""
    times: list[list[float]] = [[] for _ in contenders]
    for _ in range(turns + 1):
        for run, own in zip(contenders, times, strict=True):
            start = time.process_time()
            run()
            own.append(time.process_time() - start)
    return [statistics.median(own[1:]) for own in times]


def session(path: Path) -> Callable[[Tensor], Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    loaded = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = loaded.get_inputs()[0].name
    return lambda x: loaded.run(None, {name: x.numpy()})


def halved(build: Callable[[], nn.Module], side: int) -> nn.Module:
    model = build()
    coupling = couple(model, torch.randn(2, 3, side, side))
    keep = {group.id: torch.arange(group.size) % 2 == 0 for group in coupling.groups}
    return resize.compact(model, coupling, keep)


def network(name: str, place: Path) -> dict[str, Any]:
    """Sizes, differences and times of a network, dense and thin, at 224 pixels and a batch of 1."""
    torch.manual_seed(0)
    build, side = NETWORKS[name]
    image = torch.randn(1, 3, 224, 224)
    found: dict[str, Any] = {}
    runs = []
    for form, model in (("dense", build()), ("thin", halved(build, side))):
        path = place / f"{form}.onnx"
        graph = regrow.export(model, path, "onnx", image)
        program = regrow.export(model, place / "model.pt2", "pt2", image) if form == "thin" else None
        found[form] = {
            "flops": count_flops(model, image).total,
            "onnx_bytes": graph.bytes,
            "onnx_difference": graph.difference,
            "batches": list(graph.batches),
            **({"pt2_bytes": program.bytes, "pt2_difference": program.difference} if program else {}),
        }
        runs.append(session(path))
    for form, time_ in zip(found, seconds([lambda run=run: run(image) for run in runs], 15), strict=True):
        found[form]["seconds"] = time_
    return found


def pruned(weight: Tensor, sparsity: float) -> Tensor:
    kept = torch.zeros(weight.numel(), dtype=torch.bool)
    kept[torch.randperm(weight.numel())[: round((1 - sparsity) * weight.numel())]] = True
    return torch.where(kept.view(weight.shape), weight, 0.0)


def product(weight: Tensor, x: Tensor, layer: nn.Module, given: Tensor, place: Path, what: str) -> dict[str, Any]:
    """Times of weight @ x (outputs, inputs) × (inputs, columns), and of the dense layer with these weights.

    Args:
        layer: the dense one, on ``given``
    """
    csr, own = weight.to_sparse_csr(), scipy.sparse.csr_array(weight.numpy())
    columns = np.ascontiguousarray(x.numpy())
    regrow.export(layer, place / "layer.onnx", "onnx", given, dynamic_batch=False)
    run = session(place / "layer.onnx")
    expected = (weight.double() @ x.double()).float()
    for result in (csr @ x, torch.from_numpy(own @ columns)):
        assert float((result - expected).abs().max() / expected.abs().max()) < 1e-5
    with torch.no_grad():
        contenders = [lambda: layer(given), lambda: run(given), lambda: csr @ x, lambda: own @ columns]
        names = ("torch_dense", "onnxruntime_dense", "torch_csr", "scipy_csr")
        return {"layer": what, **dict(zip(names, seconds(contenders, 25), strict=True))}


def layers(place: Path) -> list[dict[str, Any]]:
    """Times of sparse layers beside dense ones."""
    torch.manual_seed(0)
    found = []
    for c_in, c_out, rows, sparsity in LINEAR:
        linear = nn.Linear(c_in, c_out, bias=False)
        linear.weight.data = pruned(linear.weight.data, sparsity)
        given = torch.randn(rows, c_in)
        what = f"linear {c_in} → {c_out}, {rows} row{'s' * (rows > 1)}"
        found.append({"removed": sparsity, **product(linear.weight.detach(), given.t(), linear, given, place, what)})
    for c_in, c_out, side in POINTWISE:
        conv = nn.Conv2d(c_in, c_out, 1, bias=False)
        conv.weight.data = pruned(conv.weight.data, SPARSITY)
        given = torch.randn(1, c_in, side, side)
        weight, x = conv.weight.detach().view(c_out, c_in), given.view(c_in, -1)
        assert torch.allclose(F.conv2d(given, conv.weight).view(c_out, -1), weight @ x, atol=1e-4)
        what = f"1×1 conv {c_in} → {c_out}, {side}×{side}"
        found.append({"removed": SPARSITY, **product(weight, x, conv, given, place, what)})
    return found


def whole(place: Path) -> dict[str, float]:
    """Times of a ViT-S/16 at 224 pixels whose linear layers, but for the head, have lost 95% of their weights."""
    torch.manual_seed(0)
    dense = timm.create_model("vit_small_patch16_224").eval()
    linears = [m for name, m in dense.named_modules() if isinstance(m, nn.Linear) and name != "head"]
    for layer in linears:
        layer.weight.data = pruned(layer.weight.data, SPARSITY)
    image = torch.randn(1, 3, 224, 224)
    regrow.export(dense, place / "model.onnx", "onnx", image, dynamic_batch=False)
    run = session(place / "model.onnx")
    sparse = copy.deepcopy(dense)
    for layer in sparse.modules():
        if isinstance(layer, nn.Linear) and layer is not sparse.head:
            layer.weight = nn.Parameter(layer.weight.detach().to_sparse_csr(), requires_grad=False)
    with torch.no_grad():
        expected = dense(image)
        assert float((sparse(image) - expected).abs().max() / expected.abs().max()) < 1e-5
        times = seconds([lambda: dense(image), lambda: run(image), lambda: sparse(image)], 15)
    return dict(zip(("torch_dense", "onnxruntime_dense", "torch_csr"), times, strict=True))


def compressed(place: Path) -> list[dict[str, Any]]:
    """Sizes of a ResNet-50 with this share of its weights, beside what is promised."""
    found = []
    for what, density in (("2:4", 0.5), ("80%", 0.2), ("90%", 0.1), ("95%", 0.05), ("98%", 0.02)):
        torch.manual_seed(0)
        model = torchvision.models.resnet50()
        weights = [p for p in model.parameters() if p.dim() > 1]
        with torch.no_grad():
            for p in weights:
                if what == "2:4":
                    p.view(p.shape[0], -1)[:, 1::2] = 0.0  # any two of four take the same room
                else:
                    p.copy_(pruned(p, 1 - density))
        done = regrow.export(model, place / "model", "compressed")
        dense = done.dense_bytes - sum(p.nbytes for p in weights)
        kept = sum(int(p.count_nonzero()) for p in weights)
        promised = kept * (4 + 1 / 8 / (kept / sum(p.numel() for p in weights))) + dense
        found.append({"removed": what, "bytes": done.bytes, "promised": promised, "dense_bytes": done.dense_bytes})
    return found


def networks_table(results: Mapping[str, Any]) -> str:
    rows = [
        "| network | FLOPs, × dense | ONNX file, MB: dense → thin | ms an image: dense → thin | × faster | "
        "largest difference: onnx, pt2 |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results["networks"].items():
        dense, thin = found["dense"], found["thin"]
        rows.append(
            f"| {name} | {thin['flops'] / dense['flops']:.2f} | {dense['onnx_bytes'] / 1e6:.1f} → "
            f"{thin['onnx_bytes'] / 1e6:.1f} | {dense['seconds'] * 1e3:.1f} → {thin['seconds'] * 1e3:.1f} | "
            f"{dense['seconds'] / thin['seconds']:.2f} | {thin['onnx_difference']:.0e}, {thin['pt2_difference']:.0e} |"
        )
    return "\n".join(rows)


def layers_table(results: Mapping[str, Any]) -> str:
    keys = ("torch_dense", "onnxruntime_dense", "torch_csr", "scipy_csr")
    rows = [
        "| layer | removed | torch, dense | ONNX Runtime, dense | torch.sparse CSR | SciPy CSR |",
        "|---|---|---|---|---|---|",
    ]
    for found in results["layers"]:
        best = min(found[key] for key in keys)
        words = (f"**{found[key] * 1e3:.3f}**" if found[key] == best else f"{found[key] * 1e3:.3f}" for key in keys)
        rows.append(f"| {found['layer']} | {found['removed']:.0%} | {' | '.join(words)} |")
    times = results["whole"]
    best = min(times.values())
    cells = (f"**{t * 1e3:.1f}**" if t == best else f"{t * 1e3:.1f}" for t in times.values())
    rows.append(f"| the whole ViT-S/16, its linear layers | 95% | {' | '.join(cells)} | |")
    return "\n".join(rows)


def sizes_table(results: Mapping[str, Any]) -> str:
    rows = [
        f"| {found['removed']} | {found['bytes'] / 1e6:.2f} | {found['promised'] / 1e6:.2f} | "
        f"{found['bytes'] / found['promised']:.4f} | {found['bytes'] / found['dense_bytes']:.3f} |"
        for found in results["compressed"]
    ]
    head = ["| removed | compressed, MB | promised, MB | × promised | × dense |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows])


TABLES = {"networks": networks_table, "layers": layers_table, "sizes": sizes_table}


def filled(text: str) -> str:
    """The page with its tables made of the committed results."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    for name, make in TABLES.items():
        mark = f"<!-- table: {name} -->"
        before, _, rest = text.partition(mark)
        text = f"{before}{mark}\n{make(results)}\n{END}{rest.partition(END)[2]}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    if not parser.parse_args().tables:
        from regrow.latency.machine import cpu_model

        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as directory:
            place = Path(directory)
            results = {
                "machine": {"cpu": cpu_model(), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
                "networks": {name: network(name, place) for name in NETWORKS},
                "layers": layers(place),
                "whole": whole(place),
                "compressed": compressed(place),
                "seconds": time.process_time(),
            }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
