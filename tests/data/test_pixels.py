"""Every kind of pixel that a file can hold becomes the bytes that it means, or one sentence."""

import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from image_data import image, write_folder
from regrow.data.decode import open_image
from regrow.data.named import load
from regrow.errors import UserError

RNG = np.random.default_rng(5)
WHOLE = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
GREY = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
ALPHA = Image.fromarray(RNG.integers(0, 256, (8, 8), dtype=np.uint8))


def opened(path) -> tuple[np.ndarray, bool]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, grey = open_image(str(path))
    assert found.mode == "RGB"
    return np.asarray(found), grey


def grey_of(path) -> np.ndarray:
    pixels, grey = opened(path)
    assert grey
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def tiff(path, pixels: bytes, *, bits: int, kind: int = 1, photometric: int = 1, order: str = "<", side: int = 8):
    """A grey TIFF of one strip; kind 1: unsigned, 2: signed, 3: float."""
    values = {256: side, 257: side, 258: bits, 259: 1, 262: photometric, 277: 1, 278: side, 279: len(pixels)}
    tags = sorted((values | {273: 0, 339: kind}).items())
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack(f"{order}HHII", t, 4, 1, start if t == 273 else v) for t, v in tags)
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8) + struct.pack(f"{order}H", len(tags))
    path.write_bytes(head + entries + struct.pack(f"{order}I", 0) + pixels)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "big-endian.tif"])
def test_sixteen_bits_are_scaled_from_their_whole_range(tmp_path, name):
    path = tmp_path / name
    values = WHOLE.astype(">u2") if "big" in name else WHOLE
    Image.fromarray(values.astype(np.int32) if name.endswith("pgm") else values).save(path)
    np.testing.assert_array_equal(grey_of(path), np.rint(WHOLE / 257))


def test_a_ramp_of_256_levels_keeps_them_all(tmp_path):
    Image.fromarray((np.arange(256) * 257).astype(np.uint16).reshape(16, 16)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(grey_of(tmp_path / "a.png").ravel(), np.arange(256))


def test_a_pgm_counts_to_its_own_maximum(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 4 1 1023\n" + np.array([0, 511, 512, 1023], ">u2").tobytes())
    assert grey_of(tmp_path / "a.pgm").tolist() == [[0, 127, 128, 255]]


def test_twelve_bits_in_a_tiff(tmp_path):
    row = bytes.fromhex("0000107fffff")  # 0, 16, 2047, 4095
    assert grey_of(tiff(tmp_path / "a.tif", 4 * row, bits=12, side=4))[0].tolist() == [0, 1, 127, 255]


@pytest.mark.parametrize("order", "<>")
def test_floats_go_from_black_to_white(tmp_path, order):
    levels = np.linspace(0, 1, 64).reshape(8, 8)
    path = tiff(tmp_path / "a.tif", levels.astype(f"{order}f4").tobytes(), bits=32, kind=3, order=order)
    np.testing.assert_array_equal(grey_of(path), np.rint(levels.astype(np.float32).astype(float) * 255))


@pytest.mark.parametrize(("bits", "kind", "type_"), [(8, 1, "u1"), (16, 1, "<u2"), (32, 3, "<f4")])
def test_where_zero_is_white(tmp_path, bits, kind, type_):
    white = {"u1": 255, "<u2": 65535, "<f4": 1.0}[type_]
    pixels = (np.linspace(0, 1, 64) * white).astype(type_)
    found = grey_of(tiff(tmp_path / "a.tif", pixels.tobytes(), bits=bits, kind=kind, photometric=0))
    np.testing.assert_array_equal(found.ravel(), np.rint(255 - pixels.astype(float) * 255 / white))


def test_grey_with_transparency_is_grey(tmp_path):
    both = Image.merge("LA", [Image.fromarray(GREY), ALPHA])
    for name in ("a.png", "a.tif"):
        both.save(tmp_path / name)
        np.testing.assert_array_equal(grey_of(tmp_path / name), GREY)
    Image.fromarray(GREY).save(tmp_path / "key.png", transparency=int(GREY[0, 0]))
    np.testing.assert_array_equal(grey_of(tmp_path / "key.png"), GREY)


def test_black_and_white(tmp_path):
    for name in ("a.png", "a.tif", "a.gif"):
        Image.fromarray(GREY > 127).save(tmp_path / name)
        np.testing.assert_array_equal(opened(tmp_path / name)[0][..., 0], (GREY > 127) * 255)


def palette(path, **options):
    indexed = Image.fromarray(COLOUR).quantize(16)
    indexed.save(path, **options)
    return np.asarray(indexed.convert("RGB"))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 160, 10))])
