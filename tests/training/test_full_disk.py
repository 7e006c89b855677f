"""A disk that is really full: what is whole on it stays whole, and the run goes on when there is room again."""

import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch

from sana_sprint.training import checkpoints
from tests.training.small_job import changed, fit

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
# Trains on a small disk, tells how that ended and what it left, makes room, and trains to the end.
PROGRAM = """
import pickle, resource, shutil, subprocess, sys
from pathlib import Path
from sana_sprint.training import checkpoints
from tests.training.small_job import fit

job, kind, size, out = pickle.loads(Path(sys.argv[1]).read_bytes()), sys.argv[2], int(sys.argv[3]), sys.argv[4]
def mount(*options):
    subprocess.run(["mount", *options, job.checkpoints.parent], check=True)
job.checkpoints.parent.mkdir(parents=True, exist_ok=True)
if kind == "tmpfs":
    mount("-t", "tmpfs", "-o", f"size={size}", "none")
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 10, resource.RLIM_INFINITY))
try:
    fit(job)
except OSError as error:
    print("ended:", error)
for path in sorted(job.checkpoints.iterdir()):
    print("left:", path.name, checkpoints.broken(path) or "whole")
if kind == "tmpfs":
    mount("-o", "remount,size=100%")
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
fit(job)
shutil.copytree(job.final, out)
"""


@pytest.fixture
def disk(tmp_path):
    """How this machine can have a small disk: a tmpfs, or where it lets nobody mount one a limit on files."""
    mount = [*NAMESPACE, "mount", "-t", "tmpfs", "none", tmp_path]
    allowed = shutil.which("unshare") and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    return (NAMESPACE, "tmpfs") if allowed else ([], "limit")


def test_a_full_disk_leaves_whole_checkpoints_and_with_room_the_run_ends_as_a_straight_one(
    inputs, distill_params, tmp_path, disk
):
    often = {"iterations": 6, "checkpoint_every": 1, "grid_every": 6, "log_every": 1, "keep_checkpoints": 6}
    params = changed(distill_params, **often)
    straight, cramped = inputs.job(tmp_path / "straight", params), inputs.job(tmp_path / "cramped", params)
    fit(straight)
    size = sum(file.stat().st_size for file in straight.final.iterdir())
    (tmp_path / "job").write_bytes(pickle.dumps(cramped))
    namespace, kind = disk
    words = [*namespace, sys.executable, "-c", PROGRAM, tmp_path / "job", kind, str(int(2.5 * size)), tmp_path / "end"]
    alike = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=alike)
    assert done.returncode == 0, done.stderr
    left = [line.split(maxsplit=2)[1:] for line in done.stdout.splitlines() if line.startswith("left: ")]
    (ended,) = (line for line in done.stdout.splitlines() if line.startswith("ended: "))
    assert "the disk may be full" in ended or "No space left on device" in ended
    assert "free space and start again: it goes on from the checkpoint before" in ended
    assert all(state == "whole" for _, state in left)
    if kind == "limit":  # no file of a checkpoint fits, so that the run begins again
        assert left == []
    else:
        assert [name for name, _ in left] == ["step-0000001", "step-0000002"]
        assert done.stderr.count("warning: no checkpoint of iteration") == 3
        assert f"going on from {cramped.checkpoints}/step-0000002" in done.stdout
    assert checkpoints.state(tmp_path / "end")["files"] == checkpoints.state(straight.final)["files"]
