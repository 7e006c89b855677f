"""The experiments of pipelines/ablation run for real, shortened, in the finished smoke clone, and leave their pages."""

import itertools
import json

import pytest
from ruamel.yaml import YAML

pytestmark = pytest.mark.e2e
ABLATION = "pipelines/ablation/dvc.yaml"
SEEDS = (0, 1)
ROWS = ("sprint", "data_free", "scm", "unhealed")
SHORT = {
    "stability": {"fine_tune_steps": 3, "scm_iterations": 3, "rates": [1], "staged_steps": 2, "staged_rates": [1]},
    "healing": {"prompts": 24, "rows": {"small": {"size": "small", "seeds": [0], "steps": [0, 2]}}},
}


@pytest.fixture(scope="module")
def shortened(finished):
    """The clone, whose experiments take a minute."""
    path, yaml = finished.clone.root / "pipelines/ablation/variants.yaml", YAML(typ="safe")
    content = yaml.load(path.read_text())
    content["shared"] |= {"seeds": list(SEEDS), "prompts": 24}
    with path.open("w") as file:
        yaml.dump(content | SHORT, file)
    return finished.clone


def test_make_ablation_distils_every_seed_once_and_leaves_table_curves_and_page(shortened):
    log = shortened.run("make", "ablation", f"VARIANTS={' '.join(ROWS)}")
    data = shortened.root / "data"
    of = {name: json.loads((data / f"ablation/{name}.json").read_text()) for name in ROWS}
    for name, told in of.items():
        assert [log.count(f"ablation {name} seed {seed}: {{") for seed in SEEDS] == [1, 1]
        assert [seed["seed"] for seed in told["seeds"]] == list(SEEDS)
        assert all(set(seed["scores"]) == {"1", "2", "4"} for seed in told["seeds"])
        assert ("student/ladd" in told["seeds"][0]["curves"]) == (name != "scm")
        one, other = (seed["curves"]["student/scm"] for seed in told["seeds"])
        assert [step for step, _ in one] == [step for step, _ in other]
    losses = [[x for _, x in seed["curves"]["student/scm"]] for told in of.values() for seed in told["seeds"]]
    assert all(one != other for one, other in itertools.combinations(losses, 2)), "each has data or a start of its own"
    table = (data / "reports/ablation/table.md").read_text()
    assert table in log
    assert [line.split(" | ")[:2] for line in table.splitlines()[2:6]] == [[f"| {name}", "2"] for name in ROWS]
    assert "<table" in (data / "reports/ablation/index.html").read_text()
    assert "Running stage" not in shortened.run("make", "ablation", f"VARIANTS={' '.join(ROWS)}")


@pytest.mark.parametrize(("stage", "row"), [("healing", "| small | "), ("stability", "| t, QK-norm, rate x 1 | ")])
def test_the_other_experiments_leave_a_page_with_their_table(shortened, stage, row):
    assert stage in shortened.run("dvc", "repro", f"{ABLATION}:{stage}")
    reports = shortened.root / "data/reports" / stage
    assert any(line.startswith(row) for line in (reports / "table.md").read_text().splitlines())
    assert "<table" in (reports / "index.html").read_text()
