"""One picture, opened safely: declared size checked before decoding, EXIF orientation, RGB on white, centre
crop.

Nothing here touches files: bytes in, bytes or a picture out. Used by the stage prepare.
"""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
WHITE = (255, 255, 255, 255)
DECODER_FAULTS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


class UnreadableError(ValueError):
    """A picture that cannot be used; the message is the reason, without the picture's name."""


def load(data: bytes, resolution_px: int, max_pixels: int) -> Image.Image:
    """Returns the picture (RGB, resolution_px square): upright, alpha on white, the short side fitted, the
    long side cropped at the centre. Raises UnreadableError when the bytes are no whole picture or declare too
    many pixels.
    """
    if not data:
        raise UnreadableError("the file is empty")
    refuse_too_large(data, max_pixels)
    try:
        with unlimited(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            return ImageOps.fit(on_white(upright), (resolution_px, resolution_px), Image.Resampling.LANCZOS)
    except DECODER_FAULTS as error:
        raise UnreadableError(f"corrupt or truncated picture ({one_line(error)})") from error


def refuse_too_large(data: bytes, max_pixels: int) -> None:
    """Reads the header alone. Raises UnreadableError for an unknown format, a broken checksum or too many
    pixels.
    """
    try:
        with unlimited(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height <= max_pixels:
                image.verify()  # PNG: the checksum of every chunk, which decoding does not look at
    except DECODER_FAULTS as error:
        reason = "not a JPEG, PNG, WebP or BMP picture" if "identify" in str(error) else one_line(error)
        raise UnreadableError(f"corrupt or truncated picture ({reason})") from error
    if width * height > max_pixels:
        limit = f"prepare.max_source_pixels = {max_pixels:,}"
        raise UnreadableError(f"declares {width:,} x {height:,} pixels, more than {limit}")


@contextmanager
def unlimited() -> Iterator[None]:
    """Lets Pillow open a header of any size: the limit that counts is ours, and it is checked before
    decoding.
    """
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def on_white(image: Image.Image) -> Image.Image:
    """Returns the picture as RGB, its transparent parts on white; 16-bit grey is scaled, not clipped."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, WHITE), layer).convert("RGB")
    return image.convert("RGB")


def to_png(image: Image.Image) -> bytes:
    """Returns the PNG bytes of a picture, without metadata: equal pixels give equal bytes."""
    bare = Image.frombytes(image.mode, image.size, image.tobytes())
    buffer = io.BytesIO()
    bare.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def from_png(data: bytes) -> np.ndarray:
    """Returns the pixels (H, W, 3) uint8 of PNG bytes that this project wrote."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.asarray(image.convert("RGB"))


def one_line(error: BaseException) -> str:
    """Returns an error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__
