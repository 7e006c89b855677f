"""The gates of the policy: what each asks, of which side, within which margin, and what it says when it cannot be
read."""

import dataclasses
import json
import math

import pytest
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag

from sana_sprint.evaluation import folder_protocol, protocol
from sana_sprint.registry import gates, measured, policy
from tests.registry.conftest import MACHINE, ROOT, card, evaluation, student, version_tags

GENEVAL = ROOT / "profiles/protocols/geneval.yaml"
TASKS = ("counting", "don't, say")
STEPS = ("1 step", "2 steps", "3 steps", "4 steps")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("folder")
    (place / "README.md").write_text(card.write(student(evaluation(0.4, 0.6), {"data_digest": "d"})))
    (place / "weights").write_bytes(b"0" * 2_000_000)
    return place


def version(folder, scores, number=1, without=(), **tags):
    """A version with the tags that registration writes."""
    found = version_tags(scores, folder, "weights") | tags
    kept = [ModelVersionTag(key, value) for key, value in found.items() if key not in without]
    return ModelVersion("m", number, 0, tags=kept)


def scores(one_step=0.4, four_steps=0.6, seconds=0.1, machine=MACHINE, **options):
    found = evaluation(one_step, four_steps, **options)
    timed = {steps: {"p50_s": seconds} for steps in ("1", "2", "3", "4")}
    return found | {"latency": {"student": timed}, "machine": machine}


def rule(rules, **changes):
    """The policy with other entries for the judge `scenes`, `champion__key` for those against the champion."""
    asked = rules.judges["scenes"]
    deep = {key.removeprefix("champion__"): value for key, value in changes.items() if key.startswith("champion__")}
    flat = {key: value for key, value in changes.items() if not key.startswith("champion__")}
    asked = asked.model_copy(update=flat | {"champion": asked.champion.model_copy(update=deep)})
    return rules.model_copy(update={"judges": {"scenes": asked}})


def found(challenger, champion, rules, fault=None):
    return {gate.name: gate for gate in gates.gates(challenger, champion, rules, fault)}


def failing(challenger, champion, rules):
    return {name for name, gate in found(challenger, champion, rules).items() if not gate.holds}


def test_a_first_version_is_held_to_floors_undistilled_licence_card_and_files(folder, rules):
    table = found(version(folder, scores()), None, rules)
    bounded = {"seconds at 1 step", "seconds at 4 steps", "size"}
    assert set(table) == {"files", "licence", "model card", "overall at 1 step", "overall at 4 steps"} | bounded
    assert all(gate.holds for gate in table.values())
    low = gates.gates(version(folder, scores(0.21)), None, rules, None)
    assert [(g.value, g.bound) for g in low if not g.holds] == [("0.210 ± 0.020", ">= 0.220")]
    assert failing(version(folder, scores(undistilled=0.41)), None, rules) == {"overall at 1 step"}
    gone = found(version(folder, scores()), None, rules, fault="/there: no model_index.json there")["files"]
    assert (gone.outcome, gone.value) == ("fails", "/there: no model_index.json there")


def test_a_ceiling_holds_a_metric_down(folder, rules):
    asked = rule(rules, ceilings={"fid_scene_clip": {"4": 0.39}})
    assert failing(version(folder, scores()), None, asked) == {"fid_scene_clip at 4 steps"}  # 1 - 0.6 = 0.40
    assert not failing(version(folder, scores(0.4, 0.62)), None, asked)


def test_the_margin_is_standard_errors_of_the_difference_in_the_metrics_own_direction():
    se = math.hypot(0.03, 0.04)
    for better, sign in (("higher", -1), ("lower", 1)):
        for excess, holds in ((-1e-6, True), (1e-6, False)):
            mine = (0.5 + sign * (2 * se + excess), 0.03)
            assert gates.compared("x", mine, (0.5, 0.04), 2.0, better).holds is holds
    assert gates.compared("x", (0.9, 0.0), (0.9, 0.0), 0.0).holds


def test_every_metric_and_every_task_is_held_at_every_step_count_of_the_policy(folder, rules):
    old, new = version(folder, scores(0.4, 0.6)), version(folder, scores(0.4, 0.6), 2)
    names = set(found(new, old, rules))
    keys = [*rules.judges["scenes"].champion.metrics, *TASKS]
    told = {f"{key} at {steps}" for key in keys for steps in STEPS}
    assert told < names
    assert not failing(new, old, rules)
    worse = scores(0.4, 0.6)
    worse["scores"]["student"]["2"]["tasks"]["counting"] = {"value": 0.4, "se": 0.02}  # 0.5 less 3.5 se
    assert failing(version(folder, worse), old, rules) == {"counting at 2 steps"}
    worse = scores(0.4, 0.6)
    worse["scores"]["student"]["4"]["fid_scene_clip"] = {"value": 0.47, "se": 0.02}  # 0.40 and 2.5 se
    assert failing(version(folder, worse), old, rules) == {"fid_scene_clip at 4 steps"}


