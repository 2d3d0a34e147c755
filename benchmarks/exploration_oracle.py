"""Which growth score tells what a removed weight would really be worth? Scores against oracles.

    python benchmarks/exploration_oracle.py --seed 0
    python benchmarks/exploration_oracle.py --seed 1

Setting: benchmarks/studies/wrn10-2-erk95.yaml, trained by IEE as it is by default. Just before an update it prunes 30%
of the active weights of each layer by magnitude, as any method would, and then compares scores of all other weights
(those just pruned apart), each computed on a copy of the network:

- grad-1, grad-100: |gradient| of one batch, and of 100 with the weights at rest; grad-training: of the last 100 steps;
  snr: |mean gradient| / its root mean square over 100 batches;
- memory-S: memory that evolved at S x the optimizer's speed since the start (S=0: the value before pruning, MRU;
  "run": the run's own, at 0.2);
- zero-Q, mru-Q: explored for Q steps as regrow does, from zero or MRU: |w|, or "move" |w - start|, or "taylor"
  |sum of w·g|, or "taylor-abs" sum of |w·g|; and with another learning rate, batch norm in eval mode, or other
  parameters training along.

Oracles, over 2,048 training images that are not augmented: the loss decrease of growing one weight, others fixed, at
the best of three values against its gradient (batch norm by running statistics, and by those of batches of 128); at the
value that a method would give it; the loss increase of taking one weight out again after 100 steps of training with all
candidates (and random others) grown, and its magnitude then. And of sets: the loss after 100 steps with the best 30% by
each score grown from zero. In both, the second 50 steps anneal the learning rate.

About 15 minutes a seed on a core of its own. Needs CIFAR-10. Writes benchmarks/results/exploration-oracle.json after
each part, and goes on with what is missing there; at the end it prints tables of it.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from exploration_probe import Batch, Candidate, Layers, Probe, correlations, loss_of, sample
from exploration_snapshot import WINDOW, Snapshot, batches, snapshots, train, write
from regrow import recalibrate
from regrow.training.recipe import load
from regrow.training.run import Run

HERE = Path(__file__).parent
RECIPE = HERE / "studies" / "wrn10-2-erk95.yaml"
RESULTS = HERE / "results" / "exploration-oracle.json"
METHOD = ["--method.name=iee"]
STEPS = (399, 999, 1799)  # one before an update
IMAGES = 2048
VALUES = (0.5, 1.0, 2.0)  # tried for a grown weight, x the median magnitude of its layer


@dataclass(frozen=True)
class Exploration:
    """How the exploration space is trained: regrow's way, but for what is said here."""

    start: str = "zero"
    lr: float = 1.0
    stops: tuple[int, ...] = (50,)
    eval_norm: bool = False
    train: str = "explored"  # "others": norms, stem and classifier, too; "all": the active weights as well


EXPLORATIONS = {
    "zero": Exploration(stops=(10, 25, 50, 150)),
    "mru": Exploration("mru", stops=(10, 25, 50, 150)),
    "zero-lr/10": Exploration(lr=0.1),
    "zero-lr/100": Exploration(lr=0.01),
    "zero-lrx3": Exploration(lr=3.0),
    "zero-lr/10-evalnorm": Exploration(lr=0.1, eval_norm=True),
    "zero-others": Exploration(train="others"),
    "zero-unfrozen": Exploration(train="all"),
}


