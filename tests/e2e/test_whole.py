"""A distillation without pictures, by the stage's own script, whose run in MLflow is deleted while it trains: the stage
fails once the student is whole, and the next try has not to train it again."""

import shutil
import sqlite3
import time
from contextlib import closing

import pytest
from mlflow.tracking import MlflowClient

from tests.e2e.clone import LIMIT_S, Clone, environment

pytestmark = pytest.mark.e2e
STAGE = ("python", "pipelines/distill.py", "--size", "small")
STAGE_RUNS = "select r.run_uuid from runs r join tags t using (run_uuid) where t.key = 'stage' and t.value = 'distill'"
RUNNING = STAGE_RUNS + " and r.status = 'RUNNING'"


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished clone, in which latents are the teacher's and no student has been distilled."""
    root = tmp_path / "a copy"
    shutil.copytree(finished.clone.root, root, symlinks=True, ignore=shutil.ignore_patterns("cache", "reports"))
    profile = root / "profiles/smoke.yaml"
    assert "  latents: data\n" in profile.read_text()
    profile.write_text(profile.read_text().replace("  latents: data\n", "  latents: teacher\n"))
    shutil.rmtree(root / "data/models/student/small")
    return Clone(root, environment(root))


def delete_run(clone, log):
    """Deletes the stage's run while it trains."""
    deadline = time.monotonic() + LIMIT_S
    while "iteration 0  quick score" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.2)
    with closing(sqlite3.connect(clone.root / "data/mlflow/mlflow.db")) as database:
        ((run_id,),) = database.execute(RUNNING).fetchall()
    MlflowClient(clone.store).delete_run(run_id)


def newest_run(clone):
    """The stage's last run."""
    with closing(sqlite3.connect(clone.root / "data/mlflow/mlflow.db")) as database:
        return database.execute(STAGE_RUNS + " order by r.start_time desc").fetchone()[0]


def test_a_student_that_is_whole_is_not_trained_again_when_its_record_fails(copy, tmp_path):
    log, made = tmp_path / "log", copy.root / "data/models/student/small"
    process = copy.start(log, *STAGE)
    delete_run(copy, log)
    assert process.wait(LIMIT_S) == 1
    said = log.read_text()
    assert "error: stage distill small: MLflow refuses a record of this run" in said
    assert any((copy.root / "data/cache/trajectories").iterdir()), "it learns from latents that the teacher draws"
    shutil.rmtree(made)  # as `dvc repro` does before a stage
    again = copy.run(*STAGE)
    assert "distill small: going on from" in again
    assert "Ray cluster" in said
    assert "Ray cluster" not in again
    assert MlflowClient(copy.store).get_run(newest_run(copy)).data.metrics["student/scm"]
    assert (made / "transformer").is_dir()
    assert not any((copy.root / "data/checkpoints/distill").glob("small/step-*"))
    assert copy.quiet() == []
