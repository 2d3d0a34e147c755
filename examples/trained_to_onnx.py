"""A trained timm model with half of its FLOPs removed, as an ONNX file: what it was before, and what it is after.

    python examples/trained_to_onnx.py

Trains a small ResNet of timm on the handwritten digits of scikit-learn (no network, about a minute on one core),
removes channels while it trains on, and exports both models. Accuracy and time are those of the files in ONNX Runtime,
which comes with `pip install 'regrow[export]'`.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path

import onnxruntime
import timm
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import regrow

BATCH = 50


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images to train on and their labels, and others to test with; 32×32 pixels."""
    raw = load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16
    images = nn.functional.interpolate(images, size=32, mode="bilinear")
    labels = torch.tensor(raw.target)
    order = torch.randperm(len(labels))
    train, test = order[:1500], order[1500:]
    return images[train], labels[train], images[test], labels[test]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, epochs: int) -> None:
    """A plain loop, which knows nothing of regrow."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(labels) // BATCH)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(labels)).split(BATCH):
            nn.functional.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


def export(model: nn.Module, example: Tensor, path: Path) -> onnxruntime.InferenceSession:
    """Writes the file, for batches of any size, once it has been shown to compute what the model does."""
    regrow.export(model.eval(), path, format="onnx", example_inputs=example)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def outputs(session: onnxruntime.InferenceSession, images: Tensor) -> Tensor:
    """What the exported network says."""
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


def milliseconds(sessions: list[onnxruntime.InferenceSession], image: Tensor, turns: int = 200) -> list[float]:
    """Of one image; in turns, so that a machine whose speed drifts slows all of them alike."""
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(turns):
        for session, own in zip(sessions, times, strict=True):
            start = time.perf_counter()
            outputs(session, image)
            own.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(own) for own in times]


def megaflops(model: nn.Module, image: Tensor) -> float:
    """Of one image, 2 for each multiply-add."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return counter.get_total_flops() / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet10t", help="any model of timm (default: resnet10t)")
    parser.add_argument("--epochs", type=int, default=5, help="dense, and as many again while removing (default: 5)")
    parser.add_argument("--out", type=Path, default=Path("."), help="directory of dense.onnx and thin.onnx")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # prints the same whatever the machine has, and small models gain little by more
    images, labels, test_images, test_labels = digits()

    # the trained model: yours, with its weights
    model = timm.create_model(args.model, num_classes=10, in_chans=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    train(model, optimizer, images, labels, args.epochs)
    dense = copy.deepcopy(model)

    # half of its FLOPs, while it trains on: with the learning rate and the schedule of before (docs/choosing.md)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    steps = args.epochs * len(labels) // BATCH
    sparsifier = regrow.Sparsifier(
        model,
        optimizer,
        pattern=regrow.Channels(flops=0.5),  # or latency=0.5, which first measures this machine for a minute
        method=regrow.HALP(prunings=10, interval=steps // 20),  # done after half of the steps
        criterion="taylor",
        total_steps=steps,
        example_inputs=images[:BATCH],
    )
    train(model, optimizer, images, labels, args.epochs)
    thin = sparsifier.compact()

    args.out.mkdir(parents=True, exist_ok=True)
    paths = [args.out / "dense.onnx", args.out / "thin.onnx"]
    sessions = [export(each, images[:2], path) for each, path in zip((dense, thin), paths, strict=True)]
    times = milliseconds(sessions, images[:1])
    print(f"{'':>10} accuracy  parameters  MFLOPs     MB  ms an image")
    for each, path, session, ms in zip((dense, thin), paths, sessions, times, strict=True):
        right = (outputs(session, test_images).argmax(1) == test_labels).float().mean()
        count = sum(param.numel() for param in each.parameters())
        flops, size = megaflops(each, images[:1]), path.stat().st_size / 1e6
        print(f"{path.name:>10} {right:8.1%} {count:11,} {flops:7.1f} {size:6.1f} {ms:12.2f}")


if __name__ == "__main__":
    main()