def explore(
    run: Run, at: Snapshot, fixed: Sequence[Batch], how: Exploration, label: str
) -> tuple[dict[str, Layers], dict[str, Layers], dict[str, Any]]:
    """Scores by name, values reached by name, and losses: with all weights on, and with only those that it grows."""
    model = at.pruned()
    start = {name: at.memory["0"][name] * (~at.active[name]) * (how.start == "mru") for name in at.active}
    write(model, {name: model.get_parameter(name) + value for name, value in start.items()})
    losses: dict[str, Any] = {"all_before": loss_of(model, fixed, True)}
    if how.eval_norm:
        recalibrate(model, fixed)
    model.train(not how.eval_norm)
    masks: dict[str, Tensor | None] = {name: ~mask for name, mask in at.active.items()}
    if how.train != "explored":
        masks |= {name: None for name, _ in model.named_parameters() if name not in masks}
    if how.train == "all":
        masks |= dict.fromkeys(at.active)
    signed = {name: torch.zeros_like(mask, dtype=torch.float32) for name, mask in at.active.items()}
    total = copy.deepcopy(signed)
    scores: dict[str, Layers] = {}
    values: dict[str, Layers] = {}
    steps = train(model, batches(run, at.step, how.stops[-1]), [rate * how.lr for rate in at.lr], masks)
    for step, (_, gradients, before) in enumerate(steps, 1):
        for name in at.active:
            product = before[name] * gradients[name]
            signed[name] += product
            total[name] += product.abs()
        if step not in how.stops:
            continue
        key = f"{label}-{step}" if len(how.stops) > 1 else label
        reached = {name: model.get_parameter(name).detach().clone() for name in at.active}
        values[key] = reached
        scores[key] = {name: value.abs() for name, value in reached.items()}
        scores[f"{key}-taylor"] = {name: value.abs() for name, value in signed.items()}
        scores[f"{key}-taylor-abs"] = {name: value.clone() for name, value in total.items()}
        if how.start == "mru":
            scores[f"{key}-move"] = {name: (value - start[name]).abs() for name, value in reached.items()}
        losses[f"all_after_{step}"] = loss_of(model, fixed, True)
        losses[f"grown_after_{step}"] = loss_of(grown(at, at.best(scores[key]), reached), fixed, True)
    return scores, values, losses


def grown(at: Snapshot, chosen: Layers, values: Layers | None = None) -> nn.Module:
    """The pruned network with these weights added, at these values or at zero."""
    model = at.pruned()
    if values is not None:
        write(model, {n: torch.where(mask, values[n], model.get_parameter(n)) for n, mask in chosen.items()})
    return model


def still_gradients(run: Run, at: Snapshot) -> dict[str, Layers]:
    """Scores from the gradients of batches with all weights at rest."""
    model = at.pruned().train()
    scores: dict[str, Layers] = {}
    mean = {name: torch.zeros_like(mask, dtype=torch.float32) for name, mask in at.active.items()}
    square = copy.deepcopy(mean)
    for _, gradients, _ in train(model, batches(run, at.step, WINDOW), [0.0] * WINDOW, dict.fromkeys(at.active)):
        for name in mean:
            mean[name] += gradients[name] / WINDOW
            square[name] += gradients[name].square() / WINDOW
        scores.setdefault("grad-1", {name: gradients[name].abs() for name in mean})
    scores["grad-100"] = {name: value.abs() for name, value in mean.items()}
    scores["snr"] = {name: mean[name].abs() / (square[name].sqrt() + 1e-12) for name in mean}
    return scores


def continued(run: Run, at: Snapshot, model: nn.Module, active: Layers, repeat: int) -> tuple[nn.Module, list[float]]:
    """Trains a structure for `WINDOW` steps, at last annealed, on batches that no score has seen; and its losses."""
    masks: dict[str, Tensor | None] = {name: active.get(name) for name, _ in model.named_parameters()}
    data = batches(run, run.total_steps + at.step + 1000 * repeat, WINDOW)
    # the second half anneals, or noise of the high learning rate hides what the structures differ by
    lr = [rate * min(1.0, 2 - 2 * i / WINDOW) for i, rate in enumerate(at.lr[:WINDOW])]
    losses = [loss for loss, _, _ in train(model.train(), data, lr, masks, at.momenta)]
    return model, losses


