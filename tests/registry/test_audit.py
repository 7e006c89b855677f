"""The audit finds every change to the history, by name of the entry, whichever way it was made: through the client, in
the database, or by moving an alias."""

import hashlib
import json
import shutil
import sqlite3

import pytest

from sana_sprint.registry import audit, history, promote, versions
from tests.registry.conftest import Model, evaluation
from tests.registry.test_promote import promoted

ENTRIES = 4


@pytest.fixture(scope="module")
def story(shared, rules, tmp_path_factory):
    """A model whose history has four entries, three promotions and a rollback; with the database as it was then."""
    model = Model(shared, "story", tmp_path_factory.mktemp("versions"))
    for score in (0.40, 0.50, 0.60):
        model.add(evaluation(score, 0.70))
        promoted(model, rules)
    promote.rollback(model.server, model.name)
    kept = tmp_path_factory.mktemp("kept")
    shutil.copytree(model.place, kept / "versions")
    with opened(model) as database, sqlite3.connect(kept / "mlflow.db") as copy:
        database.backup(copy)
    return model, kept


@pytest.fixture
def told(story):
    """The story, told anew for each test."""
    model, kept = story
    with sqlite3.connect(kept / "mlflow.db") as copy, opened(model) as database:
        copy.backup(database)
    shutil.rmtree(model.place)
    shutil.copytree(kept / "versions", model.place)
    return model


def opened(model):
    return sqlite3.connect(model.server.tracking_uri.removeprefix("sqlite:///"))


def faults(model, **options):
    return [(fault.entry, fault.text) for fault in audit.audit(model.server, model.name, **options)[1]]


def entries(model):
    return {fault[0] for fault in faults(model)}


def rewritten(model, number, **changes):
    """The tags of an entry with other content, and a digest that fits it."""
    entry = history.read(model.server, model.name).entries[number - 1]
    text = json.dumps(entry.content | changes, sort_keys=True, separators=(",", ":"))
    return {"entry": text, "digest": hashlib.sha256(text.encode()).hexdigest()}


def write(model, number, tags):
    for key, value in tags.items():
        model.server.set_model_version_tag(f"{model.name}.history", str(number), key, value)


def database(model, query, *values):
    with opened(model) as connection:
        assert connection.execute(query, values).rowcount > 0


def test_a_whole_history_has_no_faults(told):
    assert faults(told, files=True) == []
    chain = history.read(told.server, told.name)
    assert [entry.number for entry in chain.entries] == [1, 2, 3, 4]
    assert [list(entry.after) for entry in chain.entries] == [[], [1], [2], [3]]


@pytest.mark.parametrize("number", range(1, ENTRIES + 1))
def test_a_changed_word_is_found_in_its_entry(told, number):
    write(told, number, {"entry": rewritten(told, number, user="nobody")["entry"]})
    assert entries(told) == {number}
    assert "its text has another digest than its own digest" in faults(told)[0][1]


@pytest.mark.parametrize("number", range(1, ENTRIES + 1))
def test_a_changed_word_with_a_digest_that_fits_is_found_in_its_entry(told, number):
    before = history.read(told.server, told.name).entries[number - 1].content
    write(told, number, rewritten(told, number, user="nobody"))
    told.server.update_model_version(f"{told.name}.history", str(number), history.line(before | {"user": "nobody"}))
    assert entries(told) == {number}
    witness = f"entry {number + 1}" if number < ENTRIES else "became champion by one with another digest"
    assert any(witness in text for _, text in faults(told))


def test_another_champion_in_an_entry_is_found_in_it_alone(told):
    write(told, 2, rewritten(told, 2, to="3"))
    assert entries(told) == {2}


def test_a_change_in_the_database_is_found(told):
    query = (
        "update model_version_tags set value = replace(value, ?, ?) where name = ? and key = 'entry' and version = 2"
    )
    database(told, query, '"user":"', '"user":"x', f"{told.name}.history")
    assert entries(told) == {2}


def test_a_changed_description_is_found(told):
    told.server.update_model_version(f"{told.name}.history", "3", "promote 2 -> 3, by somebody else: no reason")
    assert [(entry, "its description is not what it says" in text) for entry, text in faults(told)] == [(3, True)]


@pytest.mark.parametrize("number", range(1, ENTRIES + 1))
def test_an_entry_that_is_taken_out_is_found(told, number):
    told.server.delete_model_version(f"{told.name}.history", str(number))
    assert (number, "is gone") in [(entry, text[:7]) for entry, text in faults(told)]
    assert entries(told) - {None} == {number}


