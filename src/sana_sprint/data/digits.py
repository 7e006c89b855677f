"""Real input that nobody rendered: the 1,797 scanned handwritten digits that scikit-learn carries (UCI, CC BY
4.0).

Written as a plain folder of pictures with metadata.jsonl, as a user's own data would stand there, for the
profile digits.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sana_sprint import storage
from sana_sprint.data import pictures

if TYPE_CHECKING:
    from pathlib import Path

SIDE_PX = 32
INK_MAX = 16
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write(folder: Path) -> int:
    """Writes the digits (dark on white, 32 px) and metadata.jsonl into `folder`; returns how many. A folder
    that is already whole stays as it is. Raises ValueError for a folder that holds anything else.
    """
    from sklearn.datasets import load_digits  # seconds to import

    digits = load_digits()
    names = [f"{index:04d}.png" for index in range(len(digits.target))]
    lines = [
        json.dumps({"file_name": name, "text": f"a handwritten {WORDS[digit]}"}) + "\n"
        for name, digit in zip(names, digits.target, strict=True)
    ]
    expected = {*names, "metadata.jsonl"}
    present = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()
    if present - expected:
        raise ValueError(f"{folder}: holds {min(present - expected)}, which is none of the digits; move it away")
    if present == expected and (folder / "metadata.jsonl").read_text() == "".join(lines):
        return len(names)
    with storage.whole_folder(folder) as whole:
        for name, scan in zip(names, digits.images, strict=True):
            (whole / name).write_bytes(pictures.to_png(enlarged(scan)))
        (whole / "metadata.jsonl").write_text("".join(lines))
    return len(names)


def enlarged(scan: np.ndarray) -> Image.Image:
    """Returns the picture (grey, SIDE_PX square) of a scan (8, 8) whose ink runs from 0 to 16, dark on
    white.
    """
    paper = 255 - np.round(scan * (255 / INK_MAX)).astype(np.uint8)
    return Image.fromarray(paper).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
