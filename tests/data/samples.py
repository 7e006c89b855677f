"""Small worlds for the data tests: pictures, folders and parameters."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from sana_sprint import config


def picture(seed: int = 0, size: tuple[int, int] = (20, 12), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def as_bytes(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png_bytes(seed: int = 0, size: tuple[int, int] = (20, 12)) -> bytes:
    return as_bytes(picture(seed, size))


def folder_of(path: Path, count: int = 12, table: str = "jsonl") -> Path:
    """A user's folder of `count` different pictures with captions."""
    path.mkdir(parents=True, exist_ok=True)
    rows = [(f"{index:03d}.png", f"picture number {index}") for index in range(count)]
    for index, (name, _) in enumerate(rows):
        (path / name).write_bytes(png_bytes(index))
    if table == "jsonl":
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
        (path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    elif table == "csv":
        (path / "metadata.csv").write_text("file_name,text\n" + "".join(f"{n},{t}\n" for n, t in rows))
    else:
        for name, text in rows:
            (path / name).with_suffix(".txt").write_text(text + "\n")
    return path


def params(source, resolution_px: int = 16, images_per_shard: int = 5, max_source_pixels: int = 10**8):
    return config.Prepare(
        seed=0,
        resolution_px=resolution_px,
        images_per_shard=images_per_shard,
        max_source_pixels=max_source_pixels,
        source=source,
    )


def scenes_params(train_images: int = 60, eval_images: int = 36, heldout_share: float = 0.2, **changes):
    source = config.Scenes(
        kind="scenes",
        shapes=["circle", "square", "triangle"],
        colours=["red", "green", "blue"],
        counts=[2, 3],
        train_images=train_images,
        eval_images=eval_images,
        heldout_share=heldout_share,
        task_weights={
            "single_object": 1,
            "two_object": 1,
            "counting": 1,
            "colors": 1,
            "position": 1,
            "color_attr": 1,
        },
    ).model_copy(update=changes)
    return params(source, resolution_px=32, images_per_shard=25)
