"""Two evaluations side by side: from files, commits and versions, paired where they can be, and never under two
protocols without a word."""

import json
import subprocess

import pytest

from sana_sprint.registry import compare
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


def test_two_commits_are_compared_from_what_dvc_keeps(repository):
    def run(*words):
        subprocess.run(words, cwd=repository, check=True, capture_output=True)

    scores, verdicts = (repository / path for path in compare.paths("small"))
    run("git", "init", "--quiet")
    run("git", "config", "user.email", "a@b.c")
    run("git", "config", "user.name", "a")
    run("dvc", "init", "--quiet")
    for number, name in ((0.3, "first"), (0.4, "second")):
        written(scores, evaluation(number, 0.5))
        written(verdicts, {"prompts": [], "verdicts": {}})
        run("dvc", "add", "--quiet", str(scores), str(verdicts))
        run("git", "add", "--all")
        run("git", "commit", "--quiet", "--message", name)
    written(scores, evaluation(0.25, 0.5, protocol="another"))
    told = call("compare", "HEAD~1", "HEAD", "--size", "small")
    assert "0.300 ± 0.020" in told
    assert "+0.100 ± 0.028" in told
    assert "One protocol" in told
    told = call("compare", "HEAD", "--size", "small")
    assert "-0.150 ± 0.028" in told
    assert "TWO PROTOCOLS" in told
    error = refused("compare", "no-such-branch", "HEAD", "--size", "small")
    assert "no-such-branch, small: no evaluation there" in error
    assert "git revision with a dvc.lock" in error
    assert "HEAD, base: no evaluation there" in refused("compare", "HEAD", "HEAD")


def test_versions_and_files_are_compared(registered, tmp_path):
    registered(evaluation(0.3, 0.5))
    registered(evaluation(0.4, 0.5), weights="second")
    told = call("compare", f"models:/{NAME}/1", f"models:/{NAME}@challenger")
    assert "+0.100 ± 0.028" in told
    written(tmp_path / "own.json", evaluation(0.2, 0.5))
    assert "-0.200" in call("compare", f"models:/{NAME}@challenger", str(tmp_path / "own.json"))
    assert "no such version" in refused("compare", f"models:/{NAME}/7", str(tmp_path / "own.json"))
    written(tmp_path / "none.json", {"scores": {}})
    assert "none.json: no evaluation there" in refused("compare", str(tmp_path / "none.json"), f"models:/{NAME}/1")
