"""Lineage both ways, on a real git repository with DVC: from a version to code and data, and from data to versions."""

import json
import subprocess

import pytest
from dvc.repo import Repo

from sana_sprint import config
from sana_sprint.registry import ancestry, origin, register, store, track, versions
from tests.registry.conftest import NAME, evaluation
from tests.test_cli import call, refused

PIPELINE = """
stages:
  prepare:
    cmd: mkdir -p data/raw && cp source.txt data/raw/x
    deps: [source.txt]
    outs: [data/raw]
  other:
    cmd: mkdir -p data/other && cp aside.txt data/other/x
    deps: [aside.txt]
    outs: [data/other]
  distill:
    cmd: mkdir -p data/models/student/small && cp data/raw/x data/models/student/small/weights.txt
    deps: [data/raw/x]
    outs: [data/models/student/small]
  register:
    cmd: "true"
    deps: ["data/models/student/${item.size}"]
    matrix: {size: [small]}
"""


def git(root, *words):
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def made(root, source):
    """Runs the pipeline on this source, commits it, and returns a version that was registered of it."""
    (root / "source.txt").write_text(source)
    with Repo(str(root)) as repo:
        repo.reproduce()
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", source)
    server = store.client(store.tracking_uri())
    tags = origin.version_tags(root, "small") | {"git_commit": git(root, "rev-parse", "HEAD"), "profile": "demo"}
    return server.create_model_version(NAME, (root / "data/models/student/small").as_uri(), tags=tags)


@pytest.fixture
def history(repository):
    """A repository with two commits of data and a version registered of each."""
    git(repository, "init", "--quiet")
    git(repository, "config", "user.email", "a@b.c")
    git(repository, "config", "user.name", "a")
    Repo.init(str(repository)).close()
    (repository / ".gitignore").write_text("/data/mlflow\n")
    (repository / "dvc.yaml").write_text(PIPELINE)
    (repository / "aside.txt").write_text("aside")
    store.client(store.tracking_uri()).create_registered_model(NAME)
    return repository, made(repository, "first"), made(repository, "second")


def test_data_lead_to_the_versions_and_runs_made_from_them_and_versions_back_to_code_and_data(history):
    root, first, second = history
    digests = [json.loads(version.tags[origin.MADE_FROM]) for version in (first, second)]
    assert [set(found) for found in digests] == [{"data/raw", "data/models/student/small"}] * 2
    assert digests[0]["data/raw"] != digests[1]["data/raw"] == origin.digest_of(root, "data/raw")
    with track.stage("distill", "small") as run:
        pass
    found = json.loads(call("uses", "data/raw", "--json"))
    assert [one["version"] for one in found["versions"]] == ["2"]
    assert [one["run"] for one in found["runs"]] == [run.run_id]
    found = json.loads(call("uses", digests[0]["data/raw"], "--json"))
    assert ([one["version"] for one in found["versions"]], found["runs"]) == (["1"], [])
    assert f"{NAME}" in call("uses", "data/models/student/small")
    told = refused("uses", "data/models")
    assert "data/models: no output that dvc.lock knows; name data/models/student/small" in told

    told = json.loads(call("lineage", f"models:/{NAME}/1", "--json"))
    assert told["code"]["git_commit"] == git(root, "rev-parse", "HEAD~1")
    assert told["data"]["outputs"] == digests[0]
    assert told["made_on"]["packages"]["torch"].startswith("2.")
    assert digests[0]["data/raw"] in call("lineage", f"models:/{NAME}/1")


def test_a_checkout_restores_commit_and_data_and_dvc_finds_nothing_to_do(history):
    root, first, second = history
    (root / "aside.txt").write_text("changed")
    assert "the working tree has changes" in refused("lineage", f"models:/{NAME}/1", "--checkout")
    git(root, "checkout", "--quiet", "aside.txt")
    told = json.loads(call("lineage", f"models:/{NAME}/1", "--checkout", "--json"))
    assert told["checked_out"] == git(root, "rev-parse", "HEAD") == first.tags["git_commit"]
    assert (root / "data/models/student/small/weights.txt").read_text() == "first"
    with Repo(str(root)) as repo:
        assert repo.status() == {}
    assert ancestry.checkout(root, second) == second.tags["git_commit"]
    assert (root / "data/raw/x").read_text() == "second"
    tags = {origin.MADE_FROM: json.dumps({"data/models/student/small": "f" * 32})}
    server = store.client(store.tracking_uri())
    unknown = server.create_model_version(NAME, (root / "data/models/student/small").as_uri(), tags=tags)
    with pytest.raises(ValueError, match=r"no commit of this repository has a dvc\.lock with its outputs"):
        ancestry.checkout(root, unknown)


def test_what_is_beside_the_road_is_no_ancestor():
    stages = {
        "a": {"outs": [{"path": "data/raw", "md5": "1"}]},
        "b": {"deps": [{"path": "data/raw", "md5": "1"}], "outs": [{"path": "data/models/x", "md5": "2"}]},
        "c": {"deps": [{"path": "data/raw", "md5": "1"}], "outs": [{"path": "data/models/y", "md5": "3"}]},
        "d": {"deps": [{"path": "data/models", "md5": "4"}], "outs": [{"path": "data/rawer", "md5": "5"}]},
    }
    assert origin.above(stages, ["data/models/x/weights"]) == {"data/models/x": "2", "data/raw": "1"}
    assert set(origin.above(stages, ["data/rawer"])) == {"data/rawer", "data/models/x", "data/models/y", "data/raw"}
    assert origin.above(stages, ["data/none"]) == {}


def test_a_student_that_holds_a_pickle_is_not_registered_and_a_version_that_holds_one_is_not_read(
    registered, server, repository
):
    registered(evaluation(0.3, 0.5))
    folder = versions.fetched(server, versions.resolve(server, f"models:/{NAME}/1")) / versions.PIPELINE
    (folder / "transformer/extra.bin").write_bytes(b"\x80\x04N.")
    error = refused("generate", "a red circle", "--model", f"models:/{NAME}/1")
    assert f"{NAME} version 1 is refused" in error
    assert "extra.bin: holds pickle" in error
    (folder / "transformer/extra.bin").unlink()
    student = repository / "data/models/student/small"
    (student / "vae/extra.pkl").write_bytes(b"\x80\x04N.")
    scores, params = repository / "data/metrics/evaluate/small.json", config.load(config.Register)
    with pytest.raises(SystemExit), track.stage("register", "small") as run:
        register.register(student, scores, params, run)
    assert len(versions.every(server, NAME)) == 1
