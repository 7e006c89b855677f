"""The whole story, once against the team's PostgreSQL, S3 and MLflow with users, once on the sqlite store of a
repository: two students are registered, the first is promoted by floors, a worse one is refused, a better one promoted,
rolled back and audited, lineage is walked both ways, and stock clients draw with the champion, which is served too.
"""

import base64
import contextlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock
from urllib.parse import unquote

import pytest
import torch
import yaml
from dvc.repo import Repo
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import load_file, save_file

from sana_sprint import config
from sana_sprint.registry import origin, store, track
from tests.registry.conftest import ROOT, SIZE, evaluation
from tests.registry.test_ancestry import git
from tests.registry.test_serve import ask, served
from tests.team import leaks, parts
from tests.test_cli import call, parsed, refused

pytestmark = pytest.mark.e2e

NAME = "sana-sprint-story-small"
CHAMPION = f"models:/{NAME}@champion"
VAE = "artifacts/pipeline/vae/diffusion_pytorch_model.safetensors"
STUDENT = Path("data/models/student") / SIZE
PIPELINE = """
stages:
  prepare:
    cmd: mkdir -p data/raw && cp source.txt data/raw/x
    deps: [source.txt]
    outs: [data/raw]
  distill:
    cmd: mkdir -p data/models/student && cp -r "$(cat data/raw/x)" data/models/student/small
    deps: [data/raw]
    outs: [data/models/student/small]
  evaluate:
    cmd: mkdir -p data/metrics/evaluate && cp "$(cat data/raw/x).json" data/metrics/evaluate/small.json
    deps: [data/models/student/small]
    outs: [data/metrics/evaluate/small.json]
  register:
    cmd: "true"
    deps: ["data/models/student/${item.size}"]
    matrix: {size: [small]}
"""
SCORES = {"first": (0.40, 0.60), "worse": (0.30, 0.50), "better": (0.55, 0.75)}


@pytest.fixture(scope="module")
def students(tmp_path_factory, sprint_folder):
    """Folders of students with weights and scores of their own."""
    place = tmp_path_factory.mktemp("students")
    for seed, (name, scores) in enumerate(SCORES.items()):
        shutil.copytree(sprint_folder, place / name)
        weights = place / name / "transformer/diffusion_pytorch_model.safetensors"
        random = torch.Generator().manual_seed(seed)
        moved = {key: one + 0.1 * torch.randn(one.shape, generator=random) for key, one in load_file(weights).items()}
        save_file(moved, weights, {"format": "pt"})
        (place / f"{name}.json").write_text(json.dumps(evaluation(*scores)))
    return place


@dataclass
class Story:
    """A repository, its students, and the team's server or None."""

    root: Path
    students: Path
    team: parts.Team | None

    def member(self, user):
        """Makes this process one of that user, where there are users."""
        return self.team.member(user) if self.team else contextlib.nullcontext()

    def environment(self, user):
        """The variables of a user's own process, which knows nothing of this package."""
        chosen = self.team.client(user) if self.team else {"MLFLOW_TRACKING_URI": store.tracking_uri(self.root)}
        plain = {key: value for key, value in parts.plain_environment().items() if key != "PYTHONPATH"}
        return plain | {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"} | chosen

    def weights(self, name):
        """The bytes of a student's weights, by place."""
        return contents(self.students / name)


def contents(folder):
    found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.safetensors")}
    assert len(found) == 3
    return found


@pytest.fixture(scope="module", params=["server", "sqlite"])
def story(request, tmp_path_factory, students, empty_store):
    """A git and DVC repository with a profile of its own; this process stands in it."""
    team = request.getfixturevalue("team") if request.param == "server" else None
    root = tmp_path_factory.mktemp("story") / "a repository"
    shutil.copytree(ROOT / "mlflow", root / "mlflow")
    (root / "profiles").mkdir()
    demo = (ROOT / "profiles/demo.yaml").read_text()
    (root / "profiles/story.yaml").write_text(demo.replace("sana-sprint-demo", "sana-sprint-story"))
    (root / "params.yaml").write_text("profile: story\n")
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / ".gitignore").write_text("/data/mlflow\n/data/reports\n")
    (root / store.FOLDER).mkdir(parents=True)
    shutil.copy(empty_store, root / store.FOLDER / "mlflow.db")
    git(root, "init", "--quiet")
    git(root, "config", "user.email", "a@b.c")
    git(root, "config", "user.name", "a")
    Repo.init(str(root)).close()
    with mock.patch.dict(os.environ), contextlib.chdir(root):
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        yield Story(root, students, team)


