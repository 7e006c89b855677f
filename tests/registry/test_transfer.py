"""Transfer: a version arrives in another registry whole or not at all, once, with what it was and whence it came."""

import json
import os
import shutil
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from sana_sprint import storage
from sana_sprint.registry import ancestry, audit, history, packed, promote, store, transfer, versions
from tests.registry.conftest import NAME, Model, evaluation
from tests.registry.test_promote import promoted
from tests.test_cli import call, refused
from tests.test_cli_registry import parsed


def sqlite_store(empty_store, place):
    place.mkdir()
    shutil.copy(empty_store, place / "mlflow.db")
    return store.client(f"sqlite:///{place}/mlflow.db")


@pytest.fixture
def other(tmp_path, empty_store):
    """A second sqlite store."""
    return sqlite_store(empty_store, tmp_path / "other")


def two(model, rules):
    """A model with two champions and a rollback."""
    for score in (0.40, 0.50):
        model.add(evaluation(score, 0.70), profile="demo", run_prepare="a-run-of-here")
        promoted(model, rules)
    promote.rollback(model.server, model.name)
    return model


def test_a_version_arrives_with_its_files_card_lineage_scores_and_past(model, other, rules):
    two(model, rules)
    told = transfer.transfer(model.server, f"models:/{model.name}/2", other.tracking_uri)
    assert (told["new"], told["entries"]) == (True, 2)
    here = model.server.get_model_version(model.name, "2")
    there = other.get_model_version(model.name, "1")
    folder = versions.fetched(other, there)
    assert storage.digest(folder) == storage.digest(versions.fetched(model.server, here))
    assert (folder / versions.PIPELINE / "README.md").read_text().startswith("---\nlicense: apache-2.0")
    same = {key for key in here.tags if not key.startswith("history_entry.")}
    assert {key: there.tags[key] for key in same} == {key: here.tags[key] for key in same}
    assert not [key for key in there.tags if key.startswith("history_entry.")]
    past = packed.unpack(there.tags, "transferred.past")
    assert [(entry["entry"], entry["action"], entry["to"]) for entry in past] == [
        (2, "promote", "2"),
        (3, "rollback", "1"),
    ]
    digests = [entry.digest for entry in history.read(model.server, model.name).entries]
    assert [entry["digest"] for entry in past] == digests[1:]
    (came,) = packed.unpack(there.tags, "transferred.from")
    assert came["version"] == f"models:/{model.name}/2"
    assert versions.version_of(other, model.name, "challenger").version == there.version
    assert versions.version_of(other, model.name, "champion") is None


def test_a_transfer_leaves_the_store_of_this_process_as_it_was_named(model, other, rules, monkeypatch):
    """In the environment, whatever MLflow was told earlier in this process."""
    two(model, rules)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("sqlite:///told-earlier.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", model.server.tracking_uri)
    transfer.transfer(model.server, f"models:/{model.name}/1", other.tracking_uri)
    assert os.environ["MLFLOW_TRACKING_URI"] == model.server.tracking_uri
    assert mlflow.get_tracking_uri() == "sqlite:///told-earlier.db"
    mlflow.set_tracking_uri(before)


def test_what_is_there_already_is_not_copied_again(model, other, rules):
    two(model, rules)
    first = transfer.transfer(model.server, f"models:/{model.name}@champion", other.tracking_uri)
    count = len(other.search_logged_models(["0", other.get_experiment_by_name("sana-sprint-demo").experiment_id]))
    promoted(model, rules, "2")
    again = transfer.transfer(model.server, f"models:/{model.name}/1", other.tracking_uri)
    assert (first["new"], again["new"], again["to"]["version"]) == (True, False, first["to"]["version"])
    assert count == 1
    assert len(other.search_logged_models([other.get_experiment_by_name("sana-sprint-demo").experiment_id])) == 1
    assert len(packed.unpack(other.get_model_version(model.name, "1").tags, "transferred.past")) == 4
    assert transfer.transfer(model.server, f"models:/{model.name}/2", other.tracking_uri)["to"]["version"] == "2"


