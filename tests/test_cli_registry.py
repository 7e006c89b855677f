"""The commands that move and check the registry: what they print, what they write as JSON, their exit codes, and their
one line when they cannot. What holds for all commands is in tests/test_cli_faults.py."""

import json

import pytest

from sana_sprint.registry import history, moves, versions
from tests.registry.conftest import NAME, SIZE, Model, evaluation, registered, repository, server
from tests.test_cli import call, parsed, refused

__all__ = ["registered", "repository", "server"]


@pytest.fixture
def model(server, tmp_path):
    """The profile's model of the repository, with versions of small files."""
    (tmp_path / "versions").mkdir()
    return Model(server, NAME, tmp_path / "versions")


def test_promote_prints_every_gate_and_says_why_not(model):
    model.add(evaluation(0.10, 0.50))
    table = call("promote", "--size", SIZE, code=3)
    for part in ("overall at 1 step", ">= 0.220", "fails", "licence", "model card", "files"):
        assert part in table
    line = table.strip().splitlines()[-1]
    assert line == (
        f"refused: {NAME} version 1 is not promoted, there is still no champion: "
        "overall at 1 step: 0.100 ± 0.020, asked >= 0.220"
    )
    assert model.alias() is None


def test_promote_rollback_and_history_go_together(model):
    for score in (0.3, 0.4, 0.5):
        model.add(evaluation(score, 0.6))
        assert f"champion is now version {model.alias('challenger')} (was " in call("promote")
    assert "version 3 is the champion already" in call("promote", NAME, "--version", "3")
    assert "champion is version 1 again (was 3)" in call("rollback", "--size", SIZE, "--steps", "2")
    assert (model.alias(), model.alias("previous")) == ("1", None)
    told = call("history")
    assert f"{NAME}, champion: version 1" in told
    assert told.count("promote") == 3
    assert told.count("rollback") == 1
    assert "is the first champion" in refused("rollback", NAME)
    assert f"{NAME}: 4 entries, 0 faults, head " in call("audit")


def test_dry_run_moves_nothing_and_its_exit_code_tells(model):
    model.add(evaluation(0.3, 0.5))
    assert f"{NAME} version 1 would be promoted (champion now: none)" in call("promote", "--dry-run")
    model.add(evaluation(0.1, 0.5))
    assert "is not promoted" in refused("promote", "--dry-run", code=3)
    assert "is not promoted" in refused("promote", "--dry-run", "--force", "--reason", "x", code=3)
    assert model.alias() is None
    assert parsed("history")[0]["entries"] == []


def test_force_needs_a_reason_and_the_history_keeps_it(model):
    model.add(evaluation(0.1, 0.5))
    assert "--force needs --reason" in refused("promote", "--force")
    assert "--force needs --reason" in refused("promote", "--force", "--reason", " ")
    told = call("promote", "--force", "--reason", "judge was broken")
    assert "by force: overall at 1 step: 0.100" in told
    (entry,) = parsed("history")[0]["entries"]
    assert (entry["forced"], entry["why"]) == (True, "judge was broken")
    assert [gate["name"] for gate in entry["gates"] if not gate["holds"]] == ["overall at 1 step"]
    (row,) = [line.split("│")[1:-1] for line in call("history").splitlines() if "by force" in line]
    held = len(entry["gates"]) - 1
    assert [cell.strip() for cell in row[6:]] == [f"{held} hold, 1 fails", "by force: judge was broken"]
    assert held > 3
    call("promote", "--force", "--reason", "again", "--version", model.add())
    call("rollback")
    *_, last = [line.split("│")[1:-1] for line in call("history").splitlines() if "rollback" in line]
    assert last[6].strip() == ""  # no gates were asked


