"""SIGKILL at stage after stage, against the team's server, whose parts die under stages that log: this run, with
PostgreSQL, S3 and a user's password, ends where the undisturbed one on sqlite does; and its data go through the same S3
and back."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sana_sprint import storage
from tests.e2e.clone import LIMIT_S, SIZES, Clone, kill, kill_tree, stages
from tests.team import leaks, parts

pytestmark = pytest.mark.e2e
WAIT_S = 400
GONE_S = 90  # Ray's daemons end with the process that started them
# What a kill leaves its trace in, or a clock: everything else must be equal.
COUNTS_ITS_RUN = {"data/metrics/encode.json"}  # encoded and kept: what this very run had to do
LATENCIES = {"data/reports/index.html"}
LATENCIES |= {
    name for size in SIZES for name in (f"data/metrics/evaluate/{size}.json", f"data/plots/pareto-{size}.png")
}
DATED = {"data/reports/validation"}  # Data Docs say when
CURVES = {f"data/metrics/curves/distill-{size}.json" for size in SIZES} | {"data/plots/curves"}
# curves of this very run; a resume knows the next grid
ITS_OWN = {"images_per_s", "time_left_s", "peak_memory_mb", "grid/diversity"}
NAMES_RUNS = {f"data/reports/registration/{size}.json" for size in SIZES}
UNLIKE = COUNTS_ITS_RUN | LATENCIES | CURVES | DATED | NAMES_RUNS
# stage -> what shows that it is in the middle: words in its log or a file
MOMENTS = {
    "prepare": "data/.unfinished-raw-*/spool*",
    "foundation": "autoencoder  36/36",
    "encode": "data/cache/latents/smoke/captions-*.safetensors",
    "teacher": "data/checkpoints/teacher/step-0000016",
    "prune@small": "heal small  20/20",
    "convert@small": "data/models/trigflow/.unfinished-small-*",
    "distill@small": "data/checkpoints/distill/small/step-0000004",
    "distill@base": "data/checkpoints/distill/base/step-0000008",
    "schedule@small": "schedule: ",
    "evaluate@small": "evaluate undistilled",
    "register@small": "data/mlflow/.staging/*/pipeline/*",  # the first files go to S3
}
# the try -> which stage of it has a part of the server die under it, what shows that it logs, for how many seconds
OUTAGES = {
    "prune@small": ("judge", "judge CLIP", "postgres", 0.0),
    "distill@base": ("distill@small", "going on from", "server", 30.0),
    "end": ("evaluate@base", "evaluate student 1", "s3", 0.0),
}
AWAY, BACK = "does not take records", "takes records again"
ENDLESS = "  precision: 32-true\n  flow:\n    steps: 20000\n"
EXPERIMENT = "r.experiment_id = (select experiment_id from experiments where name = 'sana-sprint-smoke')"


def reached(root: Path, log: Path, stage: str, moment: str) -> bool:
    text = log.read_text(errors="replace")
    _, started, after = text.partition(f"Running stage '{stage}'")
    if not started:
        return False
    if not moment.startswith("data/"):
        return moment in after
    return any(root.glob(moment)) if "*" in moment else bool(list(root.glob(f"{moment}*")))


def to(before: str, then: str) -> tuple[str, ...]:
    """The command that runs `dvc repro` up to one stage, then to another: of stages that need nothing of each other DVC
    takes now this one first, now that.
    """
    return ("bash", "-c", f"dvc repro {before} && exec dvc repro {then}")


def wait_for(process: subprocess.Popen[bytes], root: Path, log: Path, stage: str, moment: str) -> None:
    """Waits until a stage of a running command is at a moment."""
    deadline = time.monotonic() + WAIT_S
    while not reached(root, log, stage, moment):
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, f"{stage}: {moment} never came\n{log.read_text()[-3000:]}"
        time.sleep(0.01)


@contextmanager
def begun(
    clone: Clone, team: parts.Team, command: tuple[str, ...], name: str
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Starts the command of a try and has the part of the server die that it is to lose, and back. Yields process and
    log; none of it outlives the block."""
    log = clone.root.parent / f"{name}.log"
    process = clone.start(log, *command)
    try:
        if name in OUTAGES:
            stage, moment, part, seconds = OUTAGES[name]
            wait_for(process, clone.root, log, stage, moment)
            with getattr(team, part).down(seconds):
                wait_for(process, clone.root, log, stage, AWAY)
        yield process, log
    finally:
        if process.poll() is None:
            kill_tree(process)


