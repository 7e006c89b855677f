"""Server, PostgreSQL and object store die while a stage logs: it goes on, says so, and every point arrives once; and
files that are gone from the store are told by version."""

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sana_sprint.registry import store
from tests.registry.conftest import NAME, SIZE, Model, evaluation, repository, rules  # noqa: F401  two are fixtures
from tests.registry.test_promote import promoted
from tests.team import parts
from tests.test_cli import call, refused

pytestmark = pytest.mark.e2e
SAYS_S = 300  # other tests run beside this one
DOWN_S = 30.0  # for which the server is away; the others are as soon as the stage has noticed it
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
        deadline = time.monotonic() + SAYS_S
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


@dataclass
class Survived:
    """What stages said that had their parts die under them, how far they came, and where they ran."""

    log: str
    steps: int
    root: Path
    left: str
    left_steps: int
    left_root: Path
    following: str


@pytest.fixture(scope="module")
def survived(team, tmp_path_factory):
    """A stage under which each part dies once. While the server is away another one, which may wait for 2 s alone,
    ends, and the one after it begins."""
    place = tmp_path_factory.mktemp("outages")
    one, two = make_repository(place / "one"), make_repository(place / "two")
    stages = [Stage(team, one, "stage.py", "outages")]
    try:
        stages[0].says("step 20")
        for number, part in enumerate((team.s3, team.postgres), start=1):
            with part.down(0):
                stages[0].says("does not take records", number)
            stages[0].says("takes records again", number)
        stages.append(Stage(team, two, "stage.py", "left alone", SANA_SPRINT_TRACKING_WAIT_S="2"))
        stages[1].says("step 10")
        with team.server.down(DOWN_S):
            left = stages[1].end()
            stages.append(Stage(team, two, "stage.py", "the next"))
            stages[2].says("does not answer")
            stages[0].says("does not take records", 3)
        stages[2].says("step 3")
        following = stages[2].end()
        stages[0].says("takes records again", 3)
        yield Survived(stages[0].end(), stages[0].steps(), one, left, stages[1].steps(), two, following)
    finally:
        for stage in stages:
            stage.process.kill()


def test_every_point_arrives_exactly_once(team, survived):
    found, status = points(team, "outages")
    assert found == expected(survived.steps)
    assert status == {"FINISHED"}


def test_every_picture_arrives(team, survived):
    (place,) = team.postgres.rows(
        "select parent.artifact_uri from runs join tags using (run_uuid) join runs parent on parent.run_uuid = value "
        "where runs.name = 'outages' and key = 'mlflow.parentRunId'"
    )[0]
    names = [path.name for path in (team.buckets / place.removeprefix("s3://") / "images").glob("*.png")]
    steps = {int(re.search(r"step\W(\d+)", name)[1]) for name in names}
    assert steps == set(range(0, survived.steps, 50))


def test_each_outage_is_told_once_and_so_is_its_end(survived):
    log = survived.log
    assert len(re.findall("does not take records", log)) == 3
    assert len(re.findall("takes records again: [0-9]+ sent", log)) == 3
    assert "Traceback" not in log


def test_the_stage_does_not_wait_for_any_of_them(survived):
    assert float(re.search(r"longest ([\d.]+)", survived.log)[1]) < STALL_S


def test_nothing_is_left_behind(survived):
    assert list((survived.root / "data/mlflow/unsent").iterdir()) == []


def test_a_stage_whose_server_stays_away_ends_well_and_the_next_one_waits_and_sends_what_it_left(team, survived):
    assert re.search(r"warning: \d+ records of this run are not in http://127.0.0.1:\d+ \(", survived.left)
    assert f"they lie in {survived.left_root}/data/mlflow/unsent/" in survived.left
    assert "`sana-sprint send`" in survived.left
    assert "waiting for it, 120 s at most (SANA_SPRINT_TRACKING_WAIT_S)" in survived.following
    assert re.search(r"\d+ records of an earlier run, \w+, are in http://127.0.0.1:\d+ now", survived.following)
    found, status = points(team, "left alone")
    assert found == expected(survived.left_steps)
    assert status == {"FINISHED"}
    (at_end,) = team.postgres.rows("select end_time - start_time from runs where name = 'left alone'")[0]
    assert at_end < 60_000  # when it ended, not when that became known


def test_registration_waits_for_an_object_store_that_is_away(team, repository, sprint_folder):  # noqa: F811
    shutil.copytree(sprint_folder, repository / "data/models/student" / SIZE)
    scores = repository / "data/metrics/evaluate" / f"{SIZE}.json"
    scores.parent.mkdir(parents=True)
    scores.write_text(json.dumps(evaluation(0.4, 0.6)))
    with team.s3.down(0):
        stage = Stage(team, repository, parts.ROOT / "pipelines/register.py", "--size", SIZE)
        stage.says("waiting for it, 120 s at most (SANA_SPRINT_TRACKING_WAIT_S)")
    assert stage.process.wait(180) == 0, stage.log.read_text()[-3000:]
    assert re.search(rf"registered {NAME} version \d+, alias challenger", stage.log.read_text())
    assert stage.log.read_text().count("does not answer (") == 1
    query = "select storage_location from model_versions where name = %s order by version"
    (place,) = team.postgres.rows(query, parameters=(NAME,))[-1]
    folder = team.buckets / place.removeprefix("s3://") / "artifacts/pipeline"
    assert (folder / "transformer/diffusion_pytorch_model.safetensors").stat().st_size > 0


def test_a_server_whose_database_is_away_is_told_in_one_line_by_the_commands(team, repository, rules, tmp_path):  # noqa: F811
    (tmp_path / "versions").mkdir()
    with team.member("ada"):
        model = Model(store.client(team.uri), "without-database", tmp_path / "versions")
        promoted(model, rules, model.add())
        champion = ["generate", "a", "--model", f"models:/{model.name}@champion"]
        with team.postgres.down(0):
            for words in (["promote", model.name], ["audit", model.name], champion):
                store.client.cache_clear()  # each command is a process of its own
                line = refused(*words)
                assert f"tracking server {team.uri} cannot be used (" in line
                assert "too many 503 error responses" in line
                assert "check the address" in line
        assert f"{model.name}: 1 entries, 0 faults" in call("audit", model.name)


def test_files_of_a_champion_that_are_gone_from_the_store_are_told_by_version(team, repository, rules, tmp_path):  # noqa: F811
    (tmp_path / "versions").mkdir()
    with team.member("ada"):
        model = Model(store.client(team.uri), "lost-files", tmp_path / "versions")
        for _ in range(2):
            promoted(model, rules, model.add())
        model.add()
        query = "select artifact_uri from model_versions join runs on run_uuid = run_id "
        for (place,) in team.postgres.rows(query + "where model_versions.name = 'lost-files' and version < 3"):
            shutil.rmtree(team.buckets / place.removeprefix("s3://"))
        gone = r"its files are gone \(runs:/\w+/model/artifacts/pipeline: no model_index.json there\)"
        assert re.search(f"version 2: {gone}", refused("generate", "a", "--model", "models:/lost-files@champion"))
        assert re.search(f"version 1 cannot be put back, {gone}", refused("rollback", "lost-files"))
        told = refused("audit", "lost-files", code=3)
        assert re.search(r"names version 2, whose files are gone \(runs:/", told)
        told = call("promote", "lost-files")
        assert re.search(f"warning: lost-files: the champion, version 2: {gone}, so no rollback can put it back", told)
        assert "lost-files: champion is now version 3 (was 2)" in told
