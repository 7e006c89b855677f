"""The ablation's variants are changes that the profile's section takes, and its table says what each is worth."""

import functools
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
from PIL import Image

from sana_sprint import config
from tests import design_closure

FOLDER = Path("pipelines/ablation")
CONTENT = config.read(FOLDER / "variants.yaml")
PIPELINE = config.read(FOLDER / "dvc.yaml")["stages"]


def script(name):
    spec = importlib.util.spec_from_file_location(name, (FOLDER / f"{name}.py").resolve())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_variant_has_its_stage():
    assert list(PIPELINE["variant"]["matrix"]["name"]) == list(CONTENT["variants"])


@pytest.mark.parametrize("name", PIPELINE)
def test_a_stage_of_the_ablation_depends_on_the_code_that_it_executes(name):
    """Else a row whose scoring changed would stand beside rows of today as if it were one of them."""
    path = FOLDER / f"{name}.py"
    code = [dep for dep in PIPELINE[name]["deps"] if dep.startswith(("src/", "pipelines/"))]
    needed = [path.as_posix(), *design_closure.closure(path, design_closure.graph())]
    assert sorted(code) == sorted(needed)


@pytest.mark.parametrize("name", CONTENT["variants"])
def test_a_variant_changes_the_section_and_keeps_it_valid(name):
    merged = script("variant").merged
    section = merged(config.read(Path("profiles/demo.yaml"))["distill"], CONTENT["shared"]["distill"])
    changes = dict(CONTENT["variants"][name])
    unhealed = changes.pop("unhealed", False)
    changed = merged(section, changes)
    config.Distill.model_validate(changed)
    assert (changed == section and not unhealed) == (name == "sprint")


def test_a_change_of_a_nested_key_leaves_its_neighbours():
    before = {"student": {"lr": 1.0, "betas": [0.9]}, "seed": 0}
    after = script("variant").merged(before, {"student": {"lr": 2.0}})
    assert after == {"student": {"lr": 2.0, "betas": [0.9]}, "seed": 0}
    assert before["student"]["lr"] == 1.0


def test_a_seed_that_is_done_is_not_done_again_unless_something_below_it_changed(tmp_path, monkeypatch, capsys):
    variant, shared = script("variant"), CONTENT["shared"]
    monkeypatch.setattr(variant, "DATA", tmp_path)
    for name in ("models/trigflow", "models/teacher", "models/judge", "latents", "raw"):
        (tmp_path / name).mkdir(parents=True)
    section = variant.merged(config.read(Path(f"profiles/{config.profile()}.yaml"))["distill"], {"seed": 7})
    key_of = functools.partial(variant.key_of, shared)
    key = key_of(section, unhealed=False)
    variant.part("sprint", 7).parent.mkdir(parents=True)
    variant.part("sprint", 7).write_text(json.dumps({"key": key}))
    variant.one_seed("sprint", shared, {}, 7, unhealed=False)
    assert "ablation sprint seed 7: done before" in capsys.readouterr().out
    assert key_of(section, unhealed=True) != key
    assert key_of(section | {"seed": 8}, unhealed=False) != key
    (tmp_path / "models/teacher/weights").write_text("others")
    assert key_of(section, unhealed=False) != key


def test_seeds_share_the_cores_across_variants_and_one_that_fails_stops_none(monkeypatch):
    """Two at once, three of each: the last of the first variant waits for the first of the next."""
    variant, met, done = script("variant"), threading.Barrier(2, timeout=60), []

    def process_of(name, seed):
        met.wait()
        done.append((name, seed))
        return int((name, seed) == ("a", 0))

    monkeypatch.setattr(variant, "process_of", process_of)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SystemExit, match=r'failed, see above: a seed 0; .* `make ablation VARIANTS="b"` makes the tab'):
        variant.run_seeds(["a", "b"], [0, 1, 2])
    assert sorted(done) == [(name, seed) for name in "ab" for seed in (0, 1, 2)]


def test_only_variants_that_dvc_would_run_are_run_ahead(tmp_path, monkeypatch):
    stale = script("variant").stale
    monkeypatch.chdir(tmp_path)
    dvc = functools.partial(subprocess.run, check=True, capture_output=True)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    dvc(["dvc", "init", "--no-scm", "--quiet"])
    file = tmp_path / FOLDER / "dvc.yaml"
    file.parent.mkdir(parents=True)
    stage = {"wdir": "../..", "matrix": {"name": ["a", "b"]}, "cmd": "echo > ${item.name}", "outs": ["${item.name}"]}
    file.write_text(json.dumps({"stages": {"variant": stage}}))
    dvc(["dvc", "repro", "--quiet", f"{FOLDER}/dvc.yaml:variant@a"])
    assert stale(["a", "b"]) == ["b"]