def test_each_command_prints_one_json(model):
    model.add(evaluation(0.3, 0.5))
    told = parsed("promote")
    assert (told["version"], told["champion_before"], told["holds"], told["promoted"]) == ("1", None, True, True)
    assert {"name", "value", "bound", "outcome", "holds"} <= set(told["gates"][0])
    assert (told["entry"]["entry"], told["entry"]["action"], told["entry"]["to"]) == (1, "promote", "1")
    model.add(evaluation(0.1, 0.5))
    told = parsed("promote", code=3)
    assert (told["holds"], told["promoted"], told["entry"]) == (False, False, None)
    model.add(evaluation(0.4, 0.5))
    parsed("promote")
    told = parsed("rollback", "--to", "1", "--reason", "slow")
    assert (told["champion_before"], told["champion"], told["entry"]["why"]) == ("3", "1", "slow")
    (told,) = parsed("history")
    assert (told["name"], told["champion"], [entry["to"] for entry in told["entries"]]) == (NAME, "1", ["1", "3", "1"])
    (told,) = parsed("audit", "--contains", told["entries"][1]["digest"])
    assert (told["whole"], told["entries"], told["faults"]) == (True, 3, [])


def test_audit_refuses_with_the_entry_that_was_changed(model):
    model.add()
    call("promote")
    model.server.set_model_version_tag(f"{NAME}.history", "1", "entry", "{}")
    assert f"{NAME}: entry 1 was changed: its text has another digest" in refused("audit", code=3)
    (told,) = parsed("audit", code=3)
    assert told["faults"][0]["entry"] == 1
    assert "unreadable: see `sana-sprint audit`" in call("history")


def test_a_digest_is_asked_of_all_histories_of_the_profile_and_an_empty_one_is_refused(model):
    model.add()
    call("promote", NAME)
    model.server.create_registered_model(NAME.replace(SIZE, "base"))  # another size, which has no history yet
    digest = parsed("audit", NAME)[0]["digest"]
    assert [one["whole"] for one in parsed("audit", "--contains", digest[:12])] == [True, True]
    assert "has the digest 0123456789ab" in refused("audit", "--contains", "0123456789ab", code=3)
    assert "--contains is empty" in refused("audit", "--contains", "")


def test_a_model_that_was_deleted_beside_its_history_is_told_by_the_audit(model):
    model.add()
    call("promote", NAME)
    model.server.delete_registered_model(NAME)
    told = refused("audit", code=3)
    assert told == f"refused: {NAME}: the model is deleted, its history {NAME}.history is there"


def test_audit_tells_of_a_move_that_was_left_in_the_middle_and_finishes_it_when_asked(model, monkeypatch):
    for _ in range(2):
        model.add()
    call("promote", "--version", "1")
    chain = history.read(model.server, NAME)
    history.append(model.server, chain, history.content("promote", "1", "2", "left", previous="1", weights={}))
    told = refused("audit", code=3)
    assert "entry 2 was not carried out: the next `promote` or `rollback` finishes it, as does `audit --finish`" in told
    assert model.alias() == "1"
    monkeypatch.setattr(moves, "PATIENCE_S", 0.2)  # the process that left it is this one, which lives
    assert f"{NAME}: 2 entries, 0 faults" in call("audit", "--finish")
    assert (model.alias(), model.alias("previous")) == ("2", "1")


def test_the_events_of_before_there_were_entries_are_listed(model):
    model.add()
    event = {"at": "2026-01-01T00:00:00", "action": "promote", "version": "1", "before": None, "user": "an-old-user"}
    model.server.set_registered_model_tag(NAME, "history.000001", json.dumps(event))
    model.server.set_registered_model_alias(NAME, "champion", "1")
    assert "an-old-user" in call("history")
    assert parsed("history")[0]["earlier"] == [event]
    assert parsed("audit")[0]["whole"]


