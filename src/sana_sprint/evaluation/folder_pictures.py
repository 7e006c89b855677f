"""Pictures of a folder, as a protocol wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from pathlib import Path

    from sana_sprint.evaluation.folder_protocol import Size

KINDS = (".png", ".jpg", ".jpeg", ".webp")
LIBRARIES = ("torch", "transformers", "pillow", "numpy")  # behind what judges see in a picture
SCORED, TILES = "scored.json", "pictures"  # what evaluate keeps of a folder that GenEval's judge looked at


def read(path: Path, size: Size | None) -> np.ndarray:
    """Returns a picture (H, W, 3) uint8. Raises ValueError naming a file that is none, or of another size."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except OSError as error:
        raise ValueError(f"{path}: not a picture that can be read: {error}") from None
    if size is not None and pixels.shape[:2] != (size.height, size.width):
        found = f"{pixels.shape[1]} x {pixels.shape[0]} px"
        raise ValueError(f"{path}: {found}, the protocol asks for {size.width} x {size.height}; draw it at that size")
    return pixels
