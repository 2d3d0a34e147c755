"""Densities from a scan are the cheapest that its curves allow, to the exact count; its file says all of it."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regrow
from regrow import schema
from regrow.sensitivity import LayerScan, Scan


def made(*layers: tuple[int, tuple[int, ...], tuple[float, ...]], loss: float = 1.0) -> Scan:
    """A scan of layers a, b, … with these units, kept counts and increases."""
    found = tuple(
        LayerScan(name, (units,), units, kept, tuple(loss + one for one in grown))
        for name, (units, kept, grown) in zip("abcdef", layers, strict=False)
    )
    shares = tuple((i + 1) / 10 for i in range(len(layers[0][1])))
    return Scan("weights", "magnitude", shares, loss, None, 2, 32, False, found, "mine")


def piecewise(layer: LayerScan, removed: int, loss: float) -> float:
    """The increase at a count between two of the scan, of a convex curve."""
    points = [(0, 0.0), *zip((layer.units - kept for kept in layer.kept), (x - loss for x in layer.loss), strict=True)]
    for (a, low), (b, high) in itertools.pairwise(points):
        if a <= removed <= b:
            return low + (high - low) * (removed - a) / (b - a)
    return math.inf


@pytest.mark.parametrize("seed", range(6))
def test_counts_are_those_of_brute_force(seed: int) -> None:
    """On convex curves: of all counts with the same total, none has a smaller sum."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for _ in range(3):
        units = int(torch.randint(6, 10, (), generator=generator))
        kept = tuple(sorted(torch.randperm(units - 1, generator=generator)[:3].add(1).tolist(), reverse=True))
        slopes = torch.rand(3, generator=generator, dtype=torch.float64).sort().values.tolist()
        removed = [0, *(units - k for k in kept)]
        grown = list(
            itertools.accumulate(s * (b - a) for s, (a, b) in zip(slopes, itertools.pairwise(removed), strict=True))
        )
        layers.append((units, kept, tuple(grown)))
    scan = made(*layers)
    for sparsity in (0.2, 0.4, 0.55):
        total = round((1 - sparsity) * sum(units for units, _, _ in layers))
        counts = scan.counts(sparsity)
        assert sum(counts.values()) == total
        found = sum(piecewise(one, one.units - counts[one.name], 1.0) for one in scan.layers)
        choices = itertools.product(*(range(one.kept[-1], one.units + 1) for one in scan.layers))
        best = min(
            sum(piecewise(one, one.units - k, 1.0) for one, k in zip(scan.layers, ks, strict=True))
            for ks in choices
            if sum(ks) == total
        )
        assert found == pytest.approx(best, abs=1e-12)
        assert scan.predicted(counts) == pytest.approx(best, abs=1e-12)


def test_what_is_cheap_goes_first() -> None:
    scan = made((100, (50, 10), (0.0, 0.4)), (100, (50, 10), (1.0, 9.0)))
    assert scan.counts(0.0) == {"a": 100, "b": 100}
    assert scan.counts(0.25) == {"a": 50, "b": 100}  # half of a costs nothing
    assert scan.counts(0.35) == {"a": 30, "b": 100}
    assert scan.counts(0.5) == {"a": 10, "b": 90}
    assert scan.distribution(0.5) == {"a": 0.1, "b": 0.9}


def test_what_costs_the_same_is_shared() -> None:
    scan = made((100, (50, 10), (-0.1, 0.4)), (40, (20, 4), (0.0, 0.16)), (2, (1, 1), (0.0, 0.0)))
    assert scan.counts(0.25) == {"a": 75, "b": 30, "c": 1}  # what falls counts as no change
    assert scan.counts(2 / 142) == {"a": 99, "b": 39, "c": 2}  # fewer than there are layers


def test_curves_that_are_not_convex_count_as_their_hulls() -> None:
    scan = made((100, (50, 10), (0.9, 0.9)), (100, (50, 10), (0.5, 1.0)))
    assert scan.predicted({"a": 50, "b": 100}) == pytest.approx(0.5)
    assert scan.predicted({"a": 10, "b": 10}) == pytest.approx(1.9)
    falling = made((100, (50, 10), (0.9, 0.1)))  # never less than at a lower sparsity
    assert falling.predicted({"a": 10}) == pytest.approx(0.9)


def test_nothing_beyond_what_was_scanned() -> None:
    scan = made((100, (50, 10), (0.0, 0.4)), (100, (50, 10), (1.0, math.inf)))
    assert scan.counts(0.7) == {"a": 10, "b": 50}
    with pytest.raises(regrow.UserError, match=r"sparsity 0.71 is more .* reaches 0.7 of these layers together"):
        scan.counts(0.71)
    with pytest.raises(regrow.UserError, match=r"sparsity is 90, but must lie in \[0, 1\); did you mean 0.9"):
        scan.counts(90)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 4))


