"""Files of tensors: exact, as small as they say, and refused once anything in them has changed."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import regrow
from attack import flip, garble
from exported import NETWORKS, bits, same_bits, sparse, thin, two_of_four, unsigned
from regrow import UserError, schema


def tied(seed: int = 0) -> nn.Module:
    """A model with every kind of tensor: sparse, dense, tied, whole numbers, without entries, and odd values."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(16, 16), nn.Linear(16, 16))
    model[4].weight = model[3].weight
    model.register_buffer("empty", torch.zeros(0, 3))
    sparse(model, 0.1, seed)
    with torch.no_grad():
        model[0].weight.view(-1)[:4] = torch.tensor([-0.0, float("nan"), float("inf"), 1e-40])
    return model


def header_bytes(path: Path) -> int:
    """Of a safetensors file: the length of its header, and the header."""
    with path.open("rb") as file:
        return 8 + int(struct.unpack("<Q", file.read(8))[0])


@pytest.mark.parametrize("format", ["safetensors", "compressed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_come_back_bit_for_bit(tmp_path: Path, format: str, dtype: torch.dtype) -> None:
    model = tied().to(dtype)
    done = regrow.export(model, tmp_path / "m", format)
    assert (done.difference, done.batches) == (0.0, ())
    expected = model.state_dict() if format == "safetensors" else unsigned(model.state_dict())
    assert same_bits(regrow.load_tensors(tmp_path / "m"), expected)
    again = regrow.load(tied(1).to(dtype), tmp_path / "m")
    assert same_bits(again.state_dict(), expected)
    assert again[4].weight is again[3].weight


def test_other_readers_of_safetensors_find_the_dense_tensors(tmp_path: Path) -> None:
    model = tied()
    regrow.export(model, tmp_path / "m", "safetensors")
    found = safetensors.torch.load_file(tmp_path / "m")
    assert found.keys() == model.state_dict().keys() - {"4.weight"}
    assert all(torch.equal(bits(t), bits(model.state_dict()[name])) for name, t in found.items())
    fresh = tied(1)
    assert safetensors.torch.load_model(fresh, tmp_path / "m") == (set(), [])
    assert same_bits(fresh.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("make", "density"),
    [(lambda m: sparse(m, 0.05), 0.05), (lambda m: sparse(m, 0.1), 0.1), (two_of_four, 0.5)],
    ids=["5%", "10%", "2:4"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_compressed_file_is_as_small_as_its_values_and_a_bit_for_each_entry(
    tmp_path: Path, make: Callable[[nn.Module], nn.Module], density: float, dtype: torch.dtype
) -> None:
    model = make(NETWORKS["resnet18"]()).to(dtype)
    weights = [p for p in model.parameters() if p.dim() > 1]
    dense = sum(t.nbytes for t in model.state_dict().values()) - sum(p.nbytes for p in weights)
    kept = sum(int(p.count_nonzero()) for p in weights)
    size = regrow.export(model, tmp_path / "m", "compressed").bytes
    # exactly: the values, a bit for each entry of each weight in whole bytes, what is dense, and the header
    exact = kept * dtype.itemsize + sum((p.numel() + 7) // 8 for p in weights) + dense
    assert size == exact + header_bytes(tmp_path / "m")
    promised = kept * (dtype.itemsize + 1 / 8 / density) + dense
    assert size <= 1.05 * promised
    assert same_bits(regrow.load_tensors(tmp_path / "m"), unsigned(model.state_dict()))


def test_zeros_with_a_sign_take_no_room(tmp_path: Path) -> None:
    """As a product with a mask leaves them for each negative weight."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    mask = torch.rand(64, 64) < 0.05
    layer.weight.data *= mask
    assert int((layer.weight.signbit() & (layer.weight == 0)).sum()) > 1000
    done = regrow.export(layer, tmp_path / "m", "compressed", torch.randn(2, 64))
    assert done.bytes == header_bytes(tmp_path / "m") + int(mask.sum()) * 4 + 64 * 64 // 8 + 64 * 4
    assert done.difference == 0.0
    assert torch.equal(regrow.load_tensors(tmp_path / "m")["weight"], layer.weight)


def test_what_is_not_sparse_enough_is_stored_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = regrow.export(sparse(nn.Linear(64, 64), 1.0), tmp_path / "a", "compressed")
    assert whole.bytes == header_bytes(tmp_path / "a") + 64 * 64 * 4 + 64 * 4
    half = regrow.export(sparse(nn.Linear(64, 64), 0.5), tmp_path / "b", "compressed")
    assert half.bytes == header_bytes(tmp_path / "b") + 64 * 64 * 2 + 64 * 64 // 8 + 64 * 4


def test_a_thin_model_comes_back_into_a_dense_one_and_as_tensors(tmp_path: Path) -> None:
    model = sparse(thin("mobilenet"), 0.2)
    for format in ("safetensors", "compressed"):
        regrow.export(model, tmp_path / format, format)
        assert same_bits(regrow.load_tensors(tmp_path / format), model.state_dict())
        assert same_bits(regrow.load(NETWORKS["mobilenet"](), tmp_path / format).state_dict(), model.state_dict())
    regrow.save(model, tmp_path / "saved")
    assert same_bits(regrow.load_tensors(tmp_path / "saved"), model.state_dict())


# ---- damage ----


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damage") / "m"
    regrow.export(tied(), path, "compressed")
    return path


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_random_damage_is_refused_or_changes_nothing(written: Path, seed: int) -> None:
    data, model = garble(written.read_bytes(), random.Random(seed)), tied(1)
    path = written.with_name("damaged")
    path.write_bytes(data)
    before, said = {name: t.clone() for name, t in model.state_dict().items()}, ""
    try:
        found = regrow.load_tensors(path)
        regrow.load(model, path)
    except UserError as error:
        said = str(error)
    if said:
        assert "\n" not in said
        assert same_bits(model.state_dict(), before)
    else:
        assert same_bits(found, unsigned(tied().state_dict()))
        assert same_bits(model.state_dict(), found)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_every_bit_of_the_tensors_counts(written: Path, seed: int) -> None:
    data, start = written.read_bytes(), header_bytes(written)
    path = written.with_name("flipped")
    path.write_bytes(data[:start] + flip(data[start:], random.Random(seed)))
    with pytest.raises(UserError, match=r"is damaged: its tensors are not those that were written: restore it"):
        regrow.load_tensors(path)


def rewritten(path: Path, change: Callable[[dict[str, Any]], object], tensors: dict[str, Tensor] | None = None) -> None:
    """The manifest in the header is changed by somebody who makes a new checksum too."""
    with safetensors.safe_open(path, "pt") as file:
        header = file.metadata()
        own = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    manifest = json.loads(header["regrow"])
    change(manifest)
    header["regrow"] = json.dumps(schema.seal(manifest))
    safetensors.torch.save_file({**own, **(tensors or {})}, path, metadata=header)


HUGE = 2**70
EDITS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda m: m.update(version=99), "has format version 99, this regrow reads 1 and 2: update regrow"),
    (lambda m: m.update(format="other"), "is not the manifest of a model saved by regrow"),
    (lambda m: m["tensors"].pop("0.weight"), "has no tensor '0.weight'|0.weight"),
    (lambda m: m["tensors"]["0.weight"].update(shape=[HUGE, 3, 3, 3]), "shape|does not match the manifest"),
    (lambda m: m["tensors"]["0.weight"].update(shape=[16, 27]), "shape|does not match the manifest"),
    (lambda m: m["tensors"]["0.weight"].update(encoding="dense"), "does not match the manifest"),
    (lambda m: m["tensors"]["0.weight"].update(dtype="float64"), "float64|does not match the manifest"),
    (lambda m: m["tensors"]["empty"].update(shape=[0, HUGE], encoding="bitmask"), "shape|does not match the manifest"),
    (lambda m: m["tied"].update({"4.weight": "nowhere"}), "tied"),
    (lambda m: m.update(tensors=[]), "is damaged: tensors"),
]


@pytest.mark.parametrize(("change", "said"), EDITS)
def test_an_edited_manifest_is_refused(written: Path, tmp_path: Path, change, said: str) -> None:
    path = tmp_path / "edited"
    path.write_bytes(written.read_bytes())
    rewritten(path, change)
    before, model = tied(1).state_dict(), tied(1)
    with pytest.raises(UserError, match=said):
        regrow.load(model, path)
    assert same_bits(model.state_dict(), before)
    with suppress(UserError):  # what does not fit a model may be whole in itself
        regrow.load_tensors(path)


def test_files_of_others(tmp_path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "plain")
    (tmp_path / "text").write_text("no safetensors")
    with pytest.raises(UserError, match="was not written by regrow: read it with safetensors"):
        regrow.load_tensors(tmp_path / "plain")
    with pytest.raises(UserError, match="text is damaged or no safetensors file: "):
        regrow.load(nn.Linear(2, 2), tmp_path / "text")
    with pytest.raises(UserError, match="nowhere holds no saved model"):
        regrow.load_tensors(tmp_path / "nowhere")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regrow.export(tied(), tmp_path / "m", "compressed")
    old = (tmp_path / "m").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(UserError, match=r"m cannot be written: .*No space left on device"):
        regrow.export(tied(1), tmp_path / "m", "compressed")
    assert (tmp_path / "m").read_bytes() == old
    assert os.listdir(tmp_path) == ["m"]
