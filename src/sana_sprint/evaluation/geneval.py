"""GenEval's rules (arXiv:2310.11513): what counts as seen in a picture, and whether that is what its prompt demands.

Every rule and number here is that of the reference, github djghosh13/geneval at af4902f, evaluation/evaluate_images.py.
Boxes are (left, top, right, bottom) in pixels, y grows downwards. No network is used here: objects come from
`detector`, their colours from `colours`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sana_sprint.evaluation.judges import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
COLOUR_TEXTS = (
    "a photo of a {colour} {thing}",
    "a photo of a {colour}-colored {thing}",
    "a photo of a {colour} object",
)
AROUND = (0x99, 0x99, 0x99)  # the grey that hides what lies outside an object's mask when its colour is asked
SCORE_ABOVE = 0.3
COUNTING_SCORE_ABOVE = 0.9  # of the task "counting"
MOST_OBJECTS = 16  # of one class
MAX_OVERLAP = 1.0  # boxes of one class that overlap less are two objects; 1 drops none
DEAD_ZONE = 0.1  # share of the summed sizes within which an offset says nothing
SMALLEST_OFFSET_PX = 1e-3  # beyond the dead zone
SIDE = 0.5  # share of the offset's length above which a direction counts
KEYS = {
    "a prompt": {"tag", "prompt", "include", "exclude"},
    "include": {"class", "count", "color", "position"},
    "exclude": {"class", "count"},
}
RULES = {
    "score_above": SCORE_ABOVE,
    "counting_score_above": COUNTING_SCORE_ABOVE,
    "most_objects": MOST_OBJECTS,
    "max_overlap": MAX_OVERLAP,
    "dead_zone": DEAD_ZONE,
    "smallest_offset_px": SMALLEST_OFFSET_PX,
    "side": SIDE,
    "colours": list(COLOURS),
    "colour_texts": list(COLOUR_TEXTS),
    "around": list(AROUND),
}  # as JSON, for a protocol


@dataclass(frozen=True, eq=False)
class Found:
    """An object seen in a picture: its box, how sure the detector is, its mask (H, W) bool of the whole picture."""

    box: tuple[float, float, float, float]
    score: float
    mask: np.ndarray | None


# --- what counts as seen --------------------------------------------------------------------------


def kept(found: Sequence[Found], tag: str, max_overlap: float) -> list[Found]:
    """Returns the objects of one class that count for a task, surest first: of the 16 surest whose score is above the
    task's bound, those that overlap no surer one by `max_overlap` or more (1 keeps all). Scores are compared as the
    detector's own 32-bit numbers, so one that is the bound does not count.
    """
    bound = np.float32(COUNTING_SCORE_ABOVE if tag == "counting" else SCORE_ABOVE)
    sure = sorted((one for one in found if np.float32(one.score) > bound), key=lambda one: -one.score)[:MOST_OBJECTS]
    if max_overlap >= 1:
        return sure
    distinct: list[Found] = []
    for one in sure:
        if all(overlap(one.box, other.box) < max_overlap for other in distinct):
            distinct.append(one)
    return distinct


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns the intersection over union of two boxes whose right and bottom pixels belong to them; 0 if empty."""

    def area(box: Sequence[float]) -> float:
        return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)

    shared = area([*map(max, a[:2], b[:2]), *map(min, a[2:], b[2:])])
    union = area(a) + area(b) - shared
    return shared / union if union else 0.0


def relations(a: Found, b: Found) -> set[str]:
    """Returns where a lies as seen from b: none, one or two of RELATIONS. The offset of the centres is shortened by a
    tenth of the summed sizes and a direction holds when more than half of the full offset's length is left of it.
    """
    corners_a, corners_b = (np.asarray(one.box, dtype=np.float64).reshape(2, 2) for one in (a, b))
    offset = corners_a.mean(0) - corners_b.mean(0)
    sizes = np.abs(np.diff(corners_a, axis=0))[0] + np.abs(np.diff(corners_b, axis=0))[0]
    beyond = np.maximum(np.abs(offset) - DEAD_ZONE * sizes, 0) * np.sign(offset)
    if (np.abs(beyond) < SMALLEST_OFFSET_PX).all():
        return set()
    dx, dy = beyond / np.linalg.norm(offset)
    return {name for name, side in zip(RELATIONS, (-dx, dx, -dy, dy), strict=True) if side > SIDE}


# --- whether it is what the prompt demands --------------------------------------------------------


def verdict(
    found: Mapping[str, Sequence[Found]],
    demand: Mapping[str, Any],
    colours_of: Callable[[Sequence[Found], str], list[str]],
) -> Verdict:
    """Returns whether the kept objects of each class, surest first, are what a prompt's metadata demands, and every
    fault, one a line. `colours_of(objects, class)` names their colours and is asked only where the demand has one.
    """
    faults: list[str] = []
    groups: list[Sequence[Found] | None] = []
    for clause in demand["include"]:
        objects = found.get(clause["class"], [])[: clause["count"]]
        fault = clause_fault(clause, objects, groups, colours_of)
        groups.append(None if fault else objects)
        faults.append(fault)
    for clause in demand.get("exclude", []):
        number = len(found.get(clause["class"], []))
        too_many = number >= clause["count"]
        faults.append(f"expected {clause['class']}<{clause['count']}, found {number}" if too_many else "")
    seen = [{"label": name, "box": list(one.box)} for name, objects in found.items() for one in objects]
    return Verdict(not any(faults), "\n".join(filter(None, faults)), seen)


