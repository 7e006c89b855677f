"""Distillation on Ray workers of this machine: their number, their deaths and requests to stop change nothing.

One Ray cluster serves all jobs but those of a driver of its own.
"""

import contextlib
import dataclasses
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from sana_sprint import cluster, storage
from sana_sprint.training import checkpoints, draws, job, launch
from sana_sprint.training.job import BLOCKS
from tests.training.small_job import MACHINES, changed, fit

pytestmark = pytest.mark.e2e
ITERATIONS, MIDDLE = 20, 10
NOT_LOSSES = MACHINES | {"grid/diversity"}
DRIVER = """
import pickle, sys
from pathlib import Path
from sana_sprint.training import launch
launch.run(pickle.loads(Path(sys.argv[1]).read_bytes()))
"""
WAIT_S = 400  # four suites side by side start Ray slowly
GONE_S = 90


@pytest.fixture(scope="module", autouse=True)
def joined():
    """A cluster that stays up for the whole file, and nothing of which is left after it."""
    others = psutil.Process().children(recursive=True)  # servers of other tests, which stay
    with cluster.Joined():
        below = [one for one in psutil.Process().children(recursive=True) if one not in others]
        yield
    _, alive = psutil.wait_procs(below, timeout=GONE_S)
    assert alive == []


@pytest.fixture
def twenty(distill_params):
    """Params of 20 iterations that keep every checkpoint."""
    often = {"checkpoint_every": 2, "keep_checkpoints": ITERATIONS, "grid_every": 10, "log_every": 1}
    return changed(distill_params, iterations=ITERATIONS, heads__virtual_batch=4, **often)


def run(made: job.Job, workers: int, monkeypatch) -> job.Job:
    monkeypatch.setenv("SANA_SPRINT_WORKERS", str(workers))
    assert launch.run(made) == made.final
    return made


@pytest.fixture
def straight(inputs, twenty, tmp_path_factory, monkeypatch):
    """The same job without a disturbance, by its number of workers; each is run once."""

    def of(workers: int) -> job.Job:
        root = tmp_path_factory.getbasetemp() / f"straight-{workers}"
        made = inputs.job(root, twenty)
        return made if made.finished() else run(made, workers, monkeypatch)

    return of


def going_on(made: job.Job, root: Path) -> job.Job:
    """A copy of a job in another place, that has come to its middle."""
    shutil.copytree(made.checkpoints, root / "checkpoints")
    shutil.copy(made.curves, root / "curves.json")
    for path in (root / "checkpoints").glob("step-*"):
        if int(path.name[-7:]) > MIDDLE:
            shutil.rmtree(path)
    return dataclasses.replace(
        made, checkpoints=root / "checkpoints", curves=root / "curves.json", grids=root / "grids"
    )


def assert_alike(one: job.Job, other: job.Job) -> None:
    """The same losses at every step, and the same weights, within what another order of sums changes."""
    first, second = (storage.read_json(made.curves) for made in (one, other))
    for name in set(first) - NOT_LOSSES:
        assert_close(first[name], second[name], rtol=2e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")
    for network in ("student", "averaged", "heads"):
        assert_close(*(load_file(made.final / f"{network}.safetensors") for made in (one, other)), rtol=1e-2, atol=1e-3)


def test_one_worker_and_two_see_the_same_losses(straight):
    assert_alike(straight(1), straight(2))


def wait_until(come: Callable[[], bool]) -> None:
    """Waits until something has come. Raises TimeoutError after WAIT_S."""
    deadline = time.monotonic() + WAIT_S
    while not come():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


def workers_at_work(driver: int | None = None) -> list[psutil.Process]:
    """The processes that train, or are about to, below this one or another."""
    found = []
    for one in psutil.Process(driver).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in one.name() + " ".join(one.cmdline()):
                found.append(one)
    return found


def kill_a_worker_when(there: Path) -> threading.Thread:
    """SIGKILLs one of the workers as soon as a path exists."""

    def wait_and_kill():
        wait_until(there.exists)
        workers_at_work()[-1].kill()

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    return thread


def kill_after_each_checkpoint(folder: Path, deaths: int) -> threading.Thread:
    """SIGKILLs all workers once they have written a checkpoint, so many times over."""

    def wait_and_kill():
        for _ in range(deaths):
            there = set(folder.glob("step-*"))
            wait_until(lambda there=there: set(folder.glob("step-*")) - there and workers_at_work())
            workers = workers_at_work()
            for one in workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            psutil.wait_procs(workers, timeout=WAIT_S)

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    return thread


def test_workers_that_die_more_often_than_ray_forgives_are_started_again_as_long_as_the_run_gets_further(
    inputs, twenty, tmp_path, monkeypatch, capfd
):
    made = inputs.job(tmp_path, changed(twenty, iterations=60))
    deaths = cluster.RESTARTS + 1
    killer = kill_after_each_checkpoint(made.checkpoints, deaths)
    run(made, 1, monkeypatch)
    killer.join()
    told = capfd.readouterr()
    assert told.out.count("going on from") == deaths
    (again,) = re.findall(r"workers failed (\d+) times .* from iteration 0 to (\d+) and can go on", told.err)
    assert int(again[0]) == deaths
    assert int(again[1]) > 0


def test_a_killed_worker_and_a_resume_end_at_the_bits_of_a_straight_run(straight, tmp_path, monkeypatch, capfd):
    other = going_on(straight(2), tmp_path)
    monkeypatch.setenv(BLOCKS, "1")  # after the cluster was started
    killer = kill_a_worker_when(other.checkpoints / f"step-{MIDDLE + 4:07d}")
    run(other, 2, monkeypatch)
    killer.join()
    assert capfd.readouterr().out.count("going on from") == 2
    one, two = (checkpoints.state(made.final)["files"] for made in (straight(2), other))
    assert one == two
    assert "student/grad_norm_block_00" in storage.read_json(other.curves)


def test_latents_that_are_not_finite_on_one_worker_end_all_with_the_one_line(inputs, twenty, tmp_path, monkeypatch):
    latents = shutil.copytree(inputs.latents, tmp_path / "latents")
    tensors = load_file(latents / "train.safetensors")
    tensors["latents"][7] = float("nan")
    save_file(tensors, latents / "train.safetensors")
    monkeypatch.setenv("SANA_SPRINT_WORKERS", "2")
    with pytest.raises(ValueError, match=r"^distillation of tiny stopped: .* training pictures \[7\] .* not finite"):
        launch.run(inputs.job(tmp_path, twenty, latents=latents))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("SANA_SPRINT_COMPILE", "yes", "SANA_SPRINT_COMPILE=yes: must be 1 or 0"),
        (draws.MICRO_BATCH, "0", "SANA_SPRINT_MICRO_BATCH=0: must be a positive number of rows"),
    ],
)
def test_the_stage_s_switches_reach_the_workers_who_say_what_is_wrong_with_them(
    inputs, twenty, tmp_path, monkeypatch, name, value, told
):
    monkeypatch.setenv(name, value)  # after the cluster was started
    with pytest.raises(ValueError, match=rf"^distillation of tiny stopped: {told}$"):
        run(inputs.job(tmp_path, twenty), 1, monkeypatch)