def kill_in(clone: Clone, team: parts.Team, command: tuple[str, ...], stage: str) -> str:
    """Starts a command, kills its process group in the middle of a stage, and returns what it had printed."""
    with begun(clone, team, command, stage) as (process, log):
        wait_for(process, clone.root, log, stage, MOMENTS[stage])
        (kill_tree if stage == "distill@small" else kill)(process)
    assert clone.quiet(GONE_S) == []
    return log.read_text(errors="replace")


def half_write(checkpoint: Path) -> None:
    """What a crash of the machine leaves: the folder is there, a file of it is cut."""
    weights = checkpoint / "student.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory, team):
    """A clone whose `dvc repro` was killed in stage after stage, and the log of each try, the last one whole. Its runs
    and models go to the team's server.
    """
    clone = Clone.make(tmp_path_factory.mktemp("kill") / "a clone", "smoke")
    clone.env |= team.client("ada")
    logs = {}
    for before, stage in itertools.pairwise([None, *MOMENTS]):
        command = to(before, stage) if before else ("dvc", "repro", stage)
        logs[stage] = kill_in(clone, team, command, stage)
        if stage == "distill@base":
            half_write(sorted((clone.root / "data/checkpoints/distill/base").glob("step-*"))[-1])
    with begun(clone, team, to(stage, ""), "end") as (process, log):
        assert process.wait(LIMIT_S) == 0, log.read_text()[-4000:]
    logs["end"] = log.read_text()
    return clone, logs


def test_each_try_begins_at_the_stage_that_was_killed(disturbed):
    _, logs = disturbed
    tries = list(logs)
    for before, after in itertools.pairwise(tries):
        assert stages(logs[before])[-1] == before
        assert stages(logs[after])[0] == before


@pytest.mark.parametrize(("name", "outage"), OUTAGES.items())
def test_a_stage_goes_on_while_a_part_of_the_server_is_away_and_sends_what_waited(disturbed, name, outage):
    _, logs = disturbed
    stage, _, part, _ = outage
    after = logs[name].partition(f"Running stage '{stage}'")[2]
    mine = after.partition("Running stage")[0]
    assert mine.count(AWAY) == 1, f"{part}: {mine}"
    assert mine.count(BACK) == 1, f"{part}: {mine}"
    assert not re.search(
        "^Traceback", mine, re.MULTILINE
    )  # of the stage; Ray's own of a busy machine stand behind a name


def test_the_outputs_are_those_of_an_undisturbed_run(disturbed, finished):
    clone, _ = disturbed
    mine = clone.outputs()
    assert set(mine) == set(finished.outputs)
    assert [path for path in mine if path not in UNLIKE and mine[path] != finished.outputs[path]] == []
    assert len(set(mine) - UNLIKE) > 28
    verdicts = [one / "data/reports/validation/validation.json" for one in (clone.root, finished.first)]
    assert verdicts[0].read_text() == verdicts[1].read_text()


@pytest.mark.parametrize("size", SIZES)
def test_scores_and_registration_are_those_of_an_undisturbed_run(disturbed, finished, size):
    one, other = (
        json.loads((root / f"data/metrics/evaluate/{size}.json").read_text())
        for root in (disturbed[0].root, finished.first)
    )
    for key in ("scores", "protocol", "protocol_digest"):
        assert one[key] == other[key]
    one, other = (
        json.loads((root / f"data/reports/registration/{size}.json").read_text())
        for root in (disturbed[0].root, finished.first)
    )
    assert one["tags"]["weights_digest"] == other["tags"]["weights_digest"]
    assert [one[key] for key in ("name", "version", "alias")] == [other[key] for key in ("name", "version", "alias")]


@pytest.mark.parametrize("size", SIZES)
def test_curves_of_the_losses_are_those_of_an_undisturbed_run(disturbed, finished, size):
    one, other = (
        json.loads((root / f"data/metrics/curves/distill-{size}.json").read_text())
        for root in (disturbed[0].root, finished.first)
    )
    names = {name for name in one if name not in ITS_OWN and not name.startswith("score/")}
    assert names >= {"student/scm", "student/ladd", "heads/hinge", "student/drift"}
    assert {name: one[name] for name in names} == {name: other[name] for name in names}