def test_over_two_hops_every_registry_s_history_and_name_goes_along(model, other, rules, tmp_path, empty_store):
    """dev -> staging -> prod, and prod hears of dev again from dev itself."""
    dev, prod = two(model, rules).server, sqlite_store(empty_store, tmp_path / "prod")
    run_id = dev.create_run("0", run_name="01 prepare", tags={"mlflow.parentRunId": "a command"}).info.run_id
    dev.log_param(run_id, "prepare.seed", "7")
    dev.set_terminated(run_id)
    dev.set_model_version_tag(model.name, "2", "run_prepare", run_id)
    transfer.transfer(dev, f"models:/{model.name}/2", other.tracking_uri)
    promote.move(other, promote.judge(other, model.name, rules))
    told = transfer.transfer(other, f"models:/{model.name}@champion", prod.tracking_uri)
    assert (told["new"], told["entries"]) == (True, 3)

    def known():
        tags = prod.get_model_version(model.name, "1").tags
        return transfer.listed(tags, "transferred.from"), transfer.listed(tags, "transferred.past")

    origins, past = known()
    stores = [dev.tracking_uri, other.tracking_uri]
    assert [(one["store"], one["version"][-2:]) for one in origins] == [(stores[0], "/2"), (stores[1], "/1")]
    assert [(event["store"], event["action"], event["to"]) for event in past] == [
        (stores[0], "promote", "2"),
        (stores[0], "rollback", "1"),
        (stores[1], "promote", "1"),
    ]
    came = ancestry.of_version(prod, prod.get_model_version(model.name, "1"))
    assert came["transferred"] == {"from": origins, "past": past}
    runs = ancestry.of_version(dev, dev.get_model_version(model.name, "2"))["runs"]
    assert (runs["prepare"]["name"], runs["prepare"]["params"]) == ("01 prepare", {"prepare.seed": 7})
    assert came["runs"] == runs  # told by dev, whose runs prod does not have
    words = ancestry.in_words(came)["transferred"]
    assert words["from"]["1"].startswith(f"models:/{model.name}/2 of {stores[0]}, by ")
    assert words["moves"]["2"].startswith(f"rollback 2 -> 1 in {stores[0]}, by ")
    assert words["moves"]["3"].endswith("(entry 1 there)")
    entries = [*history.read(dev, model.name).entries[1:], *history.read(other, model.name).entries]
    assert [event["digest"] for event in past] == [entry.digest for entry in entries]
    transfer.transfer(dev, f"models:/{model.name}/2", prod.tracking_uri)
    assert known() == (origins, past)


def test_moves_from_before_there_were_entries_or_two_hops_are_told_too():
    event = {"action": "promote", "from": None, "to": "1", "user": "ann", "at": "2026-01-01"}
    told = {"runs": {}, "made_on": {}, "transferred": {"from": [], "past": [event]}}
    line = "promote none -> 1 in unknown, by ann, 2026-01-01 (before there were entries)"
    assert ancestry.in_words(told)["transferred"]["moves"] == {"1": line}


def test_the_gates_of_the_other_registry_judge_it_and_its_history_is_its_own(model, other, rules):
    two(model, rules)
    transfer.transfer(model.server, f"models:/{model.name}/1", other.tracking_uri, name="in-production")
    verdict = promote.judge(other, "in-production", rules)
    promote.move(other, verdict)
    transfer.transfer(model.server, f"models:/{model.name}/2", other.tracking_uri, name="in-production")
    verdict = promote.judge(other, "in-production", rules)
    assert verdict.holds
    assert {gate.name for gate in verdict.gates} > {"counting at 2 steps", "size"}
    promote.move(other, verdict)
    assert audit.audit(other, "in-production", files=True)[1] == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"alias": "champion"}, "a transfer does not set 'champion'"),
        ({"alias": "previous"}, "a transfer does not set 'previous'"),
        ({"name": "x.history"}, r"--name 'x\.history': .* ends the names of histories"),
        ({"name": "a/b"}, "--name 'a/b': no name of a registered model"),
    ],
    ids=["champion", "previous", "a history", "a path"],
)
def test_what_would_break_the_other_registry_is_refused_before_it_is_spoken_to(model, tmp_path, options, told):
    model.add()
    place = tmp_path / "other/mlflow.db"
    with pytest.raises(ValueError, match=told):
        transfer.transfer(model.server, f"models:/{model.name}/1", f"sqlite:///{place}", **options)
    assert not place.parent.exists()