@contextlib.contextmanager
def stock_client(story, tmp_path):
    """Yields a function that has a process of the reader `cleo` load the champion; it returns the answer."""
    words = [sys.executable, Path(__file__).with_name("stock_client.py")]
    log = tmp_path / "client.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            words,
            cwd=tmp_path,
            env=story.environment("cleo"),
            text=True,
            bufsize=1,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )

    def asked(uri):
        process.stdin.write(json.dumps({"uri": uri, "place": str(tmp_path / uri.rpartition("/")[2])}) + "\n")
        line = process.stdout.readline()
        assert line, log.read_text()[-3000:]
        return json.loads(line)

    try:
        yield asked
    finally:
        process.stdin.close()
        process.wait(30)


def made(story, name):
    """Runs the pipeline on a student, registers it as the stage does, commits, and returns the commit."""
    (story.root / "source.txt").write_text(str(story.students / name))
    with Repo(str(story.root)) as repo:
        repo.reproduce()
    with track.stage("distill", SIZE, distill=config.load(config.Distill)) as run:
        run.metrics({"loss": 0.5}, 1)
    with mock.patch.object(sys, "argv", ["register.py", "--size", SIZE]):
        runpy.run_path(str(ROOT / "pipelines/register.py"), run_name="__main__")
    git(story.root, "add", "--all")
    git(story.root, "commit", "--quiet", "--message", name)
    return git(story.root, "rev-parse", "HEAD"), run.run_id


def picture(png):
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    assert (image.format, image.size) == ("PNG", (64, 64))
    return image


def test_a_students_way_from_registration_over_the_gates_into_use_and_back(story, tmp_path):
    with story.member("ada"):
        first = made(story, "first")
        worse_is_registered(story)
    with story.member("ben"), stock_client(story, tmp_path) as loaded:
        first_is_promoted_by_floors()
        worse_is_refused_with_the_reason()
        with story.member("ada"):
            better = made(story, "better")
        better_is_promoted()
        better_picture = champion_is(story, loaded, "better")
        rolled_back()
        (tmp_path / f"{NAME}@champion").rename(tmp_path / "before")
        first_picture = champion_is(story, loaded, "first")
        assert first_picture != better_picture
        equal_weights_are_held_once(story)
        history_tells_all(story)
        lineage_is_walked_both_ways(story, first, better)
    served_is(story, tmp_path, first_picture)
    if story.team:
        nothing_leaked(story, tmp_path)
    tampering_is_found(story)


def worse_is_registered(story):
    """As a student that was made elsewhere."""
    told = ["--name", NAME, "--licence", "MIT", "--description", "made by others"]
    scores = ["--scores", str(story.students / "worse.json")]
    found = parsed("register", str(story.students / "worse"), *told, *scores)
    assert (found["name"], found["version"], found["alias"], found["new"]) == (NAME, 2, "challenger", True)


def first_is_promoted_by_floors():
    told = call("promote", NAME, "--version", "1", "--dry-run")
    assert f"{NAME} version 1 would be promoted (champion now: none)" in told
    found = parsed("promote", NAME, "--version", "1")
    assert (found["promoted"], found["champion_before"], found["version"]) == (True, None, "1")
    bounds = {gate["name"]: (gate["bound"], gate["outcome"]) for gate in found["gates"]}
    assert bounds["overall at 4 steps"] == (">= 0.450", "holds")


def worse_is_refused_with_the_reason():
    told = refused("promote", NAME, code=3)
    assert told.startswith(f"refused: {NAME} version 2 is not promoted, champion stays version 1: ")
    assert re.search(r"overall at 1 step: 0.300 ± 0.020, asked >= \S+, the champion's 0.400 less 1 se", told)
    assert parsed("promote", NAME, code=3)["promoted"] is False


def better_is_promoted():
    assert f"{NAME}: champion is now version 3 (was 1)" in call("promote", NAME)


def rolled_back():
    said = call("rollback", NAME, "--reason", "draws squares")
    assert f"{NAME}: champion is version 1 again (was 3)" in said


def champion_is(story, loaded, name):
    """Stock clients draw with the champion, whose weights are this student's; returns pyfunc's picture."""
    found = loaded(CHAMPION)
    assert found["ours"] == []
    assert contents(Path(found["folder"])) == story.weights(name)
    picture(found["by_diffusers"])
    picture(found["png"])
    return found["png"]


