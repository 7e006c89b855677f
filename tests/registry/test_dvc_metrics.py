"""The same figures in `dvc metrics`, `sana-sprint compare`, MLflow and the registry, for two commits with a dvc.lock of
the pipeline's own stage, and its plots in `dvc plots show`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.cli import main
from ruamel.yaml import YAML

from sana_sprint.evaluation import plots
from sana_sprint.registry import compare, store, track
from tests.registry.conftest import NAME, ROOT, evaluation
from tests.registry.test_compare import gallery, written
from tests.test_cli import call

SCORES, GRIDS = compare.paths("small")
CHANGED = "scores.student.1.overall.value"
KINDS = {"scores": plots.scores, "tasks": plots.tasks, "pareto": plots.pareto}


def git(*words):
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True)


def dvc(*words):
    """Returns what the command `dvc` printed."""
    return subprocess.run([sys.executable, "-m", "dvc", *words], check=True, capture_output=True, text=True).stdout


def stage(repository):
    """Makes the repository one of git and DVC, with the outputs, metrics, plots and params of the real evaluate."""
    real = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]["evaluate"]
    kept = {key: real[key] for key in ("cmd", "params", "outs", "metrics", "plots")} | {"matrix": {"size": ["small"]}}
    YAML().dump({"stages": {"evaluate": kept}}, repository / "dvc.yaml")
    git("init", "--quiet")
    assert main(["init", "--quiet"]) == 0


def commit(result, message):
    """Commits what evaluate leaves of a result: its lock, by `dvc commit`, as if the stage had run."""
    written(SCORES, result)
    gallery(GRIDS, "red")
    for kind, write in KINDS.items():
        write(result, Path(f"data/plots/{kind}-small.png"))
    assert main(["commit", "--force", "--quiet"]) == 0
    git("add", "--all", "dvc.yaml", "dvc.lock", "params.yaml", "profiles", ".dvc")
    git("commit", "--quiet", "--message", message)


@pytest.fixture
def two(registered, repository):
    """Two commits, of whose second MLflow has a run of evaluate and the registry a version."""
    stage(repository)
    before, after = evaluation(0.3, 0.5), evaluation(0.4, 0.5)
    commit(before, "first")
    registered(after)  # which writes the scores too
    commit(after, "second")
    with track.stage("evaluate", size="small") as run:
        run.file(SCORES)
        run.scores(after)
    return before, after, run.run_id


def test_dvc_mlflow_registry_and_compare_tell_the_same_figures_of_two_commits(two, tmp_path):
    before, after, run_id = two
    shown = json.loads(dvc("metrics", "show", "--json"))[""]["data"][str(SCORES)]["data"]
    assert shown["scores"] == after["scores"]
    server = store.client(store.tracking_uri())
    logged = server.get_run(run_id).data.metrics
    tagged = json.loads(server.get_model_version(NAME, "1").tags["scores"])
    kept = compare.load(f"runs:/{run_id}", "small", Path()).scores
    for network, by_steps in shown["scores"].items():
        for steps, scores in by_steps.items():
            for name in ("overall", "fid_scene_clip", "clip_score"):
                value = scores[name]["value"]
                assert logged[f"{name}/{network}_{steps}_step"] == value
                assert kept[network][steps][name]["value"] == value
                assert tagged[network][steps][name][0] == value
    differences = json.loads(dvc("metrics", "diff", "HEAD~1", "HEAD", "--json"))[str(SCORES)]
    assert differences[CHANGED] == {"old": 0.3, "new": 0.4, "diff": pytest.approx(0.1)}
    assert {name.split(".")[0] for name in differences} == {"scores"}
    told = call("compare", "HEAD~1", "HEAD", "--size", "small")
    for result in (before, after):
        assert f"{result['scores']['student']['1']['overall']['value']:.3f} ± 0.020" in told
    assert f"{differences[CHANGED]['diff']:+.3f}" in told
    assert "One protocol" in told
    dvc("plots", "show", "--out", str(tmp_path / "shown"))
    page = (tmp_path / "shown/index.html").read_text()
    pictures = {path.read_bytes() for path in (tmp_path / "shown").rglob("*.png")}
    for kind in KINDS:
        assert f"{kind}-small.png" in page
        assert Path(f"data/plots/{kind}-small.png").read_bytes() in pictures
