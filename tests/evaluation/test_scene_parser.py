"""The exact judge: right about every render, and each fault is refused with its reason."""

import numpy as np
import pytest

from sana_sprint.data import scenes
from sana_sprint.evaluation import scene_parser

WORLD = scenes.world(scenes.SHAPES, list(scenes.PALETTE), [2, 3, 4], 0.1, seed=3)


def picture(*things, size_px=64):
    drawn = tuple(scenes.Thing(shape, colour, x, y, 20) for shape, colour, x, y in things)
    return np.asarray(scenes.draw(scenes.Scene("", "", {}, drawn), size_px))


RED_CIRCLE, BLUE_SQUARE = ("circle", "red", 16, 32), ("square", "blue", 48, 32)


def test_every_render_of_600_is_what_its_caption_says():
    rng = np.random.default_rng(11)
    for number in range(600):
        task = scenes.TASKS[number % 6]
        heldout = number % 12 >= 6 and task in ("colors", "counting", "color_attr")
        scene = scenes.compose(rng, WORLD, task, heldout)
        fault = scene_parser.fault(scene_parser.parse(np.asarray(scenes.draw(scene, 64))), scene.demand)
        assert fault == "", (scene.caption, fault)


def test_things_are_found_where_they_were_drawn():
    found = {f.shape: f for f in scene_parser.parse(picture(RED_CIRCLE, BLUE_SQUARE))}
    assert (found["circle"].colour, found["square"].colour) == ("red", "blue")
    assert found["circle"].x == pytest.approx(16, abs=1)
    assert found["square"].y == pytest.approx(32, abs=1)


def test_a_box_holds_its_shape_and_nothing_else():
    drawn = picture(RED_CIRCLE, BLUE_SQUARE)
    seen = {one["label"]: one["box"] for one in (f.seen() for f in scene_parser.parse(drawn))}
    assert set(seen) == {"red circle", "blue square"}
    for label, (left, top, right, bottom) in seen.items():
        centre = drawn[(top + bottom) // 2, (left + right) // 2]
        assert tuple(centre) == scenes.PALETTE[label.split(" ")[0]]
        around = drawn[top - 2 : bottom + 2, left - 2 : right + 2].astype(int)
        ring = np.concatenate([around[0], around[-1], around[:, 0], around[:, -1]])
        assert np.abs(ring - np.array(scenes.BACKGROUND)).max() < 40
        assert (right - left, bottom - top) == pytest.approx((20, 20), abs=2)


@pytest.mark.parametrize(
    ("things", "objects", "relation", "reason"),
    [
        ([RED_CIRCLE], [{"shape": "triangle"}], None, "no triangle"),
        ([], [{"shape": "circle"}], None, "no circle"),
        ([RED_CIRCLE], [{"shape": "circle", "colour": "green"}], None, "no green circle"),
        ([RED_CIRCLE], [{"shape": "circle", "colour": "red", "count": 2}], None, "1 red circle, wanted 2"),
        (
            [RED_CIRCLE, ("circle", "red", 48, 12), ("circle", "red", 48, 48)],
            [{"shape": "circle", "colour": "red", "count": 2}],
            None,
            "3 red circle, wanted 2",
        ),
        ([RED_CIRCLE], [{"shape": "circle"}, {"shape": "square"}], None, "no square"),
        ([RED_CIRCLE, BLUE_SQUARE], [{"shape": "circle"}, {"shape": "square"}], "right of", "not right of"),
        ([RED_CIRCLE, BLUE_SQUARE], [{"shape": "circle"}, {"shape": "square"}], "above", "not above"),
        (
            [("circle", "blue", 16, 32), ("square", "red", 48, 32)],
            [{"shape": "circle", "colour": "red"}, {"shape": "square", "colour": "blue"}],
            None,
            "no red circle",
        ),
    ],
)
def test_each_broken_demand_is_refused_with_its_reason(things, objects, relation, reason):
    demand = {"objects": objects} | ({"relation": relation} if relation else {})
    assert scene_parser.fault(scene_parser.parse(picture(*things)), demand) == reason


@pytest.mark.parametrize("relation", scenes.RELATIONS)
def test_each_relation_holds_one_way_only(relation):
    opposite = dict(zip(scenes.RELATIONS, ("right of", "left of", "below", "above"), strict=True))[relation]
    places = {"left of": (12, 32), "right of": (52, 32), "above": (32, 12), "below": (32, 52)}
    a = ("circle", "red", *places[relation])
    b = ("square", "blue", *places[opposite])
    demand = {"objects": [{"shape": "circle"}, {"shape": "square"}]}
    found = scene_parser.parse(picture(a, b))
    assert scene_parser.fault(found, demand | {"relation": relation}) == ""
    assert scene_parser.fault(found, demand | {"relation": opposite}) == f"not {opposite}"


def test_noise_shows_nothing():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert scene_parser.parse(noise) == []