def scanned(pattern: Any = None) -> Scan:
    batches = [(torch.randn(8, 1, 6, 6), torch.randint(4, (8,)))]
    return regrow.scan(network(), batches, pattern, example_inputs=batches[0][0])


def test_weights_take_a_scan_or_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scan = scanned()
    scan.save("scan.json")
    assert Scan.load("scan.json") == scan
    expected = scan.counts(0.9)
    assert sum(expected.values()) == round(0.1 * 960)
    for distribution in ("scan.json", scan.distribution(0.9)):
        counts = regrow.Weights(0.9, distribution).counts(network())
        assert {name: kept for name, (kept, _) in counts.items()} == expected
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pattern = regrow.Weights(0.9, "scan.json")
    sparsifier = regrow.Sparsifier(model, optimizer, pattern=pattern, method=regrow.Static(), total_steps=4)
    assert {name: int(mask.sum()) for name, mask in sparsifier.masks.items()} == expected
    part = regrow.Weights(0.8, "scan.json", exclude=["5"]).counts(network())  # the total is that of what is left
    assert sum(kept for kept, _ in part.values()) == round(0.2 * 920)


def test_a_checkpoint_fits_the_counts_that_it_was_made_with(tmp_path: Path) -> None:
    path = str(tmp_path / "scan.json")
    scan = scanned()
    scan.save(path)

    def attached() -> regrow.Sparsifier:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return regrow.Sparsifier(
            model, optimizer, pattern=regrow.Weights(0.5, path), method=regrow.GMP(interval=2), total_steps=40
        )

    state = attached().state_dict()
    attached().load_state_dict(state)
    replace(scan, layers=tuple(replace(one, loss=one.loss[::-1]) for one in scan.layers)).save(path)
    with pytest.raises(regrow.UserError, match=r"keeps \d+ of '1.weight', but this sparsifier would keep \d+"):
        attached().load_state_dict(state)


def wrong(path: Path, **changes: Any) -> Path:
    """A copy of a scan's file with other content and a checksum that fits."""
    content = {**json.loads(path.read_text()), **changes}
    other = path.with_name("wrong.json")
    other.write_text(json.dumps(schema.seal(content)))
    return other


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "scan.json"
    scan = scanned()
    scan.save(path)
    layers = json.loads(path.read_text())["layers"]

    def refused(file: Path, message: str) -> None:
        with pytest.raises(regrow.UserError, match=message):
            Scan.load(file)

    refused(tmp_path / "nowhere.json", "nowhere.json cannot be read .*: regrow scan writes one")
    refused(wrong(path, format="other"), "is not a file that regrow scan wrote")
    refused(wrong(path, version=9), "another version of the format than 1")
    refused(wrong(path, sparsities=[0.9, 0.5]), "its sparsities do not increase")
    refused(wrong(path, loss="low"), "wrong.json is damaged: loss should be a valid number")
    refused(wrong(path, layers=[*layers, layers[0]]), "it has a layer twice")
    refused(wrong(path, layers=[{**layers[0], "units": 10**200}]), "layers.0.units should be less than or equal to")
    refused(wrong(path, layers=[{**layers[0], "kept": [1]}]), "'1.weight' has not one number for each sparsity")
    refused(wrong(path, layers=[{**layers[0], "kept": [1, 2, 3, 4, 5]}]), "or more at a higher sparsity")
    (tmp_path / "short.json").write_text(path.read_text()[:-20])
    refused(tmp_path / "short.json", "is not valid JSON")
    (tmp_path / "edited.json").write_text(path.read_text().replace('"examples": 8', '"examples": 9'))
    refused(tmp_path / "edited.json", "its checksum differs: scan again")


def test_scans_of_something_else(tmp_path: Path) -> None:
    path = str(tmp_path / "scan.json")
    for pattern, other, message in (
        (None, nn.Sequential(nn.Linear(36, 20), nn.Linear(20, 4)), "layer '0.weight' is not in the scan"),
        (None, nn.Sequential(nn.Flatten(), nn.Linear(36, 9)), "layer '1.weight' has 324 units, but 720 in the scan"),
        (regrow.Channels(flops=0.5), network(), "is a scan of channels, but a scan of weights is needed"),
    ):
        scanned(pattern).save(path)
        with pytest.raises(regrow.UserError, match=re.escape(message)):
            regrow.Weights(0.9, path).counts(other)
