"""Two workers whose folders do not show the same, as on hosts without shared storage or with a stale view of it."""

import dataclasses
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

from sana_sprint.training import checkpoints
from tests.training.small_job import changed, fit, half

WORKER = """
import os, pickle, sys, torch
from pathlib import Path
from sana_sprint.training import attempts, draws
rank = int(os.environ["RANK"])
made = pickle.loads(Path(sys.argv[1 + rank]).read_bytes())
torch.set_num_threads(2 - rank)  # as each has measured it
ways = {"accelerator": "cpu", "devices": 2, "strategy": "ddp_find_unused_parameters_true"}
attempts.fit(made, draws.Share(rank, 2), lambda: ways)
sys.stdout.write(f"{torch.get_num_threads()} threads\\n")
"""


def two_workers(tmp_path, jobs):
    """Runs two processes of one process group, each with its own job."""
    files = []
    for rank, made in enumerate(jobs):
        files.append(tmp_path / f"{rank}.pickle")
        files[-1].write_bytes(pickle.dumps(made))
    (tmp_path / "worker.py").write_text(WORKER)
    group = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words, here = [*group, tmp_path / "worker.py", *files], os.pathsep.join([str(Path.cwd()), *sys.path])
    env = {k: v for k, v in os.environ.items() if k != "SANA_SPRINT_THREADS"} | {"PYTHONPATH": here}
    return subprocess.run(words, env=env, capture_output=True, text=True, check=False)


def test_workers_that_see_other_checkpoints_do_not_train_on(inputs, distill_params, tmp_path):
    params = changed(distill_params, iterations=4, heads__virtual_batch=4)
    first = inputs.job(tmp_path / "0", params, scorer=half)  # scored by all together
    fit(first)
    shutil.rmtree(first.final)
    shutil.copytree(first.checkpoints, tmp_path / "1/checkpoints")
    second = dataclasses.replace(first, checkpoints=tmp_path / "1/checkpoints")
    (stale,) = second.checkpoints.glob("step-*")
    stale.rename(aside := tmp_path / stale.name)

    done = two_workers(tmp_path, [first, second])
    assert done.returncode
    assert f"{second.checkpoints}: the newest whole checkpoint is none to worker 1 and {stale.name} to" in done.stderr
    assert [path.name for path in first.checkpoints.glob("step-*")] == [stale.name]

    aside.rename(stale)
    whole = (cut := first.checkpoints / stale.name / "averaged.safetensors").read_bytes()
    cut.write_bytes(whole[:1000])
    done = two_workers(tmp_path, [first, second])
    assert done.returncode
    assert "the newest whole checkpoint is none to worker 0 and another to another" in done.stderr
    assert cut.exists()  # broken to the first alone, and so perhaps to its view alone
    cut.write_bytes(whole)

    done = two_workers(tmp_path, [first, second])
    assert done.returncode == 0, done.stderr
    assert checkpoints.newest(first.checkpoints, first.key) == first.final
    assert done.stdout.count("2 threads") == 2, "sums over another number of threads are rounded in another order"
    assert checkpoints.state(first.final)["threads"] == 2
