"""The team's server asks for a user, knows who may write, answers to its own name alone, and refuses to start without
settings or with a password that everybody knows."""

import base64
import json
import pickle
import subprocess
import time
import urllib.error
import urllib.request
from unittest import mock

import pytest

from sana_sprint.registry import history, store, versions
from tests.team import leaks, parts
from tests.team.runbook import commands

pytestmark = pytest.mark.e2e

SERVE = parts.ROOT / "mlflow/serve.sh"


def write(team, user, experiment, model):
    """Logs a run and registers a version of it as a member; returns the address of the run's artefacts."""
    from mlflow import MlflowClient

    with team.member(user):
        client = MlflowClient(team.uri)
        found = client.get_experiment_by_name(experiment)
        run = client.create_run(found.experiment_id if found else client.create_experiment(experiment))
        client.log_metric(run.info.run_id, "loss", 0.5)
        if not client.search_registered_models(f"name = '{model}'"):
            client.create_registered_model(model)
        version = client.create_model_version(model, run.info.artifact_uri, run.info.run_id)
        client.set_registered_model_alias(model, "champion", version.version)
        client.set_registered_model_tag(model, "event", "one")
        client.set_model_version_tag(model, version.version, "event", "one")
        client.log_text(run.info.run_id, "words", "a.txt")
        return run.info.artifact_uri


def denied(*words):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException) as error:
        write(*words)
    return f"{error.value.error_code} {error.value}"


