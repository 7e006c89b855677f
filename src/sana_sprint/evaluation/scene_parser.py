"""The exact judge of scenes: GenEval (arXiv:2310.11513) without a detector.

A generated picture is split into connected components of one palette colour; each component's shape is the
template with the largest overlap. The caption's demand is then checked as GenEval does: presence, colour,
exact count, relative position.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from scipy import ndimage

from sana_sprint.data import scenes

if TYPE_CHECKING:
    from collections.abc import Sequence

SMALLEST_AREA = 0.012  # share of the picture; smaller specks are decoder noise, the smallest shape has 0.03
LEAST_OVERLAP = 0.72  # intersection over union with the best template below which a blob is no shape
DEAD_ZONE = 0.1  # GenEval's position rule: offset beyond a tenth of the summed sizes
RULES = {
    "smallest_area": SMALLEST_AREA,
    "least_overlap": LEAST_OVERLAP,
    "dead_zone": DEAD_ZONE,
}  # as JSON, for a protocol


@dataclass(frozen=True)
class Found:
    """A shape seen in a picture: centre and box size in pixels, overlap with its template in [0, 1]."""

    shape: str
    colour: str
    x: float
    y: float
    width: int
    height: int
    overlap: float

    def seen(self) -> dict[str, Any]:
        """Returns what a verdict records of a shape."""
        left, top = round(self.x - self.width / 2), round(self.y - self.height / 2)
        return {"label": f"{self.colour} {self.shape}", "box": [left, top, left + self.width, top + self.height]}


@lru_cache
def stencil(shape: str) -> Image.Image:
    """Returns a shape in grey, large, cut to its box."""
    scene = scenes.Scene("", "", {}, (scenes.Thing(shape, "blue", 32, 32, 32),))
    ink = np.asarray(scenes.draw(scene, 128)).astype(int)
    mask = np.abs(ink - np.array(scenes.BACKGROUND)).sum(-1) > 120
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return Image.fromarray(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]).convert("L")


@lru_cache(maxsize=4096)
def template(shape: str, width: int, height: int) -> np.ndarray:
    """Returns the boolean mask (height, width) of a shape that fills its box."""
    return np.asarray(stencil(shape).resize((width, height), Image.Resampling.BOX)) > 127


def parse(picture: np.ndarray) -> list[Found]:
    """Returns the shapes in a picture (H, W, 3) uint8, largest first."""
    colours = list(scenes.PALETTE)
    palette = np.array([*scenes.PALETTE.values(), scenes.BACKGROUND], dtype=float)
    distance = ((picture[:, :, None, :].astype(float) - palette) ** 2).sum(-1)
    nearest = distance.argmin(-1)
    found = []
    for index, colour in enumerate(colours):
        labels, count = ndimage.label(nearest == index)
        for label, box in enumerate(ndimage.find_objects(labels, count), start=1):
            mask = labels[box] == label
            if mask.sum() >= SMALLEST_AREA * nearest.size:
                found.append(match(mask, box, colour))
    return sorted((f for f in found if f.overlap >= LEAST_OVERLAP), key=lambda f: -f.width * f.height)


def match(mask: np.ndarray, box: tuple[slice, slice], colour: str) -> Found:
    """Returns the best-fitting shape for a component's mask."""
    height, width = mask.shape
    overlaps = {}
    for shape in scenes.SHAPES:
        other = template(shape, width, height)
        overlaps[shape] = float((mask & other).sum() / max((mask | other).sum(), 1))
    shape = max(overlaps, key=overlaps.__getitem__)
    return Found(shape, colour, box[1].start + width / 2, box[0].start + height / 2, width, height, overlaps[shape])


def unknown(demand: dict[str, Any]) -> str:
    """Returns what a caption demands that the parser cannot look for, "" if there is nothing."""
    objects, relation = demand.get("objects") or [], demand.get("relation")
    if not objects:
        return "no objects"
    for wanted in objects:
        if wanted.get("shape") not in scenes.SHAPES:
            return f"shape {wanted.get('shape')!r}"
        if wanted.get("colour", "red") not in scenes.PALETTE:
            return f"colour {wanted['colour']!r}"
    if relation is not None and (relation not in scenes.RELATIONS or len(objects) != 2):
        return f"relation {relation!r} of {len(objects)} objects"
    return ""


def fault(found: Sequence[Found], demand: dict[str, Any]) -> str:
    """Returns why the shapes of a picture are not what a caption demands, "" if they are."""
    groups = []
    for wanted in demand["objects"]:
        group = [f for f in found if f.shape == wanted["shape"] and wanted.get("colour") in (None, f.colour)]
        count = wanted.get("count")
        name = f"{wanted.get('colour', '')} {wanted['shape']}".strip()
        if not group:
            return f"no {name}"
        if count is not None and len(group) != count:
            return f"{len(group)} {name}, wanted {count}"
        groups.append(group)
    relation = demand.get("relation")
    if relation and not any(related(a, relation, b) for a in groups[0] for b in groups[1]):
        return f"not {relation}"
    return ""


def related(a: Found, relation: str, b: Found) -> bool:
    """Whether a stands in the relation to b, with GenEval's dead zone around equal positions."""
    dx, dy = a.x - b.x, a.y - b.y
    dead_x, dead_y = DEAD_ZONE * (a.width + b.width), DEAD_ZONE * (a.height + b.height)
    return {
        "left of": dx < -dead_x and abs(dx) >= abs(dy),
        "right of": dx > dead_x and abs(dx) >= abs(dy),
        "above": dy < -dead_y and abs(dy) >= abs(dx),
        "below": dy > dead_y and abs(dy) >= abs(dx),
    }[relation]
