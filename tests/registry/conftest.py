"""A repository in a folder with a space in its name, its own sqlite store, and evaluations to register."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sana_sprint import config, storage
from sana_sprint.registry import register, store, track

ROOT = Path(__file__).parents[2]
SIZE = "small"
NAME = "sana-sprint-demo-small"


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A sqlite store with its tables made once: making them takes seconds."""
    place = tmp_path_factory.mktemp("store") / "mlflow.db"
    store.client(f"sqlite:///{place}")
    return place


@pytest.fixture
def repository(tmp_path, monkeypatch, empty_store):
    """The current folder of the test: params, profiles, promotion policy and an empty MLflow store."""
    root = tmp_path / "a repository"
    shutil.copytree(ROOT / "profiles", root / "profiles")
    shutil.copytree(ROOT / "mlflow", root / "mlflow")
    (root / "params.yaml").write_text("# the profile in use\nprofile: demo\n")
    (root / store.FOLDER).mkdir(parents=True)
    shutil.copy(empty_store, root / store.FOLDER / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(root)
    return root


def scored(value, se=0.02):
    """One entry of evaluate's scores, with every kind of score."""
    pair = {"value": value, "se": se}
    tasks = {task: {"value": value, "se": se, "n": 40} for task in ("counting", "don't, say")}
    return {
        "overall": pair,
        "tasks": tasks,
        "seen": pair,
        "heldout": pair,
        "fid_scene_clip": pair,
        "clip_score": pair,
    }


TIMES = {"1": [1.5708, 0.0], "2": [1.5708, 1.2, 0.0], "4": [1.5708, 1.2, 0.8, 0.4, 0.0]}


def evaluation(one_step, four_steps, protocol="first", undistilled=0.05):
    """Evaluate's JSON for a student of these scores."""
    student = {"1": one_step, "2": (one_step + four_steps) / 2, "4": four_steps}
    return {
        "protocol": {
            "prompts": [{"caption": "a red circle", "task": "colors"}],
            "seeds": [0],
            "name": protocol,
        },
        "protocol_digest": storage.digest_of(protocol),
        "size": SIZE,
        "times": TIMES,
        "scores": {
            "student": {steps: scored(value) for steps, value in student.items()},
            "undistilled": {steps: scored(undistilled) for steps in student},
            "teacher": {"20": scored(0.7)},
        },
        "latency": {"student": {"1": {"p50_s": 0.01, "images_per_s": 100.0}}},
        "machine": {"cpus": 2},
    }


@pytest.fixture
def registered(repository, sprint_folder):
    """Returns a function that registers a student with these scores; `weights` tells its weights apart."""

    def one(scores, weights="first"):
        student = repository / "data/models/student" / SIZE
        shutil.rmtree(student, ignore_errors=True)
        shutil.copytree(sprint_folder, student)
        (student / "weights.txt").write_text(weights)
        file = repository / "data/metrics/evaluate" / f"{SIZE}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(scores))
        params = config.load(config.Register)
        with track.stage("register", SIZE, register=params) as run:
            return register.register(student, file, params, run)

    return one


@pytest.fixture
def server(repository):
    """A client of the repository's store."""
    return store.client(store.tracking_uri(repository))