def ask(team, path, body=None, **headers):
    """The status of a request without a user."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(f"{team.uri}{path}", data, {"Content-Type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_two_members_write_to_what_one_of_them_made_and_artefacts_go_to_the_store(team):
    for user in ("ada", "ben"):
        place = write(team, user, "shared", "a-model")
        assert place.startswith(f"s3://{parts.BUCKET}/mlflow/")
        assert (team.buckets / place.removeprefix("s3://") / "a.txt").read_text() == "words"
    assert team.postgres.rows("select alias, version from registered_model_aliases where name = 'a-model'") == [
        ("champion", 2)
    ]


def test_a_reader_sees_and_does_not_write_to_what_others_made(team):
    from mlflow import MlflowClient

    write(team, "ada", "for readers", "b-model")
    assert "PERMISSION_DENIED" in denied(team, "cleo", "for readers", "b-model")
    assert "PERMISSION_DENIED" in denied(team, "cleo", "cleo's own", "b-model")
    with team.member("cleo"):
        assert MlflowClient(team.uri).get_experiment_by_name("for readers") is not None


def test_a_reader_s_key_reads_the_bucket_and_writes_nothing_to_it(team, tmp_path):
    import boto3
    import mlflow
    from botocore.exceptions import ClientError
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    place = write(team, "ada", "for readers", "e-model")
    stored = team.buckets / place.removeprefix("s3://") / "a.txt"
    (tmp_path / "a.txt").write_text("others")
    key = {"Bucket": parts.BUCKET, "Key": str(stored.relative_to(team.buckets / parts.BUCKET))}
    with team.member("cleo"):
        assert mlflow.artifacts.load_text(f"{place}/a.txt") == "words"
        with pytest.raises(boto3.exceptions.S3UploadFailedError, match="AccessDenied"):
            get_artifact_repository(place).log_artifact(str(tmp_path / "a.txt"))
        s3 = boto3.client("s3", endpoint_url=team.settings["MLFLOW_S3_ENDPOINT_URL"])
        writes = (
            lambda: s3.delete_object(**key),
            lambda: s3.delete_objects(Bucket=parts.BUCKET, Delete={"Objects": [{"Key": key["Key"]}]}),
            lambda: s3.copy_object(**key, CopySource=key),
            lambda: s3.create_multipart_upload(**key),
            lambda: s3.create_bucket(Bucket="cleo-s-own"),
        )
        for one in writes:
            with pytest.raises(ClientError, match="AccessDenied"):
                one()
    assert stored.read_text() == "words"


def test_a_wrong_password_is_told_in_one_line_and_not_waited_for(team):
    wrong = mock.patch.dict(team.passwords, {"ada": "wrong"})
    refused = pytest.raises(ValueError, match=r"password is wrong: set MLFLOW_TRACKING_USERNAME")
    with wrong, team.member("ada"), refused as error:
        store.patiently(team.uri, lambda: store.client.__wrapped__(team.uri))
    assert not isinstance(error.value, store.Away)


def test_a_member_makes_no_users(team):
    refused = team.run("python", "mlflow/add_user.py", "eve", "writer", user="ada", code=1, NEW_PASSWORD="x" * 20)
    assert "error: " in refused
    assert team.postgres.rows("select username from users where username = 'eve'", "mlflow_auth") == []


def test_a_writer_changes_its_password_becomes_a_reader_and_is_removed(team):
    """By the runbook's lines, as they stand there; a reader's line differs in the role."""
    name, first, second = "grace", "first password of grace", "second password of grace"
    add, change, remove = (("bash", "-euc", line) for line in commands("Add a user"))
    write(team, "ada", "shared", "d-model")
    assert "added grace, writer" in team.run(*add, user="admin", NEW_PASSWORD=first)
    team.passwords[name] = first
    write(team, name, "shared", "d-model")
    assert "changed the password" in team.run(*change, user=name, NEW_PASSWORD=second)
    time.sleep(parts.PASSWORD_S)
    assert "not authenticated" in denied(team, name, "shared", "d-model")
    team.passwords[name] = second
    assert "changed grace, reader" in team.run("python", "mlflow/add_user.py", name, "reader", user="admin")
    assert "PERMISSION_DENIED" in denied(team, name, "shared", "d-model")
    team.run(*remove, user="admin")
    time.sleep(parts.PASSWORD_S)
    assert "not authenticated" in denied(team, name, "shared", "d-model")  # 401, as for a name that never was


def test_other_names_and_other_pages_are_refused(team):
    search = "/api/2.0/mlflow/experiments/search?max_results=1"
    assert ask(team, search, Host="evil.example:5000") == 403
    assert ask(team, "/api/2.0/mlflow/experiments/create", {"name": "x"}, Origin="http://evil.example") == 403


def test_neither_passwords_nor_keys_reach_the_logs_or_the_command_line(team):
    log = team.server.log.read_text() + team.postgres.log.read_text()
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    for secret in team.secrets():
        assert secret not in log
        assert secret not in lines
    assert "uvicorn" in lines


def test_a_secret_and_a_pickle_that_are_planted_are_found(team, tmp_path):
    """What tests/team/leaks.py says of a whole run elsewhere counts for something."""
    from mlflow import MlflowClient

    secret = team.passwords["ben"]
    with team.member("ada"):
        client = MlflowClient(team.uri)
        client.create_registered_model("leaks", {"password": secret})
        stored, here = team.buckets / parts.BUCKET / "leaked.bin", tmp_path / "a log"
        for file in (stored, here):
            file.write_bytes(b"\0" + secret.encode() + b"\n")
        try:
            found = leaks.secrets_found(team, tmp_path)
        finally:
            client.set_registered_model_tag("leaks", "password", "none")
            stored.unlink()
    assert found == ["MLFLOW_BACKEND_STORE_URI", str(stored), str(here)]
    for user in ("ben", "any", "other"):
        here.write_text("Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode())
        assert leaks.secrets_found(team, tmp_path) == [str(here)]
    assert leaks.pickles_found(tmp_path) == []
    here.write_bytes(pickle.dumps({}))
    assert leaks.pickles_found(tmp_path) == [str(here)]


def test_no_job_runner_runs(team):
    import psutil

    words = [" ".join(one.cmdline()) for one in psutil.Process(team.server.process.pid).children(recursive=True)]
    assert words
    assert not [line for line in words if "huey" in line or "job" in line]


def refused(team, **changes):
    """The line with which serve.sh refuses these settings."""
    environment = parts.plain_environment() | team.settings | changes
    done = subprocess.run(
        ["bash", SERVE],
        env={k: v for k, v in environment.items() if v is not None},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("name", [*parts.variables("server.env.example"), *parts.variables("secrets.env.example")])
def test_the_server_refuses_to_start_without_a_setting(team, name):
    assert refused(team, **{name: None}).startswith(f"error: mlflow/serve.sh: {name} is not set; mlflow/")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("MLFLOW_AUTH_ADMIN_PASSWORD", "password1234", "that everybody knows"),
        ("PGPASSWORD", "short", "shorter than 12 characters"),
        ("MLFLOW_BACKEND_STORE_URI", "sqlite:///mlflow.db", "is not a postgresql:// address"),
        ("MLFLOW_AUTH_DATABASE_URI", "postgresql://mlflow:hunter2@db/mlflow_auth", "give it as PGPASSWORD"),
        ("MLFLOW_DEFAULT_ARTIFACT_ROOT", "/srv/artifacts", "is not an s3:// address"),
        ("MLFLOW_SERVER_ALLOWED_HOSTS", "mlflow:5000, *", "allows everybody"),
        ("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "*", "allows everybody"),
    ],
)
def test_the_server_refuses_settings_that_leave_a_door_open(team, name, value, told):
    line = refused(team, **{name: value})
    assert line.startswith(f"error: mlflow/serve.sh: {name} ")
    assert told in line
    assert "hunter2" not in line


def test_the_bucket_is_made_once(team):
    address = "s3://another-bucket/mlflow"
    for told in ("bucket another-bucket made", "bucket another-bucket is there"):
        assert told in team.run("python", "mlflow/make_bucket.py", MLFLOW_DEFAULT_ARTIFACT_ROOT=address)
    assert (team.buckets / "another-bucket").is_dir()


def test_every_setting_is_explained_in_a_line():
    for file in ("server.env.example", "secrets.env.example"):
        lines = (parts.ROOT / "mlflow" / file).read_text().splitlines()
        named = [number for number, line in enumerate(lines) if line and not line.startswith("#")]
        assert len(named) == len(parts.variables(file)) > 4
        assert [lines[number - 1][:2] for number in named] == ["# "] * len(named)
    assert set(parts.variables("secrets.env.example").values()) == {""}


def test_postgres_is_asked_for_by_its_package(monkeypatch):
    monkeypatch.setattr(parts.Path, "glob", lambda *_: iter(()))
    with pytest.raises(AssertionError, match="apt install postgresql"):
        parts.postgres_programs()


def test_a_model_that_is_not_there_is_told_as_such_though_the_server_says_forbidden(team):
    with team.member("ada"):
        client = store.client(team.uri)
        assert versions.version_of(client, "no-such-model", "champion") is None
        assert versions.numbered(client, "no-such-model", "1") is None
        with pytest.raises(ValueError, match="no-such-model: no such registered model"):
            history.read(client, "no-such-model")
