"""Promotion, rollback and the aliases: what moves, what does not, and what the history keeps of it."""

import base64
import getpass
import os
import re
import shutil
import socket
from datetime import UTC, datetime

import pytest
import requests

from sana_sprint.registry import audit, digests, history, moves, promote, versions
from tests.registry.conftest import evaluation


def promoted(model, rules, number=None, **options):
    """Promotes a version; returns the verdict."""
    verdict = promote.judge(model.server, model.name, rules, number)
    promote.move(model.server, verdict, **options)
    return verdict


def told(model):
    events = history.read(model.server, model.name).events()
    return [(event["action"], event["from"], event["to"]) for event in events]


def aliases(model):
    return model.alias("champion"), model.alias("previous")


@pytest.fixture
def three(model, rules):
    """A model that has had three champions."""
    for score in (0.40, 0.50, 0.60):
        model.add(evaluation(score, 0.70))
        promoted(model, rules)
    return model


def test_the_first_champion_needs_the_floors(model, rules):
    model.add(evaluation(0.21, 0.50))
    with pytest.raises(
        ValueError, match=r"version 1 is not promoted: overall at 1 step: 0\.210 ± 0\.020, asked >= 0\.220"
    ):
        promoted(model, rules)
    assert (aliases(model), told(model)) == ((None, None), [])
    model.add(evaluation(0.23, 0.50))
    assert promoted(model, rules).holds
    assert aliases(model) == ("2", None)


def test_a_worse_challenger_is_refused_and_the_alias_stays(model, rules):
    model.add(evaluation(0.40, 0.60))
    promoted(model, rules)
    model.add(evaluation(0.36, 0.62))
    with pytest.raises(ValueError, match=r"overall at 1 step: 0\.360"):
        promoted(model, rules)
    assert aliases(model) == ("1", None)
    assert len(told(model)) == 1


def test_a_dry_look_writes_nothing(model, rules):
    model.add()
    verdict = promote.judge(model.server, model.name, rules, look=True)
    assert (verdict.holds, verdict.version, verdict.before) == (True, "1", None)
    assert (aliases(model), told(model)) == ((None, None), [])
    assert not [m for m in model.server.search_registered_models() if m.name == f"{model.name}.history"]


