"""A store moves from sqlite to PostgreSQL and from a folder to S3, by the runbook's command, with nothing lost."""

import json
import math
import runpy
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from PIL import Image

from sana_sprint import storage
from sana_sprint.registry import audit, history, promote, store, track
from tests.registry.conftest import NAME, evaluation, registered, repository, rules  # noqa: F401  three are fixtures
from tests.team import parts
from tests.team.runbook import commands

pytestmark = pytest.mark.e2e

DATASET = "a corpus"


@pytest.fixture
def full(repository, registered, rules):  # noqa: F811
    """A sqlite store with what a store holds: runs, curves, pictures, a data set, versions with aliases and tags, and a
    history of two promotions and a rollback."""
    import mlflow

    with track.stage("teacher") as run:
        for step in range(1500):
            run.metrics({"loss": 1.0 / (step + 3), "nan": math.nan, "inf": math.inf, "a large number": 1e300}, step)
        run.picture(Image.new("RGB", (8, 8)), "grids/one")
        run.file(repository / "params.yaml")
    client = store.client(store.tracking_uri(repository))
    for score, weights in ((0.4, "first"), (0.5, "second")):
        registered(evaluation(score, 0.7), weights=weights)
        promote.move(client, promote.judge(client, NAME, rules))
    promote.rollback(client, NAME, why="draws squares")
    client.set_registered_model_tag(NAME, "event-000001", json.dumps({"at": "2026-11-26", "who": "Zoë"}))
    client.create_registered_model("by hand")
    client.create_model_version("by hand", f"runs:/{run.run_id}/grids", run.run_id)
    source = mlflow.data.http_dataset_source.HTTPDatasetSource("http://a/b")
    corpus = mlflow.data.meta_dataset.MetaDataset(source, DATASET)
    client.log_inputs(run.run_id, [mlflow.entities.DatasetInput(corpus._to_mlflow_entity())])
    return repository, run.run_id


def move(team, root, target, code=0):
    (line,) = commands("Move a store from sqlite")
    return team.run("bash", "-euc", line, cwd=root, code=code, MLFLOW_BACKEND_STORE_URI=target, **root_of(team))


def root_of(team):
    return {"MLFLOW_DEFAULT_ARTIFACT_ROOT": f"s3://{parts.BUCKET}/moved"}


def everything(client, run_id):
    """What the store's own client tells, without the places of artefacts."""
    run, version = client.get_run(run_id), client.get_model_version(NAME, "1")
    history = {key: client.get_metric_history(run_id, key) for key in sorted(run.data.metrics)}
    points = {k: [(p.step, p.timestamp, repr(p.value)) for p in rows] for k, rows in history.items()}
    model = client.get_registered_model(NAME)
    logged = client.get_logged_model(version.tags["model_id"])
    return {
        "points": points,
        "run": (run.data.params, run.data.tags, run.info.status, run.info.start_time, run.info.end_time),
        "inputs": [one.to_dictionary() for one in run.inputs.dataset_inputs],
        "version": (version.tags, version.aliases, version.creation_timestamp, version.source, version.run_id),
        "model": (model.tags, model.aliases, model.description),
        "logged": (logged.tags, logged.params, sorted(m.key for m in logged.metrics)),
        "runs": sorted(one.info.run_id for one in client.search_runs([run.info.experiment_id])),
        "experiments": sorted(one.name for one in client.search_experiments()),
    }


def download(client, version, folder):
    """Fetches a version from where the registry says that it lies; returns the folder that it is in."""
    import mlflow

    folder.mkdir()
    place = client.get_model_version_download_uri(NAME, version)
    assert place.startswith(f"s3://{parts.BUCKET}/")
    return Path(mlflow.artifacts.download_artifacts(place, dst_path=str(folder)))


