"""The outbox: what a run has to say reaches the store once, whoever wrote it and whoever sends it."""

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from sana_sprint import storage
from sana_sprint.registry import outbox, store, track
from tests.registry.test_track import SOURCE, free_port, python, runs, script  # noqa: F401  a fixture
from tests.test_cli import call, refused
from tests.test_cli_registry import parsed

WRITERS, LINES = 4, 200
STAGE = """
import sys, time
from pathlib import Path
from sana_sprint.registry import track
with track.stage("teacher") as run:
    for step in range(5):
        run.metrics({"loss": 0.5}, step)
    print("ready", flush=True)
    time.sleep(60)
"""


def append(folder, writer):
    for number in range(LINES):
        outbox.write(folder, {"metrics": [[f"of {writer}", float(number), 0, number]]})


def test_lines_of_several_writers_stay_whole_while_a_reader_empties_the_file(tmp_path):
    processes = [multiprocessing.Process(target=append, args=(tmp_path, number)) for number in range(WRITERS)]
    for process in processes:
        process.start()
    box, seen = outbox.Outbox("", "", tmp_path), []
    while any(process.is_alive() for process in processes) or outbox.read(tmp_path)[0]:
        records, size = outbox.read(tmp_path)
        new = [(start, record) for start, record in records if start not in box.sent]
        seen += [tuple(record["metrics"][0]) for _, record in new]
        box.sent.update(start for start, _ in new)
        if records:
            box._forget(records, size)
    assert len(seen) == len(set(seen)) == WRITERS * LINES


def test_a_line_that_a_kill_has_cut_costs_no_other(tmp_path, capsys):
    outbox.write(tmp_path, {"metrics": [["a", 1.0, 0, 0]]})
    with (tmp_path / outbox.RECORDS).open("a") as file:
        file.write('{"metrics": [["b", 2')
    outbox.write(tmp_path, {"metrics": [["c", 3.0, 0, 0]]})
    assert [record["metrics"][0][0] for _, record in outbox.read(tmp_path)[0]] == ["a", "c"]
    assert "was cut by a kill" in capsys.readouterr().err


def test_nothing_is_left_of_a_stage_that_ended_well(repository, server):
    with track.stage("teacher") as run:
        run.metrics({"loss": 1.0}, 1)
        run.file(repository / "params.yaml")
        run.text("why\n", "return-1.txt")
    assert list((repository / outbox.FOLDER).iterdir()) == []
    assert {file.path for file in server.list_artifacts(run.run_id)} == {"params.yaml", "return-1.txt"}


def test_the_next_stage_sends_what_a_killed_one_left_and_every_point_is_there_once(script, server):  # noqa: F811
    (script / "pipelines/one.py").write_text(STAGE)
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    with subprocess.Popen([sys.executable, "pipelines/one.py"], env=environment, stdout=subprocess.PIPE) as killed:
        assert killed.stdout.readline() == b"ready\n"
        killed.send_signal(signal.SIGKILL)
    (folder,) = (script / outbox.FOLDER).iterdir()
    written = [["loss", 0.5, 1000, step] for step in (4, 5)]
    outbox.write(folder, {"metrics": written})
    outbox.write(folder, {"metrics": written})  # sent, and the kill came before that was noted
    with track.stage("judge"):
        pass
    points = server.get_metric_history(folder.name, "loss")
    assert sorted(point.step for point in points if point.timestamp != 1000) == list(range(5))
    assert sorted(point.step for point in points if point.timestamp == 1000) == [4, 5]
    assert {run.info.status for run in runs(server, stage="teacher")} == {"KILLED"}
    assert not folder.exists()


def test_records_for_another_store_stay_where_they_are(repository, server, capsys):
    with track.stage("teacher") as run:
        folder = repository / outbox.FOLDER / run.run_id
        other = {"uri": "http://other:5000", "run_id": "other"}
        outbox.write(folder.parent / "other", {"metrics": [["loss", 1.0, 0, 0]]})
        (folder.parent / "other" / outbox.ABOUT).write_text(json.dumps(other))
    with track.stage("judge"):
        pass
    assert outbox.read(folder.parent / "other")[0]


def left(repository, run_id, uri, **record):
    """Leaves a record as a stage that was killed does."""
    folder = repository / outbox.FOLDER / run_id
    outbox.write(folder, record)
    storage.write_json(folder / outbox.ABOUT, {"uri": store.shown(uri), "run_id": run_id})


