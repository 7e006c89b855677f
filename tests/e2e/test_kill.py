"""SIGKILL at stage after stage: the run that was killed over and over ends where the undisturbed one does."""

import itertools
import json
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from tests.e2e.clone import SIZES, Clone, kill, kill_tree, stages

pytestmark = pytest.mark.e2e
WAIT_S = 180
GONE_S = 90  # Ray's daemons end with the process that started them
# What a kill leaves its trace in, or a clock: everything else must be equal.
COUNTS_ITS_RUN = {"data/metrics/encode.json"}  # encoded and kept: what this very run had to do
LATENCIES = {"data/reports/index.html"}
LATENCIES |= {
    name for size in SIZES for name in (f"data/metrics/evaluate/{size}.json", f"data/plots/pareto-{size}.png")
}
DATED = {"data/reports/validation"}  # Data Docs say when
CURVES = {f"data/metrics/curves/distill-{size}.json" for size in SIZES} | {"data/plots/curves"}
ITS_OWN = {"images_per_s", "peak_memory_mb", "grid/diversity"}  # curves of this very run; a resume knows the next grid
NAMES_RUNS = {f"data/reports/registration/{size}.json" for size in SIZES}
UNLIKE = COUNTS_ITS_RUN | LATENCIES | CURVES | DATED | NAMES_RUNS
# stage -> what shows that it is in the middle: words in its log or a file
MOMENTS = {
    "prepare": "data/.unfinished-raw-*/spool*",
    "foundation": "autoencoder  36/36",
    "encode": "data/cache/latents/smoke/captions-*.safetensors",
    "teacher": "teacher  20/20",
    "prune@small": "heal small  20/20",
    "convert@small": "data/models/trigflow/.unfinished-small-*",
    "distill@small": "data/checkpoints/distill/small/step-0000004",
    "distill@base": "data/checkpoints/distill/base/step-0000008",
    "schedule@small": "schedule: ",
    "evaluate@small": "evaluate undistilled",
    "register@small": "data/mlflow/artifacts/models",
}


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


def kill_in(clone: Clone, command: tuple[str, ...], stage: str, log: Path) -> str:
    """Starts a command, kills its process group in the middle of a stage, and returns what it had printed."""
    process = clone.start(log, *command)
    deadline = time.monotonic() + WAIT_S
    while not reached(clone.root, log, stage, MOMENTS[stage]):
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, f"{stage}: {MOMENTS[stage]} never came\n{log.read_text()[-3000:]}"
        time.sleep(0.01)
    (kill_tree if stage == "distill@small" else kill)(process)
    assert clone.quiet(GONE_S) == []
    return log.read_text(errors="replace")


