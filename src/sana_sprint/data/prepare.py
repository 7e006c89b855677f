"""Sources to shards and manifest: pictures of one size with captions, split for training and evaluation.

Equal parameters and equal sources give equal bytes. Used by the stage prepare.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import imagehash
from PIL import Image
from tqdm import tqdm

from sana_sprint import storage
from sana_sprint.data import corpus, folder, manifest, pictures, shards, webdataset
from sana_sprint.data.manifest import Fault, Row

if TYPE_CHECKING:
    from pathlib import Path

    from sana_sprint.config import Prepare

SOURCES = {"folder": folder.read, "webdataset": webdataset.read}
NAMED = 3


def run(params: Prepare, source: Path, out: Path) -> dict[str, float]:
    """Writes data/raw whole or not at all; returns counts: train, eval, heldout, quarantined, captions,
    shards. Raises ValueError that names the picture, file or line at fault and the remedy.
    """
    with storage.whole_folder(out) as whole:
        with shards.Spool(whole / "spool") as spool:
            rows, faults = (drawn if params.source.kind == "scenes" else taken)(params, source, spool)
            rows = shards.write(whole, rows, spool, params.images_per_shard)
        manifest.write(whole, rows, faults)
    return {
        "train": sum(row.split == "train" for row in rows),
        "eval": sum(row.split == "eval" for row in rows),
        "heldout": sum(row.group == "heldout" for row in rows),
        "quarantined": len(faults),
        "captions": len({row.caption for row in rows}),
        "shards": len({row.shard for row in rows}),
    }


def drawn(params: Prepare, source: Path, spool: shards.Spool) -> tuple[list[Row], list[Fault]]:  # noqa: ARG001
    """Returns the rows of the procedural corpus; the pictures go to the spool."""
    assert params.source.kind == "scenes"
    total = params.source.eval_images + params.source.train_images
    scenes = corpus.draw(params.source, params.seed, params.resolution_px)
    rows = []
    for item in tqdm(scenes, desc="prepare", total=total, mininterval=3):
        row = spooled(item.key, item.scene.caption, item.image, spool)
        truth = json.dumps(item.scene.truth(), sort_keys=True)
        rows.append(replace(row, split=item.split, group=item.group, task=item.scene.task, truth=truth))
    return rows, []


def taken(params: Prepare, source: Path, spool: shards.Spool) -> tuple[list[Row], list[Fault]]:
    """Returns the rows of a user's own pictures and what was left out; the pictures go to the spool."""
    assert params.source.kind != "scenes"
    rows: list[Row] = []
    faults: list[Fault] = []
    for item in tqdm(SOURCES[params.source.kind](source), desc="prepare", mininterval=3):
        if isinstance(item, Fault):
            faults.append(item)
            continue
        try:
            image = pictures.load(item.data, params.resolution_px, params.max_source_pixels)
        except pictures.UnreadableError as error:
            faults.append(Fault(item.name, str(error)))
            continue
        rows.append(spooled(item.key, item.caption, image, spool))
    if len({row.sha256 for row in rows}) < 2:
        raise ValueError(
            f"{source}: {len(rows)} usable pictures, but training and evaluation need at least two different "
            f"ones{named(faults)}; add pictures or mend these"
        )
    return split(rows, params.seed, params.source.eval_share), faults


def spooled(key: str, caption: str, image: Image.Image, spool: shards.Spool) -> Row:
    """Returns the row of a picture, split and shard still open, and puts its PNG on the spool."""
    png = pictures.to_png(image)
    spool.put(key, png)
    return Row(
        key=key,
        shard="",
        width=image.width,
        height=image.height,
        caption=caption,
        caption_length=len(caption),
        sha256=hashlib.sha256(png).hexdigest(),
        phash=str(imagehash.phash(image)),
        split="",
        group="seen",
        task="",
        truth="{}",
    )


def split(rows: list[Row], seed: int, eval_share: float) -> list[Row]:
    """Returns the rows with their split, by hash of (seed, key): adding pictures moves none of the others.
    Equal pictures go together, by their first key, and neither split stays empty.
    """
    leader: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row.key):
        leader.setdefault(row.sha256, row.key)
    chance = {key: int(storage.digest_of([seed, key])[:13], 16) / 16**13 for key in leader.values()}
    ranked = sorted(chance, key=lambda key: chance[key])
    held = {key for key in ranked if chance[key] < eval_share} | {ranked[0]}
    held -= {ranked[-1]}
    return [replace(row, split="eval" if leader[row.sha256] in held else "train") for row in rows]


def named(faults: list[Fault]) -> str:
    """Returns the first quarantined pictures with their reasons, as the end of a sentence."""
    first = "; ".join(f"{fault.name}: {fault.reason}" for fault in faults[:NAMED])
    more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    return f" (left out: {first}{more})" if faults else ""
