"""Image files and arrays to pixel values, and what is refused on the way."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mooring._served.images import ImageDecoder, ImageError, ImageSettings

SETTINGS = ImageSettings(size=8, channels=1, mean=[0.0], std=[1.0], max_pixels=5000, max_bytes=20_000)
DECODER = ImageDecoder(SETTINGS)
COLOR = ImageDecoder(dataclasses.replace(SETTINGS, channels=3))
GREY = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
PNG_START = b"\x89PNG\r\n\x1a\n"


def encode(image: Image.Image | np.ndarray, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(file, file_format, **options)
    return file.getvalue()


def npy(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def outcome(content: bytes, decoder: ImageDecoder = DECODER) -> np.ndarray | str:
    """Pixel values ``[1, C, H, W]``, or the words that refuse them."""
    try:
        return decoder.decode([content])
    except ImageError as exc:
        return str(exc)


def greys(content: bytes, decoder: ImageDecoder = DECODER) -> np.ndarray:
    """Pixel values as the greys 0 to 255 that they were, ``[C, H, W]``."""
    return np.rint(decoder.decode([content])[0] * 255).astype(np.uint8)


def test_a_png_and_an_array_give_the_same_values() -> None:
    decoder = ImageDecoder(dataclasses.replace(SETTINGS, mean=[0.25], std=[0.5]))
    found = decoder.decode([encode(GREY), npy(GREY), npy(np.asfortranarray(GREY)), npy(GREY, version=(2, 0))])
    assert (found.shape, found.dtype) == ((4, 1, 8, 8), np.float32)
    expected = (GREY.astype(np.float32) / np.float32(255) - np.float32(0.25)) / np.float32(0.5)
    for one in found:
        np.testing.assert_array_equal(one[0], expected)
    np.testing.assert_array_equal(decoder.prepare(GREY), found[0])


def test_each_channel_has_its_own_mean_and_deviation() -> None:
    pixels = np.stack([np.full((8, 8), value, np.uint8) for value in (0, 51, 255)], axis=-1)
    settings = dataclasses.replace(SETTINGS, channels=3, mean=[0.1, 0.2, 0.3], std=[1.0, 0.5, 0.25])
    found = ImageDecoder(settings).decode([npy(pixels)])
    assert found.shape == (1, 3, 8, 8)
    assert found[0, :, 3, 3] == pytest.approx([-0.1, 0.0, 2.8], abs=1e-6)


def test_a_jpeg_is_nearly_what_it_was_made_of() -> None:
    smooth = np.add.outer(np.arange(8), np.arange(8)).astype(np.uint8) * 15
    for options in ({}, {"progressive": True}):
        found = greys(encode(smooth, "JPEG", quality=95, **options))
        assert np.abs(found[0].astype(int) - smooth).max() <= 4


def test_images_of_any_size_are_scaled() -> None:
    for height, width in ((1, 1), (3, 70), (61, 8), (40, 40)):
        found = greys(encode(np.full((height, width, 3), (255, 0, 0), np.uint8)), COLOR)
        assert found.shape == (3, 8, 8)
        assert (found == np.array([255, 0, 0]).reshape(3, 1, 1)).all()


# What a viewer shows, of the pixels as they are stored: the meanings of EXIF's orientation.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.T,
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].T,
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_an_image_is_turned_as_its_exif_data_says(orientation: int, file_format: str) -> None:
    stored = np.kron(np.array([[0, 255], [90, 180]], np.uint8), np.ones((8, 8), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = greys(encode(stored, file_format, exif=exif))[0]
    expected = UPRIGHT[orientation](stored)[4::8, 4::8]
    assert np.abs(found[2::4, 2::4].astype(int) - expected).max() <= 3


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", b"Exif\0\0", b"Exif\0\0MM"]
)
def test_damaged_exif_data_spoils_no_image(exif: bytes) -> None:
    np.testing.assert_array_equal(greys(encode(GREY, exif=exif))[0], GREY)


def test_a_phones_jpeg_of_two_pictures_is_the_first() -> None:
    first, second = (Image.new("L", (8, 8), value) for value in (200, 20))
    content = encode(first, "MPO", save_all=True, append_images=[second])
    assert greys(content).mean() == pytest.approx(200, abs=2)


def _with_palette(transparency: int | None) -> bytes:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 200])
    return encode(image, **({} if transparency is None else {"transparency": transparency}))


# Encoded images of one color, and the red, green and blue that they are.
MODES = {
    "1 bit": (encode(Image.new("1", (8, 8), 1)), (255, 255, 255)),
    "grey": (encode(Image.new("L", (8, 8), 77)), (77, 77, 77)),
    "grey, half transparent": (encode(Image.new("LA", (8, 8), (55, 128))), (155, 155, 155)),
    "grey, one value transparent": (encode(Image.new("L", (8, 8), 77), transparency=77), (255, 255, 255)),
    "grey, another value transparent": (encode(Image.new("L", (8, 8), 77), transparency=3), (77, 77, 77)),
    "grey, 16 bits": (encode(np.full((8, 8), 0x8040, np.uint16)), (128, 128, 128)),
    "palette": (_with_palette(None), (10, 20, 200)),
    "palette, transparent": (_with_palette(1), (255, 255, 255)),
    "color": (encode(Image.new("RGB", (8, 8), (10, 20, 200))), (10, 20, 200)),
    "color, one transparent": (
        encode(Image.new("RGB", (8, 8), (10, 20, 200)), transparency=(10, 20, 200)),
        (255, 255, 255),
    ),
    "color, transparent": (encode(Image.new("RGBA", (8, 8), (10, 20, 200, 0))), (255, 255, 255)),
    "color, opaque": (encode(Image.new("RGBA", (8, 8), (10, 20, 200, 255))), (10, 20, 200)),
    "color, half transparent": (encode(Image.new("RGBA", (8, 8), (255, 55, 0, 128))), (255, 155, 127)),
    "CMYK": (encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), (255, 0, 0)),
    "grey JPEG": (encode(Image.new("L", (8, 8), 77), "JPEG"), (77, 77, 77)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_color_or_grey(mode: str) -> None:
    content, color = MODES[mode]
    found = greys(content, COLOR)
    assert np.abs(found.astype(int) - np.array(color).reshape(3, 1, 1)).max() <= 2
    luminance = np.dot(color, (0.299, 0.587, 0.114))
    assert np.abs(greys(content).astype(int) - luminance).max() <= 2


def _png_of_size(width: int, height: int, *chunks: bytes) -> bytes:
    """The start of a PNG file, without any pixel."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return PNG_START + header + b"".join(chunks) + chunk(b"IDAT", b"")