@pytest.mark.parametrize("judge", ["scenes", "classes", "none"])
def test_the_shipped_policy_holds_time_and_size_down(folder, rules, judge):
    """Of pictures of any size the champion alone tells what is slow or large."""
    asked = rules.model_copy(update={"judges": {judge: rules.judges[judge]}})
    slow = version(folder, scores(0.7, 0.9, seconds=0.6), judged_by=judge, folder_bytes="60000000")
    told = {gate.name: gate.bound for gate in gates.gates(slow, None, asked, None) if not gate.holds}
    assert told == ({} if judge == "none" else {"seconds at 1 step": "<= 0.5 s", "size": "<= 50 MB"})
    old = version(folder, scores(seconds=0.1), judged_by=judge)
    new = version(folder, scores(seconds=0.45), 2, judged_by=judge, folder_bytes="3100000")
    times = 1.5 if judge == "none" else 4
    told = {gate.name: gate.bound for gate in gates.gates(new, old, asked, None) if not gate.holds}
    held = {f"seconds at {n}": f"<= {times * 0.1:.4g} s, {times:g} times the champion's" for n in STEPS}
    assert held.items() <= told.items()
    assert told["size"].endswith(" MB, 1.5 times the champion's")


def test_time_is_held_to_its_ceiling_and_to_the_champions_on_one_machine(folder, rules):
    asked = rule(rules, latency_s={"1": 0.2}, champion__latency_times=1.5, champion__steps=["1"])
    old = version(folder, scores(seconds=0.1))
    assert not failing(version(folder, scores(seconds=0.15)), old, asked)
    assert failing(version(folder, scores(seconds=0.16)), old, asked) == {"seconds at 1 step"}
    slow = gates.gates(version(folder, scores(seconds=0.21)), None, asked, None)
    assert [(g.value, g.bound) for g in slow if not g.holds] == [("0.21 s", "<= 0.2 s")]
    other = version(folder, scores(seconds=0.19, machine=MACHINE | {"cores": 64}))
    gate = found(other, old, asked)["seconds at 1 step"]
    assert (gate.outcome, gate.holds) == ("waived", True)
    assert "another machine" in gate.bound
    refusing = rule(asked, champion__other_machine="refuse")
    gate = found(other, old, refusing)["seconds at 1 step"]
    assert (gate.outcome, gate.holds) == ("unread", False)
    assert "evaluate both on one" in gate.reason


def test_size_is_held_to_its_ceiling_and_to_the_champions(folder, rules):
    old = version(folder, scores())
    large = version(folder, scores(), folder_bytes="3100000")
    assert failing(large, old, rules) == {"size"}  # the folder has 2.0 MB, 1.5 times are allowed
    table = [g for g in gates.gates(old, None, rule(rules, size_mb=1.9), None) if g.name == "size"]
    assert [(g.holds, g.bound) for g in table] == [(False, "<= 1.9 MB")]
    assert table[0].value.startswith("2.0 MB")


def test_another_protocol_fails_alone_until_the_champion_is_evaluated_under_it(folder, rules):
    old = version(folder, scores(0.4, 0.6))
    new = version(folder, scores(0.1, 0.2, protocol="second", undistilled=0.01), 2)
    asked = rule(rules, floors={})
    table = found(new, old, asked)
    assert failing(new, old, asked) == {"protocol digest"}
    assert "`--reevaluate`" in table["protocol digest"].reason
    assert "overall at 2 steps" not in table
    again = measured.reevaluation_tags(scores(0.12, 0.22, protocol="second"), "me", "now")
    both = version(folder, scores(0.4, 0.6), **again)
    assert not failing(new, both, asked)
    assert "re-evaluated" in found(new, both, asked)["protocol digest"].bound
    again = measured.reevaluation_tags(scores(0.2, 0.22, protocol="second"), "me", "now")
    both = version(folder, scores(0.4, 0.6), **again)
    assert "overall at 1 step" in failing(new, both, asked)
    third = version(folder, scores(0.4, 0.6, protocol="third"), 3)
    assert "protocol digest" in failing(third, both, asked)