def result(values, digest="d" * 64):
    """Scores of seeds 0, 1, ... that are equal at every step count."""
    score = [{k: {"value": v, "se": 0.5} for k in ("1", "2", "4")} for v in values]
    curves = {"student/grad_norm": [[2, 1.0], [4, 0.5]]}
    kept = {"curves": curves} | ({"protocol_digest": digest} if digest else {})
    return {"changes": {}, "seeds": [{"seed": i, "scores": s} | kept for i, s in enumerate(score)]}


@pytest.fixture
def table(tmp_path, monkeypatch):
    made = script("table")
    monkeypatch.setattr(made, "FOLDER", tmp_path / "ablation")
    monkeypatch.setattr(made, "OUT", tmp_path / "reports")
    made.FOLDER.mkdir()
    return made


def test_the_table_has_means_errors_and_gains_paired_by_seed(table, capsys):
    for name, values in {"sprint": [0.4, 0.5, 0.6], "zz": [0.5, 0.6, 0.7], "aa": [0.3]}.items():
        (table.FOLDER / f"{name}.json").write_text(json.dumps(result(values)))
    table.main()
    rows = {row["variant"]: row for row in json.loads((table.OUT / "table.json").read_text())}
    assert list(rows) == ["sprint", "aa", "zz"]
    assert rows["sprint"]["scores"]["1"] == pytest.approx({"value": 0.5, "se": 0.1 / math.sqrt(3)})
    assert rows["zz"]["gains"]["4"] == pytest.approx({"value": 0.1, "se": 0.0}, abs=1e-6)
    assert rows["aa"]["scores"]["2"] == {"value": 0.3, "se": 0.5}
    assert rows["aa"]["gains"]["2"] == {"value": pytest.approx(-0.1), "se": None}
    assert {row["protocol_digest"] for row in rows.values()} == {"d" * 64}
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith("Protocol dddddddddddd.")
    assert "| zz | 3 | 0 | 0.600 ± 0.058 |" in printed
    assert "| aa | 1 | 0 | 0.300 ± 0.500 | 0.300 ± 0.500 | 0.300 ± 0.500 | -0.100 | -0.100 | -0.100 |" in printed
    assert (table.OUT / "curves.png").stat().st_size > 1000


def test_the_curves_of_a_variant_show_its_quick_scores_too(table):
    """A panel per metric that some variant has."""
    widths = []
    for series in ({}, {"score/1_step": [[2, 0.1], [4, 0.4]], "score/4_step": [[2, 0.5], [4, 0.6]]}):
        content = result([0.4])
        content["seeds"][0]["curves"] |= series
        (table.FOLDER / "sprint.json").write_text(json.dumps(content))
        table.main()
        with Image.open(table.OUT / "curves.png") as picture:
            widths.append(picture.width)
    assert widths[1] == 3 * widths[0]


def test_a_seed_that_was_given_up_counts_as_ill_and_in_no_mean(table, capsys):
    ill = {"seed": 1, "ill": "given up: the quick score fell"}
    one, none = result([0.4]), result([])
    for name, content in {"sprint": result([0.4, 0.5]), "one": one, "none": none}.items():
        content["seeds"] += [ill] * (name != "sprint")
        (table.FOLDER / f"{name}.json").write_text(json.dumps(content))
    table.main()
    printed = capsys.readouterr().out
    assert "| one | 2 | 1 | 0.400 ± 0.500 | 0.400 ± 0.500 | 0.400 ± 0.500 | +0.000 | +0.000 | +0.000 |" in printed
    assert "| none | 1 | 1 | - | - | - | - | - | - |" in printed


def test_a_seed_scored_under_another_protocol_is_refused_by_its_variant(table):
    mixed = result([0.5, 0.6])
    mixed["seeds"][1]["protocol_digest"] = "e" * 64
    for name, content in {"sprint": result([0.4, 0.5]), "zz": mixed}.items():
        (table.FOLDER / f"{name}.json").write_text(json.dumps(content))
    told = r"zz\.json: seed 1 was scored under protocol e{12}, sprint by d{12}; run `dvc repro .*:variant@zz`$"
    with pytest.raises(ValueError, match=told):
        table.main()
    assert not table.OUT.exists()