def test_a_store_moves_with_nothing_lost_and_goes_on(team, full, tmp_path, monkeypatch):
    root, run_id = full
    source = store.client(store.tracking_uri(root))
    before, past = everything(source, run_id), history.read(source, NAME)
    assert [(entry.content["action"], entry.to) for entry in past.entries][1:] == [("promote", "2"), ("rollback", "1")]
    assert len(before["points"]["loss"]) == 1500
    assert before["inputs"]
    target = team.postgres.make_database("moved")
    digest = storage.digest(root / "data/mlflow/mlflow.db")
    told = move(team, root, target)
    assert "metrics" in told
    assert f"moved data/mlflow/mlflow.db to {target}" in told
    assert storage.digest(root / "data/mlflow/mlflow.db") == digest

    for key, value in (team.settings | team.client() | {"MLFLOW_TRACKING_URI": target}).items():
        monkeypatch.setenv(key, value)
    import mlflow

    client = mlflow.MlflowClient(target, target)
    assert everything(client, run_id) == before
    folder = root / "data/mlflow/artifacts"
    assert storage.digest(team.buckets / parts.BUCKET / "moved") == storage.digest(folder)
    (place,) = {one.artifact_location for one in client.search_experiments() if one.name == "sana-sprint-demo"}
    assert place == f"s3://{parts.BUCKET}/moved"
    shutil.move(folder, tmp_path / "gone")  # the model must come from the store
    model = download(client, client.get_model_version_by_alias(NAME, "champion").version, tmp_path / "model")
    weights = "artifacts/pipeline/transformer/diffusion_pytorch_model.safetensors"
    assert storage.digest(model / weights) == storage.digest(next((tmp_path / "gone").rglob(weights)))

    assert client.get_model_version("by hand", "1").run_id == run_id
    assert history.read(client, NAME) == past
    assert audit.audit(client, NAME, files=True) == (past, [])

    goes_on(client)


def goes_on(client):
    """The numbers that the database gives out follow those that moved."""
    new = client.create_run(client.create_experiment("after the move"))
    client.log_metric(new.info.run_id, "loss", 1.0)
    assert int(new.info.experiment_id) > 1
    assert client.create_model_version(NAME, new.info.artifact_uri, new.info.run_id).version == 3


def test_a_database_that_is_not_empty_is_refused(team, repository):  # noqa: F811
    told = move(team, repository, team.settings["MLFLOW_BACKEND_STORE_URI"], code=1)
    assert "error: " in told
    assert "is not empty" in told


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(parts.ROOT / "mlflow")
    yield runpy.run_path(str(parts.ROOT / "mlflow/move_store.py"))
    sys.modules.pop("copy_artifacts", None)


def test_what_cannot_move_whole_leaves_an_empty_target(team, full, script, monkeypatch):
    root, _ = full
    for key, value in (team.settings | team.client()).items():
        monkeypatch.setenv(key, value)
    script["make_schema"](team.postgres.make_database("tables"))
    target = team.postgres.uri("half")
    source, artifacts = root / "data/mlflow/mlflow.db", (root / "data/mlflow/artifacts", f"s3://{parts.BUCKET}/half")
    faults = {
        "update runs set artifact_uri = 'file:///elsewhere'": "lie outside the folder that moves",
        "update alembic_version set version_num = '1'": "another version of MLflow",
        "alter table runs add column more text": r"tables \['runs'\] differ",
        "update params set value = char(0) || 'x'": "NUL",  # PostgreSQL knows no such text
    }
    monkeypatch.setitem(script["move"].__globals__, "make_schema", lambda _: None)  # a copy is faster
    for number, (fault, told) in enumerate(faults.items()):
        team.postgres.rows("create database half owner mlflow template tables", "postgres")
        broken = source.with_name(f"{number}.db")
        shutil.copy(source, broken)
        with sqlite3.connect(broken) as database:
            database.execute(fault)
        with pytest.raises((ValueError, sa.exc.SQLAlchemyError), match=told):
            script["move"](broken, target, artifacts)
        assert team.postgres.rows("select tablename from pg_tables where schemaname = 'public'", "half") == []
        team.postgres.rows("drop database half with (force)", "postgres")


def test_the_digest_sees_every_change_and_no_order(script):
    rows = [(1, "a", 0.1, None), (2, "b", 1e300, True)]
    assert script["digest"](rows) == script["digest"](rows[::-1])
    others = [(1, "a", math.nextafter(0.1, 1), None), (1, "a", 0.1, ""), (1, "b", 0.1, None), rows[1]]
    for changed in ([rows[0]], *([other, rows[1]] for other in others)):
        assert script["digest"](changed) != script["digest"](rows)
