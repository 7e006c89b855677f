"""A backup holds all of the team's store, and a store that is lost comes back from it, by the runbook's commands."""

import dataclasses
import shutil
from unittest import mock

import pytest

from sana_sprint import storage
from tests.registry.conftest import NAME, evaluation, registered, repository  # noqa: F401  two are fixtures
from tests.team import parts
from tests.team.runbook import commands
from tests.team.test_move import download

pytestmark = pytest.mark.e2e

RESTORED = ("restored", "restored_auth")


@pytest.fixture
def version(team, registered, monkeypatch):  # noqa: F811
    """A student in the team's registry, registered by ada."""
    for key, value in team.client("ada").items():
        monkeypatch.setenv(key, value)
    registered(evaluation(0.4, 0.6), weights="backed up")
    query = "select version, storage_location from model_versions where name = %s order by version"
    return team.postgres.rows(query, parameters=(NAME,))[-1]


def runbook(team, section, folder, code=0, **variables):
    """Runs the first block of a section with its example of a folder replaced by `folder`."""
    line = commands(section)[0]
    words = line.split(" ", 2)
    return team.run("bash", "-euc", f"{words[0]} {words[1]} '{folder}'", code=code, **variables)


def tables(team, database):
    """The digest of every table, as PostgreSQL prints its rows."""
    names = team.postgres.rows("select tablename from pg_tables where schemaname = 'public' order by 1", database)
    query = "select count(*), md5(string_agg(t::text, '|' order by t::text)) from {} t"
    return {name: team.postgres.rows(query.format(name), database) for (name,) in names}


@pytest.fixture
def backup(team, version, tmp_path):
    place = tmp_path / "a backup"
    assert f"backed up to {place}" in runbook(team, "Back up", place)
    return place


def test_a_lost_store_comes_back_with_users_runs_and_weights(team, backup, version, tmp_path):
    before = [tables(team, name) for name in ("mlflow", "mlflow_auth")]
    assert len(before[0]) > 20
    assert before[1]["users"][0][0] >= 4
    artifacts = team.buckets / parts.BUCKET / "mlflow"
    digest = storage.digest(artifacts)
    shutil.move(artifacts, tmp_path / "lost")
    targets = [team.postgres.make_database(name) for name in RESTORED]
    changed = dict(zip(("MLFLOW_BACKEND_STORE_URI", "MLFLOW_AUTH_DATABASE_URI"), targets, strict=True))
    assert f"restored from {backup}" in runbook(team, "Restore", backup, **changed)
    assert [tables(team, name) for name in RESTORED] == before
    assert storage.digest(artifacts) == digest

    for line in commands("Upgrade")[0].splitlines():
        team.run("bash", "-euc", line, **changed)
    assert [tables(team, name) for name in RESTORED] == before  # of this version already

    port = parts.free_port()
    address = f"127.0.0.1:{port}"
    changed |= {"MLFLOW_PORT": str(port), "MLFLOW_SERVER_ALLOWED_HOSTS": address, "MLFLOW_WORKERS": "1"}
    server = parts.mlflow_server(tmp_path, team.server.environment | changed)
    try:
        fetch(dataclasses.replace(team, server=server.start()), version, tmp_path / "model")
    finally:
        server.kill()


def fetch(team, version, folder):
    """The restored server knows its users, and the version comes whole from the store."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    number, place = version
    client = MlflowClient(team.uri, team.uri)
    with team.member("ada"):
        assert storage.digest(download(client, number, folder)) == storage.digest(
            team.buckets / place.removeprefix("s3://")
        )
    wrong = mock.patch.dict(team.passwords, {"ada": "wrong"})
    with wrong, team.member("ada"), pytest.raises(MlflowException, match="not authenticated"):
        client.get_registered_model(NAME)


def test_what_is_damaged_or_in_use_is_not_restored(team, backup):
    told = runbook(team, "Restore", backup, code=2)
    assert "is not empty; make a new database for it" in told
    told = runbook(team, "Restore", backup, code=2, MLFLOW_DEFAULT_ARTIFACT_ROOT="s3://elsewhere/mlflow")
    assert "the backup's artefacts belong at s3://sana-sprint/mlflow" in told
    file = next(path for path in (backup / "artifacts").rglob("*.safetensors"))
    file.write_bytes(b"x" + file.read_bytes()[1:])
    assert f"{backup} is damaged" in runbook(team, "Restore", backup, code=2)
    assert "is there already" in runbook(team, "Back up", backup, code=2)
    assert "no whole backup" in runbook(team, "Restore", backup.parent, code=2)


def test_a_backup_that_fails_leaves_nothing_that_looks_like_one(team, tmp_path):
    place = tmp_path / "none"
    runbook(team, "Back up", place, code=1, MLFLOW_DEFAULT_ARTIFACT_ROOT=f"s3://{parts.BUCKET}/none")
    assert not place.exists()
