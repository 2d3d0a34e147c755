"""Whatever is exported computes what the model does, or nothing is written."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, ClassVar

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import regrow
from exported import NETWORKS, in_onnx_runtime, in_torch, off, thin
from regrow import UserError
from regrow.exporting.exports import FORMATS, Exported

RUN = {"onnx": in_onnx_runtime, "pt2": in_torch}


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8 * 16, 5)
    )


IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_thin_networks_compute_the_same_in_batches_of_any_size(tmp_path: Path, name: str) -> None:
    model = thin(name)
    for format, run in list(RUN.items())[: 2 if name == "mobilenet" else 1]:
        path = tmp_path / f"model.{format}"
        done = regrow.export(model, path, format, torch.randn(1, 3, 32, 32))
        assert done.difference <= 1e-5
        assert done.batches == (2, 1, 2, 3, 5)
        for batch in (1, 4, 7):
            x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))
            with torch.no_grad():
                assert off(run(path, x)[0], model(x)) <= 1e-5
    for format in ("safetensors", "compressed"):
        done = regrow.export(model, tmp_path / format, format, torch.randn(1, 3, 32, 32))
        assert done.difference == 0.0
        again = regrow.load(NETWORKS[name](), tmp_path / format).eval()  # into a dense one
        with torch.no_grad():
            assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("format", [format for format in FORMATS if format != "onnx"])
def test_sizes_are_those_of_the_file_and_the_model_is_left_as_it_was(tmp_path: Path, format: str) -> None:
    model = small().train()
    model[2].eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    random = torch.random.get_rng_state()
    done = regrow.export(model, tmp_path / "out", format, IMAGES)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert done.bytes == sum(file.stat().st_size for file in files)
    assert done.dense_bytes == sum(t.nbytes for t in before.values())
    assert (done.path, done.format) == (tmp_path / "out", format)
    assert [m.training for m in model] == [True, True, False, True, True, True]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert len(files) == (3 if format == "hub" else 1)
    assert f"{done.bytes:,} bytes" in str(done)
    assert f"largest difference {done.difference:.1e} of the output, over batches of 2, 1, 2, 3, 5" in str(done)


def test_what_it_says_without_an_example() -> None:
    done = Exported(Path("x"), "compressed", 1500, 2000, 0.0, ())
    assert str(done) == "x: 1,500 bytes; its tensors are 2,000 bytes with their zeros\nread back: all values are equal"


class Counter(nn.Module):
    """Gives another result at each call, which no file can."""

    calls: ClassVar[int] = 0

    def forward(self, x: Tensor) -> Tensor:
        Counter.calls += 1
        return x + self.calls


class Choice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Whole(nn.Module):
    """Takes one batch of two alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2 * 3, -1).sum(0)


class Several(nn.Module):
    """Words and an optional mask in, tensors at two places out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)

    def forward(self, words: Tensor, *, mask: Tensor | None = None, scale: float = 2.0) -> dict[str, Any]:
        y = self.embed(words) * scale
        return {"y": y if mask is None else y * mask[..., None], "more": [y.sum(-1), words + 1]}


@pytest.mark.parametrize("format", FORMATS)
def test_what_computes_something_else_is_not_written(tmp_path: Path, format: str) -> None:
    path = tmp_path / "model"
    if format != "hub":
        path.write_text("what was there before")
    with pytest.raises(UserError, match=r"differs from the model by .* of the output, more than 1e-05: "):
        regrow.export(Counter(), path, format, torch.randn(2, 3))
    assert os.listdir(tmp_path) == ([] if format == "hub" else ["model"])
    assert format == "hub" or path.read_text() == "what was there before"
    if format != "onnx":
        done = regrow.export(Counter(), tmp_path / "other", format, torch.randn(2, 3) * 1e6, tolerance=1e-2)
        assert 0 < done.difference < 1e-2


@pytest.mark.parametrize("format", RUN)
def test_arguments_of_every_kind(tmp_path: Path, format: str) -> None:
    model, words = Several(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    inputs = {"words": words, "mask": torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), "scale": 3.0}
    done = regrow.export(model, tmp_path / "model", format, inputs)
    assert done.difference <= 1e-5
    assert done.bytes == (tmp_path / "model").stat().st_size
    if format == "onnx":
        session = onnxruntime.InferenceSession(str(tmp_path / "model"), providers=["CPUExecutionProvider"])
        assert [(one.name, one.shape) for one in session.get_inputs()] == [
            ("words", ["batch", 3]),
            ("mask", ["batch", 3]),
        ]
        assert [one.name for one in session.get_outputs()] == ["output_0", "output_1", "output_2"]
        found = in_onnx_runtime(tmp_path / "model", words[:1], inputs["mask"][:1])
        assert off(found[1], model(words[:1], scale=3.0)["more"][0]) <= 1e-5
        assert torch.equal(found[2], words[:1] + 1)


def test_a_batch_of_one_size_alone(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 4)
    with pytest.raises(UserError, match=r"cannot be traced for a batch of any size: .*; dynamic_batch=False"):
        regrow.export(Whole(), tmp_path / "model", "pt2", x)
    done = regrow.export(Whole(), tmp_path / "model", "pt2", x, dynamic_batch=False)
    assert done.batches == (2, 2, 2, 2)
    assert off(in_torch(tmp_path / "model", x)[0], Whole()(x)) <= 1e-5


def test_a_program_does_not_hold_the_example(tmp_path: Path) -> None:
    example = torch.full((2, 3, 6, 6), 1234.5678)
    regrow.export(small(), tmp_path / "model.pt2", "pt2", example)
    assert example[0, 0, 0].numpy().tobytes() not in (tmp_path / "model.pt2").read_bytes()


def test_half_precision(tmp_path: Path) -> None:
    done = regrow.export(small().bfloat16(), tmp_path / "model.pt2", "pt2", IMAGES.bfloat16())
    assert done.difference <= 4e-2


def test_a_compiled_model_is_exported_as_what_it_was_compiled_from(tmp_path: Path) -> None:
    model = small()
    model[0] = torch.compile(model[0])
    for format in ("pt2", "safetensors"):
        regrow.export(torch.compile(model), tmp_path / format, format, IMAGES)
    again = regrow.load(small(), tmp_path / "safetensors").eval()
    assert torch.equal(again(IMAGES), in_torch(tmp_path / "pt2", IMAGES)[0])


class Keeping(nn.Module):
    """Keeps what it has computed, and a lock, neither of which deepcopy takes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prune.l1_unstructured(nn.Linear(3, 3), "weight", 0.5)
        self.kept: list[Any] = [threading.Lock()]

    def forward(self, x: Tensor) -> Tensor:
        self.kept.append(self.inner(x))
        return self.kept[-1]