def test_palettes_keep_their_colours_with_and_without_transparency(tmp_path, transparency):
    expected = palette(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    pixels, grey = opened(tmp_path / "a.png")
    assert not grey
    np.testing.assert_array_equal(pixels, expected)


def test_colours_with_an_alpha_channel_of_their_own(tmp_path):
    expected = palette(tmp_path / "p.png")
    Image.open(tmp_path / "p.png").convert("PA").save(tmp_path / "pa.tif")
    np.testing.assert_array_equal(opened(tmp_path / "pa.tif")[0], expected)
    four = Image.fromarray(COLOUR).convert("RGBA")
    four.putalpha(ALPHA)
    four.save(tmp_path / "a.png")
    np.testing.assert_array_equal(opened(tmp_path / "a.png")[0], COLOUR)


def test_printing_inks(tmp_path):
    Image.fromarray(COLOUR).convert("CMYK").save(tmp_path / "a.tif")
    np.testing.assert_array_equal(opened(tmp_path / "a.tif")[0], COLOUR)


SIGNED = np.arange(-32, 32).reshape(8, 8)
NO_WHITE = "whole numbers of 32 bits or with a sign, of which none is agreed to be white: save it with 8 or 16 bits"


@pytest.mark.parametrize(
    ("bits", "kind", "pixels", "sentence"),
    [
        (32, 1, WHOLE.astype("<u4"), NO_WHITE),
        (32, 2, SIGNED.astype("<i4"), NO_WHITE),
        (16, 2, SIGNED.astype("<i2"), NO_WHITE),
        (32, 3, GREY.astype("<f4"), r"floats from \d+ to 2\d\d, but must be from 0 \(black\) to 1 \(white\)"),
        (32, 3, (SIGNED / 32).astype("<f4"), r"floats from -1 to 0.9688, but must be from 0"),
        (32, 3, np.full((8, 8), np.nan, "<f4"), "floats that are not finite, but must be from 0"),
    ],
)
def test_values_without_an_agreed_white_are_refused(tmp_path, bits, kind, pixels, sentence):
    path = tiff(tmp_path / "a.tif", pixels.tobytes(), bits=bits, kind=kind)
    with pytest.raises(UserError, match=rf"^the image .*a\.tif cannot be read: its grey levels are {sentence}"):
        open_image(str(path))


@pytest.mark.parametrize(("name", "test"), [("folder", "test"), ("imagenet", "val")])
def test_a_folder_of_sixteen_bits(tmp_path, name, test):
    """The same pixels in 8 and in 16 bits are the same data set."""
    for bits in (8, 16):
        root = write_folder(tmp_path / str(bits), ("train", test), mode="L")
        for i, file in enumerate(sorted(root.rglob("*.png"))):
            grey = np.asarray(image(i, mode="L"))
            Image.fromarray(grey if bits == 8 else grey.astype(np.uint16) * 257).save(file)
    eight, sixteen = (load(f"{name}:{tmp_path / str(b)}", batch_size=4, size=8, workers=0) for b in (8, 16))
    assert eight.shape == sixteen.shape == ((1, 8, 8) if name == "folder" else (3, 8, 8))
    for part in ("train", "test"):
        for (x, y), (u, v) in zip(getattr(eight, part).epoch(0), getattr(sixteen, part).epoch(0), strict=True):
            assert (x == u).all()
            assert (y == v).all()