def test_nothing_half_written_stays_and_dvc_finds_nothing_to_do(disturbed):
    clone, _ = disturbed
    assert clone.half_written() == []
    assert "up to date" in clone.run("dvc", "status", "dvc.yaml")


def first_steps(team, name: str) -> list[int]:
    """The first step that each run of a stage recorded, oldest run first."""
    query = f"select min(m.step) from metrics m join runs r on r.run_uuid = m.run_uuid where {EXPERIMENT} "
    query += "and r.name = %s and m.step > 0 and m.key not like 'system/%%' group by r.run_uuid order by r.start_time"
    return [row[0] for row in team.postgres.rows(query, parameters=(name,))]


def test_distill_goes_on_from_its_last_checkpoint(disturbed, team):
    _, logs = disturbed
    log = logs["distill@base"]  # the try after the kill in distill@small
    line = next(line for line in log.splitlines() if "distill small: going on from" in line)
    iteration = int(line.rpartition("step-")[2][:7])
    assert iteration >= 4
    before, after = first_steps(team, "09 distill small")
    assert before == 4  # the first point of a run from zero
    assert after > 2 * iteration  # two steps an iteration: what was done is not done again


@pytest.mark.parametrize(("after", "kept"), [("prune@small", "teacher"), ("convert@small", "prune/small")])
def test_teacher_and_healing_go_on_from_their_last_checkpoint(disturbed, after, kept):
    root, logs = disturbed[0].root, disturbed[1]
    assert f"going on from data/checkpoints/{kept}/step-0000016" in logs[after]  # killed in the steps after it
    assert not (root / "data/checkpoints" / kept).exists()


def test_a_half_written_checkpoint_is_named_and_the_one_before_is_taken(disturbed):
    _, logs = disturbed
    log = logs["schedule@small"]  # the try after the kill in distill@base
    warning = next(line for line in log.splitlines() if "half-written checkpoint" in line)
    broken = int(warning.partition("step-")[2][:7])
    assert "student.safetensors does not match its digest" in warning
    taken = next(line for line in log.splitlines() if "distill base: going on from" in line)
    assert int(taken.rpartition("step-")[2][:7]) == broken - 4


def test_runs_that_were_killed_are_marked_so(disturbed, team):
    states = dict(team.postgres.rows(f"select status, count(*) from runs r where {EXPERIMENT} group by status"))
    assert set(states) == {"FINISHED", "KILLED"}
    assert states["KILLED"] >= len(MOMENTS)


def test_every_curve_reached_the_server_whole(disturbed, team):
    """Each point of the curve that the stage wrote, once, over the runs that it took."""
    query = "select m.step, count(*), count(distinct r.run_uuid) from metrics m join runs r on r.run_uuid = m.run_uuid "
    query += f"where {EXPERIMENT} and r.name = %s and m.key = 'student/scm' group by m.step"
    for size in SIZES:
        curve = json.loads((disturbed[0].root / f"data/metrics/curves/distill-{size}.json").read_text())
        found = team.postgres.rows(query, parameters=(f"09 distill {size}",))
        assert {step for step, _ in curve["student/scm"]} <= {step for step, *_ in found}
        assert all(points == runs for _, points, runs in found)


def test_both_sizes_are_registered_on_the_server_with_their_weights_in_the_store(disturbed, team):
    query = "select v.name, v.version, v.storage_location, a.alias from model_versions v "
    query += "join registered_model_aliases a using (name, version) where name like %s order by name"
    rows = team.postgres.rows(query, parameters=("sana-sprint-smoke-%",))
    assert [(name, version, alias) for name, version, _, alias in rows] == [
        (f"sana-sprint-smoke-{size}", 1, "challenger") for size in sorted(SIZES)
    ]
    for size, (_, _, place, _) in zip(sorted(SIZES), rows, strict=True):
        weights = "transformer/diffusion_pytorch_model.safetensors"
        stored = team.buckets / place.removeprefix("s3://") / "artifacts/pipeline" / weights
        assert storage.digest(stored) == storage.digest(disturbed[0].root / "data/models/student" / size / weights)


