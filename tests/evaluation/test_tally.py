"""Verdicts are counted by task, not by prompt, and groups stand apart."""

import pytest

from sana_sprint.evaluation import tally
from sana_sprint.evaluation.judges import Verdict
from sana_sprint.evaluation.protocol import Prompt


def test_overall_is_the_mean_of_tasks_and_heldout_stands_apart():
    prompts = [Prompt(i, str(i), "c", "a" if i < 4 else "b", "heldout" if i % 2 else "seen", {}) for i in range(6)]
    right = [True, False, True, False, True, True]
    score = tally.by_task(prompts, [Verdict(r, "", []) for r in right])
    assert score["tasks"]["a"]["value"] == 0.5
    assert score["tasks"]["b"] == {"value": 1.0, "se": score["tasks"]["b"]["se"], "n": 2}
    assert score["overall"]["value"] == 0.75  # not 4/6: tasks weigh the same
    assert score["seen"]["value"] == 1.0
    assert score["heldout"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    mean = tally.mean(prompts, [float(r) for r in right])
    assert mean.value == 0.75
    assert mean.se == pytest.approx((1 / 12) ** 0.5 / 2)  # of four with two right, s^2 / n = 1/12; of two right, 0
    errors = [score["tasks"][task]["se"] for task in "ab"]
    assert score["overall"]["se"] == pytest.approx((errors[0] ** 2 + errors[1] ** 2) ** 0.5 / 2, abs=1e-6)
