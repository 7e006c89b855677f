"""Server, PostgreSQL and object store die while a stage logs: it goes on, says so, and every point arrives once."""

import json
import re
import shutil
import subprocess
import sys
import time

import pytest

from tests.registry.conftest import NAME, SIZE, evaluation, repository  # noqa: F401  one is a fixture
from tests.team import parts

pytestmark = pytest.mark.e2e
DOWN_S = 8.0
STALL_S = 2.0
STAGE = """
import sys, time
from pathlib import Path
from PIL import Image
from sana_sprint.registry import track
name = sys.argv[1]
stop = Path(f"stop-{name}")
with track.stage(name) as run:
    step, longest, before = 0, 0.0, time.monotonic()
    while not stop.exists():
        run.metrics({"loss": 1.0 / (step + 1), "rate": float(step)}, step)
        if step % 50 == 0:
            run.picture(Image.new("RGB", (8, 8), (step % 256, 0, 0)), "grids/one", step)
        print(f"step {step}", flush=True)
        step += 1
        time.sleep(0.1)
        longest, before = max(longest, time.monotonic() - before), time.monotonic()
print(f"longest {longest:.2f}", flush=True)
"""


class Stage:
    """A running stage in a repository, as a member of the team starts it."""

    def __init__(self, team, root, script, *words, **variables):
        self.root, self.stop, self.log = root, root / f"stop-{words[-1]}", root / f"{words[-1]}.log"
        environment = parts.plain_environment() | team.client("ada") | variables
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, script, *words],
                cwd=root,
                env=environment | {"PYTHONPATH": str(parts.ROOT / "src")},
                stdout=output,
                stderr=output,
            )

    def says(self, words, times=1):
        deadline = time.monotonic() + 90
        while self.log.read_text().count(words) < times:
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.1)

    def steps(self):
        return 1 + max(int(step) for step in re.findall(r"step (\d+)", self.log.read_text()))

    def end(self):
        self.stop.touch()
        assert self.process.wait(180) == 0, self.log.read_text()[-3000:]
        return self.log.read_text()


def make_repository(root):
    root.mkdir()
    shutil.copytree(parts.ROOT / "profiles", root / "profiles")
    (root / "params.yaml").write_text("profile: demo\n")
    (root / "stage.py").write_text(STAGE)
    return root


def points(team, name):
    """How often the store has each (metric, step) that the stage's only run logged, beside what the machine tells of
    itself, and the run's status."""
    query = "select r.status, m.key, m.step, count(*) from metrics m join runs r on r.run_uuid = m.run_uuid "
    own = "r.name = %s and m.key not like 'system/%%'"
    rows = team.postgres.rows(f"{query} where {own} group by 1, 2, 3", parameters=(name,))
    return {(key, step): count for _, key, step, count in rows}, {status for status, *_ in rows}


def expected(steps):
    return {(key, step): 1 for key in ("loss", "rate") for step in range(steps)}


@pytest.fixture(scope="module")
def survived(team, tmp_path_factory):
    """The log of a stage under which each part died once, and the number of its steps."""
    stage = Stage(team, make_repository(tmp_path_factory.mktemp("outages") / "one"), "stage.py", "outages")
    try:
        stage.says("step 20")
        for number, part in enumerate((team.s3, team.postgres, team.server), start=1):
            with part.down(DOWN_S):
                stage.says("does not take records", number)
            stage.says("takes records again", number)
        return stage.end(), stage.steps(), stage.root
    finally:
        stage.process.kill()


def test_every_point_arrives_exactly_once(team, survived):
    found, status = points(team, "outages")
    assert found == expected(survived[1])
    assert status == {"FINISHED"}


def test_every_picture_arrives(team, survived):
    (place,) = team.postgres.rows(
        "select parent.artifact_uri from runs join tags using (run_uuid) join runs parent on parent.run_uuid = value "
        "where runs.name = 'outages' and key = 'mlflow.parentRunId'"
    )[0]
    names = [path.name for path in (team.buckets / place.removeprefix("s3://") / "images").glob("*.png")]
    steps = {int(re.search(r"step\W(\d+)", name)[1]) for name in names}
    assert steps == set(range(0, survived[1], 50))


def test_each_outage_is_told_once_and_so_is_its_end(survived):
    log = survived[0]
    assert len(re.findall("does not take records", log)) == 3
    assert len(re.findall("takes records again: [0-9]+ sent", log)) == 3
    assert "Traceback" not in log


def test_the_stage_does_not_wait_for_any_of_them(survived):
    assert float(re.search(r"longest ([\d.]+)", survived[0])[1]) < STALL_S


def test_nothing_is_left_behind(survived):
    assert list((survived[2] / "data/mlflow/unsent").iterdir()) == []


def test_a_stage_whose_server_stays_away_ends_well_and_the_next_one_waits_and_sends_what_it_left(team, tmp_path):
    root = make_repository(tmp_path / "two")
    first = Stage(team, root, "stage.py", "left alone", SANA_SPRINT_TRACKING_WAIT_S="2")
    first.says("step 10")
    with team.server.down(0):
        told = first.end()
        assert re.search(r"warning: \d+ records of this run are not in http://127.0.0.1:\d+ \(", told)
        assert f"they lie in {root}/data/mlflow/unsent/" in told
        assert "`sana-sprint send`" in told
        second = Stage(team, root, "stage.py", "the next")
        second.says("does not answer")
    second.says("step 3")
    told = second.end()
    assert "waiting for it, 120 s at most (SANA_SPRINT_TRACKING_WAIT_S)" in told
    assert re.search(r"\d+ records of an earlier run, \w+, are in http://127.0.0.1:\d+ now", told)
    found, status = points(team, "left alone")
    assert found == expected(first.steps())
    assert status == {"FINISHED"}
    (at_end,) = team.postgres.rows("select end_time - start_time from runs where name = 'left alone'")[0]
    assert at_end < 60_000  # when it ended, not when that became known


def test_registration_waits_for_an_object_store_that_is_away(team, repository, sprint_folder):  # noqa: F811
    shutil.copytree(sprint_folder, repository / "data/models/student" / SIZE)
    scores = repository / "data/metrics/evaluate" / f"{SIZE}.json"
    scores.parent.mkdir(parents=True)
    scores.write_text(json.dumps(evaluation(0.4, 0.6)))
    team.s3.kill()
    stage = Stage(team, repository, parts.ROOT / "pipelines/register.py", "--size", SIZE)
    stage.says("waiting for it, 120 s at most (SANA_SPRINT_TRACKING_WAIT_S)")
    team.s3.start()
    assert stage.process.wait(180) == 0, stage.log.read_text()[-3000:]
    assert re.search(rf"registered {NAME} version \d+, alias challenger", stage.log.read_text())
    assert stage.log.read_text().count("does not answer (") == 1
    query = "select storage_location from model_versions where name = %s order by version"
    (place,) = team.postgres.rows(query, parameters=(NAME,))[-1]
    folder = team.buckets / place.removeprefix("s3://") / "artifacts/pipeline"
    assert (folder / "transformer/diffusion_pytorch_model.safetensors").stat().st_size > 0