def test_nothing_unsent_is_left(disturbed):
    assert list((disturbed[0].root / "data/mlflow/unsent").iterdir()) == []


def objects(team) -> set[str]:
    """The keys of what DVC has in the object store."""
    place = team.buckets / parts.BUCKET / "dvc"
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}


def test_dvc_pushes_pulls_and_collects_on_the_same_object_store(disturbed, team):
    clone, _ = disturbed
    before = clone.outputs()
    clone.run("dvc", "remote", "add", "--default", "team", f"s3://{parts.BUCKET}/dvc")
    clone.run("dvc", "remote", "modify", "team", "endpointurl", team.settings["MLFLOW_S3_ENDPOINT_URL"])
    clone.run("dvc", "push", "dvc.yaml")
    pushed = objects(team)
    assert len(pushed) > len(before)

    shutil.rmtree(clone.root / ".dvc/cache")
    for path in before:
        place = clone.root / path
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    clone.run("dvc", "pull", "dvc.yaml")
    assert clone.outputs() == before
    assert "up to date" in clone.run("dvc", "status", "dvc.yaml")

    profile, lock = clone.root / "profiles/smoke.yaml", clone.root / "dvc.lock"
    earlier = {path: path.read_text() for path in (profile, lock)}
    profile.write_text(earlier[profile].replace("title: ", "title: another "))
    assert stages(clone.run("dvc", "repro", "report")) == ["report"]
    clone.run("dvc", "push", "dvc.yaml")
    assert objects(team) > pushed
    for path, text in earlier.items():
        path.write_text(text)
    clone.run("dvc", "checkout", "dvc.yaml")
    assert clone.outputs() == before
    clone.run("dvc", "gc", "--workspace", "--cloud", "--force")
    assert objects(team) == pushed
    assert "up to date" in clone.run("dvc", "status", "dvc.yaml")


def kill_dvc_alone(process):
    """Else the next `dvc repro` would run beside a stage that still writes."""
    os.kill(process.pid, signal.SIGKILL)


def interrupt(process):
    """What the terminal does to all of them on Ctrl-C."""
    os.killpg(process.pid, signal.SIGINT)


@pytest.mark.parametrize(("end", "says"), [(kill_dvc_alone, "`dvc` is gone, so this stage ends too"), (interrupt, "")])
def test_a_training_saves_and_ends_when_dvc_alone_is_killed_and_on_ctrl_c(disturbed, team, end, says):
    clone, _ = disturbed
    before, profile = clone.outputs(), clone.root / "profiles/smoke.yaml"
    text = profile.read_text()
    profile.write_text(text.replace("  precision: 32-true\n  flow:\n    steps: 20\n", ENDLESS, 1))
    log, place = clone.root.parent / f"{end.__name__}.log", clone.root / "data/checkpoints/teacher"
    process = clone.start(log, "dvc", "repro", "--single-item", "teacher")
    wait_for(process, clone.root, log, "teacher", "/20000")  # some steps on, wherever the one before has left off
    end(process)
    process.wait()
    assert clone.quiet() == []
    told = log.read_text()
    assert says in told
    assert "Traceback" not in told
    assert "asked to stop: writing a checkpoint first" in told
    assert not list(place.glob(f"{storage.UNFINISHED}*"))
    query = f"select status from runs r where {EXPERIMENT} and name = '06 teacher' order by start_time desc limit 1"
    assert team.postgres.rows(query) == [("KILLED",)]
    profile.write_text(text)
    clone.run("dvc", "repro")
    assert clone.outputs() == before
    assert "up to date" in clone.run("dvc", "status", "dvc.yaml")


def test_no_secret_reached_the_databases_the_object_store_the_outputs_or_the_logs(disturbed, team):
    root = disturbed[0].root
    logs = list(root.parent.glob("*.log"))
    assert len(logs) >= len(MOMENTS)
    assert leaks.secrets_found(team, root / "data", team.server.log, team.s3.log, team.postgres.log, *logs) == []
    assert not [secret for secret in team.secrets() for log in disturbed[1].values() if secret in log]


def test_nothing_that_was_written_is_a_pickle(disturbed, team):
    data = disturbed[0].root / "data"
    assert leaks.pickles_found(data / "models", data / "mlflow", team.buckets) == []