def test_a_variant_without_a_digest_is_named_below_the_table_and_on_its_page(table, capsys):
    for name, content in {"sprint": result([0.4]), "old": result([0.4], digest=None)}.items():
        (table.FOLDER / f"{name}.json").write_text(json.dumps(content))
    table.main()
    told = "so that they may not compare: old; run"
    assert told in capsys.readouterr().out
    assert told in (table.OUT / "index.html").read_text()
    rows = {row["variant"]: row["protocol_digest"] for row in json.loads((table.OUT / "table.json").read_text())}
    assert rows == {"sprint": "d" * 64, "old": None}


def test_the_digest_of_a_seed_covers_prompts_noise_times_and_judge(tmp_path):
    from sana_sprint.evaluation.protocol import Prompt

    (tmp_path / "judge").mkdir()
    sections = config.read(Path("profiles/demo.yaml"))
    params, sampling = (
        kind.model_validate(sections[name])
        for kind, name in ((config.Evaluate, "evaluate"), (config.Sampling, "sampling"))
    )
    asked = [Prompt(0, "eval-0", "a red circle", "single_object", "seen", {"objects": [{"shape": "circle"}]})]
    base = {"params": params, "sampling": sampling, "sigma_d": 0.5, "judge": tmp_path / "judge"}
    base["score"] = types.SimpleNamespace(prompts=asked)
    digest = script("variant").protocol_digest
    first = digest(types.SimpleNamespace(**base))
    times = sampling.times | {"1": [1.5, 0.0]}
    others = [
        {"params": params.model_copy(update={"seed": 9})},
        {"params": params.model_copy(update={"batch": 7})},
        {"sampling": sampling.model_copy(update={"times": times})},
        {"score": types.SimpleNamespace(prompts=asked * 2)},
    ]
    found = [digest(types.SimpleNamespace(**base | change)) for change in others]
    (tmp_path / "judge/weights").write_text("others")
    found.append(digest(types.SimpleNamespace(**base)))
    assert len({first, *found}) == 6


def test_a_table_without_what_it_compares_with_is_refused(table):
    (table.FOLDER / "scm.json").write_text(json.dumps(result([0.4])))
    with pytest.raises(ValueError, match=r"no sprint.json to compare with; run `make ablation`"):
        table.main()


def test_the_healing_table_gives_scores_by_length_and_their_share_of_the_teachers():
    def score(value):
        return {"value": value, "se": 0.01}

    found = {"small": {0: score(0.2), 100: score(0.4)}, "base": {100: score(0.8)}}
    lines = script("healing").table({"overall": 0.8, "overall_se": 0.02}, found).splitlines()
    assert lines[0] == "| network | 0 steps | 100 steps |"
    assert lines[2] == "| small | 0.200 ± 0.010 (0.25) | 0.400 ± 0.010 (0.50) |"
    assert lines[3] == "| base |  | 0.800 ± 0.010 (1.00) |"
    assert lines[5] == "teacher: 0.800 ± 0.020"


@pytest.mark.parametrize("name", CONTENT["healing"]["rows"])
def test_a_row_of_the_healing_changes_a_size_and_the_section_and_keeps_both_valid(name):
    row, section = CONTENT["healing"]["rows"][name], config.read(Path("profiles/demo.yaml"))["prune"]
    changed = config.Prune.model_validate(section | row.get("prune", {}))
    config.Size.model_validate(section["sizes"][row["size"]] | row.get("cut", {}))
    assert (changed.model_dump() != config.Prune.model_validate(section).model_dump()) == ("prune" in row)
    assert row["seeds"]
    assert all(steps >= 0 for steps in row["steps"])


def test_the_stability_table_tells_of_a_gradient_that_was_not_finite_and_of_a_spike_after_the_middle():
    def curves(**series):
        return {name: [[i + 1, value] for i, value in enumerate(values)] for name, values in series.items()}

    norms = {"student/grad_norm": [1.0, 2.0, None], "student/tangent_norm": [3.0, 4.0, 5.0]}
    losses = {"calm": [0.4] * 80, "spike": [0.4] * 40 + [0.9] * 5 + [0.5] * 35}
    tunes, stages = {"t": curves(loss=losses["spike"], grad_norm=[7.0])}, {k: curves(loss=v) for k, v in losses.items()}
    lines = script("stability").table({"t": curves(**norms)}, tunes, stages).splitlines()
    assert lines[2] == "| t | 2 | inf | 4 | 5 |"
    assert lines[6] == "| t | 7 | 0.900 | 0.500 |"
    assert lines[10:] == ["| calm | 0.400 | 0.400 | 0.400 | 0.400 |", "| spike | 0.400 | 0.900 | 0.900 | 0.500 |"]
