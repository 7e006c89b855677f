"""A backup holds all of the team's store, and a store that is lost comes back from it, by the runbook's commands."""

import dataclasses
import json
import shutil
import subprocess
import sys
import threading
from unittest import mock

import pytest

from sana_sprint import storage
from sana_sprint.registry import history, measured, promote, store, versions
from tests.registry.conftest import NAME, Model, evaluation, registered, repository, rules  # noqa: F401  fixtures
from tests.registry.test_promote import promoted
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
def pushed(team):
    """What `dvc push` would have put into the same bucket."""
    place = team.buckets / parts.BUCKET / "dvc-to-back-up"
    (place / "files/md5/ab").mkdir(parents=True)
    (place / "files/md5/ab/cd").write_text("data")
    yield place
    shutil.rmtree(place)


@pytest.fixture
def backup(team, version, pushed, tmp_path):
    place, remote = tmp_path / "a backup", f"s3://{parts.BUCKET}/{pushed.name}"
    assert f"backed up to {place}" in runbook(team, "Back up", place, SANA_SPRINT_DVC_REMOTE=remote)
    return place


def test_a_lost_store_comes_back_with_users_runs_weights_and_data(team, backup, version, pushed, tmp_path):
    before = [tables(team, name) for name in ("mlflow", "mlflow_auth")]
    assert len(before[0]) > 20
    assert before[1]["users"][0][0] >= 4
    artifacts = team.buckets / parts.BUCKET / "mlflow"
    digest = storage.digest(artifacts)
    data = storage.digest(pushed)
    (tmp_path / "lost").mkdir()
    for lost in (artifacts, pushed):
        shutil.move(lost, tmp_path / "lost" / lost.name)
    targets = [team.postgres.make_database(name) for name in RESTORED]
    changed = dict(zip(("MLFLOW_BACKEND_STORE_URI", "MLFLOW_AUTH_DATABASE_URI"), targets, strict=True))
    assert f"restored from {backup}" in runbook(team, "Restore", backup, **changed)
    assert [tables(team, name) for name in RESTORED] == before
    assert (storage.digest(artifacts), storage.digest(pushed)) == (digest, data)

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


class Busy(threading.Thread):
    """Ada, who logs runs and registers versions until she is told to stop."""

    def __init__(self, team, place):
        super().__init__()
        self.stop, self.made = threading.Event(), []
        place.mkdir()
        self.model = Model(store.client(team.uri), f"busy-{place.parent.name}", place)

    def run(self):
        while not self.stop.is_set():
            self.made.append(self.model.add())


@pytest.fixture
def busy_backup(team, tmp_path):
    """A backup during which ada logged and registered, and who she was."""
    with team.member("ada"):
        ada = Busy(team, tmp_path / "versions")
        ada.start()
        try:
            while not ada.made:
                assert ada.is_alive()
                ada.join(0.1)
            runbook(team, "Back up", tmp_path / "a busy backup")
        finally:
            ada.stop.set()
            ada.join()
    return tmp_path / "a busy backup", ada


def test_of_what_was_registered_while_the_backup_ran_every_version_in_it_is_whole(team, busy_backup):
    backup, ada = busy_backup
    names = ("busy", "busy_auth")
    targets = [team.postgres.make_database(name) for name in names]
    shutil.move(team.buckets / parts.BUCKET / "mlflow", backup.parent / "lost")
    variables = dict(zip(("MLFLOW_BACKEND_STORE_URI", "MLFLOW_AUTH_DATABASE_URI"), targets, strict=True))
    runbook(team, "Restore", backup, **variables)
    query = "select artifact_uri, t.value from model_versions v join model_version_tags t using (name, version) "
    query += "join runs r on r.run_uuid = v.run_id where v.name = %s and t.key = %s"
    rows = team.postgres.rows(query, "busy", (ada.model.name, measured.FILES))
    assert 1 <= len(rows) < len(ada.made)  # she was at work before it began and after
    for place, digest in rows:
        folder = team.buckets / place.removeprefix("s3://") / "model"
        assert storage.digest(folder / versions.PIPELINE) == digest
    refuses_what_is_damaged_or_in_use(team, backup)


def refuses_what_is_damaged_or_in_use(team, backup):
    told = runbook(team, "Restore", backup, code=2)
    assert "is not empty; make a new database for it" in told
    told = runbook(team, "Restore", backup, code=2, MLFLOW_DEFAULT_ARTIFACT_ROOT="s3://elsewhere/mlflow")
    assert "the backup's artefacts belong at s3://sana-sprint/mlflow" in told
    file = next(path for path in (backup / "artifacts").rglob("weights.txt"))
    file.write_bytes(b"x" + file.read_bytes()[1:])
    assert f"{backup} is damaged" in runbook(team, "Restore", backup, code=2)
    assert "is there already" in runbook(team, "Back up", backup, code=2)
    assert "no whole backup" in runbook(team, "Restore", backup.parent, code=2)


def test_a_backup_that_fails_leaves_nothing_that_looks_like_one(team, tmp_path):
    place = tmp_path / "none"
    runbook(team, "Back up", place, code=1, MLFLOW_DEFAULT_ARTIFACT_ROOT=f"s3://{parts.BUCKET}/none")
    assert not place.exists()


def test_a_sqlite_store_that_is_lost_comes_back_with_history_and_weights(repository, rules, tmp_path):  # noqa: F811
    """By the runbook's lines, in the repository."""
    save, back = commands("Back up and restore a sqlite store")
    place = repository / store.FOLDER / "artifacts"
    (place / "versions").mkdir(parents=True)
    model = Model(store.client(store.tracking_uri(repository)), NAME, place / "versions")
    for _ in range(2):
        model.add()
        promoted(model, rules)
    promote.rollback(model.server, NAME)
    digests = [entry.digest for entry in history.read(model.server, NAME).entries]
    files = storage.digest(place)
    subprocess.run(["bash", "-euc", save], cwd=repository, env=parts.plain_environment(), check=True)
    model.add()  # what comes later is not part of it
    shutil.move(repository / store.FOLDER, tmp_path / "lost")
    subprocess.run(["bash", "-euc", back], cwd=repository, env=parts.plain_environment(), check=True)
    assert storage.digest(place) == files
    words = [sys.executable, "-m", "sana_sprint.cli", "audit", NAME, "--files", "--json"]  # which opens it anew
    environment = parts.plain_environment() | {"PYTHONPATH": str(parts.ROOT / "src")}
    told = subprocess.run(words, cwd=repository, env=environment, check=True, capture_output=True, text=True).stdout
    (audited,) = json.loads(told)
    assert (audited["whole"], audited["entries"], audited["digest"]) == (True, 3, digests[-1])
