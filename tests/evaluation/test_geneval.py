"""GenEval's rules on hand-made detections, its metadata, and the judge that ties detector, colours and rules."""

import json

import numpy as np
import pytest

from sana_sprint.evaluation import geneval, geneval_judge, tally
from sana_sprint.evaluation.colours import Colours
from sana_sprint.evaluation.geneval import Found
from sana_sprint.evaluation.protocol import Prompt
from tests.evaluation.test_colours import tiny_clip
from tests.evaluation.test_detector import NAMES, made_folder, sure_of

CAT_AND_DOG = [{"class": "cat", "count": 1}, {"class": "dog", "count": 1}]


def at(x, y, width=10, height=10, score=0.95):
    return Found((x - width / 2, y - height / 2, x + width / 2, y + height / 2), score, None)


def never(objects, name):
    raise AssertionError("nobody asked for a colour")


def painted(**colours):
    """The colours of a class's objects, surest first."""
    return lambda objects, name: colours[name][: len(objects)]


def demand(include, exclude=(), tag="two_object"):
    return {"tag": tag, "prompt": "a photo", "include": include} | ({"exclude": list(exclude)} if exclude else {})


def counted(number, score=0.95):
    clauses = demand([{"class": "cat", "count": 3}], [{"class": "cat", "count": 4}], "counting")
    found = geneval.kept([at(20 * i, 0, score=score) for i in range(number)], "counting", geneval.MAX_OVERLAP)
    return geneval.verdict({"cat": found}, clauses, never)


# --- what counts as seen --------------------------------------------------------------------------


@pytest.mark.parametrize(("tag", "bound"), [(t, 0.9 if t == "counting" else 0.3) for t in geneval.TASKS])
def test_a_score_counts_above_its_tasks_bound_and_not_at_it(tag, bound):
    single = np.float32(bound)  # as a detector gives it: 0.3 is a little more than 0.3
    scores = [bound - 0.01, bound, float(single), float(np.nextafter(single, np.float32(1))), bound + 0.05]
    kept = geneval.kept([at(0, 0, score=s) for s in scores], tag, geneval.MAX_OVERLAP)
    assert [one.score for one in kept] == [scores[4], scores[3]]


def test_the_sixteen_surest_are_kept_in_order():
    scores = np.random.default_rng(0).permutation(np.linspace(0.4, 0.9, 20)).tolist()
    kept = geneval.kept([at(0, 0, score=s) for s in scores], "colors", geneval.MAX_OVERLAP)
    assert [one.score for one in kept] == sorted(scores, reverse=True)[:16]


def test_equal_boxes_are_two_objects_at_overlap_one_and_one_below_it():
    twice = [at(50, 50, score=0.5), at(50, 50, score=0.8), at(90, 90, score=0.6)]
    assert len(geneval.kept(twice, "colors", 1.0)) == 3
    assert [one.score for one in geneval.kept(twice, "colors", 0.99)] == [0.8, 0.6]


def test_an_overlap_at_the_bound_drops_the_less_sure_and_dropped_objects_drop_nothing():
    a, b, c = (Found((x, 0, x + 9, 9), s, None) for x, s in ((0, 0.9), (4, 0.8), (8, 0.7)))
    assert geneval.overlap(a.box, b.box) == 60 / 140  # ten pixels wide each, six of them shared
    assert geneval.kept([a, b, c], "colors", 60 / 140) == [a, c]
    assert geneval.kept([a, b, c], "colors", 60 / 140 + 1e-9) == [a, b, c]
    assert geneval.overlap((0, 0, 9, 9), (10, 0, 19, 9)) == 0
    assert geneval.overlap((5, 5, 1, 1), (5, 5, 1, 1)) == 0


def test_the_sixteen_are_counted_before_overlaps_drop_any():
    same, other = [at(0, 0, score=0.9 - i / 100) for i in range(16)], at(90, 90, score=0.4)
    assert len(geneval.kept([*same, other], "colors", 0.5)) == 1


# --- positions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dx", "dy", "held"),
    [
        (-40, 0, {"left of"}),
        (40, 0, {"right of"}),
        (0, -40, {"above"}),
        (0, 40, {"below"}),
        (40, 40, {"right of", "below"}),
        (-40, -40, {"left of", "above"}),
        (40, 12, {"right of"}),
        (0, 0, set()),
    ],
)
def test_relations_follow_the_offset_of_the_centres(dx, dy, held):
    assert geneval.relations(at(100 + dx, 100 + dy), at(100, 100)) == held