def clause_fault(
    clause: Mapping[str, Any],
    objects: Sequence[Found],
    groups: Sequence[Sequence[Found] | None],
    colours_of: Callable[[Sequence[Found], str], list[str]],
) -> str:
    """Returns what is wrong with the objects of an include clause, "" if nothing: too few, else too few of the colour,
    else not where they should be. `groups` are the objects of the clauses before it, None where those failed.
    """
    name, count = clause["class"], clause["count"]
    if len(objects) < count:
        return f"expected {name}>={count}, found {len(objects)}"
    if "color" in clause:
        colours = colours_of(objects, name)
        if colours.count(clause["color"]) < count:
            return f"expected {clause['color']} {name}>={count}, found {', '.join(colours)}"
    if "position" in clause:
        return position_fault(clause, objects, groups[clause["position"][1]])
    return ""


def position_fault(clause: Mapping[str, Any], objects: Sequence[Found], targets: Sequence[Found] | None) -> str:
    """Returns what is wrong with the places of objects, each of which should stand in the clause's relation to each
    target, "" if nothing.
    """
    name, relation = clause["class"], clause["position"][0]
    if targets is None:
        return f"no target for {name} to be {relation}"
    for held in (relations(one, target) for one in objects for target in targets):
        if relation not in held:
            return f"expected {name} {relation} target, found {' and '.join(sorted(held)) or 'no relation to'} target"
    return ""


# --- the metadata of prompts ----------------------------------------------------------------------


def read_metadata(path: Path) -> list[dict[str, Any]]:
    """Returns the demands of a file like GenEval's prompts/evaluation_metadata.jsonl, one a line, in order. Raises
    ValueError naming the file and the line that is wrong.
    """
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; GenEval's own is prompts/evaluation_metadata.jsonl of djghosh13/geneval"
        )
    lines = enumerate(path.read_text(encoding="utf-8").split("\n"), start=1)
    demands = [check_demand(line, f"{path}:{number}") for number, line in lines if line.strip()]
    if not demands:
        raise ValueError(f"{path}: empty; it needs a line of GenEval's metadata for each prompt")
    return demands


def check_demand(line: str, place: str) -> dict[str, Any]:
    """Returns the demand that a line of metadata states. Raises ValueError naming its place and what is wrong."""
    try:
        demand = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: not JSON ({error}); a line is one prompt's metadata") from error
    fault = next(demand_faults(demand), None)
    if fault:
        raise ValueError(f"{place}: {fault}; write it as GenEval's evaluation_metadata.jsonl does")
    return demand


def demand_faults(demand: Any) -> Iterator[str]:
    """Yields what is wrong with a demand."""
    if not isinstance(demand, dict):
        yield f"{demand!r} is no object"
        return
    yield from unknown_keys(demand, "a prompt")
    if demand.get("tag") not in TASKS:
        yield f"unknown tag {demand.get('tag')!r}, there are {', '.join(TASKS)}"
    if not isinstance(demand.get("prompt"), str):
        yield "no prompt"
    if not isinstance(demand.get("include"), list) or not demand["include"]:
        yield "no include, so nothing is asked of a picture"
        return
    for index, clause in enumerate(demand["include"]):
        yield from include_faults(clause, index)
    exclude = demand.get("exclude", [])
    for clause in exclude if isinstance(exclude, list) else [exclude]:
        yield from clause_faults(clause, "exclude")


def include_faults(clause: Any, index: int) -> Iterator[str]:
    """Yields what is wrong with the include clause at an index."""
    yield from clause_faults(clause, "include")
    if "color" in clause and clause["color"] not in COLOURS:
        yield f"unknown color {clause['color']!r}, there are {', '.join(COLOURS)}"
    position = clause.get("position", [RELATIONS[0], 0])
    if not isinstance(position, list) or len(position) != 2:
        yield f"position {position!r} is not [relation, index of the target]"
    elif position[0] not in RELATIONS:
        yield f"unknown relation {position[0]!r}, there are {', '.join(RELATIONS)}"
    elif "position" in clause and (type(position[1]) is not int or not 0 <= position[1] < index):
        yield f"position's target {position[1]!r} is no include clause before its own, which is number {index}"


def clause_faults(clause: Any, kind: str) -> Iterator[str]:
    """Yields what is wrong with the class, the count and the keys of a clause."""
    if not isinstance(clause, dict):
        yield f"{kind} {clause!r} is no object"
        return
    yield from unknown_keys(clause, kind)
    if not isinstance(clause.get("class"), str) or not clause["class"]:
        yield f"{kind} without a class"
    if type(clause.get("count")) is not int or clause["count"] < 1:
        yield f"count {clause.get('count')!r} of {kind} is no whole number from 1"


def unknown_keys(content: Mapping[str, Any], kind: str) -> Iterator[str]:
    """Yields the keys that GenEval's metadata does not have."""
    unknown = sorted(set(content) - KEYS[kind])
    if unknown:
        yield f"unknown key {', '.join(unknown)} of {kind}, there are {', '.join(sorted(KEYS[kind]))}"