def test_force_promotes_and_the_entry_keeps_the_reason_and_the_gates_that_did_not_hold(model, rules, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
    model.add(evaluation(0.10, 0.50))
    promoted(model, rules, why="the judge was broken", force=True)
    assert aliases(model) == ("1", None)
    entry = history.read(model.server, model.name).last.public()
    assert (entry["user"], entry["why"], entry["forced"]) == ("anna", "the judge was broken", True)
    assert [gate["name"] for gate in entry["gates"] if not gate["holds"]] == ["overall at 1 step"]
    assert entry["weights"] == {"1": model.server.get_model_version(model.name, "1").tags["weights_digest"]}
    model.add(evaluation(0.40, 0.60))
    promoted(model, rules, force=True)
    assert history.read(model.server, model.name).last.public()["forced"] is False


def test_previous_names_where_a_rollback_goes(three):
    assert aliases(three) == ("3", "2")
    for was, now, previous in (("3", "2", "1"), ("2", "1", None)):
        assert promote.rollback(three.server, three.name)[:2] == (was, now)
        assert aliases(three) == (now, previous)
    with pytest.raises(ValueError, match="version 1 is the first champion"):
        promote.rollback(three.server, three.name)


def test_a_version_whose_weights_alone_are_gone_is_not_promoted_nor_put_back(model, rules):
    for number in ("1", "2"):
        model.add(evaluation(0.4 + int(number) / 10, 0.7))
        root = model.place / str(int(number) - 1)
        for key, value in digests.tags(digests.of(root)).items():
            model.tag(number, key, value)
        assert promoted(model, rules)
    (model.place / "0" / versions.PIPELINE / "weights.txt").unlink()
    told = r"no artifacts/pipeline/weights\.txt there"
    with pytest.raises(ValueError, match=rf"version 1 cannot be put back, its files are gone \(.*{told}"):
        promote.rollback(model.server, model.name)
    verdict = promote.judge(model.server, model.name, rules, "1")
    assert re.search(told, next(gate.value for gate in verdict.gates if gate.name == "files"))
    assert not verdict.holds
    assert re.search(told, "; ".join(fault.text for fault in audit.audit(model.server, model.name)[1]))


def test_force_promotes_a_version_whose_judge_is_not_known(model, rules):
    model.add()
    model.server.delete_model_version_tag(model.name, "1", "judged_by")
    verdict = promote.judge(model.server, model.name, rules)
    assert [gate.name for gate in verdict.gates if not gate.holds] == ["judge"]
    entry = promote.move(model.server, verdict, "looked at by hand", force=True)
    assert (entry.content["forced"], model.alias()) == (True, "1")


def test_rollback_walks_back_and_history_keeps_all(three, rules):
    promote.rollback(three.server, three.name)
    promote.rollback(three.server, three.name)
    promoted(three, rules, "3")
    assert promote.rollback(three.server, three.name)[:2] == ("3", "1")
    assert told(three) == [
        ("promote", None, "1"),
        ("promote", "1", "2"),
        ("promote", "2", "3"),
        ("rollback", "3", "2"),
        ("rollback", "2", "1"),
        ("promote", "1", "3"),
        ("rollback", "3", "1"),
    ]


def test_rollback_goes_several_steps_or_to_a_version_in_one_move(three, rules):
    assert promote.rollback(three.server, three.name, steps=2)[:2] == ("3", "1")
    assert aliases(three) == ("1", None)
    with pytest.raises(ValueError, match="version 1 is the first champion"):
        promote.rollback(three.server, three.name, to="3")
    promoted(three, rules, "3")
    three.add(evaluation(0.65, 0.70))
    promoted(three, rules)
    with pytest.raises(ValueError, match=r"3 steps back cannot be gone; champions before version 4: 3, 1"):
        promote.rollback(three.server, three.name, steps=3)
    with pytest.raises(ValueError, match=r"version 2 is no champion before version 4; those are: 3, 1"):
        promote.rollback(three.server, three.name, to="2")
    assert promote.rollback(three.server, three.name, to="1", why="slow")[:2] == ("4", "1")
    assert told(three)[-1] == ("rollback", "4", "1")
    assert history.read(three.server, three.name).last.public()["why"] == "slow"


def test_rollback_passes_over_a_deleted_version_and_refuses_one_without_files(three):
    files = three.place / "1" / versions.PIPELINE
    shutil.move(files, files.with_name("away"))
    with pytest.raises(
        ValueError, match=r"version 2 cannot be put back, its files are gone .*champion stays version 3"
    ):
        promote.rollback(three.server, three.name)
    assert aliases(three) == ("3", "2")
    three.server.delete_model_version(three.name, "2")
    assert promote.rollback(three.server, three.name)[:2] == ("3", "1")


def test_a_champion_set_by_other_hands_gets_an_entry_and_can_be_gone_back_to(model, rules):
    for score in (0.40, 0.50):
        model.add(evaluation(score, 0.70))
    model.server.set_registered_model_alias(model.name, "champion", "1")
    promoted(model, rules)
    assert told(model) == [("found", None, "1"), ("promote", "1", "2")]
    assert promote.rollback(model.server, model.name)[:2] == ("2", "1")
    model.server.set_registered_model_alias(model.name, "champion", "2")
    model.add(evaluation(0.60, 0.70))
    promoted(model, rules)
    assert told(model)[2:] == [("rollback", "2", "1"), ("found", "1", "2"), ("promote", "2", "3")]
    assert aliases(model) == ("3", "2")


def test_an_alias_that_was_taken_off_begins_a_new_line(three, rules):
    three.server.delete_registered_model_alias(three.name, "champion")
    three.add(evaluation(0.30, 0.50, protocol="second"))
    promoted(three, rules)
    assert told(three)[3:] == [("found", "3", None), ("promote", None, "4")]
    assert aliases(three) == ("4", None)
    with pytest.raises(ValueError, match="version 4 is the first champion"):
        promote.rollback(three.server, three.name)


def test_promoting_the_champion_again_changes_nothing(model, rules):
    model.add()
    promoted(model, rules)
    assert promote.move(model.server, promote.judge(model.server, model.name, rules)) is None
    assert told(model) == [("promote", None, "1")]


def test_unknown_models_and_versions_are_named(model, rules):
    with pytest.raises(ValueError, match="no version has the alias 'challenger'"):
        promote.judge(model.server, model.name, rules)
    with pytest.raises(ValueError, match="nobody: no such registered model"):
        history.read(model.server, "nobody")
    with pytest.raises(ValueError, match="no version 9; the model has none"):
        promote.judge(model.server, model.name, rules, "9")
    model.add()
    with pytest.raises(ValueError, match="no version 9; there are: 1"):
        promote.judge(model.server, model.name, rules, "9")
    with pytest.raises(ValueError, match="nothing to roll back"):
        promote.rollback(model.server, model.name)


def test_a_verdict_is_void_once_somebody_else_has_moved_the_champion(three, rules):
    three.add(evaluation(0.60, 0.70))
    mine = promote.judge(three.server, three.name, rules, "4")
    promote.rollback(three.server, three.name, why="slow")
    with pytest.raises(
        history.OvertakenError, match=r"moved the champion meanwhile \(rollback, entry 4 at .*was version 3"
    ):
        promote.move(three.server, mine)
    assert aliases(three) == ("2", "1")
    void = [entry for entry in history.read(three.server, three.name).entries if not entry.valid]
    assert [entry.number for entry in void] == [5]
    tags = three.server.get_model_version(f"{three.name}.history", "5").tags
    assert tags["void"] == "entry 4 came first"
    promoted(three, rules, "4")
    assert history.read(three.server, three.name).last.number == 6


def test_a_verdict_is_void_once_other_hands_have_moved_the_alias(three, rules):
    three.add(evaluation(0.60, 0.70))
    mine = promote.judge(three.server, three.name, rules, "4")
    three.server.set_registered_model_alias(three.name, "champion", "1")
    with pytest.raises(history.OvertakenError, match="moved by other hands meanwhile and is version 1"):
        promote.move(three.server, mine)
    assert len(told(three)) == 3


def test_a_straggler_that_moves_the_aliases_late_leaves_them_where_the_newest_entry_says(three):
    chain = history.read(three.server, three.name)
    moves.carry_out(three.server, chain, chain.entries[1])
    assert aliases(three) == ("3", "2")


@pytest.mark.parametrize("at", ["champion", "previous", "mark"])
def test_a_move_whose_process_died_in_the_middle_is_finished_by_the_next_command(three, rules, monkeypatch, at):
    """The process dies after the entry, after the first alias, or after the second: here it is an exception that
    nothing catches; tests/registry/test_race.py kills a real process."""
    three.add(evaluation(0.60, 0.70))
    verdict = promote.judge(three.server, three.name, rules)
    name = "set_model_version_tag" if at == "mark" else "set_registered_model_alias"
    original = getattr(type(three.server), name)

    def dies(self, model, key, value, *rest):
        if at in ("mark", key):
            raise KeyboardInterrupt
        return original(self, model, key, value, *rest)

    monkeypatch.setattr(type(three.server), name, dies)
    with pytest.raises(KeyboardInterrupt):
        promote.move(three.server, verdict)
    monkeypatch.undo()
    monkeypatch.setattr(moves, "PATIENCE_S", 0.5)  # this process lives, so it is waited for
    assert not moves.done(three.server, three.name, history.read(three.server, three.name).last)
    assert promote.judge(three.server, three.name, rules).before == "4"
    assert aliases(three) == ("4", "3")
    assert moves.done(three.server, three.name, history.read(three.server, three.name).last)
    assert len(told(three)) == 4


def test_an_entry_tells_when_it_was_made(model, rules):
    before = datetime.now(UTC).replace(microsecond=0)
    model.add()
    promoted(model, rules)
    (entry,) = history.read(model.server, model.name).entries
    assert before <= datetime.fromisoformat(entry.content["at"]) <= datetime.now(UTC)


def test_who_moves_the_champion_is_whom_mlflow_logs_in(model, rules, tmp_path, monkeypatch):
    """A member who keeps the password in MLflow's own file stands in the history; the variable goes first."""
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert history.who() == f"{getpass.getuser()}@{socket.gethostname()}"
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow/credentials").write_text("[mlflow]\nmlflow_tracking_username = ada\n")
    model.add()
    promoted(model, rules)
    assert history.read(model.server, model.name).last.content["user"] == "ada"
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ben")
    assert history.who() == "ben"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://cora%40home:a-password@mlflow.example:5000")
    asked = requests.Request("GET", os.environ["MLFLOW_TRACKING_URI"], headers={"Authorization": "Basic of ben"})
    user, _ = base64.b64decode(asked.prepare().headers["Authorization"].removeprefix("Basic ")).decode().split(":")
    assert history.who() == user == "cora@home"
