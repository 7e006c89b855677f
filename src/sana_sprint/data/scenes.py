"""The procedural corpus: scenes of coloured shapes with captions in GenEval's six tasks.

A scene is drawn deterministically from a random generator, so the truth behind every picture is known and
an exact parser (evaluation/scene_parser.py) can score a generated picture against its caption. Task names
follow GenEval (arXiv:2310.11513): single_object, two_object, counting, colors, position, color_attr.
Used by the stage prepare.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from collections.abc import Sequence

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
PALETTE = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 200),
    "yellow": (250, 204, 21),
    "purple": (142, 54, 180),
    "cyan": (34, 195, 214),
}
SHAPES = ("circle", "square", "triangle", "star")
BACKGROUND = (244, 244, 240)
RELATIONS = ("left of", "right of", "above", "below")
NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}
OVERSAMPLING = 4
GRID_PX = 4


@dataclass(frozen=True)
class Thing:
    """One shape of a scene; centre and size (full width) in pixels of a 64 px picture."""

    shape: str
    colour: str
    x: int
    y: int
    size: int


@dataclass(frozen=True)
class Scene:
    """A caption, the task it belongs to, what the caption demands, and the things that were drawn."""

    caption: str
    task: str
    demand: dict
    things: tuple[Thing, ...]

    def truth(self) -> dict:
        """Returns the scene as JSON types: caption, task, demand, things."""
        return asdict(self)


@dataclass(frozen=True)
class World:
    """What scenes are made of; `heldout` are the (colour, shape) pairs that training never sees."""

    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    counts: tuple[int, ...]
    heldout: frozenset[tuple[str, str]]


def world(
    shapes: Sequence[str], colours: Sequence[str], counts: Sequence[int], heldout_share: float, seed: int
) -> World:
    """Returns the world with a share of its (colour, shape) pairs held out, no two of one colour or one shape
    while that is possible. Raises ValueError for a shape, colour or count that cannot be drawn."""
    for name, values, known in (
        ("shapes", shapes, SHAPES),
        ("colours", colours, PALETTE),
        ("counts", counts, NUMBER_WORDS),
    ):
        unknown = [value for value in values if value not in known]
        if unknown:
            raise ValueError(f"prepare.source.{name}: {unknown} cannot be drawn; choose from {sorted(known)}")
    pairs = [(colour, shape) for colour in colours for shape in shapes]
    rng = np.random.default_rng([seed, 7])
    rng.shuffle(pairs)
    wanted = round(heldout_share * len(pairs))
    chosen: list[tuple[str, str]] = []
    for spread in (True, False):
        for pair in pairs:
            fresh = all(pair[0] != colour and pair[1] != shape for colour, shape in chosen)
            if len(chosen) < wanted and pair not in chosen and (fresh or not spread):
                chosen.append(pair)
    return World(tuple(shapes), tuple(colours), tuple(counts), frozenset(chosen))


def draw(scene: Scene, size_px: int) -> Image.Image:
    """Returns the picture (RGB, size_px square) of a scene, drawn at four times the size and box-filtered."""
    scale = size_px / 64 * OVERSAMPLING
    image = Image.new("RGB", (size_px * OVERSAMPLING, size_px * OVERSAMPLING), BACKGROUND)
    pencil = ImageDraw.Draw(image)
    for thing in scene.things:
        x, y, r = thing.x * scale, thing.y * scale, thing.size / 2 * scale
        fill = PALETTE[thing.colour]
        if thing.shape == "circle":
            pencil.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        elif thing.shape == "square":
            r *= 0.9
            pencil.rectangle((x - r, y - r, x + r, y + r), fill=fill)
        else:
            pencil.polygon(outline(thing.shape, x, y, r), fill=fill)
    return image.reduce(OVERSAMPLING)


def outline(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    """Returns the corners of a triangle or a five-pointed star of half-size r around (x, y)."""
    if shape == "triangle":
        return [(x, y - r), (x + r, y + r), (x - r, y + r)]
    spokes = [(r if i % 2 == 0 else 0.45 * r, math.pi * i / 5 - math.pi / 2) for i in range(10)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for radius, angle in spokes]


def compose(rng: np.random.Generator, world: World, task: str, heldout: bool) -> Scene:
    """Returns a random scene of a task. With `heldout` the caption names a held-out (colour, shape) pair;
    without it the scene holds none at all."""
    pairs = [(c, s) for c in world.colours for s in world.shapes if (c, s) not in world.heldout]
    pick = lambda: pairs[rng.integers(len(pairs))]  # noqa: E731
    first = sorted(world.heldout)[rng.integers(len(world.heldout))] if heldout else pick()
    second = pick()
    while second[1] == first[1] or (task == "color_attr" and second[0] == first[0]):
        second = pick()
    demand: dict = {"objects": [{"shape": first[1]}]}
    if task == "single_object":
        return place(rng, task, f"a {first[1]}", demand, [first])
    if task == "colors":
        demand = {"objects": [{"colour": first[0], "shape": first[1]}]}
        return place(rng, task, f"a {first[0]} {first[1]}", demand, [first])
    if task == "counting":
        count = int(world.counts[rng.integers(len(world.counts))])
        demand = {"objects": [{"colour": first[0], "shape": first[1], "count": count}]}
        return place(rng, task, f"{NUMBER_WORDS[count]} {first[0]} {first[1]}s", demand, [first] * count)
    if task == "two_object":
        demand = {"objects": [{"shape": first[1]}, {"shape": second[1]}]}
        return place(rng, task, f"a {first[1]} and a {second[1]}", demand, [first, second])
    if task == "color_attr":
        demand = {"objects": [{"colour": c, "shape": s} for c, s in (first, second)]}
        caption = f"a {first[0]} {first[1]} and a {second[0]} {second[1]}"
        return place(rng, task, caption, demand, [first, second])
    if task != "position":
        raise ValueError(f"unknown task {task!r}; choose from {TASKS}")
    relation = RELATIONS[rng.integers(4)]
    demand = {"objects": [{"shape": first[1]}, {"shape": second[1]}], "relation": relation}
    return place(rng, task, f"a {first[1]} {relation} a {second[1]}", demand, [first, second])


def place(rng: np.random.Generator, task: str, caption: str, demand: dict, pairs: list[tuple[str, str]]) -> Scene:
    """Returns the scene with its things at free places, far enough apart, and in the demanded relation."""
    sizes = {1: (24, 28, 32), 2: (20, 22, 24), 3: (16, 18, 20), 4: (16, 18)}[len(pairs)]
    relation = demand.get("relation")
    while True:
        things: list[Thing] = []
        for colour, shape in pairs:
            size = int(rng.choice(sizes))
            edge = math.ceil((size / 2 + 2) / GRID_PX) * GRID_PX
            x, y = (int(rng.integers(edge // GRID_PX, (64 - edge) // GRID_PX + 1)) * GRID_PX for _ in "xy")
            things.append(Thing(shape, colour, x, y, size))
        if apart(things) and (relation is None or holds(things[0], relation, things[1])):
            return Scene(caption, task, demand, tuple(things))


def apart(things: list[Thing]) -> bool:
    """Whether the bounding boxes of all things are at least 4 px apart."""
    return all(
        max(abs(a.x - b.x), abs(a.y - b.y)) >= (a.size + b.size) / 2 + 4
        for i, a in enumerate(things)
        for b in things[:i]
    )


def holds(a: Thing, relation: str, b: Thing) -> bool:
    """Whether a is clearly left of, right of, above or below b: the main axis of their offset says so."""
    dx, dy = a.x - b.x, a.y - b.y
    if relation in ("left of", "right of"):
        return abs(dx) > 1.5 * abs(dy) and (dx < 0) == (relation == "left of")
    return abs(dy) > 1.5 * abs(dx) and (dy < 0) == (relation == "above")