def test_the_dead_zone_is_a_tenth_of_the_summed_sizes_and_half_the_offset_must_be_left():
    b = at(100, 100, width=60, height=20)  # with a of 40 by 20: dead zones of 10 and 4 pixels

    def seen(dx, dy):
        return geneval.relations(at(100 + dx, 100 + dy, width=40, height=20), b)

    assert seen(10, 0) == set() == seen(-10, 4)  # just inside: nothing is beyond the zone
    assert seen(10.0009, 0) == set()  # beyond by less than a thousandth
    assert seen(11, 0) == set()  # beyond by 1 of 11 pixels
    assert seen(20, 0) == set()  # by exactly half
    assert seen(20.01, 0) == {"right of"}
    assert seen(0, -8) == set()
    assert seen(0, -8.01) == {"above"}


def test_a_diagonal_has_two_relations_or_none():
    b = at(0, 0, width=20, height=20)

    def seen(shift):
        return geneval.relations(at(shift, shift, width=20, height=20), b)

    # beyond is shift - 4 on both axes, the offset's length is shift * sqrt(2): half of it is passed at 13.657
    assert seen(13.6) == set()
    assert seen(13.7) == {"right of", "below"}


def test_relations_are_those_of_the_formula_written_out():
    rng = np.random.default_rng(3)
    names = {(0, -1): "left of", (0, 1): "right of", (1, -1): "above", (1, 1): "below"}
    counts = []
    for _ in range(500):
        a, b = (at(*rng.uniform(0, 100, 2), *rng.uniform(1, 80, 2)) for _ in "ab")
        offsets = [(a.box[i] + a.box[i + 2] - b.box[i] - b.box[i + 2]) / 2 for i in (0, 1)]
        zones = [0.1 * (a.box[i + 2] - a.box[i] + b.box[i + 2] - b.box[i]) for i in (0, 1)]
        length = (offsets[0] ** 2 + offsets[1] ** 2) ** 0.5
        held = {names[i, s] for i in (0, 1) for s in (-1, 1) if (s * offsets[i] - zones[i]) / length > 0.5}
        assert geneval.relations(a, b) == held
        counts.append(len(held))
    assert set(counts) == {0, 1, 2}


# --- verdicts -------------------------------------------------------------------------------------


def test_a_single_object_is_there_or_not():
    clauses = demand([{"class": "cat", "count": 1}], tag="single_object")
    assert geneval.verdict({"cat": [at(0, 0), at(9, 9)], "dog": [at(5, 5)]}, clauses, never)[:2] == (True, "")
    assert geneval.verdict({"dog": [at(5, 5)]}, clauses, never)[:2] == (False, "expected cat>=1, found 0")


def test_two_objects_are_both_there_and_all_faults_are_told():
    clauses = demand(CAT_AND_DOG)
    assert geneval.verdict({"cat": [at(0, 0)], "dog": [at(0, 0)]}, clauses, never).right
    assert geneval.verdict({"cat": [at(0, 0)]}, clauses, never)[:2] == (False, "expected dog>=1, found 0")
    assert geneval.verdict({}, clauses, never).reason.split("\n") == [
        "expected cat>=1, found 0",
        "expected dog>=1, found 0",
    ]


def test_a_count_is_exact():
    assert counted(3)[:2] == (True, "")
    assert counted(2)[:2] == (False, "expected cat>=3, found 2")
    assert counted(4)[:2] == (False, "expected cat<4, found 4")
    assert counted(4, score=0.9)[:2] == (False, "expected cat>=3, found 0")  # counting wants more than 0.9


def test_the_surest_objects_must_have_the_colour():
    clauses = demand([{"class": "car", "count": 1, "color": "red"}], tag="colors")
    one, two = {"car": [at(0, 0)]}, {"car": [at(0, 0, score=0.9), at(50, 0, score=0.8)]}
    assert geneval.verdict(one, clauses, painted(car=["red"])).right
    assert geneval.verdict(one, clauses, painted(car=["blue"]))[:2] == (False, "expected red car>=1, found blue")
    assert not geneval.verdict(two, clauses, painted(car=["blue", "red"])).right  # the second car is not asked
    both = demand([{"class": "car", "count": 2, "color": "red"}], tag="colors")
    assert geneval.verdict(two, both, painted(car=["red", "red"])).right
    assert geneval.verdict(two, both, painted(car=["red", "blue"])).reason == "expected red car>=2, found red, blue"
    assert geneval.verdict({}, clauses, never)[:2] == (False, "expected car>=1, found 0")


def test_each_object_must_have_its_own_colour():
    clauses = demand(
        [{"class": "cat", "count": 1, "color": "black"}, {"class": "dog", "count": 1, "color": "white"}],
        tag="color_attr",
    )
    found = {"cat": [at(0, 0)], "dog": [at(50, 0)]}
    assert geneval.verdict(found, clauses, painted(cat=["black"], dog=["white"]))[:2] == (True, "")
    swapped = geneval.verdict(found, clauses, painted(cat=["white"], dog=["black"]))
    assert swapped[:2] == (False, "expected black cat>=1, found white\nexpected white dog>=1, found black")


