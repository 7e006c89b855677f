"""Lineage both ways, on a real git repository with DVC: from a version to code and data, and from data to versions."""

import hashlib
import json
import shutil
import subprocess

import pytest
from dvc.repo import Repo

from sana_sprint import config, host
from sana_sprint.registry import ancestry, lineage, origin, register, store, track, versions
from tests.registry.conftest import NAME, evaluation
from tests.test_cli import call, parsed, refused

PIPELINE = """
stages:
  prepare:
    cmd: mkdir -p data/raw && cp data/source/${profile}/x data/raw/x
    deps: ["data/source/${profile}"]
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
LATER = """
  later:
    cmd: mkdir -p data/later && cp data/raw/x data/later/x
    deps: [data/raw]
    outs: [data/later]
"""
NEVER_RUN = """
stages:
  ablation:
    cmd: cp ../data/raw/x x
    deps: [../data/raw]
    outs: [x]
"""
SOURCE = "data/source/demo"
RUNS = (("prepare", None), ("distill", "small"))


def git(root, *words):
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def made(root, source):
    """Runs the pipeline on this source, commits it, and returns a version that was registered of it."""
    (root / SOURCE).mkdir(parents=True, exist_ok=True)
    (root / SOURCE / "x").write_text(source)
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
    (repository / "aside").mkdir()
    (repository / "aside/dvc.yaml").write_text(NEVER_RUN)
    (repository / "aside.txt").write_text("aside")
    store.client(store.tracking_uri()).create_registered_model(NAME)
    return repository, made(repository, "first"), made(repository, "second")


def test_data_lead_to_the_versions_and_runs_made_from_them_and_versions_back_to_code_and_data(history):
    root, first, second = history
    digests = [json.loads(version.tags[origin.MADE_FROM]) for version in (first, second)]
    assert [set(found) for found in digests] == [{SOURCE, "data/raw", "data/models/student/small"}] * 2
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
    assert "data/models: no output or source that dvc.lock knows; name data/models/student/small" in told
    of_source = json.loads(call("uses", SOURCE, "--json"))
    assert of_source["digest"] == digests[1][SOURCE]
    assert {key: of_source[key] for key in found} == json.loads(call("uses", "data/raw", "--json")) | {
        "digest": digests[1][SOURCE]
    }
    server = store.client(store.tracking_uri())
    for number, version in ("1", first), ("2", second):
        server.set_model_version_tag(NAME, version.version, lineage.DATA_DIGEST, number * 64)
    assert [one["version"] for one in parsed("uses", "2" * 64)["versions"]] == ["2"]
    assert [one["run"] for one in parsed("uses", "2" * 64)["runs"]] == [run.run_id]
    assert parsed("uses", "a" * 64) == {"digest": "a" * 64, "versions": [], "runs": []}

    told = json.loads(call("lineage", f"models:/{NAME}/1", "--json"))
    assert told["code"]["git_commit"] == git(root, "rev-parse", "HEAD~1")
    lock = subprocess.run(["git", "show", "HEAD~1:dvc.lock"], cwd=root, capture_output=True, check=True).stdout
    committed = {"git_commit": git(root, "rev-parse", "HEAD~1"), "dvc_lock_sha256": hashlib.sha256(lock).hexdigest()}
    assert told["data"]["committed"] == committed
    assert told["data"]["outputs"] == digests[0]
    assert told["made_on"]["packages"]["torch"].startswith("2.")
    assert digests[0]["data/raw"] in call("lineage", f"models:/{NAME}/1")


def with_runs(root, elsewhere):
    """Gives version 1 runs of its stages as registration finds them, and returns them."""
    with track.stage("teacher", teacher=config.load(config.Teacher)) as teacher:
        pass
    with track.stage("distill", "small", distill=config.load(config.Distill)) as distill:
        pass
    server = store.client(store.tracking_uri())
    server.set_tag(teacher.run_id, origin.MADE_ON, json.dumps(elsewhere))  # as if its cache came from there
    sections = config.read(root / "profiles/demo.yaml")
    tags = lineage.run_ids(server, distill.run_id, "small", sections, root) | {"run_parent": distill.parent_id}
    for key, value in tags.items():
        server.set_model_version_tag(NAME, "1", key, value)
    return teacher, distill


def test_a_version_leads_to_the_runs_of_its_stages_with_the_parameters_and_the_machine_of_each(history):
    root, _, _ = history
    elsewhere = origin.machine() | {"cpu": "another CPU", "gpus": ["a GPU"] * 2, "packages": {"torch": "1.0"}}
    teacher, distill = with_runs(root, elsewhere)
    runs = parsed("lineage", f"models:/{NAME}/1")["runs"]
    assert {stage: one["run"] for stage, one in runs.items()} == {
        "teacher": teacher.run_id,
        "distill": distill.run_id,
        "parent": distill.parent_id,
    }
    assert [runs[stage]["parent"] for stage in ("teacher", "distill")] == [distill.parent_id] * 2
    assert "parent" not in runs["parent"]
    iterations = runs["distill"]["params"]["distill.iterations"]
    assert iterations == config.load(config.Distill).iterations
    assert runs["distill"]["made_on"] == origin.machine()
    assert runs["teacher"]["made_on"] == elsewhere

    lines = call("lineage", f"models:/{NAME}/1").splitlines()
    assert lines[0] == f"{NAME} version 1"
    top = [line[4:].partition(":")[0] for line in lines if line.startswith(("├── ", "└── "))]
    told = ["made", "weights sha256", "sampling sha256", "protocol sha256", "code", "data", "parameters", "runs"]
    assert top == [*told, "made on", "requirements lock sha256"]
    of_stages = {stage: lines.index(f"│   {mark}── {stage}") for stage, mark in zip(runs, "├├└", strict=True)}
    assert list(of_stages) == ["distill", "parent", "teacher"]
    of_distill = lines[of_stages["distill"] : of_stages["parent"]]
    assert f"│   │   │   ├── distill.iterations: {iterations}" in of_distill
    (made_on,) = [line for line in lines[of_stages["teacher"] :] if line.startswith("│       └── made on: ")]
    assert made_on.startswith(f"│       └── made on: another CPU, {elsewhere['cores']} cores, a GPU, a GPU, ")
    assert made_on.endswith(", torch 1.0")


def ran(stage, size=None):
    """Returns the run of a stage with the params of the profile, as all its runs here have them."""
    with track.stage(stage, size, **{stage: config.load(config.SECTIONS[stage])}) as run:
        pass
    return run


def test_of_equal_params_the_runs_count_that_read_the_data_of_the_version(history):
    """The newer runs, perhaps of somebody else, read another source; that of prepare read nothing else."""
    root, first, second = history
    found = {}
    for version in (first, second):
        ancestry.checkout(root, version)
        found[version.version] = {f"run_{stage}": ran(stage, size) for stage, size in RUNS}
    server, sections = store.client(store.tracking_uri()), config.read(root / "profiles/demo.yaml")
    for version in (first, second):
        ancestry.checkout(root, version)
        mine = {key: run.run_id for key, run in found[version.version].items()}
        assert lineage.run_ids(server, mine["run_distill"], "small", sections, root) == mine
        for run in mine.values():
            tags = server.get_run(run).data.tags
            assert json.loads(tags[origin.MADE_FROM])[SOURCE] == json.loads(version.tags[origin.MADE_FROM])[SOURCE]


def test_of_equal_runs_that_of_the_same_command_counts(history):
    root, _, _ = history
    mine, others = ran("distill", "small"), ran("distill", "small")
    server, sections = store.client(store.tracking_uri()), config.read(root / "profiles/demo.yaml")
    server.set_tag(others.run_id, "mlflow.parentRunId", "another command")
    assert lineage.run_ids(server, mine.run_id, "small", sections, root) == {"run_distill": mine.run_id}
    assert lineage.run_ids(server, others.run_id, "small", sections, root) == {"run_distill": others.run_id}


def test_the_gpus_of_a_machine_are_those_that_their_driver_tells(tmp_path):
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 18\n")
    assert host.gpu_names(tmp_path) == ["NVIDIA H100 80GB HBM3"] * 2
    assert host.gpu_names(tmp_path / "none") == []


def test_a_checkout_fetches_from_the_remote_what_the_cache_has_lost(history, tmp_path):
    root, _, _ = history
    with Repo(str(root)) as repo, repo.config.edit("local") as settings:  # git knows nothing of this file
        settings["core"] = {"remote": "team"}
        settings["remote"] = {"team": {"url": str(tmp_path / "remote")}}
    with Repo(str(root)) as repo:
        repo.push(all_commits=True)
    shutil.rmtree(root / ".dvc/cache")
    assert parsed("lineage", f"models:/{NAME}/1", "--checkout")["checked_out"] == git(root, "rev-parse", "HEAD")
    assert (root / "data/models/student/small/weights.txt").read_text() == "first"
    with Repo(str(root)) as repo:
        assert repo.status(targets="dvc.yaml") == {}
    shutil.rmtree(root / ".dvc/cache")
    shutil.rmtree(tmp_path / "remote")
    before = state(root)
    told = refused("lineage", f"models:/{NAME}/2", "--checkout")
    assert "are neither in DVC's cache nor its remote (data/" in told
    assert state(root) == before


def state(root):
    """What a checkout that is refused leaves as it was: branch, commit and data."""
    files = sorted(path for path in (root / "data").rglob("*") if path.is_file() and "mlflow" not in path.parts)
    where = [git(root, "rev-parse", *words) for words in (["--abbrev-ref", "HEAD"], ["HEAD"])]
    return where, {str(path): path.read_bytes() for path in files}


def test_a_checkout_that_would_lose_data_is_refused_and_changes_nothing(history):
    """In the middle of it, when code has moved already: DVC alone knows what it has not saved."""
    root, _, _ = history
    weights = root / "data/models/student/small/weights.txt"
    weights.unlink()  # a link to DVC's cache, perhaps
    weights.write_text("of a run that goes on")
    before = state(root)
    assert before[0][0] != "HEAD"
    told = refused("lineage", f"models:/{NAME}/1", "--checkout")
    assert "unsaved" in told
    assert state(root) == before


def test_a_checkout_restores_commit_and_data_and_dvc_finds_nothing_to_do(history):
    root, first, second = history
    (root / "aside.txt").write_text("changed")
    assert "the working tree has changes" in refused("lineage", f"models:/{NAME}/1", "--checkout")
    git(root, "checkout", "--quiet", "aside.txt")
    told = json.loads(call("lineage", f"models:/{NAME}/1", "--checkout", "--json"))
    assert told["checked_out"] == git(root, "rev-parse", "HEAD") == first.tags["git_commit"]
    assert (root / "data/models/student/small/weights.txt").read_text() == "first"
    with Repo(str(root)) as repo:
        assert repo.status(targets="dvc.yaml") == {}
    assert ancestry.checkout(root, second) == second.tags["git_commit"]
    assert (root / "data/raw/x").read_text() == "second"
    with Repo(str(root)) as repo:
        (root / "dvc.yaml").write_text(PIPELINE + LATER)
        repo.reproduce("later")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "one stage more")
    assert (root / "data/later/x").exists()
    assert ancestry.checkout(root, first) == first.tags["git_commit"]
    assert not (root / "data/later").exists()
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
    stages["a"]["deps"] = [{"path": "data/source", "md5": "0"}, {"path": "code.py", "md5": "6"}]
    sources = {"data/models/y": "3", "data/raw": "1", "data/source": "0"}
    assert origin.above(stages, ["data/models/y"]) == sources


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