def test_files_that_were_changed_here_are_not_copied(model, other, rules):
    two(model, rules)
    (model.place / "0" / versions.PIPELINE / "weights.txt").write_text("others")
    with pytest.raises(ValueError, match=r"version 1: its files .* have the digest .*so nothing was copied"):
        transfer.transfer(model.server, f"models:/{model.name}/1", other.tracking_uri)
    shutil.rmtree(model.place / "1")
    with pytest.raises(ValueError, match=r"version 2: its files are gone"):
        transfer.transfer(model.server, f"models:/{model.name}/2", other.tracking_uri)
    assert versions.every(other, model.name) == []


def test_files_that_arrive_otherwise_make_no_version(model, other, rules, monkeypatch):
    """The disk of the other store spoils a file after it was sent."""
    two(model, rules)
    finalize = type(other).finalize_logged_model

    def spoils(self, model_id, status):
        place = Path(self.get_logged_model(model_id).artifact_location.removeprefix("file://"))
        (place / versions.PIPELINE / "weights.txt").write_text("spoilt")
        return finalize(self, model_id, status)

    monkeypatch.setattr(type(other), "finalize_logged_model", spoils)
    with pytest.raises(ValueError, match="are not those that were sent; no version was made"):
        transfer.transfer(model.server, f"models:/{model.name}/1", other.tracking_uri)
    monkeypatch.undo()
    assert versions.every(other, model.name) == []
    assert transfer.transfer(model.server, f"models:/{model.name}/1", other.tracking_uri)["new"]


@pytest.mark.parametrize("fault", ["changed", "a link", "gone"])
def test_what_is_there_already_and_is_not_whole_is_told(model, other, rules, fault):
    two(model, rules)
    uri = f"models:/{model.name}/1"
    transfer.transfer(model.server, uri, other.tracking_uri)
    before = other.get_model_version(model.name, "1").tags
    folder = versions.fetched(other, other.get_model_version(model.name, "1"))
    if fault == "gone":
        shutil.rmtree(folder)
    else:
        weights = folder / versions.PIPELINE / "weights.txt"
        weights.write_text("others")
    if fault == "a link":
        shutil.copy(model.place / "0" / versions.PIPELINE / "weights.txt", folder.parent / "elsewhere")
        weights.unlink()
        weights.symlink_to(folder.parent / "elsewhere")
    words = {"changed": "are not as they were registered", "a link": "weights.txt: a link to ", "gone": "are gone"}
    told = f"version 1.*{words[fault]}.*the version of sqlite:.*other/mlflow.db with .*: delete it there and transfer"
    with pytest.raises(ValueError, match=told):
        transfer.transfer(model.server, uri, other.tracking_uri)
    assert other.get_model_version(model.name, "1").tags == before
    other.delete_model_version(model.name, "1")
    again = transfer.transfer(model.server, uri, other.tracking_uri)
    assert (again["new"], again["to"]["version"]) == (True, "2")


