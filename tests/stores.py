"""MLflow stores that tests of every folder share, made once: an empty sqlite file to copy, and a real server with
users. tests/conftest.py makes the fixtures known."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from cryptography.fernet import Fernet

from sana_sprint.registry import store

PASSWORD = "a password of tests"


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A sqlite store with its tables made once: making them takes seconds."""
    place = tmp_path_factory.mktemp("store") / "mlflow.db"
    store.client(f"sqlite:///{place}")
    return place


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def team_server(tmp_path_factory, empty_store):
    """The address of a real MLflow server of two workers with basic auth; its user is `anna`."""
    place = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, place / "mlflow.db")
    (place / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{place}/auth.db\nadmin_username = anna\n"
        f"admin_password = {PASSWORD}\nauth_cache_ttl_seconds = 600\n"  # else every request hashes it anew
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    settings = {
        "MLFLOW_AUTH_CONFIG_PATH": str(place / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "for-tests",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
    }
    port, log = free_port(), place / "server.log"
    words = ["--backend-store-uri", f"sqlite:///{place}/mlflow.db", "--artifacts-destination", str(place / "artifacts")]
    words += ["--app-name", "basic-auth", "--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words],
            env=os.environ | settings | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            cwd=place,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def wait_for(address, process, log):
    for _ in range(360):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(log.read_text())


@pytest.fixture
def anna(monkeypatch):
    """The environment of the server's user."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
