"""A version goes to a registry with users and keys of its own: each side is spoken to as its own user."""

import os
import re

import pytest

from sana_sprint.registry import store, target
from tests.registry.conftest import Model
from tests.test_cli import refused
from tests.test_cli_registry import parsed

pytestmark = pytest.mark.e2e
NAME = "from-ada"


@pytest.fixture(scope="module")
def words(team, tmp_path_factory):
    """The command that transfers ada's version to the same server, as another registry would be named."""
    with team.member("ada"):
        Model(store.client(team.uri), NAME, tmp_path_factory.mktemp("versions")).add()
    return ["transfer", f"models:/{NAME}/1", "--to", team.uri, "--name"]


@pytest.fixture
def as_ben(team, monkeypatch):
    """Makes ben, who may write, the target's user."""
    for plain, name in target.VARIABLES.items():
        monkeypatch.setenv(name, team.client("ben")[plain])


def test_a_reader_here_who_is_a_writer_there_transfers(team, words, as_ben):
    """cleo's own key writes nothing to the bucket, and cleo no version to ben's model."""
    with team.member("ben"):
        store.client(team.uri).create_registered_model("of-ben")
    with team.member("cleo"):
        before = {name: os.environ[name] for name in target.VARIABLES}
        told = parsed(*words, "of-ben")
        assert {name: os.environ[name] for name in target.VARIABLES} == before
    assert (told["new"], told["to"]["version"]) == (True, "1")
    (place,) = team.postgres.rows("select storage_location from model_versions where name = 'of-ben'")[0]
    assert (team.buckets / place.removeprefix("s3://") / "artifacts/pipeline/weights.txt").read_text() == "weights 0"


def test_who_is_not_let_in_there_is_told_in_one_line_with_the_targets_variables(team, words, as_ben, monkeypatch):
    faults = {
        target.PASSWORD: r"\(401, not authenticated\): user or password is wrong: set SANA_SPRINT_TARGET_USERNAME and "
        "SANA_SPRINT_TARGET_PASSWORD to a user who may",
        target.KEY: r"object store of \S+ cannot be used \(.*SANA_SPRINT_TARGET_S3_ENDPOINT_URL, "
        "SANA_SPRINT_TARGET_AWS_ACCESS_KEY_ID and SANA_SPRINT_TARGET_AWS_SECRET_ACCESS_KEY",
    }
    with team.member("ada"):
        for plain, told in faults.items():
            with monkeypatch.context() as patch:
                patch.setenv(target.VARIABLES[plain], "a wrong one")
                line = refused(*words, "of-nobody")
            assert re.search(told, line), line
            assert "a wrong one" not in line
        monkeypatch.delenv(target.VARIABLES[target.SECRET])
        told = "SANA_SPRINT_TARGET_AWS_ACCESS_KEY_ID is set and SANA_SPRINT_TARGET_AWS_SECRET_ACCESS_KEY is not"
        assert told in refused(*words, "of-nobody")
    assert team.postgres.rows("select * from model_versions where name = 'of-nobody'") == []