def equal_weights_are_held_once(story):
    """The students differ in the transformer alone: the autoencoder's file is the first one's, or was copied from it
    within S3."""
    client = MlflowClient(store.tracking_uri())
    numbers = ("1", "2", "3")
    places = [f"{client.get_model_version_download_uri(NAME, number)}/{VAE}" for number in numbers]
    if story.team:
        log = (story.team.folder / "s3.log").read_text().splitlines()
        told = [f"copied here: {place.removeprefix(f's3://{parts.BUCKET}/')}" in log for place in places]
        assert told == [False, True, True]
    else:
        first, *others = (Path(unquote(place.removeprefix("file://"))) for place in places)
        assert [other.samefile(first) for other in others] == [True, True]


def history_tells_all(story):
    (told,) = parsed("history", NAME)
    moves = [(entry["action"], entry["from"], entry["to"]) for entry in told["entries"]]
    assert moves == [("promote", None, "1"), ("promote", "1", "3"), ("rollback", "3", "1")]
    assert told["entries"][-1]["why"] == "draws squares"
    assert {entry["user"] == "ben" for entry in told["entries"]} == {story.team is not None}
    shown = call("history", NAME)
    assert f"{NAME}, champion: version 1" in shown
    assert "draws squares" in shown
    (audited,) = parsed("audit", NAME, "--files")
    assert (audited["whole"], audited["entries"], audited["faults"]) == (True, 3, [])
    assert audited["notes"] == []  # by the digest of every file, not of the pipeline's folder alone


def lineage_is_walked_both_ways(story, first, better):
    digests = {}
    for number, (commit, run) in {"1": first, "3": better}.items():
        outs = yaml.safe_load(git(story.root, "show", f"{commit}:dvc.lock"))["stages"]["prepare"]["outs"]
        digests[number] = outs[0]["md5"]
        told = parsed("lineage", f"models:/{NAME}/{number}")
        assert told["data"]["outputs"]["data/raw"] == digests[number]
        assert told["data"]["committed"]["git_commit"] == commit
        stage = told["runs"]["distill"]
        assert (stage["run"], stage["made_on"]) == (run, origin.machine())
        assert stage["params"]["distill.iterations"] == config.load(config.Distill).iterations
        assert stage["parent"] == told["runs"]["parent"]["run"] == told["runs"]["register"]["parent"]
        found = parsed("uses", digests[number])
        assert [one["version"] for one in found["versions"]] == [number]
        assert run in [one["run"] for one in found["runs"]]
    assert parsed("uses", "data/raw")["digest"] == digests["3"] != digests["1"]
    told = parsed("lineage", f"models:/{NAME}/2")
    assert (told["made"], told["data"]["outputs"]) == ("elsewhere", {})  # this repository's data did not make it
    told = parsed("lineage", CHAMPION, "--checkout")
    assert told["checked_out"] == git(story.root, "rev-parse", "HEAD") == first[0]
    assert contents(story.root / STUDENT) == story.weights("first")
    with Repo(str(story.root)) as repo:
        assert repo.status() == {}


def served_is(story, tmp_path, png):
    """`mlflow models serve` of the champion draws what pyfunc draws."""
    with served(CHAMPION, story.environment("cleo"), tmp_path) as address:
        assert ask(address, "a red circle", steps=1, seed=3) == png


def nothing_leaked(story, tmp_path):
    """Neither secrets nor pickle lie in what all this has written, logs among it."""
    logs = [tmp_path / "client.log", tmp_path / "serve.log"]
    logs += [part.log for part in (story.team.server, story.team.s3, story.team.postgres)]
    assert all(log.stat().st_size for log in logs[1:])
    assert leaks.secrets_found(story.team, story.root, *logs) == []
    assert leaks.pickles_found(story.root / "data", story.team.buckets) == []


def tampering_is_found(story):
    """Whoever may write everywhere rewrites who made the second champion."""
    with story.member("admin"):
        client = MlflowClient(store.tracking_uri())
        entry = client.get_model_version(f"{NAME}.history", "2").tags["entry"]
        client.set_model_version_tag(f"{NAME}.history", "2", "entry", entry.replace('"user":"', '"user":"x'))
        assert f"{NAME}: entry 2 was changed" in refused("audit", NAME, code=3)
        client.set_model_version_tag(f"{NAME}.history", "2", "entry", entry)
        assert f"{NAME}: 3 entries, 0 faults" in call("audit", NAME)
