"""Passwords and keys that commands and stages are given in all the ways that there are stay out of what they write and
say: the store, artefacts, files here, logs, what a receiver of events gets, and MLflow's page."""

import json
import os
import secrets
from unittest import mock

import pytest

from sana_sprint.registry import store, target, track, webhook
from tests.registry.conftest import SIZE, Model, repository
from tests.registry.test_follow import receiver
from tests.team import leaks
from tests.test_cli import call, refused

__all__ = ["receiver", "repository"]
pytestmark = pytest.mark.e2e
NAME = "with-secrets"


def with_login(team, user):
    """The server's address with user and password in it."""
    return team.uri.replace("://", f"://{user}:{team.passwords[user]}@")


@pytest.fixture
def planted(team, repository, monkeypatch):
    """Makes this process ada, by an address that holds the password, with ben for a target's user and a secret shared
    with a receiver; that one counts as one of the team's."""
    with team.member("ada"):
        shared = secrets.token_urlsafe(24)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", with_login(team, "ada"))
        for name in (target.USER, target.PASSWORD):
            monkeypatch.delenv(name)
        for plain, name in target.VARIABLES.items():
            monkeypatch.setenv(name, team.client("ben")[plain])
        monkeypatch.setenv(webhook.SECRET, shared)
        with mock.patch.dict(team.passwords, {"a receiver": shared}):
            yield repository


def test_no_secret_is_written_or_said_however_it_was_given(team, planted, receiver, tmp_path, capfd):
    (tmp_path / "versions").mkdir()
    with track.stage("distill", SIZE) as run:
        run.metrics({"loss": 0.5}, 1)
    client = store.client(os.environ["MLFLOW_TRACKING_URI"])
    model = Model(client, NAME, tmp_path / "versions")
    model.add()
    told = [call("promote", NAME, "--force", "--reason", "a test")]
    told += [call("follow", NAME, "--url", receiver.url, "--tell-first", "--once")]
    told += [call("transfer", f"models:/{NAME}/1", "--to", with_login(team, "ben"), "--name", "of-ben-s")]
    told += [
        call(*words) for words in (["history", NAME], ["audit", NAME, "--files"], ["lineage", f"models:/{NAME}/1"])
    ]
    away = f"http://ada:{team.passwords['ada']}@127.0.0.1:9"
    told += [refused("transfer", f"models:/{NAME}/1", "--to", away)]
    with mock.patch.dict(os.environ, {"MLFLOW_TRACKING_URI": away}):
        told += [refused("audit", NAME)]
    ((headers, body),) = receiver.got
    assert webhook.verified(team.passwords["a receiver"], headers, body)
    (tmp_path / "said").write_text("\n".join([*told, *capfd.readouterr(), json.dumps(headers), body.decode()]))
    assert leaks.secrets_found(team, tmp_path, team.server.log, team.s3.log, team.postgres.log) == []
