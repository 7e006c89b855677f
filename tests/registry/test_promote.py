"""Promotion: floors for the first champion, margins against the next, one protocol, rollback and history."""

import json

import pytest

from sana_sprint import storage
from sana_sprint.registry import promote
from tests.registry.conftest import NAME, evaluation


@pytest.fixture
def rules(repository):
    return promote.policy(repository / "mlflow/promotion.yaml")


def champion(server):
    found = promote.version_of(server, NAME, promote.CHAMPION)
    return found and str(found.version)


def test_the_first_champion_needs_the_floors(registered, server, rules):
    registered(evaluation(0.21, 0.50))
    refused = promote.promote(server, NAME, rules)
    assert not refused.holds
    assert refused.reasons == "overall at 1 step: 0.210 ± 0.020, asked >= 0.220"
    assert champion(server) is None
    registered(evaluation(0.23, 0.50), weights="second")
    assert promote.promote(server, NAME, rules).holds
    assert champion(server) == "2"


def test_a_worse_challenger_is_refused_and_the_alias_stays(registered, server, rules):
    registered(evaluation(0.40, 0.60))
    promote.promote(server, NAME, rules)
    registered(evaluation(0.36, 0.62), weights="second")
    refused = promote.promote(server, NAME, rules)
    assert not refused.holds
    assert "overall at 1 step: 0.360" in refused.reasons
    assert champion(server) == "1"
    assert len(promote.history(server, NAME)) == 1


def test_the_margin_is_standard_errors_of_the_difference(registered, server, rules):
    registered(evaluation(0.40, 0.60))
    promote.promote(server, NAME, rules)
    registered(evaluation(0.373, 0.60), weights="second")  # 0.40 - sqrt(2) * 0.02 = 0.3717
    assert promote.promote(server, NAME, rules).holds
    registered(evaluation(0.344, 0.60), weights="third")  # 0.373 - sqrt(2) * 0.02 = 0.3447
    assert not promote.promote(server, NAME, rules).holds
    assert champion(server) == "2"


def test_another_protocol_is_refused(registered, server, rules):
    registered(evaluation(0.40, 0.60))
    promote.promote(server, NAME, rules)
    registered(evaluation(0.60, 0.80, protocol="second"), weights="second")
    refused = promote.promote(server, NAME, rules)
    assert "protocol digest" in refused.reasons
    assert champion(server) == "1"


def test_a_student_that_does_not_beat_the_undistilled_is_refused(registered, server, rules):
    registered(evaluation(0.40, 0.60, undistilled=0.41))
    assert "undistilled" in promote.promote(server, NAME, rules).reasons
    assert champion(server) is None


def test_own_folders_are_gated_on_clip_score(registered, server, rules):
    scores = evaluation(0.30, 0.31, undistilled=0.20)
    for networks in scores["scores"].values():
        for at in networks.values():
            for key in ("overall", "tasks", "seen", "heldout"):
                del at[key]
    registered(scores)
    verdict = promote.promote(server, NAME, rules)
    assert verdict.holds
    assert [gate.name for gate in verdict.gates] == ["clip_score at 1 step"]


def test_rollback_walks_back_step_by_step_and_history_keeps_all(registered, server, rules):
    for number, score in enumerate((0.40, 0.50, 0.60), start=1):
        registered(evaluation(score, 0.70), weights=str(number))
        assert promote.promote(server, NAME, rules).holds
    assert promote.rollback(server, NAME) == ("3", "2")
    assert promote.rollback(server, NAME) == ("2", "1")
    assert champion(server) == "1"
    with pytest.raises(ValueError, match="version 1 is the first champion"):
        promote.rollback(server, NAME)
    assert promote.promote(server, NAME, rules).holds
    assert promote.rollback(server, NAME) == ("3", "1")
    told = [(event["action"], event["before"], event["version"]) for event in promote.history(server, NAME)]
    assert told == [
        ("promote", None, "1"),
        ("promote", "1", "2"),
        ("promote", "2", "3"),
        ("rollback", "3", "2"),
        ("rollback", "2", "1"),
        ("promote", "1", "3"),
        ("rollback", "3", "1"),
    ]


def test_rollback_returns_to_a_champion_set_by_other_hands(registered, server, rules):
    for number, score in enumerate((0.40, 0.50), start=1):
        registered(evaluation(score, 0.70), weights=str(number))
    server.set_registered_model_alias(NAME, promote.CHAMPION, "1")
    promote.promote(server, NAME, rules)
    assert promote.rollback(server, NAME) == ("2", "1")


def test_rollback_passes_over_a_deleted_version(registered, server, rules):
    for number, score in enumerate((0.40, 0.50, 0.60), start=1):
        registered(evaluation(score, 0.70), weights=str(number))
        promote.promote(server, NAME, rules)
    server.delete_model_version(NAME, "2")
    assert promote.rollback(server, NAME) == ("3", "1")


def test_promoting_the_champion_again_changes_nothing(registered, server, rules):
    registered(evaluation(0.40, 0.60))
    promote.promote(server, NAME, rules)
    again = promote.promote(server, NAME, rules)
    assert again.holds
    assert again.before == again.version == "1"
    assert len(promote.history(server, NAME)) == 1


def test_unknown_models_and_versions_are_named(registered, server, rules):
    with pytest.raises(ValueError, match="no version has the alias 'challenger'"):
        promote.promote(server, "sana-sprint-demo-huge", rules)
    with pytest.raises(ValueError, match="no such registered model"):
        promote.history(server, "sana-sprint-demo-huge")
    registered(evaluation(0.40, 0.60))
    with pytest.raises(ValueError, match="no version 9"):
        promote.promote(server, NAME, rules, "9")
    with pytest.raises(ValueError, match="nothing to roll back"):
        promote.rollback(server, NAME)


def test_a_misspelt_key_of_the_policy_is_named(repository):
    file = repository / "mlflow/promotion.yaml"
    file.write_text(file.read_text().replace("margin_se", "margin_sd"))
    with pytest.raises(ValueError, match=r"promotion\.yaml: .*champion\.margin_sd: Extra inputs"):
        promote.policy(file)


def test_scores_stay_within_a_tag(registered, server):
    registered(evaluation(0.123456789, 0.987654321))
    assert json.loads(server.get_model_version(NAME, "1").tags["scores"])["teacher"]["20"]["overall"] == [
        0.7,
        0.02,
    ]
    assert server.get_model_version(NAME, "1").tags["protocol_digest"] == storage.digest_of("first")