def test_a_file_that_is_too_big_is_refused_before_anything_is_fetched(team_server, anna, tmp_path, monkeypatch):
    (tmp_path / "versions").mkdir()
    big = Model(store.client(team_server), f"big-{tmp_path.name}", tmp_path / "versions")
    version = big.server.get_model_version(big.name, big.add(weights="w" * 2_000_000))
    assert (versions.fetched(big.server, version, tmp_path / "whole") / versions.PIPELINE / "weights.txt").is_file()
    monkeypatch.setenv("SANA_SPRINT_MODEL_FILE_MAX_MB", "1")
    told = (
        rf"{big.name} version 1 is refused: {versions.PIPELINE}/weights.txt: 2 MB, over SANA_SPRINT_MODEL_FILE_MAX_MB"
    )
    with pytest.raises(ValueError, match=told):
        versions.fetched(big.server, version, tmp_path / "refused")
    assert list((tmp_path / "refused").iterdir()) == []


def test_a_version_from_before_there_were_digests_is_refused_by_name(model, other):
    model.add()
    model.server.delete_model_version_tag(model.name, "1", "weights_digest")
    with pytest.raises(ValueError, match=r"version 1 has no tag 'weights_digest'"):
        transfer.transfer(model.server, f"models:/{model.name}/1", other.tracking_uri)


def test_a_real_student_goes_to_a_real_server_and_draws_there(
    registered, server, team_server, anna, tmp_path, monkeypatch
):
    """From the repository's sqlite store to a server with users, by the console."""
    registered(evaluation(0.3, 0.5))
    call("promote")
    uri, name = f"models:/{NAME}@champion", f"prod-{tmp_path.name}"
    told = parsed("transfer", uri, "--to", team_server, "--name", name)
    assert (told["new"], told["to"]["version"], told["to"]["store"]) == (True, "1", team_server)
    said = call("transfer", uri, "--to", team_server, "--name", name)
    assert f"is there already: {name} version 1 in {team_server}, alias challenger" in said
    there = store.client(team_server)
    assert versions.fault(there, there.get_model_version(name, "1")) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.tracking_uri())  # set_tracking_uri writes it
    mlflow.set_tracking_uri(team_server)
    loaded = mlflow.pyfunc.load_model(f"models:/{name}@challenger")
    drawn = loaded.predict(pd.DataFrame({"prompt": ["a red circle"]}), params={"steps": 1})
    mlflow.set_tracking_uri(server.tracking_uri)
    here = mlflow.pyfunc.load_model(uri).predict(pd.DataFrame({"prompt": ["a red circle"]}), params={"steps": 1})
    assert drawn["png"][0] == here["png"][0]
    back = parsed("transfer", uri, "--to", team_server, "--name", name)
    assert json.loads(there.get_model_version(name, "1").tags["transferred.from"])[0]["by"] == "anna"
    assert back["weights_digest"] == server.get_model_version(NAME, "1").tags["weights_digest"]
    assert "cannot be used" in refused("transfer", uri, "--to", "http://127.0.0.1:9")
    monkeypatch.setenv("SANA_SPRINT_TARGET_USERNAME", "anna")
    monkeypatch.setenv("SANA_SPRINT_TARGET_PASSWORD", "a wrong one")
    store.client.cache_clear()
    told = refused("transfer", uri, "--to", team_server, "--name", name)
    assert told.endswith("set SANA_SPRINT_TARGET_USERNAME and SANA_SPRINT_TARGET_PASSWORD to a user who may")


def test_a_move_of_the_past_that_was_changed_on_the_way_is_found_by_the_audit_there(model, other, rules):
    two(model, rules)
    transfer.transfer(model.server, f"models:/{model.name}/1", other.tracking_uri)
    assert audit.audit(other, model.name)[1] == []
    past = packed.unpack(other.get_model_version(model.name, "1").tags, "transferred.past")
    past[0]["user"] = "nobody"
    for key, value in packed.pack("transferred.past", past).items():
        other.set_model_version_tag(model.name, "1", key, value)
    (fault,) = audit.audit(other, model.name)[1]
    assert fault.text.startswith(f"version 1 tells of entry {past[0]['entry']} of sqlite:///")
