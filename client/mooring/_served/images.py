"""Images to the pixel values that an engine takes.

Training prepares its images with the same functions, so that an engine meets when it is served what it met
when it was trained.
"""

from __future__ import annotations

import io
import json
import struct
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

_ORIENTATION = 0x0112
# How to lay an image upright, by the value of EXIF's orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow itself expects of EXIF data that is damaged.
_DAMAGED_EXIF = (struct.error, KeyError, OSError, SyntaxError, TypeError, ValueError, ZeroDivisionError)
_HEADERS_OF_NPY = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_WHITE = (255, 255, 255)


class ImageError(ValueError):
    """An image that the model does not take; the message names its position in the request."""


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """What becomes of an image: the content of ``settings.json``."""

    #: Height and width that images are scaled to, in pixels.
    size: int
    #: 1: grey; 3: red, green and blue.
    channels: int
    #: Of values from 0 to 1; one for all channels or one for each.
    mean: list[float]
    std: list[float]
    #: Largest image that is decoded, in pixels.
    max_pixels: int
    #: Largest encoded image.
    max_bytes: int

    @classmethod
    def loads(cls, text: str) -> ImageSettings:
        """Read the text of ``settings.json``.

        Raises:
            ValueError: it is not one.
        """
        content = json.loads(text)
        names = {field.name for field in fields(cls)}
        if not isinstance(content, dict) or content.keys() != names:
            raise ValueError(f"expected a JSON object with {', '.join(sorted(names))}, got {text[:200]}")
        return cls(**content)


class ImageDecoder:
    """Decodes, turns, scales and normalises images."""

    def __init__(self, settings: ImageSettings) -> None:
        self._settings = settings
        self._mean = np.array(settings.mean, np.float32)
        self._std = np.array(settings.std, np.float32)

    def decode(self, raw: Iterable[bytes]) -> np.ndarray:
        """Turn a request's images into pixel values.

        Args:
            raw: JPEG or PNG files, or arrays as ``.npy`` files: uint8 ``[H, W]`` or ``[H, W, 3]``.

        Returns:
            ``[B, channels, size, size]`` float32.

        Raises:
            ImageError: one is none of these, damaged, animated, or too large; nothing is decoded of what is
                too large.
        """
        return np.stack([self.decode_one(content, f"image {index}") for index, content in enumerate(raw)])

    def decode_one(self, content: bytes, where: str) -> np.ndarray:
        """As :meth:`decode`, for one image: ``[channels, size, size]``; ``where`` names it in messages."""
        if not content:
            raise ImageError(f"{where} is empty")
        if len(content) > self._settings.max_bytes:
            raise ImageError(
                f"{where} has {len(content)} bytes, at most {self._settings.max_bytes} are taken (max_bytes)"
            )
        if content.startswith(b"\x93NUMPY"):
            return self.prepare(self._read_npy(content, where))
        for file_type, start in ((PngImageFile, b"\x89PNG\r\n\x1a\n"), (JpegImageFile, b"\xff\xd8\xff")):
            if content.startswith(start):
                return self._prepare(self._read_file(file_type, content, where))
        raise ImageError(f"{where} is none of JPEG, PNG and .npy: it starts with {content[:8]!r}")

    def prepare(self, array: np.ndarray) -> np.ndarray:
        """Scale and normalise an image: uint8 ``[H, W]`` or ``[H, W, 3]`` to ``[channels, size, size]``."""
        return self._prepare(Image.fromarray(array))

    def _read_file(self, file_type: type[ImageFile.ImageFile], content: bytes, where: str) -> Image.Image:
        # Not Image.open: it warns of what this limits, and plays the pictures of a phone's JPEG as a film.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = file_type(io.BytesIO(content))
            except Exception as exc:
                # Pillow lets through whatever a malformed header makes its parser raise.
                raise ImageError(f"{where} is damaged, its header can't be read: {exc}") from exc
            self._check_pixels(image.height, image.width, where)
            if getattr(image, "is_animated", False):
                raise ImageError(f"{where} is animated: send one picture of it")
            try:
                image.load()
                return _flatten(_upright(image))
            except Exception as exc:
                # As above.
                raise ImageError(f"{where} is damaged or cut off: {exc}") from exc

    def _read_npy(self, content: bytes, where: str) -> np.ndarray:
        file = io.BytesIO(content)
        try:
            read_header = _HEADERS_OF_NPY[np.lib.format.read_magic(file)]
            shape, in_fortran_order, dtype = read_header(file)
        except Exception as exc:
            # The header is a Python literal, and what is wrong with one may raise anything.
            raise ImageError(f"{where} is a damaged .npy file, its header can't be read: {exc}") from exc
        if dtype != np.uint8 or len(shape) not in (2, 3) or shape[2:] not in ((), (3,)):
            raise ImageError(
                f"{where} is {dtype}{list(shape)}, expected uint8 [height, width] or [height, width, 3]"
            )
        self._check_pixels(shape[0], shape[1], where)
        pixels = content[file.tell() :]
        if len(pixels) != int(np.prod(shape)):
            raise ImageError(f"{where} is a damaged .npy file: {len(pixels)} bytes for shape {list(shape)}")
        array = np.frombuffer(pixels, np.uint8)
        return (
            np.ascontiguousarray(array.reshape(shape[::-1]).T) if in_fortran_order else array.reshape(shape)
        )

    def _check_pixels(self, height: int, width: int, where: str) -> None:
        if min(height, width) < 1:
            raise ImageError(f"{where} has no pixels: {width} x {height}")
        if height * width > self._settings.max_pixels:
            raise ImageError(
                f"{where} is {width} x {height}, {height * width} pixels; at most "
                f"{self._settings.max_pixels} are decoded (max_pixels)"
            )

    def _prepare(self, image: Image.Image) -> np.ndarray:
        size = (self._settings.size, self._settings.size)
        mode = "L" if self._settings.channels == 1 else "RGB"
        scaled = image.convert(mode).resize(size, Image.Resampling.BILINEAR)
        pixels = np.asarray(scaled, np.float32).reshape(*size, -1) / np.float32(255)  # [H, W, C]
        normal: np.ndarray = (pixels - self._mean) / self._std
        return np.ascontiguousarray(normal.transpose(2, 0, 1))


def _upright(image: Image.Image) -> Image.Image:
    """The image as it was meant to be looked at."""
    try:
        how = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGED_EXIF:
        # The pixels are sound.
        return image
    return image if how is None else image.transpose(how)


def _flatten(image: Image.Image) -> Image.Image:
    """Any mode as 8 bits of grey or of red, green and blue; what is transparent lies on white."""
    if image.mode.startswith("I"):
        # 16 bits: Pillow would cut off what is above 255.
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        flat = Image.new("RGB", image.size, _WHITE)
        flat.paste(picture, mask=picture.getchannel("A"))
        return flat
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")