@pytest.mark.parametrize("format", ["safetensors", "compressed"])
def test_what_deepcopy_refuses_in_a_model_is_no_hindrance(tmp_path: Path, format: str) -> None:
    model, x = Keeping(), torch.randn(2, 3)
    model(x).sum().backward()
    assert regrow.export(model, tmp_path / "m", format, x).difference == 0.0
    again = regrow.load(Keeping(), tmp_path / "m")
    assert torch.equal(again(x), model(x))


class Result:
    def __init__(self, value: Tensor) -> None:
        self.value = value


class InObject(Counter):
    def forward(self, x: Tensor) -> Any:
        return Result(super().forward(x))


class Spectrum(nn.Module):
    """Complex numbers in, or out of real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(self.inner(x.real if x.is_complex() else x))


def test_tensors_in_an_object_of_any_class_are_compared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"differs from the model by .* of the output"):
        regrow.export(InObject(), tmp_path / "m", "safetensors", torch.randn(2, 3))
    assert os.listdir(tmp_path) == []


def test_complex_numbers_in_and_out(tmp_path: Path) -> None:
    model, x = Spectrum(), torch.randn(2, 4)
    for format in ("pt2", "safetensors", "onnx"):
        done = regrow.export(model, tmp_path / format, format, x)
        assert done.batches == (2, 1, 2, 3, 5)
        assert done.difference <= 1e-5
    for format in ("pt2", "safetensors"):
        regrow.export(model, tmp_path / format, format, torch.complex(x, x)[:1])
    assert torch.equal(in_torch(tmp_path / "pt2", torch.complex(x, x))[0], model(x))


NAN = nn.Linear(3, 3)
nn.init.constant_(NAN.weight, float("nan"))


class Silent(nn.Module):
    def forward(self, x: Tensor) -> None:
        """Returns nothing."""


REFUSED = [
    (small, "onx", IMAGES, {}, "unknown format 'onx'; did you mean 'onnx'?"),
    (small, "onnx", None, {}, "example_inputs is missing: onnx needs one batch as the model takes it"),
    (small, "pt2", (), {}, "example_inputs is empty"),
    (small, "pt2", torch.randn(2, 1, 6, 6), {}, "the model does not run on example_inputs: "),
    (small, "pt2", IMAGES, {"tolerance": -1.0}, "tolerance is -1.0, but must be a share of the outputs' size"),
    (Choice, "pt2", torch.randn(2, 3), {}, "the model cannot be traced for a batch of any size: Could not guard"),
    (lambda: NAN, "pt2", torch.randn(2, 3), {}, "the model's outputs are not all finite"),
    (small, "pt2", IMAGES[:0], {}, "example_inputs is a batch without examples"),
    (small, "pt2", IMAGES, {"tolerance": "1e-3"}, "tolerance is '1e-3', but must be"),
    (lambda: small().state_dict(), "pt2", IMAGES, {}, "model must be a torch.nn.Module, not OrderedDict"),
    (Silent, "safetensors", IMAGES, {}, "the model returns no tensor that could be compared"),
    (small, "hub", None, {"about": {"runs": []}}, "about must be one run of results.json"),
    (small, "hub", None, {"about": {"seed": NAN}}, "about cannot be written into config.json: "),
    (lambda: nn.Linear(3, 3, device="meta"), "safetensors", None, {}, "the tensor 'weight' is not a plain"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "format", "example", "options", "said"), REFUSED)
def test_bad_input_is_refused_in_one_sentence(tmp_path, model, format, example, options, said) -> None:
    with pytest.raises(UserError) as caught:
        regrow.export(model(), tmp_path / "model", format, example, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_places_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    cases = [
        (tmp_path, "onnx", "is a directory: name a file, such as"),
        (tmp_path, "hub", "is there already"),
        (tmp_path / "file" / "model", "pt2", "is not a directory that you may write to"),
        (tmp_path / "file" / "model", "hub", "is not a directory that you may write to"),
        (Path(os.devnull), "safetensors", "is no file that could be replaced"),
    ]
    for path, format, said in cases:
        with pytest.raises(UserError, match=said):
            regrow.export(small(), path, format, IMAGES)
    assert os.listdir(tmp_path) == ["file"]
    assert Path(os.devnull).is_char_device()


def test_the_name_of_the_file_tells_the_format(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    for ending in ("safetensors", "onnx", "pt2"):
        assert regrow.export(model, tmp_path / f"model.{ending}", example_inputs=torch.randn(2, 4)).format == ending
    with pytest.raises(
        UserError, match=r"model\.bin does not tell the format: give one of safetensors, compressed, onnx"
    ):
        regrow.export(model, tmp_path / "model.bin")