def test_two_ill_workers_return_together_and_give_up_together(inputs, twenty, tmp_path, monkeypatch, capfd):
    exploding = {"health__sample_std_max": 1e9, "health__tangent_norm_max": None}  # until something is not finite
    params = changed(twenty, student__lr=0.1, student__warmup_steps=0, health__returns_max=1, **exploding)
    monkeypatch.setenv("SANA_SPRINT_WORKERS", "2")
    with pytest.raises(ValueError, match=r"stopped: ill 2 times, given up: student/.* lower distill.student.lr"):
        launch.run(inputs.job(tmp_path, params))
    assert capfd.readouterr().out.count("return 1, other draws") == 1


def driver_of(made: job.Job, root: Path, workers: int) -> tuple[subprocess.Popen, Path]:
    """Starts a process, with a Ray cluster and a session of its own, that runs a job; returns it and its log."""
    (root / "job.pickle").write_bytes(pickle.dumps(made))
    alone = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"SANA_SPRINT_WORKERS": str(workers)}
    with (root / "log").open("wb") as log:
        words = [sys.executable, "-c", DRIVER, str(root / "job.pickle")]
        return subprocess.Popen(words, env=alone, stdout=log, stderr=log, start_new_session=True), root / "log"


@pytest.mark.parametrize("workers", [1, 2])
def test_after_a_killed_driver_another_goes_on_at_once_to_the_bits_of_a_straight_run(
    straight, tmp_path, monkeypatch, workers
):
    """The workers of the killed one live on for a while, and still write."""
    other = going_on(straight(workers), tmp_path)
    driver, _ = driver_of(other, tmp_path, workers)
    wait_until((other.checkpoints / f"step-{MIDDLE + 2:07d}").exists)
    below = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    run(other, workers, monkeypatch)
    one, two = (checkpoints.state(made.final)["files"] for made in (straight(workers), other))
    assert one == two
    assert list(other.checkpoints.glob(f"{storage.UNFINISHED}*")) == []
    assert psutil.wait_procs(below, timeout=GONE_S)[1] == []


@pytest.mark.parametrize(("number", "send"), [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)])
def test_a_driver_asked_to_end_saves_first_and_the_next_goes_on_with_other_workers(straight, tmp_path, number, send):
    """A checkpoint of one worker is taken up by two, below a process that gets SIGTERM or, with all below it, the
    terminal's Ctrl-C, which it takes for SIGTERM; theirs by one again."""
    other = going_on(straight(1), tmp_path)
    driver, log = driver_of(other, tmp_path, 2)
    wait_until(lambda: bool(workers_at_work(driver.pid)))  # seconds before their first step
    below = psutil.Process(driver.pid).children(recursive=True)
    send(driver.pid, number)
    code = driver.wait(GONE_S)
    said = log.read_text()
    assert code == 128 + signal.SIGTERM, said
    assert "asked to stop: writing a checkpoint first" in said
    assert f"going on from {other.checkpoints / f'step-{MIDDLE:07d}'}" in said
    assert psutil.wait_procs(below, timeout=GONE_S)[1] == []
    saved = checkpoints.newest(other.checkpoints, other.key)
    assert MIDDLE < checkpoints.state(saved)["iteration"] < ITERATIONS
    assert not (other.checkpoints / checkpoints.STOP).exists()
    fit(other)
    assert_alike(straight(1), other)