def test_send_sends_what_was_left_and_tells_what_waits_for_another_store(repository, server):
    with track.stage("teacher") as run:
        pass
    left(repository, run.run_id, run.uri, metrics=[["loss", 0.5, 1000, 7]])
    left(repository, "other", "http://anna:secret@other:5000", metrics=[["loss", 1.0, 0, 0]])
    found = parsed("send")
    (one,) = found["runs"]
    assert (one["run"], one["records"], one["unsent"], one["refused"]) == (run.run_id, 1, 0, "")
    assert [point.step for point in server.get_metric_history(run.run_id, "loss")] == [7]
    waiting = "1 records wait for http://other:5000: set MLFLOW_TRACKING_URI to it"
    assert call("send") == f"nothing waits for {run.uri}\n{waiting}\n"
    left(repository, run.run_id, run.uri, metrics=[["no\nname", 0.5, 1000, 7]])
    assert f"1 records of an earlier run, {run.run_id}, are in {run.uri} but for what it refuses (" in call("send")


def test_send_says_what_the_store_did_not_take(repository, server):
    with track.stage("teacher") as run:
        pass
    place = store.artifact_root(run.uri) / run.run_id / "artifacts"
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(exist_ok=True)
    place.write_text("a file where the folder should be")
    (repository / outbox.FOLDER / run.run_id).mkdir(parents=True)
    (repository / outbox.FOLDER / run.run_id / "words.txt").write_text("words")
    left(repository, run.run_id, run.uri, file="words.txt")
    assert f"1 records are not in {run.uri} (" in refused("send")
    assert parsed("send", code=1)["runs"][0]["unsent"] == 1
    place.unlink()
    assert f"are in {run.uri} now" in call("send")
    assert [file.path for file in server.list_artifacts(run.run_id)] == ["words.txt"]


def test_a_living_stage_keeps_its_outbox_to_itself(repository, server):
    with track.stage("teacher"):
        assert outbox.left(repository, store.tracking_uri(repository)) == []


def test_what_the_store_refuses_for_good_fails_the_stage(repository, server, capsys):
    with pytest.raises(SystemExit), track.stage("teacher") as run:
        outbox.write(run.folder, {"metrics": [["no\nname", 1.0, 0, 0]]})
    assert "error: stage teacher: MLflow refuses a record of this run: " in capsys.readouterr().err
    assert {one.info.status for one in runs(server, stage="teacher")} == {"FAILED"}


def test_a_full_disk_keeps_metrics_for_the_next_call(repository, server, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with track.stage("teacher") as run:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
            run.metrics({"loss": 2.0}, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "metrics kept for the next call" in capsys.readouterr().err
        run.metrics({"loss": 1.0}, 2)
    assert [point.value for point in server.get_metric_history(run.run_id, "loss")] == [2.0, 1.0]


def test_a_wait_that_is_no_number_is_told(repository, monkeypatch, capsys):
    monkeypatch.setenv("SANA_SPRINT_TRACKING_WAIT_S", "long")
    with pytest.raises(SystemExit), track.stage("prepare"):
        pass
    assert "SANA_SPRINT_TRACKING_WAIT_S is 'long'" in capsys.readouterr().err


def test_a_stage_that_begins_while_the_server_is_away_says_so_and_gives_up_in_time(script):  # noqa: F811
    started = time.monotonic()
    address = f"http://127.0.0.1:{free_port()}"
    told = python("pipelines/one.py", "teacher", MLFLOW_TRACKING_URI=address, SANA_SPRINT_TRACKING_WAIT_S="4")
    assert 3 < time.monotonic() - started < 40
    first, last = told.stderr.splitlines()
    assert first.startswith(f"warning: tracking server {address} does not answer (")
    assert "waiting for it, 4 s at most" in first
    assert last.startswith("error: stage teacher: tracking server")


def test_pictures_come_in_series(repository, server):
    with track.stage("distill", "small") as run:
        for step in (1, 2):
            run.picture(Image.new("RGB", (8, 8)), "grids/1_step", step)
    names = [Path(file.path).name for file in server.list_artifacts(run.parent_id, "images")]
    steps = [re.search(r"step\W(\d+)", name)[1] for name in names if name.endswith(".png")]
    assert sorted(steps) == ["1", "2"]