@pytest.mark.parametrize(
    ("tag", "names"),
    [
        ("scores", {"overall at 1 step", "overall at 4 steps", "overall at 2 steps"}),
        ("task_scores", {"tasks at 1 step", "tasks at 2 steps", "tasks at 4 steps"}),
        ("latency_p50_s", {"seconds at 1 step"}),
        ("folder_bytes", {"size"}),
        ("card_fields", {"model card"}),
        ("licence", {"licence"}),
    ],
)
def test_a_gate_whose_tag_is_missing_does_not_hold_and_says_which_and_what_to_do(folder, rules, tag, names):
    asked = rule(rules, latency_s={"1": 9.0}, size_mb=99.0, champion__latency_times=2.0)
    old, new = version(folder, scores()), version(folder, scores(), 2, without=[tag])
    table = found(new, old, asked)
    assert names <= {name for name, gate in table.items() if gate.outcome == "unread"}
    for name in names:
        assert f"version 2 has no tag '{tag}'" in table[name].reason
        assert "dvc repro --force --single-item register@small" in table[name].reason
    if tag in ("scores", "task_scores", "latency_p50_s", "folder_bytes"):
        lacking = version(folder, scores(), without=[tag])
        unread = [g for g in gates.gates(version(folder, scores(), 2), lacking, asked, None) if not g.holds]
        assert unread
        assert all(f"version 1 has no tag '{tag}'" in gate.reason for gate in unread)


def test_a_score_that_evaluate_did_not_give_is_named(folder, rules):
    asked = rule(rules, floors={"overal": {"1": 0.2}})
    gate = found(version(folder, scores()), None, asked)["overal at 1 step"]
    assert gate.outcome == "unread"
    assert "not in tag 'scores' of version 1" in gate.reason


def test_tasks_of_the_two_must_be_the_same(folder, rules):
    other = scores()
    for at in other["scores"]["student"].values():
        at["tasks"]["position"] = at["tasks"].pop("counting")
    table = found(version(folder, other, 2), version(folder, scores()), rules)
    assert table["position at 1 step"].value == "not in tag 'task_scores' of version 1"
    assert table["counting at 1 step"].value == "not in tag 'task_scores' of version 2"


def test_licence_and_card_are_held_to_the_lists(folder, rules):
    gate = found(version(folder, scores(), licence="other"), None, rules)["licence"]
    assert (gate.value, gate.holds) == ("other", False)
    assert gate.reason.endswith("(add it in mlflow/promotion.yaml once its terms are agreed to)")
    named = rules.model_copy(update={"licences": [*rules.licences, "NSCL-v2-custom"]})
    assert found(version(folder, scores(), licence="NSCL-v2-custom"), None, named)["licence"].holds
    untold = card.write(dataclasses.replace(student(scores()), trained={}))
    fields = json.dumps(measured.card_fields(untold))
    gate = found(version(folder, scores(), card_fields=fields), None, rules)["model card"]
    assert (gate.value, gate.holds) == ("without Training", False)  # "- not recorded" says nothing


def without_verdicts():
    """Scores of pictures that no judge tells right from wrong."""
    plain = scores(0.30, 0.31, undistilled=0.20)
    for networks in plain["scores"].values():
        for at in networks.values():
            for key in ("overall", "tasks", "seen", "heldout"):
                del at[key]
            at["fid_corpus_clip"] = at.pop("fid_scene_clip")
    return plain


def test_own_folders_are_gated_on_clip_score(folder, rules):
    plain = without_verdicts()
    asked = rules.model_copy(update={"judges": {"none": rules.judges["none"]}})
    assert not failing(version(folder, plain), None, asked)
    assert "clip_score at 1 step" in found(version(folder, plain), None, asked)


def test_a_judge_that_the_policy_does_not_know_is_a_gate_that_cannot_be_read(folder, rules):
    asked = rules.model_copy(update={"judges": {"none": rules.judges["none"]}})
    of_others = found(version(folder, scores()), None, asked)["judge"]
    assert of_others.reason == (
        "judge: scenes, asked one of none (mlflow/promotion.yaml asks nothing of it: add it there)"
    )
    unknown = found(version(folder, scores(), without=["judged_by"]), None, asked)["judge"]
    assert "version 1 has no tag 'judged_by'" in unknown.reason
    assert {of_others.outcome, unknown.outcome} == {"unread"}