def set_oracle(
    run: Run, at: Snapshot, fixed: Sequence[Batch], scores: Mapping[str, Layers], values: Mapping[str, Layers],
    repeat: int,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """The loss after training on, with what each score grows: name → mean over the last steps, and on fixed images."""
    generator = torch.Generator().manual_seed(repeat)
    nothing = {name: torch.zeros_like(mask) for name, mask in at.active.items()}
    plans: dict[str, tuple[Layers, Layers | None]] = {"none": (nothing, None)}
    plans["random"] = (at.best(at.random(generator)), None)
    plans |= {name: (at.best(scores[name]), None) for name in SETS}
    plans |= {f"{name} (own value)": (at.best(scores[name]), values[name]) for name in OWN}
    found = {}
    for name, (chosen, start) in plans.items():
        active = {layer: at.active[layer] | mask for layer, mask in chosen.items()}
        model, losses = continued(run, at, grown(at, chosen, start), active, repeat)
        found[name] = {"train": sum(losses[-50:]) / 50, "fixed": loss_of(model, fixed, False)}
    model, losses = continued(run, at, copy.deepcopy(at.model), {n: at.unpruned[n] for n in at.active}, repeat)
    found["no update"] = {"train": sum(losses[-50:]) / 50, "fixed": loss_of(model, fixed, False)}
    return found


SETS = ("grad-1", "grad-100", "memory-0", "memory-run", "memory-0.05", "zero-10", "zero-50", "zero-150", "mru-50",
        "zero-50-taylor-abs", "zero-lr/10")  # fmt: skip
OWN = ("memory-run", "zero-50", "zero-lr/10")
NOMINATE = ("grad-1", "grad-100", "memory-0", "memory-run", "zero-50", "mru-50")


def single_oracles(
    run: Run, at: Snapshot, fixed: Sequence[Batch], scores: Mapping[str, Layers], values: Mapping[str, Layers]
) -> dict[str, Any]:
    """The worth of single candidates, and how it goes with each score."""
    generator = torch.Generator().manual_seed(at.step)
    candidates = sample(at.outside, at.counts, {name: at.best(scores[name]) for name in NOMINATE}, 15, generator)
    worth: dict[str, list[float]] = {}
    known = dict(scores)
    for label, statistics in (("evalnorm", False), ("batchnorm", True)):
        probe = Probe(at.pruned(), fixed, statistics)
        gradient = probe.gradient()
        known[f"grad-oracle-{label}"] = {name: gradient[name].abs() for name in at.active}
        worth[label] = [_best_gain(probe, at, gradient, c) for c in candidates]
        if statistics:
            for name in OWN:
                worth[f"own {name}"] = [probe.loss - probe.loss_at(c, float(values[name][c.layer][c.index]))
                                        for c in candidates]  # fmt: skip
    trained = _trained(run, at, candidates, generator)
    probe = Probe(trained, fixed, True)
    worth["trained"] = [probe.loss_at(c, 0.0) - probe.loss for c in candidates]
    worth["trained magnitude"] = [abs(float(trained.get_parameter(c.layer).detach()[c.index])) for c in candidates]
    taken = {name: [float(layers[c.layer][c.index]) for c in candidates] for name, layers in known.items()}
    return {
        "correlation": {oracle: correlations(taken, values, candidates) for oracle, values in worth.items()},
        "mean_worth": {oracle: _by_source(candidates, values) for oracle, values in worth.items()},
        "positive": {oracle: sum(v > 0 for v in values) / len(values) for oracle, values in worth.items()},
        "candidates": len(candidates),
    }


def _best_gain(probe: Probe, at: Snapshot, gradient: Layers, c: Candidate) -> float:
    weight = at.model.get_parameter(c.layer).detach()
    typical = float(weight[at.active[c.layer]].abs().median())
    direction = -float(gradient[c.layer][c.index].sign())
    return probe.loss - min(probe.loss_at(c, direction * share * typical) for share in VALUES)


def _trained(run: Run, at: Snapshot, candidates: Sequence[Candidate], generator: torch.Generator) -> nn.Module:
    scores = at.random(generator)
    for c in candidates:
        scores[c.layer][c.index] = 2.0
    active = {name: at.active[name] | mask for name, mask in at.best(scores).items()}
    return continued(run, at, at.pruned(), active, repeat=9)[0]


def _by_source(candidates: Sequence[Candidate], worth: Sequence[float]) -> dict[str, float]:
    found = {}
    for source in dict.fromkeys(c.source for c in candidates):
        mine = [value for c, value in zip(candidates, worth, strict=True) if c.source == source]
        found[source] = sum(mine) / len(mine)
    return found


def study(run: Run, at: Snapshot, fixed: Sequence[Batch], repeats: int, found: dict[str, Any]) -> Iterator[str]:
    """Adds to `found` what is not there yet of all that is measured at one point of training; yields its names."""
    scores = still_gradients(run, at)
    scores["grad-training"] = {name: value.abs() for name, value in at.gradients.items()}
    values: dict[str, Layers] = {f"memory-{speed}": layers for speed, layers in at.memory.items()}
    scores |= {name: {k: v.abs() for k, v in layers.items()} for name, layers in values.items()}
    before = {"unpruned": loss_of(at.model, fixed, True), "pruned": loss_of(at.pruned(), fixed, True)}
    losses: dict[str, Any] = {"before": before}
    for label, how in EXPLORATIONS.items():
        explored, reached, losses[label] = explore(run, at, fixed, how, label)
        scores |= explored
        values |= reached
    for speed in ("run", "0.05", "0.2", "1"):
        name, layers = f"memory-{speed}", at.memory[speed]
        alive = {n: ~mask for n, mask in at.active.items()}
        losses[name] = {"all": loss_of(grown(at, alive, layers), fixed, True),
                        "grown": loss_of(grown(at, at.best(scores[name]), layers), fixed, True)}  # fmt: skip
    found |= {"lr": at.lr[0], "loss": losses, "overlap": _overlap(at, scores)}
    yield "scores"
    if "single" not in found:
        found["single"] = single_oracles(run, at, fixed, scores, values)
        yield "single weights"
    for repeat in range(len(found.setdefault("sets", [])), repeats):
        found["sets"].append(set_oracle(run, at, fixed, scores, values, repeat))
        yield f"sets, batch order {repeat + 1}"


def _overlap(at: Snapshot, scores: Mapping[str, Layers]) -> dict[str, float]:
    """Score → the share of what it would grow that 100 batches' mean gradient would, too."""
    reference = at.best(scores["grad-100"])
    grown = sum(at.counts.values())
    return {
        name: sum(int((mask & reference[layer]).sum()) for layer, mask in at.best(one).items()) / grown
        for name, one in scores.items()
    }


def _plain(value: Any) -> Any:
    """JSON knows no NaN, which a diverged exploration leaves: null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def stored(seed: int, step: int) -> dict[str, Any]:
    """What is known about a point of training."""
    runs = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"] if RESULTS.exists() else {}
    found: dict[str, Any] = runs.get(f"seed{seed}-step{step}", {})
    return found


def save(seed: int, step: int, found: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"runs": {}}
    results["runs"][f"seed{seed}-step{step}"] = _plain(found)
    part = RESULTS.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, RESULTS)


def tables() -> Iterator[str]:
    """What is stored, as means over the points of training that have it."""
    runs = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"].values()
    singles = [run["single"] for run in runs if "single" in run]
    if singles:
        oracles = list(singles[0]["correlation"])
        for subset in ("random_layers", "all_layers"):
            yield f"{subset}, {len(singles)} points".ljust(32) + "".join(f"{oracle[:17]:>18}" for oracle in oracles)
            for score in singles[0]["correlation"][oracles[0]]:
                cells = [mean(one["correlation"][oracle][score][subset] for one in singles) for oracle in oracles]
                yield score.ljust(32) + "".join(f"{cell:18.2f}" for cell in cells)
        for oracle in oracles:
            worth = {who: mean(one["mean_worth"][oracle][who] for one in singles) for who in ("random", *NOMINATE)}
            yield f"{oracle}: " + ", ".join(f"{who} {value:.2e}" for who, value in worth.items())
    sets = [one for run in runs for one in run.get("sets", ())]
    if sets:
        yield f"loss after growing a set, less that of a random one, x1000; {len(sets)} pairs: training, fixed images"
        for score in sets[0]:
            cells = []
            for kind in ("train", "fixed"):
                gaps = [1000 * (one[score][kind] - one["random"][kind]) for one in sets]
                error = stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
                cells.append(f"{mean(gaps):8.1f} ± {error:4.1f}")
            yield score.ljust(32) + "".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", default=STEPS, help="the steps to look at (default: all)")
    parser.add_argument("--repeats", type=int, default=1, help="batch orders for the oracle of sets")
    args = parser.parse_args()
    missing = [step for step in args.only if len(stored(args.seed, step).get("sets", ())) < args.repeats]
    if missing:
        run = Run(load(RECIPE, [*METHOD, f"--seed={args.seed}"]), "oracle")
        source: Any = run.data.train
        # folders of images come sorted by class, which batch statistics would not stand for
        some = torch.randperm(source.examples, generator=torch.Generator().manual_seed(0))[:IMAGES]
        plain = replace(source, training=False, pad=0, flip=False, indices=source.indices[some])
        fixed = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in islice(plain.epoch(0), IMAGES // 128)]
        for at in snapshots(run, missing):
            found = stored(args.seed, at.step)
            began = time.monotonic()
            for what in study(run, at, fixed, args.repeats, found):
                save(args.seed, at.step, found)
                print(f"  {what} by {time.monotonic() - began:.0f} s", flush=True)
    print("\n".join(tables()))


if __name__ == "__main__":
    main()