@pytest.mark.parametrize("number", [2, ENTRIES])
def test_an_entry_that_is_taken_out_of_the_database_is_found_also_once_its_number_is_given_again(told, rules, number):
    for table in ("model_version_tags", "model_versions"):
        database(told, f"delete from {table} where name = ? and version = ?", f"{told.name}.history", number)
    assert number in entries(told)
    told.add(evaluation(0.60, 0.70))
    promoted(told, rules)  # takes the number of the last one
    assert number in entries(told)


def test_an_alias_that_other_hands_moved_is_found_and_the_next_move_tells_it(told, rules):
    told.server.set_registered_model_alias(told.name, "champion", "3")
    said = "alias 'champion' is at version 3, the last entry, 4, says 2: it was moved by other hands"
    assert faults(told) == [(None, said)]
    told.server.set_registered_model_alias(told.name, "champion", "2")
    told.server.delete_registered_model_alias(told.name, "previous")
    (fault,) = faults(told)
    assert fault[1].startswith("alias 'previous' is at version None, the last entry, 4, says 1")
    told.server.set_registered_model_alias(told.name, "champion", "3")
    told.add(evaluation(0.60, 0.70))
    promoted(told, rules)
    assert faults(told) == []
    assert [entry.content["action"] for entry in history.read(told.server, told.name).entries][-2:] == [
        "found",
        "promote",
    ]


def test_a_version_with_other_weights_or_none_is_found(told):
    told.tag("3", "weights_digest", "0" * 64)
    assert [(entry, "names version 3 with the weights" in text) for entry, text in faults(told)] == [(3, True)]


def test_a_deleted_version_is_found(told):
    told.server.delete_model_version(told.name, "1")
    assert faults(told) == [(1, "names version 1, which is deleted")]


def test_files_that_are_gone_or_changed_are_found(told):
    (told.place / "0" / versions.PIPELINE / "weights.txt").write_text("others")
    assert faults(told) == []
    assert [(entry, "names version 1, whose files are" in text) for entry, text in faults(told, files=True)] == [
        (1, True)
    ]
    shutil.rmtree(told.place / "1" / versions.PIPELINE)
    assert [(entry, "names version 2, whose files are gone" in text) for entry, text in faults(told)] == [(2, True)]


def test_a_mark_that_is_taken_off_is_found(told):
    told.server.delete_model_version_tag(told.name, "1", "history_entry.1")
    assert [(entry, "was not carried out, or its mark was taken" in text) for entry, text in faults(told)] == [
        (1, True)
    ]
    told.server.delete_model_version_tag(told.name, "2", "history_entry.4")
    assert (4, "was not carried out: the next") in [(entry, text[:29]) for entry, text in faults(told)]


def test_a_whole_history_that_is_thrown_away_is_found_by_its_marks(told):
    told.server.delete_registered_model(f"{told.name}.history")
    assert {1, 2, 3, 4} <= entries(told)


def test_events_from_before_there_were_entries_are_kept_and_sealed(model, rules):
    model.add()
    model.add(evaluation(0.45, 0.65))
    model.server.set_registered_model_alias(model.name, "champion", "2")
    for number, (before, version) in enumerate([(None, "1"), ("1", "2")], 1):
        event = {"at": "2026-01-01", "action": "promote", "version": version, "before": before, "user": "old"}
        model.server.set_registered_model_tag(model.name, f"history.{number:06d}", json.dumps(event))
    assert faults(model) == []
    assert promote.rollback(model.server, model.name)[:2] == ("2", "1")
    assert faults(model) == []
    chain = history.read(model.server, model.name)
    assert [event["user"] for event in chain.earlier] == ["old", "old"]
    assert len(chain.entries) == 1
    model.server.set_registered_model_tag(model.name, "history.000001", json.dumps(event | {"user": "new"}))
    assert [(entry, "history before it" in text) for entry, text in faults(model)] == [(1, True)]


def test_an_entry_longer_than_a_tag_is_kept_and_checked_whole(model, rules):
    model.add()
    promoted(model, rules, why="because " * 3000)
    tags = model.server.get_model_version(f"{model.name}.history", "1").tags
    assert {"entry", "entry.1", "entry.5"} <= set(tags)
    assert faults(model) == []
    write(model, 1, {"entry.3": tags["entry.3"].replace("because", "Because", 1)})
    assert entries(model) == {1}
