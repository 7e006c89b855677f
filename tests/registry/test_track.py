"""Runs: one parent for each `dvc repro`, a child for each stage, and faults told in one line."""

import errno
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from sana_sprint import config
from sana_sprint.registry import lineage, store, track

SOURCE = Path(__file__).parents[2] / "src"
SCRIPT = """
import sys, time
from sana_sprint.registry import track
with track.stage(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None, numbers={"lr": 1e-4}) as run:
    run.metrics({"loss": 0.5, "part": {"one": 1}}, step=3)
    if sys.argv[1] == "endless":
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def script(repository):
    """A stage script, and a `dvc` that runs it once for each word, as a process above it."""
    (repository / "pipelines").mkdir()
    (repository / "pipelines/one.py").write_text(SCRIPT)
    (repository / "dvc").write_text(
        "import subprocess, sys\n"
        "for words in sys.argv[1:]:\n"
        "    subprocess.run([sys.executable, 'pipelines/one.py', *words.split()], check=True)\n"
    )
    return repository


def python(*words, **environment):
    return subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"PYTHONPATH": str(SOURCE)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def runs(server, **tags):
    query = " and ".join(f"tags.{key} = '{value}'" for key, value in tags.items())
    found = server.get_experiment_by_name("sana-sprint-demo")
    return server.search_runs([found.experiment_id], filter_string=query) if found else []


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_one_parent_for_each_repro_and_a_child_for_each_stage(script, server):
    for _ in range(2):
        assert python("dvc", "teacher", "distill small").returncode == 0
    parents, children = runs(server, kind="parent"), runs(server, kind="stage")
    assert len(parents) == 2
    assert {run.info.status for run in parents + children} == {"FINISHED"}
    names = sorted((run.data.tags["mlflow.parentRunId"], run.info.run_name) for run in children)
    assert names == sorted((p.info.run_id, n) for p in parents for n in ("06 teacher", "09 distill small"))
    assert {run.data.params["numbers.lr"] for run in children} == {"0.0001"}
    assert {run.data.metrics["part.one"] for run in children} == {1.0}


def test_stages_run_by_hand_have_a_parent_of_their_own(script, server):
    for name in ("teacher", "judge"):
        assert python("pipelines/one.py", name).returncode == 0
    assert len(runs(server, kind="parent")) == 2


def test_a_killed_stage_is_marked_by_the_next_run(script, server):
    words = [sys.executable, "pipelines/one.py", "endless"]
    with subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(SOURCE)}, stdout=subprocess.PIPE) as endless:
        assert endless.stdout.readline() == b"ready\n"
        endless.send_signal(signal.SIGKILL)
    assert {run.info.status for run in runs(server)} == {"RUNNING"}
    with track.stage("judge"):
        pass
    assert {run.info.status for run in runs(server, stage="endless")} == {"KILLED"}


def test_an_unreachable_server_is_told_in_one_line_at_once(script):
    address = f"http://someone:secret@127.0.0.1:{free_port()}"
    started = time.monotonic()
    answer = python("pipelines/one.py", "teacher", MLFLOW_TRACKING_URI=address, SANA_SPRINT_TRACKING_WAIT_S="0")
    assert time.monotonic() - started < 45
    assert answer.returncode == 1
    assert len(answer.stderr.splitlines()) == 1
    assert answer.stderr.startswith(f"error: stage teacher: tracking server {address.replace('someone:secret@', '')}")
    assert "make ui" in answer.stderr
    assert "unset MLFLOW_TRACKING_URI" in answer.stderr
    assert python("pipelines/one.py", "teacher").returncode == 0


def test_a_misspelt_key_before_the_run_opens_is_one_line_too(script):
    (script / "pipelines/prepare.py").write_text(
        "from sana_sprint import config\n"
        "from sana_sprint.registry import track\n"
        "print(track.__name__, config.load(config.Prepare))\n"
    )
    profile = script / "profiles/demo.yaml"
    profile.write_text(profile.read_text().replace("images_per_shard", "images_per_shart"))
    answer = python("pipelines/prepare.py")
    assert answer.returncode == 1
    assert len(answer.stderr.splitlines()) == 1
    assert answer.stderr.startswith("error: stage prepare: ")
    assert "images_per_shart" in answer.stderr
    assert "Traceback" in python("pipelines/prepare.py", SANA_SPRINT_TRACEBACK="1").stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("row 3:\nno caption"), "row 3: no caption"),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "data/raw"),
            "data/raw: no such file; run `dvc repro`",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "data/x"),
            "disk full while writing (data/x): free space",
        ),
        (
            RuntimeError("I/O error: No space left on device (os error 28)"),
            "disk full while writing (I/O error",
        ),
    ],
)
def test_faults_of_the_user_fail_the_run_and_end_in_one_line(repository, server, capsys, error, line):
    with pytest.raises(SystemExit) as ended, track.stage("prepare"):
        raise error
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: stage prepare: {line}")
    assert len(told.splitlines()) == 1
    (run,) = runs(server, stage="prepare")
    assert run.info.status == "FAILED"
    assert runs(server, kind="parent")[0].info.status == "FAILED"


def test_faults_of_the_code_keep_their_traceback(repository, server):
    with pytest.raises(ZeroDivisionError), track.stage("prepare"):
        1 / 0  # noqa: B018
    (run,) = runs(server, stage="prepare")
    assert run.info.status == "FAILED"
    assert [file.path for file in server.list_artifacts(run.info.run_id)] == ["traceback.txt"]


@pytest.mark.parametrize(("code", "status"), [(0, "FINISHED"), (1, "FAILED"), (128 + signal.SIGTERM, "KILLED")])
def test_a_stage_that_ends_itself_is_marked_by_its_exit_code(repository, server, code, status):
    with pytest.raises(SystemExit) as ended, track.stage("prepare"):
        raise SystemExit(code)
    assert ended.value.code == code
    (run,) = runs(server, stage="prepare")
    assert run.info.status == status


def test_the_recorder_writes_from_other_processes(repository, server):
    with track.stage("distill", "small") as run:
        recorder = pickle.loads(pickle.dumps(run.recorder()))  # noqa: S301  as Ray does
        for step in (1, 2):
            recorder.metrics({"student/scm": 1.0 / step}, step)
        recorder.picture(Image.new("RGB", (8, 8)), "grids/1_step", 2)
        run.picture(Image.new("RGB", (8, 8)), "grids/last")
    points = server.get_metric_history(run.run_id, "student/scm")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 0.5)]
    assert {file.path for file in server.list_artifacts(run.run_id)} == {"grids"}
    assert {file.path for file in server.list_artifacts(run.parent_id)} == {"images"}


def test_all_params_of_a_profile_are_logged(repository, server):
    sections = {name: config.load(cls) for name, cls in config.SECTIONS.items()}
    with track.stage("report", **sections) as run:
        pass
    logged = server.get_run(run.run_id).data.params
    assert logged == lineage.texts({name: section.model_dump() for name, section in sections.items()})
    assert len(logged) > 100


def test_commit_and_changes_are_tagged(repository):
    shutil.rmtree(repository / "data")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    clean = lineage.git_tags(repository)
    (repository / "params.yaml").write_text("profile: smoke\n")
    assert len(clean["git_commit"]) == 40
    assert (clean["git_dirty"], lineage.git_tags(repository)["git_dirty"]) == ("false", "true")
    assert lineage.git_tags(repository.parent)["git_commit"] == "none"


def test_a_store_in_a_folder_that_cannot_be_made_is_told(repository, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/none/mlflow.db")
    with pytest.raises(SystemExit), track.stage("prepare"):
        pass
    assert "tracking server sqlite:////proc/none/mlflow.db cannot be used" in capsys.readouterr().err


def test_the_address_is_shown_without_its_password():
    assert store.shown("http://me:secret@host:5000/x") == "http://host:5000/x"
    assert store.shown("sqlite:////a b/c.db") == "sqlite:////a b/c.db"
