"""Picture sheets: a contact sheet of equal tiles that can be cut again, and a captioned comparison for
people.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COLUMNS = 6
TILE_MAX_PX = 256
SHOWN_PX = 128
GAP_PX = 8
CAPTION_PX = 260
INK, FAINT, PAPER = (28, 30, 34), (110, 114, 122), (255, 255, 255)


def tile(picture: np.ndarray, longest_px: int) -> Image.Image:
    """Returns a picture (H, W, 3) uint8, shrunk if it is longer than `longest_px`."""
    image = Image.fromarray(picture)
    image.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    return image


def contact(pictures: Sequence[np.ndarray] | np.ndarray) -> Image.Image:
    """Returns pictures as tiles of six columns, row by row, without gaps; missing ones are white."""
    tiles = [tile(picture, TILE_MAX_PX) for picture in pictures]
    width, height = tiles[0].size
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(tiles) // COLUMNS) * height), PAPER)
    for number, image in enumerate(tiles):
        sheet.paste(image, (number % COLUMNS * width, number // COLUMNS * height))
    return sheet


def cut(sheet: Image.Image, number: int, size: tuple[int, int]) -> Image.Image:
    """Returns tile `number` of a contact sheet of tiles (width, height)."""
    left, top = number % COLUMNS * size[0], number // COLUMNS * size[1]
    return sheet.crop((left, top, left + size[0], top + size[1]))


def comparison(captions: Sequence[str], columns: Mapping[str, Sequence[np.ndarray] | np.ndarray]) -> Image.Image:
    """Returns a row per caption and a titled column per model, pictures enlarged to 128 px or shrunk to 256
    px.
    """
    tiles = {title: [enlarged(picture) for picture in pictures] for title, pictures in columns.items()}
    width, height = next(iter(tiles.values()))[0].size
    font, small = ImageFont.load_default(size=15), ImageFont.load_default(size=13)
    size = (CAPTION_PX + len(tiles) * (width + GAP_PX), 34 + len(captions) * (height + GAP_PX))
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, (title, images) in enumerate(tiles.items()):
        left = CAPTION_PX + column * (width + GAP_PX)
        pen.text((left + width / 2, 10), title, fill=FAINT, font=small, anchor="ma")
        for row, image in enumerate(images):
            sheet.paste(image, (left, 34 + row * (height + GAP_PX)))
    for row, caption in enumerate(captions):
        lines = "\n".join(textwrap.wrap(caption, 30)[:5])
        middle = 34 + row * (height + GAP_PX) + height / 2
        pen.multiline_text((GAP_PX * 2, middle), lines, fill=INK, font=font, anchor="lm")
    return sheet


def enlarged(picture: np.ndarray) -> Image.Image:
    """Returns a small picture enlarged by a whole factor towards 128 px, a large one shrunk to 256 px."""
    factor = max(SHOWN_PX // max(picture.shape[:2]), 1)
    image = tile(picture, TILE_MAX_PX)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