def half_write(checkpoint: Path) -> None:
    """What a crash of the machine leaves: the folder is there, a file of it is cut."""
    weights = checkpoint / "student.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    """A clone whose `dvc repro` was killed in stage after stage, and the log of each try, the last one whole."""
    clone = Clone.make(tmp_path_factory.mktemp("kill") / "a clone", "smoke")
    logs = {}
    for before, stage in itertools.pairwise([None, *MOMENTS]):
        command = to(before, stage) if before else ("dvc", "repro", stage)
        logs[stage] = kill_in(clone, command, stage, clone.root.parent / f"{stage}.log")
        if stage == "distill@base":
            half_write(sorted((clone.root / "data/checkpoints/distill/base").glob("step-*"))[-1])
    logs["end"] = clone.run(*to(stage, ""))
    return clone, logs


def test_each_try_begins_at_the_stage_that_was_killed(disturbed):
    _, logs = disturbed
    tries = list(logs)
    for before, after in itertools.pairwise(tries):
        assert stages(logs[before])[-1] == before
        assert stages(logs[after])[0] == before


def test_the_outputs_are_those_of_an_undisturbed_run(disturbed, finished):
    clone, _ = disturbed
    mine = clone.outputs()
    assert set(mine) == set(finished.outputs)
    assert [path for path in mine if path not in UNLIKE and mine[path] != finished.outputs[path]] == []
    assert len(set(mine) - UNLIKE) > 28
    verdicts = [one.root / "data/reports/validation/validation.json" for one in (clone, finished.clone)]
    assert verdicts[0].read_text() == verdicts[1].read_text()


@pytest.mark.parametrize("size", SIZES)
def test_scores_and_registration_are_those_of_an_undisturbed_run(disturbed, finished, size):
    one, other = (
        json.loads((clone.root / f"data/metrics/evaluate/{size}.json").read_text())
        for clone in (disturbed[0], finished.clone)
    )
    for key in ("scores", "protocol", "protocol_digest"):
        assert one[key] == other[key]
    one, other = (
        json.loads((clone.root / f"data/reports/registration/{size}.json").read_text())
        for clone in (disturbed[0], finished.clone)
    )
    assert one["tags"]["weights_digest"] == other["tags"]["weights_digest"]
    assert [one[key] for key in ("name", "version", "alias")] == [other[key] for key in ("name", "version", "alias")]


@pytest.mark.parametrize("size", SIZES)
def test_curves_of_the_losses_are_those_of_an_undisturbed_run(disturbed, finished, size):
    one, other = (
        json.loads((clone.root / f"data/metrics/curves/distill-{size}.json").read_text())
        for clone in (disturbed[0], finished.clone)
    )
    names = {name for name in one if name not in ITS_OWN and not name.startswith("score/")}
    assert names >= {"student/scm", "student/ladd", "heads/hinge", "student/drift"}
    assert {name: one[name] for name in names} == {name: other[name] for name in names}


def test_nothing_half_written_stays_and_dvc_finds_nothing_to_do(disturbed):
    clone, _ = disturbed
    assert clone.half_written() == []
    assert "up to date" in clone.run("dvc", "status", "dvc.yaml")


def first_steps(clone: Clone, name: str) -> list[int]:
    """The first step that each run of a stage recorded, oldest run first."""
    query = (
        "select min(m.step) from metrics m join runs r on r.run_uuid = m.run_uuid "
        "where r.name = ? and m.step > 0 group by r.run_uuid order by r.start_time"
    )
    with sqlite3.connect(clone.root / "data/mlflow/mlflow.db") as database:
        return [row[0] for row in database.execute(query, (name,))]


def test_distill_goes_on_from_its_last_checkpoint(disturbed):
    clone, logs = disturbed
    log = logs["distill@base"]  # the try after the kill in distill@small
    line = next(line for line in log.splitlines() if "distill small: going on from" in line)
    iteration = int(line.rpartition("step-")[2][:7])
    assert iteration >= 4
    before, after = first_steps(clone, "distill small")
    assert before == 4  # the first point of a run from zero
    assert after > 2 * iteration  # two steps an iteration: what was done is not done again


def test_a_half_written_checkpoint_is_named_and_the_one_before_is_taken(disturbed):
    _, logs = disturbed
    log = logs["schedule@small"]  # the try after the kill in distill@base
    warning = next(line for line in log.splitlines() if "half-written checkpoint" in line)
    broken = int(warning.partition("step-")[2][:7])
    assert "student.safetensors does not match its digest" in warning
    taken = next(line for line in log.splitlines() if "distill base: going on from" in line)
    assert int(taken.rpartition("step-")[2][:7]) == broken - 4


def test_runs_that_were_killed_are_marked_so(disturbed):
    clone, _ = disturbed
    with sqlite3.connect(clone.root / "data/mlflow/mlflow.db") as database:
        states = database.execute("select status, count(*) from runs group by status").fetchall()
    assert set(dict(states)) == {"FINISHED", "KILLED"}
    assert dict(states)["KILLED"] >= len(MOMENTS)


def test_a_stage_ends_when_dvc_alone_is_killed(disturbed):
    """Else the next `dvc repro` would run beside a stage that still writes."""
    clone, _ = disturbed
    before = clone.outputs()
    log = clone.root.parent / "orphan.log"
    process = clone.start(log, "dvc", "repro", "--force", "--single-item", "teacher")
    deadline = time.monotonic() + WAIT_S
    while not any("pipelines/teacher.py" in " ".join(one.cmdline()) for one in clone.processes()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(3)  # the stage has opened its run by now
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert clone.quiet() == []
    assert "`dvc` is gone, so this stage ends too" in log.read_text()
    clone.run("dvc", "repro")
    assert clone.outputs() == before
    assert "up to date" in clone.run("dvc", "status", "dvc.yaml")