def placed(relation, found, cats=1, dogs=1):
    include = [{"class": "cat", "count": cats}, {"class": "dog", "count": dogs, "position": [relation, 0]}]
    return geneval.verdict(found, demand(include, tag="position"), never)


def test_an_object_stands_where_it_should_or_the_reason_says_where():
    found = {"cat": [at(50, 50)], "dog": [at(10, 50)]}
    assert placed("left of", found)[:2] == (True, "")
    assert placed("right of", found)[:2] == (False, "expected dog right of target, found left of target")
    assert placed("above", {"cat": [at(50, 50)], "dog": [at(51, 50)]})[:2] == (
        False,
        "expected dog above target, found no relation to target",
    )
    diagonal = {"cat": [at(50, 50)], "dog": [at(10, 10)]}
    assert placed("left of", diagonal).right
    assert placed("above", diagonal).right
    assert placed("below", diagonal).reason == "expected dog below target, found above and left of target"


def test_each_object_stands_so_to_each_target():
    found = {"cat": [at(50, 50), at(90, 50)], "dog": [at(10, 50), at(70, 50)]}
    assert placed("left of", found, cats=2, dogs=1).right
    assert placed("left of", found, cats=1, dogs=2).reason == "expected dog left of target, found right of target"
    assert not placed("right of", found, cats=2, dogs=1).right


def test_a_target_that_failed_fails_what_stands_by_it():
    assert placed("left of", {"dog": [at(10, 50)]}).reason.split("\n") == [
        "expected cat>=1, found 0",
        "no target for dog to be left of",
    ]
    assert placed("left of", {}).reason.split("\n") == ["expected cat>=1, found 0", "expected dog>=1, found 0"]


def test_a_wrong_colour_is_told_before_the_place_is_looked_at():
    include = [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "color": "red", "position": ["above", 0]}]
    found = {"cat": [at(50, 50)], "dog": [at(50, 90)]}
    assert geneval.verdict(found, demand(include), painted(dog=["blue"])).reason == "expected red dog>=1, found blue"
    assert geneval.verdict(found, demand(include), painted(dog=["red"])).reason == (
        "expected dog above target, found below target"
    )


def test_the_score_is_the_mean_over_tasks_of_the_share_of_right_pictures():
    tags = ["single_object"] * 4 + ["counting"] * 2
    prompts = [Prompt(i, str(i), "a photo", tag, "seen", {}) for i, tag in enumerate(tags)]
    cat = demand([{"class": "cat", "count": 1}], tag="single_object")
    verdicts = [geneval.verdict({"cat": [at(0, 0)]} if there else {}, cat, never) for there in (1, 1, 1, 0)]
    score = tally.by_task(prompts, [*verdicts, counted(3), counted(4)])
    assert {task: e["value"] for task, e in score["tasks"].items()} == {"single_object": 0.75, "counting": 0.5}
    assert score["overall"]["value"] == 0.625


# --- metadata -------------------------------------------------------------------------------------

LINES = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    demand([{"class": "bus", "count": 2}], [{"class": "bus", "count": 3}], "counting"),
    demand([{"class": "cow", "count": 1}, {"class": "tv", "count": 1, "position": ["left of", 0]}], tag="position"),
    demand([{"class": "cow", "count": 1, "color": "pink"}, {"class": "tv", "count": 1, "color": "red"}], tag="colors"),
]


def test_metadata_is_read_as_it_stands(tmp_path):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    assert geneval.read_metadata(path) == LINES


COW = {"class": "cow", "count": 1}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{'tag': 1}", "not JSON"),
        ("[1]", "no object"),
        (demand([COW], tag="colours"), "unknown tag 'colours'.*color_attr"),
        ({"prompt": "p", "include": [COW]}, "unknown tag None"),
        (demand([COW]) | {"includes": []}, "unknown key includes of a prompt"),
        (demand([COW | {"colour": "red"}]), "unknown key colour of include"),
        (demand([COW], [COW | {"color": "red"}]), "unknown key color of exclude"),
        ({"tag": "colors", "include": [COW]}, "no prompt"),
        ({"tag": "colors", "prompt": "p"}, "no include"),
        (demand([]), "no include"),
        (demand(["cow"]), "'cow' is no object"),
        (demand([COW]) | {"exclude": 7}, "exclude 7 is no object"),
        (demand([{"count": 1}]), "include without a class"),
        (demand([{"class": "cow"}]), "count None"),
        (demand([COW | {"count": True}]), "count True"),
        (demand([COW | {"count": 0}]), "count 0"),
        (demand([COW], [{"class": "cow", "count": 1.5}]), r"count 1\.5 of exclude"),
        (demand([COW | {"color": "grey"}]), "unknown color 'grey'.*white"),
        (demand([COW, COW | {"position": "left of"}]), "not .relation, index"),
        (demand([COW, COW | {"position": ["under", 0]}]), "unknown relation 'under'.*below"),
        (demand([COW, COW | {"position": ["above", 1]}]), "target 1 is no include clause before"),
        (demand([COW, COW | {"position": ["above", -1]}]), "target -1"),
        (demand([COW, COW | {"position": ["above", False]}]), "target False"),
        (demand([COW | {"position": ["above", 0]}]), "target 0"),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_number(tmp_path, line, fault):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(LINES[0]) + "\n\n" + (line if isinstance(line, str) else json.dumps(line)) + "\n")
    with pytest.raises(ValueError, match=rf"mine\.jsonl:3: .*{fault}"):
        geneval.read_metadata(path)


