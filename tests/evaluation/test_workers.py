"""Evaluation on Ray workers of this machine: their number, their deaths and the batch change no picture and no score.

One Ray cluster serves the whole file.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import threading
import time

import numpy as np
import psutil
import pytest

from sana_sprint import cluster, storage
from sana_sprint.evaluation import evaluate, folder_distances, folder_draw, folder_protocol, geneval_judge
from sana_sprint.models import inception
from tests.evaluation.conftest import EVALUATE, SAMPLING
from tests.evaluation.test_evaluate import timeless
from tests.evaluation.test_folder_scores import DEMANDS, protocol_file, root, sampled, score

__all__ = ["root"]
pytestmark = pytest.mark.e2e
WAIT_S = 180
GONE_S = 90


@pytest.fixture(scope="module", autouse=True)
def joined():
    """A cluster that stays up for the whole file, and nothing of which is left after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SANA_SPRINT_WORKERS", "2")
        others = psutil.Process().children(recursive=True)  # servers of other tests, which stay
        with cluster.Joined() as place:
            below = [one for one in psutil.Process().children(recursive=True) if one not in others]
            yield place
    _, alive = psutil.wait_procs(below, timeout=GONE_S)
    assert alive == []


def at_work(name):
    """The processes of Ray's that are carrying out a task of this name."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if f"ray::{name}" in " ".join(one.cmdline()):
                found.append(one)
    return found


def test_two_workers_one_of_which_is_killed_and_another_batch_give_the_same_scores(outcome, folders, tmp_path):
    killed = []

    def kill_one():
        deadline = time.monotonic() + WAIT_S
        while not killed and time.monotonic() < deadline:
            if any(tmp_path.glob("*/*.png")):
                for worker in at_work("Worker.carry_out")[:1]:
                    worker.kill()
                    killed.append(worker.pid)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    other = EVALUATE.model_copy(update={"batch": 9})
    again = evaluate.run(other, SAMPLING, 0.5, dataclasses.replace(folders, cache=tmp_path), "small")
    killer.join()
    assert killed
    assert not psutil.pid_exists(killed[0])
    assert timeless(again.result) == timeless(outcome.result)
    assert again.verdicts == outcome.verdicts
    assert len(list(tmp_path.glob("*/*.png"))) == 6 * 24


def test_sample_draws_with_two_workers_what_it_draws_with_one(sprint_folder, tmp_path, monkeypatch):
    (tmp_path / "data/source").mkdir(parents=True)
    storage.write_text(tmp_path / "data/source/metadata.jsonl", "".join(f"{json.dumps(d)}\n" for d in DEMANDS))
    protocol = protocol_file(tmp_path, kind="geneval")
    pictures = []
    for workers in ("2", "1"):
        monkeypatch.setenv("SANA_SPRINT_WORKERS", workers)
        folder = tmp_path / f"by-{workers}"
        assert folder_draw.run(protocol, sprint_folder, folder, 1, tmp_path) == (6, 6)
        pictures.append([path.read_bytes() for path in sorted(folder.glob("*/samples/*.png"))])
    assert pictures[0] == pictures[1]
    assert len(np.unique(pictures[0])) == 6


def test_two_workers_see_in_pictures_what_one_process_sees(root, sprint_folder, tmp_path, monkeypatch):
    """GenEval's whole outcome, and every feature that FID and its like are made of, bit for bit."""
    monkeypatch.setenv("SANA_SPRINT_WORKERS", "1")
    geneval, _ = sampled(tmp_path, root, sprint_folder, "geneval")
    distances = folder_protocol.load(protocol_file(tmp_path, kind="distances"))
    pairs = folder_distances.pairs(distances, root / "data/source/real", root)
    digests = {kind: [storage.digest(getattr(pair, kind)) for pair in pairs] for kind in ("real", "drawn")}
    found = []
    for workers in ("1", "2"):
        monkeypatch.setenv("SANA_SPRINT_WORKERS", workers)
        if workers == "2":  # none of this process's judges
            for module in (geneval_judge, inception):
                monkeypatch.setattr(module, "load", lambda *_: pytest.fail("looked here"))
        cache = tmp_path / workers
        places = {name: cache / name for name in ("inception", "clip")}
        seen = folder_distances.features(distances, pairs, digests, places, root)
        features = {
            (name, kind): part.numpy().tobytes() for name, parts in seen.items() for kind, part in parts.items()
        }
        found.append((score(tmp_path, root, geneval, cache, kind="geneval"), features))
        assert len(list(cache.rglob("*.safetensors"))) == 2 * 2 * 3  # networks, kinds, batches of five
    assert found[0] == found[1]
    assert len(set(found[0][1].values())) == 2  # Inception's and CLIP's, of one folder


def test_a_judge_that_cannot_be_loaded_is_told_by_its_own_words(root, sprint_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SANA_SPRINT_WORKERS", "2")
    own = tmp_path / "own"
    shutil.copytree(root / "data", own / "data")
    path = own / "data/weights/detector/model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    folder, _ = sampled(tmp_path, own, sprint_folder, "geneval")
    with pytest.raises(ValueError, match=r"^[^;]*data/weights/detector: .*; fetch the folder again$"):
        score(tmp_path, own, folder, kind="geneval")


def test_a_share_that_kills_its_workers_ends_with_one_line(joined):
    def die(_share):
        os.kill(os.getpid(), signal.SIGKILL)

    told = r"^Ray's workers died 3 times over one share .*lower SANA_SPRINT_WORKERS"
    with cluster.Workers(lambda _: die, joined) as workers, pytest.raises(ValueError, match=told):
        list(workers.spread([0]))


def test_results_come_with_their_shares_from_as_many_at_once_as_there_are_workers(joined):
    def begin_and_end(_share):
        began = time.time()
        time.sleep(0.3)
        return began, time.time()

    with cluster.Workers(lambda _: begin_and_end, joined) as workers:
        found = dict(workers.spread(range(5)))
    assert sorted(found) == list(range(5))
    moments = [began for began, _ in found.values()]
    assert max(sum(began <= at < ended for began, ended in found.values()) for at in moments) <= 2


def test_a_fault_on_a_worker_is_told_in_its_own_words_and_not_tried_again(joined, tmp_path):
    def fail(share):
        with (tmp_path / "tries").open("a") as tries:
            tries.write(".")
        raise ValueError(f"data/models/{share}: no model_index.json")

    told = r"^data/models/teacher: no model_index\.json$"
    with cluster.Workers(lambda _: fail, joined) as workers, pytest.raises(ValueError, match=told):
        list(workers.spread(["teacher"]))
    assert (tmp_path / "tries").read_text() == "."