def test_what_is_not_there_is_named(model):
    model.add()
    assert f"{NAME}: there is no version 9; there are: 1" in refused("promote", "--version", "9")
    assert "no version has the alias 'champion', so there is nothing to roll back" in refused("rollback", NAME)
    assert "no version has the alias 'challenger'" in refused("promote", "--size", "huge")
    assert "give --steps or --to, not both" in refused("rollback", NAME, "--steps", "2", "--to", "1")
    assert "elsewhere.yaml: no such file" in refused("promote", NAME, "--policy", "elsewhere.yaml")
    line = refused("transfer", f"models:/{NAME}@staging", "--to", "sqlite:///other/mlflow.db")
    assert f"models:/{NAME}@staging: no version of {NAME} has the alias 'staging'; there are: 1" in line
    assert "models:/name/number" in refused("transfer", NAME, "--to", "sqlite:///other/mlflow.db")
    assert "so there is none to evaluate again" in refused("promote", NAME, "--reevaluate")


def test_another_protocol_and_missing_metrics_are_told_with_their_remedy(model):
    model.add(evaluation(0.3, 0.5))
    call("promote")
    model.add(evaluation(0.4, 0.5, protocol="second"))
    assert "`--reevaluate` scores the champion under the new protocol" in refused("promote", code=3)
    number = model.add(evaluation(0.4, 0.5))
    model.server.delete_model_version_tag(NAME, number, "task_scores")
    line = refused("promote", code=3)
    assert "tasks at 1 step: version 3 has no tag 'task_scores'" in line
    assert "`dvc repro --force --single-item register@small` writes it" in line


def test_a_champion_whose_files_are_gone_is_told(model):
    model.add(evaluation(0.3, 0.5))
    call("promote")
    (model.place / "0" / versions.PIPELINE / "model_index.json").unlink()
    model.add(evaluation(0.4, 0.5))
    assert f"{NAME} version 1: its files are gone (" in refused("promote", "--reevaluate")
    call("promote")
    assert "version 1 cannot be put back, its files are gone" in refused("rollback")
    assert "entry 1 names version 1, whose files are gone" in refused("audit", code=3)
    (model.place / "1" / versions.PIPELINE / "model_index.json").unlink()
    model.add(evaluation(0.5, 0.6))
    (model.place / "2" / versions.PIPELINE / "model_index.json").unlink()
    assert "files: file:///" in refused("promote", code=3)


def test_a_store_that_is_not_there_is_not_made_by_looking(repository, monkeypatch, tmp_path):
    place = tmp_path / "misspelt/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}")
    for words in (["history"], ["audit"], ["promote"], ["rollback"], ["lineage", f"models:/{NAME}/1"]):
        assert refused(*words).startswith(f"error: {place}: no store there; run `dvc repro` to make it")
    assert not place.parent.exists()


def test_promote_without_models_says_what_to_do(repository):
    assert refused("audit") == "error: none is registered; run `dvc repro` first"
    assert "none is registered; run `dvc repro` first" in refused("promote")


def test_a_real_student_that_registration_made_passes_the_shipped_policy(registered, server):
    registered(evaluation(0.3, 0.5))
    call("promote")
    tags = server.get_model_version(NAME, "1").tags
    assert {"task_scores", "latency_p50_s", "machine", "folder_bytes", "folder_digest", "card_fields"} <= set(tags)
    assert {"license", "Data", "Scores", "Lineage"} <= set(json.loads(tags["card_fields"]))
    assert parsed("audit", "--files")[0]["whole"]
    for tag in ("folder_digest", "task_scores"):
        server.delete_model_version_tag(NAME, "1", tag)  # as of a version from before there were such tags
    registered(evaluation(0.3, 0.5))
    assert server.get_model_version(NAME, "1").tags == tags | {"history_entry.1": tags["history_entry.1"]}


def test_the_models_of_a_profile_whose_name_begins_alike_are_not_meant(repository, server):
    server.create_registered_model(NAME)
    server.create_registered_model("sana-sprint-demo-long-base")
    assert "sana-sprint-demo-long-base" not in call("history")
    assert NAME in call("history")