def test_metadata_that_is_missing_or_empty_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: no such file"):
        geneval.read_metadata(tmp_path / "nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl: empty"):
        geneval.read_metadata(tmp_path / "empty.jsonl")


def test_rules_are_json_with_the_papers_numbers():
    rules = json.loads(json.dumps(geneval.RULES))
    assert rules == geneval.RULES
    assert (rules["score_above"], rules["counting_score_above"], rules["most_objects"]) == (0.3, 0.9, 16)


# --- the judge ------------------------------------------------------------------------------------


class Eyes:
    """A detector that sees what it was told."""

    names = ("cat", "dog")

    def __init__(self, *seen):
        self.seen = list(seen)

    def detect(self, pictures):
        return [self.seen.pop(0) for _ in pictures]


def asked(tag, include, **rest):
    return Prompt(0, "00007", "a photo", tag, "seen", {"tag": tag, "prompt": "a photo", "include": include} | rest)


def test_the_judge_counts_what_it_reports_and_asks_colours_of_the_picture():
    picture = np.full((20, 30, 3), 200, np.uint8)
    left, right = (np.zeros((20, 30), bool) for _ in "ab")
    left[2:12, 1:11] = right[2:12, 15:25] = True
    cats = [Found((1, 2, 11, 12), 0.5, left), Found((15, 2, 25, 12), 0.8, right), Found((1, 2, 11, 12), 0.3, left)]
    colours = Colours(tiny_clip())
    (colour,) = colours.of(picture)(cats[1:2], "cat")
    judge = geneval_judge.GenEval(Eyes({"cat": cats}), colours)
    verdict, seen = judge.look(picture, asked("colors", [{"class": "cat", "count": 1, "color": colour}]))
    boxes = [[15, 2, 25, 12], [1, 2, 11, 12]]
    assert verdict == (True, "", [{"label": "cat", "box": box} for box in boxes])
    assert seen == [
        {"class": "cat", "box": [15, 2, 25, 12], "score": 0.8},
        {"class": "cat", "box": [1, 2, 11, 12], "score": 0.5},
    ]
    judge = geneval_judge.GenEval(Eyes({"cat": cats}), colours)
    verdict, seen = judge.look(picture, asked("counting", [{"class": "cat", "count": 1}]))
    assert verdict[:2] == (False, "expected cat>=1, found 0")
    assert seen == []


def test_a_prompt_that_cannot_be_judged_is_named():
    judge = geneval_judge.GenEval(Eyes(), Colours(None))
    picture = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="00007: no GenEval metadata"):
        judge([picture], [Prompt(0, "00007", "my cat", "", "seen", {"objects": []})])
    exclude = [{"class": "ufo", "count": 1}]
    with pytest.raises(ValueError, match=r"00007: the detector knows no ufo.*id2label"):
        judge([picture], [asked("counting", [{"class": "cat", "count": 1}], exclude=exclude)])


def test_a_folder_of_real_networks_judges_arrays_and_lists(tmp_path):
    made_folder(tmp_path / "detector", sure_of("cat"))
    tiny_clip().save(tmp_path / "clip")
    judge = geneval_judge.load(tmp_path / "detector", tmp_path / "clip")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    assert judge.detector.names == NAMES
    prompts = [asked("single_object", [{"class": name, "count": 1}]) for name in ("cat", "computer mouse")]
    verdicts = judge(pictures, prompts)
    said = [(True, ""), (False, "expected computer mouse>=1, found 0")]
    assert [v[:2] for v in verdicts] == said
    assert [v[:2] for v in judge([pictures[0], pictures[1][:32]], prompts)] == said
    coloured = asked("colors", [{"class": "cat", "count": 1, "color": "red"}])
    verdict, seen = judge.look(pictures[0], coloured)
    assert verdict.right or verdict.reason.startswith("expected red cat>=1, found ")
    assert json.loads(json.dumps(seen)) == seen
    assert {one["class"] for one in seen} == {"cat"}
