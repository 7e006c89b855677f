"""Two evaluations side by side: from files, commits and versions, paired where they can be, and never under two
protocols without a word."""

import base64
import io
import json
import re
import subprocess

import pytest
from PIL import Image

from sana_sprint.registry import compare, store, track
from tests.registry.conftest import NAME, evaluation
from tests.test_cli import call, refused

PROMPTS = [{"task": "counting"}] * 4 + [{"task": "colors"}] * 2


def judged(name, rights, digest="one"):
    """An evaluation whose student drew these pictures right in one step."""
    seen = {"prompts": PROMPTS, "verdicts": {"student": {"1": [{"right": right} for right in rights]}}}
    overall = {"value": (sum(rights[:4]) / 4 + sum(rights[4:]) / 2) / 2, "se": 0.1}
    return compare.Evaluation(name, digest, {"student": {"1": {"overall": overall}}}, seen)


def test_gains_are_paired_by_prompt_and_average_over_tasks():
    before = judged("a", [True, False, False, False, True, False])
    after = judged("b", [True, True, False, False, True, True])
    (row,) = compare.rows(before, after)
    assert row.paired
    assert row.gain.value == pytest.approx((1 / 4 + 1 / 2) / 2)
    # of tasks: (1, 0, 0, 0) has s^2 / n = (1/4) / 4, (1, 0) has (1/2) / 2
    assert row.gain.se == pytest.approx((1 / 16 + 1 / 4) ** 0.5 / 2)
    (same,) = compare.rows(before, before)
    assert same.gain == (0.0, 0.0)


@pytest.mark.parametrize("other", [{"digest": "two"}, {}])
def test_what_cannot_be_paired_has_the_error_of_independent_measurements(other):
    before, after = judged("a", [True] * 6), judged("b", [True] * 6, **other)
    if not other:
        after = compare.Evaluation("b", "one", after.scores, None)
    (row,) = compare.rows(before, after)
    assert not row.paired
    assert row.gain.se == pytest.approx(0.1 * 2**0.5)


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def gallery(folder, colour):
    """A gallery of two prompts in pictures of one colour, as evaluate writes it."""
    prompts = [{"key": str(k), "caption": f"caption {k}", "task": "counting", "group": "seen"} for k in (0, 1)]
    verdict = {"right": True, "reason": "", "seen": [{"label": "it", "box": [1, 1, 3, 3]}]}
    verdicts = {"student": {steps: [verdict] * 2 for steps in ("1", "2", "4")}}
    content = {"prompts": prompts, "gallery": [1, 0], "tile_px": [4, 4], "size_px": [4, 4], "verdicts": verdicts}
    written(folder / "verdicts.json", content)
    (folder / "gallery").mkdir(exist_ok=True)
    for steps in ("1", "2", "4"):
        Image.new("RGB", (24, 4), colour).save(folder / f"gallery/student-{steps}.png")


def test_two_commits_are_compared_from_what_dvc_keeps(repository):
    def run(*words):
        subprocess.run(words, cwd=repository, check=True, capture_output=True)

    scores, pictures = (repository / path for path in compare.paths("small"))
    run("git", "init", "--quiet")
    run("git", "config", "user.email", "a@b.c")
    run("git", "config", "user.name", "a")
    run("dvc", "init", "--quiet")
    for number, name, colour in ((0.3, "first", "red"), (0.4, "second", "blue")):
        written(scores, evaluation(number, 0.5))
        gallery(pictures, colour)
        run("dvc", "add", "--quiet", str(scores), str(pictures))
        run("git", "add", "--all")
        run("git", "commit", "--quiet", "--message", name)
    written(scores, evaluation(0.25, 0.5, protocol="another"))
    told = call("compare", "HEAD~1", "HEAD", "--size", "small", "--page", "two.html")
    assert "0.300 ± 0.020" in told
    assert "+0.100 ± 0.028" in told
    assert "One protocol" in told
    page = (repository / "two.html").read_text()
    assert "HEAD~1, small against HEAD, small" in page
    assert page.count('alt="HEAD, small, 2 steps: caption 0 (right)"') == 1
    shown = [Image.open(io.BytesIO(base64.b64decode(found))) for found in re.findall(r'webp;base64,([^"]+)"', page)]
    assert [image.convert("RGB").getpixel((2, 2)) for image in shown] == [(255, 0, 0), (0, 0, 255)] * 6
    told = call("compare", "HEAD", "--size", "small")
    assert "-0.150 ± 0.028" in told
    assert "TWO PROTOCOLS" in told
    error = refused("compare", "no-such-branch", "HEAD", "--size", "small")
    assert "no-such-branch, small: no evaluation there" in error
    assert "git revision with a dvc.lock" in error
    assert "HEAD, base: no evaluation there" in refused("compare", "HEAD", "HEAD")


def test_an_earlier_run_is_compared_by_its_id(repository):
    scores = repository / compare.paths("small")[0]
    ids = []
    for number in (0.3, 0.4):
        written(scores, evaluation(number, 0.5))
        with track.stage("evaluate", size="small") as run:
            run.file(scores)
            ids.append(run.run_id)
    assert "+0.100 ± 0.028" in call("compare", f"runs:/{ids[0]}", f"runs:/{ids[1]}")
    with track.stage("prune", size="small") as run:
        other = run.run_id
    assert "no evaluation there" in refused("compare", f"runs:/{other}", f"runs:/{ids[1]}")
    assert "runs:/no-such-run: no evaluation there" in refused("compare", "runs:/no-such-run", f"runs:/{ids[1]}")


def test_the_champion_stands_beside_the_student_of_the_working_tree(registered, repository):
    prefix = NAME.rpartition("-")[0]
    assert compare.against_champions(prefix, repository) == []
    for size in ("small", "base"):
        written(repository / compare.paths(size)[0], evaluation(0.4, 0.5))
        written(repository / compare.paths(size)[1] / "verdicts.json", {"prompts": [], "verdicts": {}})
    assert compare.against_champions(prefix, repository) == []
    registered(evaluation(0.3, 0.5))  # which leaves these scores in the working tree
    written(repository / compare.paths("small")[0], evaluation(0.4, 0.5))
    store.client(store.tracking_uri()).set_registered_model_alias(NAME, "champion", "1")
    (table,) = compare.against_champions(prefix, repository)
    assert table["title"] == f"small against {NAME} version 1"
    assert ["1", "overall", "0.300 ± 0.020", "0.400 ± 0.020", "+0.100 ± 0.028"] in table["rows"]
    assert "One protocol" in table["words"]


def test_versions_and_files_are_compared(registered, tmp_path):
    registered(evaluation(0.3, 0.5))
    registered(evaluation(0.4, 0.5), weights="second")
    told = call("compare", f"models:/{NAME}/1", f"models:/{NAME}@challenger")
    assert "+0.100 ± 0.028" in told
    written(tmp_path / "own.json", evaluation(0.2, 0.5))
    assert "-0.200" in call("compare", f"models:/{NAME}@challenger", str(tmp_path / "own.json"))
    assert "there is no version 7; there are: 2, 1" in refused(
        "compare", f"models:/{NAME}/7", str(tmp_path / "own.json")
    )
    written(tmp_path / "none.json", {"scores": {}})
    assert "none.json: no evaluation there" in refused("compare", str(tmp_path / "none.json"), f"models:/{NAME}/1")
