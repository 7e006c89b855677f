"""A repository in a folder with a space in its name, its own sqlite store, and evaluations to register."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sana_sprint import config, storage
from sana_sprint.registry import card, measured, policy, register, store, track, versions

ROOT = Path(__file__).parents[2]
SIZE = "small"
NAME = "sana-sprint-demo-small"


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
        "fid_scene_clip": {"value": round(1 - value, 6), "se": se},
        "clip_score": pair,
    }


TIMES = {"1": [1.5708, 0.0], "2": [1.5708, 1.2, 0.0], "4": [1.5708, 1.2, 0.8, 0.4, 0.0]}


def evaluation(one_step, four_steps, protocol="first", undistilled=0.05):
    """Evaluate's JSON for a student of these scores."""
    middle = (one_step + four_steps) / 2
    student = {"1": one_step, "2": middle, "3": (middle + four_steps) / 2, "4": four_steps}
    asked = {"prompts": [{"caption": "a red circle", "task": "colors"}], "seeds": [0], "name": protocol}
    return {
        "protocol": asked,
        "protocol_digest": storage.digest_of(asked),
        "size": SIZE,
        "times": TIMES,
        "scores": {
            "student": {steps: scored(value) for steps, value in student.items()},
            "undistilled": {steps: scored(undistilled) for steps in student},
            "teacher": {"20": scored(0.7)},
        },
        "latency": {"student": {steps: {"p50_s": 0.01, "images_per_s": 100.0} for steps in student}},
        "machine": {"cpus": 2},
    }


@pytest.fixture
def registered(repository, sprint_folder):
    """Returns a function that registers a student with these scores; `weights` tells its weights apart."""
    with track.stage("distill", SIZE, distill=config.load(config.Distill)):
        pass  # the card tells of its params

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


MACHINE = {"cpu": "one", "cores": 2, "threads": 2, "gpu": "none", "torch": "2"}
ORIGIN = {"data_digest": "d" * 64}


def version_tags(scores, folder, weights):
    """The tags of a version as registration writes them."""
    tags = measured.score_tags(scores) | measured.detail_tags(scores) | measured.folder_tags(folder)
    return tags | {"licence": "Apache-2.0", "weights_digest": storage.digest_of(weights), "sampling_digest": "s" * 64}


def student(scores, made=ORIGIN):
    """What a card is written of."""
    sampling, trained = {"times": {}, **SIZES}, {"distill.iterations": "1000"}
    parts = config.PartLicences(text_encoder="gemma", autoencoder=None, transformer="Apache-2.0", data="CC0-1.0")
    return register.Student(Path(), "m-small", scores, None, sampling, "Apache-2.0", "told", made, trained, None, parts)


class Model:
    """A registered model of a store whose versions have small files of their own: made in milliseconds."""

    def __init__(self, server, name, place):
        self.server, self.name, self.place = server, name, place
        server.create_registered_model(name)

    def add(self, scores=None, weights=None, **tags):
        """Returns the number of a new version, the challenger."""
        scores = scores or evaluation(0.4, 0.6)
        weights = weights or f"weights {len(list(self.place.iterdir()))}"
        root = self.place / f"{len(list(self.place.iterdir()))}"
        folder = root / versions.PIPELINE
        folder.mkdir(parents=True)
        storage.write_text(folder / "README.md", card.write(student(scores)))
        storage.write_json(folder / "model_index.json", {})
        storage.write_text(folder / "weights.txt", weights)
        made = self._version(root, version_tags(scores, folder, weights) | tags)
        self.server.set_registered_model_alias(self.name, versions.CHALLENGER, made.version)
        return str(made.version)

    def _version(self, root, tags):
        """A server takes no local folder for a source: there the files are uploaded."""
        if self.server.tracking_uri.startswith("sqlite"):
            return self.server.create_model_version(self.name, root.as_uri(), tags=tags)
        experiment = store.experiment(self.server, self.server.tracking_uri, "demo")
        run_id = self.server.create_run(experiment).info.run_id
        self.server.log_artifacts(run_id, str(root), "model")
        return self.server.create_model_version(self.name, f"runs:/{run_id}/model", run_id, tags=tags)

    def alias(self, alias="champion"):
        """Returns the number that an alias is at, or None."""
        found = versions.version_of(self.server, self.name, alias)
        return found and str(found.version)

    def tag(self, number, key, value):
        self.server.set_model_version_tag(self.name, number, key, value)


SIZES = {"width_px": 64, "height_px": 64}


@pytest.fixture(scope="module")
def shared(tmp_path_factory, empty_store):
    """A client of a sqlite store that the tests of a module share, each with models of its own."""
    place = tmp_path_factory.mktemp("shared") / "mlflow.db"
    shutil.copy(empty_store, place)
    return store.client(f"sqlite:///{place}")


@pytest.fixture
def model(shared, tmp_path, request):
    """A model of the shared store, named after the test."""
    (tmp_path / "versions").mkdir()
    return Model(shared, request.node.name[:120], tmp_path / "versions")


@pytest.fixture(scope="session")
def rules():
    return policy.load(ROOT / "mlflow/promotion.yaml")
