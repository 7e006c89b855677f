import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from samples import as_bytes, picture, png_bytes

from sana_sprint.data import pictures

LIMIT = 10**8
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def declared(width: int, height: int) -> bytes:
    """A small PNG whose header declares a picture of any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def halves(first, second, size=(8, 8)) -> Image.Image:
    """A picture whose upper half is `first` and whose lower half is `second`."""
    image = Image.new("RGB", size, first)
    image.paste(second, (0, size[1] // 2, size[0], size[1]))
    return image


@pytest.mark.parametrize(("orientation", "corner"), [(1, RED), (3, BLUE), (6, BLUE), (8, RED)])
def test_exif_orientation_is_applied(orientation, corner):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = as_bytes(halves(RED, BLUE), "PNG", exif=exif)
    assert pictures.load(data, 8, LIMIT).getpixel((0, 0)) == corner


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_is_composited_on_white(mode):
    clear = Image.new("RGBA", (8, 8), (*RED, 0))
    if mode == "PA":
        clear = Image.new("P", (8, 8), 0)
        clear.putpalette([255, 0, 0])
        data = as_bytes(clear, "PNG", transparency=0)
    else:
        data = as_bytes(clear.convert(mode), "PNG")
    assert pictures.load(data, 8, LIMIT).getpixel((3, 3)) == WHITE


def test_half_transparent_red_is_pink():
    image = pictures.load(as_bytes(Image.new("RGBA", (8, 8), (*RED, 128)), "PNG"), 8, LIMIT)
    assert image.getpixel((3, 3)) == pytest.approx((255, 127, 127), abs=1)


def test_the_centre_is_kept_and_the_long_side_cropped():
    wide = Image.new("RGB", (24, 8), RED)
    wide.paste(BLUE, (8, 0, 16, 8))
    assert set(pictures.load(as_bytes(wide), 8, LIMIT).get_flattened_data()) == {BLUE}


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (5, 7), (16, 16)])
def test_every_size_comes_out_square(size):
    assert pictures.load(png_bytes(size=size), 16, LIMIT).size == (16, 16)


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "CMYK"), ("WEBP", "RGB"), ("PNG", "P"), ("BMP", "L"), ("PNG", "1")]
)
def test_every_kind_comes_out_rgb(kind, mode):
    assert pictures.load(as_bytes(picture(mode=mode), kind), 8, LIMIT).mode == "RGB"


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = Image.fromarray(np.full((8, 8), 128 * 256, dtype=np.uint16))
    assert pictures.load(as_bytes(grey), 8, LIMIT).getpixel((0, 0)) == (128, 128, 128)


def test_a_huge_declared_picture_is_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(pictures.UnreadableError, match=r"declares 100,000 x 100,000 pix.*max_source_pixels"):
        pictures.load(declared(100_000, 100_000), 16, LIMIT)


def test_the_limit_is_the_parameter_and_not_pillow():
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(pictures.UnreadableError, match="declares 20 x 12"):
        pictures.load(png_bytes(), 8, 239)
    assert pictures.load(png_bytes(), 8, 240).size == (8, 8)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_truncated_pictures_are_refused(kind):
    data = as_bytes(picture(size=(64, 64)), kind)
    with pytest.raises(pictures.UnreadableError, match="corrupt or truncated"):
        pictures.load(data[: len(data) * 2 // 3], 16, LIMIT)


def test_a_flipped_bit_in_a_png_is_refused():
    data = bytearray(png_bytes(size=(64, 64)))
    data[len(data) // 2] ^= 1
    with pytest.raises(pictures.UnreadableError, match="corrupt or truncated"):
        pictures.load(bytes(data), 16, LIMIT)


@pytest.mark.parametrize(("data", "reason"), [(b"", "empty"), (b"hello, no picture", "not a JPEG, PNG")])
def test_what_is_no_picture_is_refused(data, reason):
    with pytest.raises(pictures.UnreadableError, match=reason):
        pictures.load(data, 16, LIMIT)


def test_png_bytes_hold_the_pixels_and_nothing_else():
    image = picture()
    image.info["comment"] = "left by a camera"
    data = pictures.to_png(image)
    assert (pictures.from_png(data) == np.asarray(image)).all()
    assert data == pictures.to_png(image.copy())
    assert b"camera" not in data