def _jpeg_of_size(width: int, height: int) -> bytes:
    content = bytearray(encode(GREY, "JPEG"))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def _npy_of_shape(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


BOMBS = {
    "png": (_png_of_size(60_000, 60_000), "60000 x 60000, 3600000000 pixels"),
    "long png": (_png_of_size(1, 5001), "1 x 5001, 5001 pixels"),
    "jpeg": (_jpeg_of_size(65_000, 65_000), "65000 x 65000, 4225000000 pixels"),
    "npy": (_npy_of_shape((10**6, 10**7)), "10000000 x 1000000, 10000000000000 pixels"),
    "color npy": (_npy_of_shape((100, 51, 3)), "51 x 100, 5100 pixels"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_large_image_is_refused_before_it_is_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content, said = BOMBS[kind]

    def decode(image: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    with pytest.raises(ImageError, match=rf"^image 0 is {said}; at most 5000 are decoded \(max_pixels\)$"):
        DECODER.decode([content])


def test_a_png_of_the_largest_size_is_taken() -> None:
    assert DECODER.decode([encode(np.zeros((50, 100), np.uint8))]).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_small_chunk_that_would_be_large_is_not_unpacked(name: bytes) -> None:
    packed = zlib.compress(bytes(15 * 2**20), 9)
    content = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0"}[name] + packed
    bomb = encode(GREY)
    bomb = bomb[:33] + chunk(name, content) + bomb[33:]  # after IHDR
    assert len(bomb) < SETTINGS.max_bytes
    assert "Decompressed data too large" in str(outcome(bomb))


def _animated() -> bytes:
    return encode(Image.new("L", (8, 8)), save_all=True, append_images=[Image.new("L", (8, 8), 9)])


REFUSED = {
    "nothing": (b"", "is empty"),
    "too many bytes": (bytes(20_001), r"has 20001 bytes, at most 20000 are taken \(max_bytes\)"),
    "a text": (b"hello, world", r"is none of JPEG, PNG and .npy: it starts with b'hello, w'"),
    "gif": (encode(GREY, "GIF"), r"is none of JPEG, PNG and .npy: it starts with b'GIF8"),
    "bmp": (encode(GREY, "BMP"), "is none of JPEG, PNG and .npy"),
    "tiff": (encode(GREY, "TIFF"), "is none of JPEG, PNG and .npy"),
    "webp": (encode(GREY, "WEBP"), "is none of JPEG, PNG and .npy"),
    "pickle": (b"\x80\x04K\x01.", "is none of JPEG, PNG and .npy"),
    "npz": (b"PK\x03\x04", "is none of JPEG, PNG and .npy"),
    "animated png": (_animated(), "is animated: send one picture of it"),
    "png start": (PNG_START, "is damaged, its header can't be read"),
    "jpeg start": (b"\xff\xd8\xff", "is damaged, its header can't be read"),
    "empty png": (_png_of_size(0, 5), "is damaged|has no pixels"),
    "half a png": (encode(GREY)[:70], "is damaged or cut off"),
    "half a jpeg": (encode(GREY, "JPEG")[:-30], "is damaged or cut off"),
    "png without pixels": (_png_of_size(8, 8), "is damaged or cut off"),
    "npy start": (b"\x93NUMPY", "is a damaged .npy file, its header can't be read"),
    "npy of another version": (b"\x93NUMPY\x03\x00" + npy(GREY)[8:], "is a damaged .npy file"),
    "npy header that is code": (
        b"\x93NUMPY\x01\x00\x20\x00__import__('os').getpid()       \n",
        "is a damaged .npy file, its header can't be read",
    ),
    "npy of floats": (npy(GREY / 255), r"is float64\[8, 8\], expected uint8 \[height, width\] or"),
    "npy of objects": (_npy_of_shape((8, 8), "|O"), r"is object\[8, 8\], expected uint8"),
    "npy of one axis": (npy(GREY[0]), r"is uint8\[8\], expected uint8"),
    "npy of four channels": (npy(np.zeros((8, 8, 4), np.uint8)), r"is uint8\[8, 8, 4\], expected uint8"),
    "npy of four axes": (npy(np.zeros((1, 8, 8, 3), np.uint8)), r"is uint8\[1, 8, 8, 3\], expected uint8"),
    "npy without pixels": (npy(GREY[:0]), "has no pixels: 8 x 0"),
    "npy of negative size": (_npy_of_shape((-8, -8)), "has no pixels"),
    "half an npy": (npy(GREY)[:-1], r"is a damaged .npy file: 63 bytes for shape \[8, 8\]"),
    "an npy and more": (npy(GREY) + b"x", r"is a damaged .npy file: 65 bytes for shape \[8, 8\]"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_image_is_refused_by_its_place(kind: str) -> None:
    content, said = REFUSED[kind]
    with pytest.raises(ImageError, match=f"^image 1 ({said})"):
        DECODER.decode([encode(GREY), content, b"never looked at"])


@pytest.mark.parametrize(
    "content",
    [encode(GREY), encode(np.stack([GREY] * 3, -1)), encode(GREY, "JPEG"), npy(GREY)],
    ids=["grey png", "color png", "jpeg", "npy"],
)
def test_what_is_cut_off_is_refused_or_lacks_nothing(content: bytes) -> None:
    whole = DECODER.decode([content])
    found = [outcome(content[:length]) for length in range(len(content))]
    taken = [pixels for pixels in found if isinstance(pixels, np.ndarray)]
    for pixels in taken:
        np.testing.assert_array_equal(pixels, whole)
    # No more than checksums and the end mark of a PNG file are missing.
    assert len(taken) <= 24


STARTS = [b"", PNG_START, b"\xff\xd8\xff", b"\x93NUMPY\x01\x00", _png_of_size(8, 8)]


def _check_any(content: bytes) -> None:
    for decoder, channels in ((DECODER, 1), (COLOR, 3)):
        found = outcome(content, decoder)
        if isinstance(found, str):
            assert found.startswith("image 0 ")
            continue
        assert (found.shape, found.dtype) == ((1, channels, 8, 8), np.float32)
        assert (found >= 0).all()
        assert (found <= 1).all()


@settings(deadline=None)
@given(st.sampled_from(STARTS), st.binary(max_size=300))
@example(b"", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{")
def test_any_bytes_are_an_image_or_an_image_error(start: bytes, rest: bytes) -> None:
    _check_any(start + rest)


_TURNED = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
WHOLE = [content for content, _ in MODES.values()]
WHOLE += [npy(GREY), _animated(), encode(GREY, "JPEG", exif=_TURNED)]
CHUNKS = [b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"acTL", b"fcTL", b"iCCP", b"gAMA"]


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 40),
)
def test_a_damaged_file_is_an_image_or_an_image_error(
    content: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    damaged = bytearray(content)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    _check_any(bytes(damaged[: max(1, len(damaged) - cut)]))


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(CHUNKS), st.binary(max_size=60))
def test_any_content_of_a_chunk_with_a_right_checksum(name: bytes, content: bytes) -> None:
    whole = encode(GREY)
    _check_any(whole[:33] + chunk(name, content) + whole[33:])


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_an_array_gives_what_its_png_gives(size: tuple[int, int], color: bool, seed: int) -> None:
    shape = (*size, 3) if color else size
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    for decoder in (DECODER, COLOR):
        from_png, from_npy = decoder.decode([encode(array), npy(array)])
        np.testing.assert_array_equal(from_png, from_npy)
        np.testing.assert_array_equal(from_npy, decoder.prepare(array))


def test_settings_are_read_from_their_json() -> None:
    assert ImageSettings.loads(json.dumps(vars(SETTINGS))) == SETTINGS
    for text in ("[]", "{}", json.dumps({**vars(SETTINGS), "more": 1})):
        with pytest.raises(ValueError, match="expected a JSON object with channels, max_bytes, max_pixels"):
            ImageSettings.loads(text)