def public(one_step, digest="first"):
    """Scores of a student without verdicts of its own, under public GenEval and MJHQ at 1, 2 and 4 steps."""

    def under(found):
        return {steps: {"protocol": {}, "protocol_digest": digest, "pictures": 4, "scores": found} for steps in "124"}

    score = {"value": one_step, "se": 0.02}
    geneval = {"overall": score, "tasks": {"counting": score | {"n": 80}, "position": score | {"n": 80}}}
    mjhq = {"fid": {"value": 7.0, "se": 0.1}, "clip_score": {"value": 28.0, "se": 0.1}, "categories": {}}
    return without_verdicts() | {"protocols": {"geneval": under(geneval), "mjhq": under(mjhq)}}


def test_scores_of_public_protocols_are_gated_as_the_profile_sana_has_them(folder, rules):
    first, worse, better = (version(folder, public(score), i) for i, score in enumerate((0.70, 0.55, 0.72), 1))
    assert not failing(first, None, rules)
    assert failing(worse, None, rules) == {"geneval/overall at 1 step", "geneval/overall at 4 steps"}
    table = found(better, first, rules)
    assert all(gate.holds for gate in table.values())
    assert {"geneval/counting at 2 steps", "mjhq/fid at 4 steps", "mjhq/clip_score at 1 step"} <= set(table)
    asked = rules.model_copy(update={"judges": {"geneval": rules.judges["geneval"].model_copy(update={"floors": {}})}})
    told = {f"geneval/{key} at" for key in ("overall", "counting", "position")}
    assert failing(worse, first, asked) == {f"{key} {k}" for key in told for k in ("1 step", "2 steps", "4 steps")}


def test_public_scores_of_two_protocols_do_not_compare_and_missing_ones_are_named(folder, rules):
    old, new = version(folder, public(0.7)), version(folder, public(0.9, digest="second"), 2)
    failed = {name: gate for name, gate in found(new, old, rules).items() if not gate.holds}
    assert {name.partition("/")[0] for name in failed} == {"geneval", "mjhq"}
    assert failed["geneval/position at 1 step"].reason == (
        "geneval/position at 1 step: protocol digest second, asked first, the champion's "
        "(evaluate both under one file of profiles/protocols)"
    )
    bare = found(version(folder, public(0.7), without=["public_scores"]), None, rules)["geneval/overall at 1 step"]
    assert (bare.outcome, bare.value) == ("unread", "version 1 has no tag 'public_scores'")


def test_a_re_evaluation_leaves_the_public_scores(folder):
    again = scores(0.3, 0.3, protocol="other")
    tags = version(folder, public(0.7)).tags | measured.reevaluation_tags(again, "me", "now")
    assert measured.under(tags, again["protocol_digest"]).score("student", "2", "geneval/overall") == (0.7, 0.02)


def test_the_shipped_policy_compares_every_step_count_that_evaluate_scores(rules):
    for kind, judged in rules.judges.items():
        scored = protocol.STEPS if kind != "geneval" else folder_protocol.load(GENEVAL).drawn.times
        assert judged.champion.steps == [str(steps) for steps in scored]


def test_tasks_in_hundreds_of_captions_go_through_the_tags(folder, rules):
    many = scores()
    for at in many["scores"]["student"].values():
        at["tasks"] = {f"a caption of {'some ' * 9}length, number {n}": {"value": 0.5, "se": 0.1} for n in range(300)}
    tags = measured.detail_tags(many)
    assert sum(key.startswith("task_scores") for key in tags) > 10
    assert max(map(len, tags.values())) <= 5000
    table = found(version(folder, many, 2), version(folder, many), rules)
    assert sum("number" in name for name in table) == 1200
    shorter = tags | measured.detail_tags(scores())  # as when a version is registered again
    assert set(measured.own(shorter).tasks["1"]) == set(TASKS)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("margin_se: 1.0", "margin_sd: 1.0", r"judges\.scenes\.champion\.metrics\.overall\.margin_sd: Extra inputs"),
        ("    size_mb: null\n", "", r"judges\.none\.size_mb: missing"),
        ("better: higher", "better: up", r"metrics\.overall\.better: Input should be 'higher' or 'lower'"),
        (
            "licences: [Apache-2.0, MIT, BSD-3-Clause, CC0-1.0, CC-BY-4.0]",
            "licences: []",
            r"licences: List should have",
        ),
    ],
)
def test_a_fault_of_the_policy_is_named_by_file_and_key(tmp_path, before, after, told):
    text = (ROOT / "mlflow/promotion.yaml").read_text()
    assert before in text
    file = tmp_path / "promotion.yaml"
    file.write_text(text.replace(before, after))
    with pytest.raises(ValueError, match=rf"promotion\.yaml: .*{told}"):
        policy.load(file)
