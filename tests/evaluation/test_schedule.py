"""Times are found greedily where the score is best, on captions that evaluate does not ask, from pictures that are the
sampler's own."""

import json

import numpy as np
import pytest
import torch

from sana_sprint import config
from sana_sprint.data import manifest
from sana_sprint.evaluation import generate, plots, protocol, schedule
from sana_sprint.maths import sample, trigflow
from sana_sprint.maths.metrics import Estimate
from sana_sprint.models import networks
from tests.evaluation.conftest import EVALUATE, SAMPLING

PARAMS = config.Schedule(
    seed=2,
    prompts_per_task=2,
    first=[1.5708, 1.55],
    later=[round(0.1 * k, 1) for k in range(1, 15)],
    baseline={"1": [1.5708, 0.0], "2": [1.5683, 1.3, 0.0]},
)
WANTED = (1.0, 0.4, 1.3)  # in the order of what they are worth


def worth(times):
    """The more of what is wanted has a time near it, the better."""
    weights = (1.0, 0.5, 0.25)
    return Estimate(-sum(w * min(abs(t - one) for t in times) for w, one in zip(weights, WANTED, strict=True)), 0.0)


def test_every_time_is_put_where_it_helps_most_and_lists_hold_shorter_ones():
    curves = schedule.search(worth, PARAMS, 4)
    lists = [schedule.best(trials).times for trials in curves]
    assert lists == [(1.55,), (1.55, 1.0), (1.55, 1.0, 0.4), (1.55, 1.3, 1.0, 0.4)]
    assert [len(trials) for trials in curves] == [2, 14, 13, 12]


def test_the_middle_of_a_good_stretch_wins_over_a_lucky_point():
    def score(times):
        return Estimate({0.2: 0.6, 0.8: 0.5, 0.9: 0.55, 1.0: 0.5}.get(times[-1], 0.3), 0.0)

    first, second = schedule.search(score, PARAMS, 2)
    assert schedule.best(second).times[1] == 0.9
    smooth = {trial.new: trial.smoothed for trial in second}
    assert smooth[0.9] == pytest.approx((0.5 + 2 * 0.55 + 0.5) / 4)
    assert smooth[0.1] == pytest.approx((0.6 + 2 * 0.3) / 3)  # an end has one neighbour
    assert schedule.best(first).times == (1.5708,)  # of equals the higher


def test_a_search_without_times_left_says_so():
    params = PARAMS.model_copy(update={"later": [1.5, 1.4, 1.3], "first": [1.35]})
    with pytest.raises(ValueError, match=r"schedule\.later: no time is left to put below \(1\.35, 1\.3\)"):
        schedule.search(worth, params, 3)


@pytest.fixture(scope="module")
def student(sprint_folder):
    return generate.load(sprint_folder, SAMPLING, 0.5)


@pytest.fixture(scope="module")
def prompts(raw):
    return protocol.prompts(manifest.read(raw, "train"), EVALUATE)[:7]


@torch.inference_mode()
def drawn_at_once(student, prompts, times):
    text = student.text([p.caption for p in prompts])
    guidance_B = torch.full((len(text),), SAMPLING.guidance)
    F = trigflow.from_flow(networks.flow_velocity(student.pipe.transformer, text, guidance_B))
    noises = generate.noises(student, prompts, len(times), 3)
    return student.decode(sample.consistency(F, noises, [*times, 0.0], 0.5))


def test_pictures_are_those_of_the_sampler_in_whatever_order_lists_come(student, prompts):
    draws = schedule.Draws(student, prompts, 3, 7)
    lists = [(1.5,), (1.5, 0.9), (1.5, 0.3), (1.5, 1.2, 0.9), (1.5, 0.9, 0.2), (1.2, 0.9), (1.5, 1.2, 0.9, 0.1), (1.5,)]
    for times in lists * 2:
        assert np.array_equal(draws.pictures(times), drawn_at_once(student, prompts, times)), times
        assert len(draws.kept) <= schedule.PREFIXES_KEPT


def test_a_list_that_goes_on_from_the_last_costs_one_step(student, prompts, monkeypatch):
    calls = []
    original = sample.consistency_step
    monkeypatch.setattr(sample, "consistency_step", lambda *a: calls.append(a[3]) or original(*a))
    draws = schedule.Draws(student, prompts, 3, 7)
    draws.pictures((1.5, 0.9, 0.4))
    for time in (0.3, 0.2, 0.1):
        draws.pictures((1.5, 0.9, time))
    assert calls == [1.5, 0.9, 0.4, 0.3, 0.2, 0.1]


@pytest.fixture(scope="module")
def found(folders):
    return run(folders)


def run(folders, judge="scenes"):
    student = schedule.Student(folders.student, folders.raw, folders.judge)
    params = PARAMS.model_copy(update={"later": [1.3, 0.8, 0.4]})
    return schedule.run(params, EVALUATE.model_copy(update={"judge": judge}), SAMPLING, 0.5, student)


