"""Source scenes: which scene stands under which key. Training never holds a held-out (colour, shape) pair nor
a picture of the evaluation split; evaluation is balanced over the six tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sana_sprint.data import scenes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

    from sana_sprint.config import Scenes

SPLIT_NUMBERS = {"eval": 1, "train": 0}
HELDOUT_TASKS = ("counting", "colors", "color_attr")  # the tasks whose captions name a colour
TRIES = 1000


@dataclass(frozen=True)
class Drawn:
    """A scene with its picture and its place in the corpus."""

    key: str
    split: str
    group: str
    scene: scenes.Scene
    image: Image.Image


def draw(source: Scenes, seed: int, resolution_px: int) -> Iterator[Drawn]:
    """Yields the evaluation scenes, then the training scenes; each depends on (seed, split, index) and on the
    evaluation pictures, which training scenes avoid. Raises ValueError for a world that cannot be drawn.
    """
    world = feasible(source, seed)
    weights = task_weights(source)
    taken: set[bytes] = set()
    for index in range(source.eval_images):
        rng = np.random.default_rng([seed, SPLIT_NUMBERS["eval"], index])
        task = scenes.TASKS[index % len(scenes.TASKS)]
        odd = index // len(scenes.TASKS) % 2 == 1
        heldout = odd and task in HELDOUT_TASKS and bool(world.heldout)
        scene = scenes.compose(rng, world, task, heldout)
        image = scenes.draw(scene, resolution_px)
        taken.add(image.tobytes())
        yield Drawn(f"eval-{index:06d}", "eval", "heldout" if heldout else "seen", scene, image)
    for index in range(source.train_images):
        rng = np.random.default_rng([seed, SPLIT_NUMBERS["train"], index])
        scene, image = fresh(rng, world, str(rng.choice(scenes.TASKS, p=weights)), resolution_px, taken)
        yield Drawn(f"train-{index:06d}", "train", "seen", scene, image)


def fresh(
    rng: np.random.Generator, world: scenes.World, task: str, resolution_px: int, taken: set[bytes]
) -> tuple[scenes.Scene, Image.Image]:
    """Returns a scene whose picture is none of `taken`."""
    for _ in range(TRIES):
        scene = scenes.compose(rng, world, task, heldout=False)
        image = scenes.draw(scene, resolution_px)
        if image.tobytes() not in taken:
            return scene, image
    raise ValueError(
        f"prepare.source: no {task} scene left that the {len(taken)} evaluation pictures do not show; "
        "lower eval_images or add shapes or colours"
    )


def feasible(source: Scenes, seed: int) -> scenes.World:
    """Returns the world of a source. Raises ValueError when too few (colour, shape) pairs remain for two
    objects.
    """
    world = scenes.world(source.shapes, source.colours, source.counts, source.heldout_share, seed)
    pairs = {(colour, shape) for colour in world.colours for shape in world.shapes}
    seen = pairs - world.heldout
    lonely = [a for a in sorted(pairs) if not any(a[0] != b[0] and a[1] != b[1] for b in seen)]
    if lonely:
        name = " ".join(lonely[0])
        raise ValueError(
            f"prepare.source: no seen pair goes with a {name}; lower heldout_share ({source.heldout_share}) "
            "or add shapes or colours"
        )
    return world


def task_weights(source: Scenes) -> np.ndarray:
    """Returns the probabilities of the six tasks in training, (6,)."""
    unknown = sorted(set(source.task_weights) - set(scenes.TASKS))
    if unknown:
        raise ValueError(f"prepare.source.task_weights: {unknown} are no tasks; choose from {list(scenes.TASKS)}")
    weights = np.array([source.task_weights.get(task, 0.0) for task in scenes.TASKS])
    if weights.sum() <= 0:
        raise ValueError("prepare.source.task_weights: all are 0; give at least one task a weight")
    return weights / weights.sum()
