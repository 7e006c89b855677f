"""`mlflow models serve` on the registered student answers a prompt with a PNG, without this package."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from sana_sprint.registry import store
from tests.registry.conftest import evaluation


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(address, process, log):
    for _ in range(360):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/ping", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(log.read_text())


@contextmanager
def served(uri, variables, place):
    """Yields the address of a server of a registered model, started as a user would start it."""
    port, log = free_port(), place / "serve.log"
    environment = {key: value for key, value in variables.items() if key != "PYTHONPATH"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"  # as when activated
    words = ["models", "serve", "-m", uri, "--env-manager", "local", "--port", str(port), "--workers", "1"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            cwd=place,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            wait_for(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


@pytest.fixture
def address(registered, repository, tmp_path):
    """The address of a server of a student in the repository's store."""
    uri = registered(evaluation(0.3, 0.5))["uri"]
    with served(uri, os.environ | {"MLFLOW_TRACKING_URI": store.tracking_uri(repository)}, tmp_path) as place:
        yield place


def ask(address, prompt, **params):
    body = {"dataframe_split": {"columns": ["prompt"], "data": [[prompt]]}, "params": params}
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())["predictions"][0]["png"]


def test_a_served_student_answers_a_prompt_with_a_png_of_the_asked_size(address):
    picture = Image.open(io.BytesIO(base64.b64decode(ask(address, "two red circles", steps=1, height=96))))
    assert (picture.format, picture.size) == ("PNG", (64, 96))
    assert ask(address, "two red circles", seed=1) == ask(address, "two red circles", seed=1)
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(address, "two red circles", steps=9)
    assert "no time list for 9 steps" in refused.value.read().decode()
