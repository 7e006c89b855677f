"""Prompts, noise and the digest."""

import dataclasses
from collections import Counter

import pytest
import torch

from sana_sprint.data import manifest
from sana_sprint.evaluation import protocol
from tests.evaluation.conftest import EVALUATE, SAMPLING


def row(key, caption, task, group="seen"):
    return manifest.Row(key, "eval-00000.tar", 8, 8, caption, len(caption), "", "", "eval", group, task, "{}")


def test_tasks_with_heldout_rows_are_half_heldout(raw):
    prompts = protocol.prompts(manifest.read(raw, "eval"), EVALUATE)
    count = Counter((p.task, p.group) for p in prompts)
    heldout_tasks = {row.task for row in manifest.read(raw, "eval") if row.group == "heldout"}
    assert heldout_tasks
    for task in {p.task for p in prompts}:
        expected = (2, 2) if task in heldout_tasks else (4, 0)
        assert (count[task, "seen"], count[task, "heldout"]) == expected
    assert [p.index for p in prompts] == list(range(24))
    assert all(p.demand["objects"] for p in prompts)


def test_prompts_do_not_depend_on_the_order_of_rows():
    rows = [row(f"eval-{i:03d}", f"a {i}", "x" if i % 3 else "y", "heldout" if i % 2 else "seen") for i in range(30)]
    assert protocol.prompts(rows, EVALUATE) == protocol.prompts(rows[::-1], EVALUATE)


def test_a_short_half_is_filled_up_from_the_other():
    rows = [row(f"{i}", "c", "t", "heldout" if i < 1 else "seen") for i in range(9)]
    assert Counter(p.group for p in protocol.prompts(rows, EVALUATE)) == {"seen": 3, "heldout": 1}
    rows = [row(f"{i}", "c", "t", "seen" if i < 1 else "heldout") for i in range(9)]
    assert Counter(p.group for p in protocol.prompts(rows, EVALUATE)) == {"seen": 1, "heldout": 3}


def test_for_the_judge_of_classes_every_caption_is_a_task_of_equal_size():
    rows = [row(str(i), "a three" if i < 2 else "a four", "") for i in range(9)]
    prompts = protocol.prompts(rows, EVALUATE.model_copy(update={"judge": "classes"}))
    assert Counter(p.task for p in prompts) == {"a three": 4, "a four": 4}


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="eval split is empty"):
        protocol.prompts([], EVALUATE)


def test_noise_is_a_function_of_seed_prompt_and_step():
    shape = (4, 2, 2)
    draws = [
        protocol.noise(*key, shape) for key in ((1, 2, 0), (2, 2, 0), (1, 3, 0), (1, 2, 1), (1, 23, 0), (12, 3, 0))
    ]
    assert torch.equal(draws[0], protocol.noise(1, 2, 0, shape))
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
    many = torch.stack([protocol.noise(0, prompt, 0, shape) for prompt in range(2000)])
    assert float(many.mean()) == pytest.approx(0, abs=0.02)
    assert float(many.std()) == pytest.approx(1, abs=0.02)


def test_what_is_shown_takes_tasks_and_groups_in_turn(raw):
    prompts = protocol.prompts(manifest.read(raw, "eval"), EVALUATE)
    shown = protocol.shown(prompts, 12)
    assert Counter(p.task for p in shown) == dict.fromkeys({p.task for p in prompts}, 2)
    assert len({p.index for p in protocol.shown(prompts, 24)}) == 24
    assert {p.group for p in shown if p.task == "counting"} == {"seen", "heldout"}


def test_the_digest_changes_with_every_part(raw):
    prompts = protocol.prompts(manifest.read(raw, "eval"), EVALUATE)
    judge = {"kind": "scenes", "digest": "a"}
    base = protocol.describe(prompts, EVALUATE, SAMPLING, 0.5, judge, 16)
    times = SAMPLING.times | {"2": [1.5683, 1.0, 0.0]}
    other_demand = [dataclasses.replace(prompts[0], demand={"objects": []}), *prompts[1:]]
    stronger = SAMPLING.model_copy(update={"teacher_guidance": 4.0})
    others = [
        protocol.describe(prompts[1:], EVALUATE, SAMPLING, 0.5, judge, 16),
        protocol.describe(other_demand, EVALUATE, SAMPLING, 0.5, judge, 16),
        protocol.describe(prompts, EVALUATE.model_copy(update={"seed": 2}), SAMPLING, 0.5, judge, 16),
        protocol.describe(prompts, EVALUATE, SAMPLING, 0.5, judge | {"digest": "b"}, 16),
        protocol.describe(prompts, EVALUATE, stronger, 0.5, judge, 16),
        protocol.describe(prompts, EVALUATE, SAMPLING.model_copy(update={"height_px": 32}), 0.5, judge, 16),
        protocol.describe(prompts, EVALUATE, SAMPLING, 0.5, judge, 8),
    ]
    own_times = protocol.describe(prompts, EVALUATE, SAMPLING.model_copy(update={"times": times}), 0.5, judge, 16)
    assert own_times == base  # times belong to a student, which is scored with its own
    assert len({protocol.digest(p) for p in [base, *others]}) == 8
    bigger = EVALUATE.model_copy(update={"batch": 99})
    assert protocol.describe(prompts, bigger, SAMPLING, 0.5, judge, 16) == base