def test_the_result_has_lists_for_every_step_count_and_gains_over_the_baseline(found, folders, tmp_path):
    assert set(found["times"]) == set(found["found"]) == {"1", "2", "3", "4"}
    assert found["profile"] == SAMPLING.times
    for k, told in found["gains_where_sought"].items():
        better = told["gain"]["value"] > told["gain"]["se"]
        assert found["times"][k] == (found["found"][k] if better else SAMPLING.times[k])
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(found))
    assert schedule.sampling_by(path, SAMPLING).times == found["times"]
    for k in ("1", "2"):
        gain, drawn = found["gains"][k], "found" if found["times"][k] == found["found"][k] else "profile"
        assert gain["gain"]["value"] == pytest.approx(
            gain[drawn]["value"] - gain["baseline"]["value"], abs=2e-6
        )  # rounded
    for k in ("3", "4"):
        assert set(found["gains"][k]) == {"found", "profile"}  # no baseline to gain on
    assert found["baseline"] == PARAMS.baseline
    assert [len(trials) for trials in found["trials"].values()] == [2, 3, 2, 1]


def test_the_search_is_the_same_twice_with_one_thread_however_many_there_are(found, folders, monkeypatch):
    counts, before = [], torch.get_num_threads()
    original = schedule.Draws.pictures
    monkeypatch.setattr(schedule.Draws, "pictures", lambda *a: counts.append(torch.get_num_threads()) or original(*a))
    torch.set_num_threads(2)
    again = run(folders)
    assert (set(counts), torch.get_num_threads()) == ({1}, 2)
    torch.set_num_threads(before)
    assert again == found


def test_mlflow_gets_scores_and_gains_with_their_standard_errors(found):
    told = schedule.headline(found)
    assert len(told) == 2 * (4 + 4 + 2 + 2)
    for k in ("1", "2", "3", "4"):
        for name, part in found["gains"][k].items():
            both = (told[f"{name}/{k}_step"], told[f"standard_error/{name}_{k}_step"])
            assert both == (part["value"], part["se"])


def test_the_digest_of_a_search_covers_its_captions_noise_and_judge(found, folders):
    assert found["protocol_digest"] == protocol.digest(found["protocol"])
    assert found["protocol"]["tried"] != found["protocol"]["checked"]

    def digest(params, judged):
        return protocol.digest(schedule.describe(params, judged, SAMPLING, 0.5, folders.judge))

    judged = [EVALUATE, *(EVALUATE.model_copy(update=change) for change in ({"judge": "none"}, {"batch": 9}))]
    digests = {digest(PARAMS, one) for one in judged} | {digest(PARAMS.model_copy(update={"seed": 7}), EVALUATE)}
    assert len(digests) == 4
    assert digest(PARAMS, EVALUATE.model_copy(update={"latency_runs": 9})) in digests


def test_a_list_whose_gain_is_within_its_error_where_it_was_sought_is_not_taken():
    gains = {k: {"gain": {"value": v, "se": 0.02}} for k, v in (("1", 0.02), ("2", 0.03), ("4", -0.1))} | {"3": {}}
    assert schedule.taken(gains) == {"1": "profile", "2": "found", "4": "profile", "3": "found"}


def test_a_gain_is_paired_by_prompt(prompts):
    same = [1.0, 0.0] * 3 + [1.0]
    gain = schedule.gain(prompts, {"found": same, "profile": [0.0] * 7, "baseline": same}, "found", "baseline")
    assert gain["gain"] == {"value": 0.0, "se": 0.0}
    assert gain["found"] == gain["baseline"]
    assert gain["found"]["se"] > 0
    assert gain["profile"]["value"] == 0.0


def test_captions_are_none_of_evaluates_where_a_task_has_others_and_the_check_has_its_own(raw):
    rows, shared = schedule.training_rows(raw, EVALUATE)
    tried, checked = schedule.prompts(rows, PARAMS, EVALUATE)
    asked = {p.caption for p in protocol.prompts(manifest.read(raw, "eval"), EVALUATE)}
    both = {p.caption for p in (*tried, *checked)}
    alone = {p.task for p in (*tried, *checked) if p.caption not in asked}
    assert len(alone) >= 4
    assert {p.task for p in (*tried, *checked) if p.caption in asked}.isdisjoint(alone)
    assert len(both & asked) <= shared
    several = {p.task for p in tried if len({q.caption for q in (*tried, *checked) if q.task == p.task}) > 1}
    assert len(several) >= 5
    twice = {p.caption for p in tried} & {p.caption for p in checked}
    assert twice == {p.caption for p in tried if p.task not in several}
    assert {p.index for p in tried}.isdisjoint(p.index for p in checked)
    assert {p.key for p in tried}.isdisjoint(p.key for p in checked)
    assert {p.task for p in tried} == {p.task for p in checked}


def test_the_noise_of_evaluate_is_refused(folders):
    params = PARAMS.model_copy(update={"seed": EVALUATE.seed})
    student = schedule.Student(folders.student, folders.raw, folders.judge)
    with pytest.raises(ValueError, match=r"schedule\.seed: evaluate draws its noise by 1 too"):
        schedule.run(params, EVALUATE, SAMPLING, 0.5, student)


def test_without_a_judge_of_right_and_wrong_the_clip_score_is_searched(folders):
    found = run(folders, judge="none")
    assert found["measure"] == "clip_score"
    assert 0 <= found["gains"]["1"]["found"]["value"] <= 100


def test_too_few_training_captions_are_told_of(raw):
    with pytest.raises(ValueError, match="too few training captions"):
        schedule.prompts(manifest.read(raw, "train")[:1], PARAMS, EVALUATE)


def test_the_plot_is_a_png_and_the_same_twice(found, tmp_path):
    for name in ("a.png", "b.png"):
        plots.schedule(json.loads(json.dumps(found)), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
