"""The smoke profile from nothing to a registered student, as a user runs it, in a path with a space in it."""

import json
import resource
import shutil
import sqlite3

import pytest
from ruamel.yaml import YAML

from tests.e2e.clone import SIZES, stages

pytestmark = pytest.mark.e2e
ONCE = ("prepare", "validate", "foundation", "encode", "judge", "teacher", "report")
PER_SIZE = ("prune", "convert", "distill", "schedule", "evaluate", "register")
ALL = {*ONCE, *(f"{stage}@{size}" for stage in PER_SIZE for size in SIZES)}
SMALL = "models:/sana-sprint-smoke-small"
MADE_OF = {
    "data/raw": ("base", "small"),
    "data/models/teacher": ("base", "small"),
    "data/models/pruned/small": ("small",),
}
SECOND_RUN_TIMES = 5  # 2.5 where it was measured; to hash all outputs anew, or to import torch, takes more
DRAW = """
import sys
from diffusers import SanaSprintPipeline
pipeline = SanaSprintPipeline.from_pretrained(sys.argv[1])
assert not any(name.startswith("sana_sprint") for name in sys.modules)
picture = pipeline("a red circle", num_inference_steps=2, height=32, width=32, use_resolution_binning=False,
                   max_sequence_length=16, complex_human_instruction=None).images[0]
print(picture.size)
"""


def children_s():
    """The seconds of a core that this process's ended children took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rows(clone, query):
    with sqlite3.connect(clone.root / "data/mlflow/mlflow.db") as database:
        return database.execute(query).fetchall()


def test_every_stage_runs_once_and_leaves_what_dvc_yaml_names(finished):
    assert sorted(stages(finished.log)) == sorted(ALL)
    declared = YAML(typ="safe").load((finished.clone.root / "dvc.yaml").read_text())["stages"]
    count = 0
    for entry in declared.values():
        sizes = entry.get("matrix", {}).get("size", [""])
        for out in [o for kind in ("outs", "metrics", "plots") for o in entry.get(kind, [])]:
            name = next(iter(out)) if isinstance(out, dict) else out
            for size in sizes:
                path = finished.clone.root / name.replace("${item.size}", size)
                assert path.exists(), path
                count += 1
    assert count == len(finished.outputs)
    assert not finished.clone.half_written()


def test_nothing_is_left_running(finished):
    assert finished.clone.quiet() == []


@pytest.mark.parametrize("size", SIZES)
def test_stock_diffusers_draws_with_the_student(finished, size):
    clone = finished.clone
    assert clone.run("python", "-c", DRAW, f"data/models/student/{size}", PYTHONPATH="").endswith("(32, 32)\n")


def test_no_output_names_the_machine(finished):
    clone = finished.clone
    texts = [p for p in (clone.root / "data").rglob("*.json") if "mlflow" not in p.parts and "cache" not in p.parts]
    assert len(texts) > 40
    assert [p for p in texts if str(clone.root) in p.read_text()] == []


def test_one_parent_run_holds_a_finished_child_per_stage(finished):
    kinds = dict(rows(finished.clone, "select run_uuid, value from tags where key = 'kind'"))
    parents = dict(rows(finished.clone, "select run_uuid, value from tags where key = 'mlflow.parentRunId'"))
    names = dict(rows(finished.clone, "select run_uuid, name from runs where status = 'FINISHED'"))
    (parent,) = [run for run, kind in kinds.items() if kind == "parent"]
    children = [names[run] for run, above in parents.items() if above == parent]
    assert sorted(name[3:] for name in children) == sorted(name.replace("@", " ") for name in ALL)
    assert parent in names


def test_a_schedule_is_recorded_with_the_errors_of_its_gains_and_the_lists_themselves(finished):
    run = "select m.key from metrics m join runs r on r.run_uuid = m.run_uuid where r.name = '10 schedule small'"
    assert {key for (key,) in rows(finished.clone, run)} >= {"gain/2_step", "standard_error/gain_2_step"}
    ((run_id,),) = rows(finished.clone, "select run_uuid from runs where name = '10 schedule small'")
    (kept,) = (finished.clone.root / "data/mlflow").glob(f"**/{run_id}/artifacts/small.json")
    assert kept.read_bytes() == (finished.clone.root / "data/models/schedule/small.json").read_bytes()


WATCHED = {f"{network}/{name}" for network in ("student", "heads") for name in ("grad_norm", "lr")}
WATCHED |= {"student/tangent_norm", "student/logvar", "student/drift", "student/r", "images_per_s", "peak_memory_mb"}
WATCHED |= {"heads/real", "heads/fake", "heads/misaligned", "heads/accuracy", "grid/diversity", "score/1_step"}


def test_params_and_curves_over_steps_are_recorded(finished):
    run = "select r.name, count(distinct m.step) from metrics m join runs r on r.run_uuid = m.run_uuid "
    curves = dict(rows(finished.clone, run + "where m.step > 0 and m.key not like 'system/%' group by r.name"))
    assert set(curves) >= {"03 foundation", "06 teacher", "07 prune small", "09 distill small", "09 distill base"}
    assert curves["09 distill small"] == 6  # 24 steps, every 4th
    keys = "select m.key from latest_metrics m join runs r on r.run_uuid = m.run_uuid where r.name = '09 distill base'"
    assert {key for (key,) in rows(finished.clone, keys)} >= WATCHED
    counts = "select r.name, count(*) from params p join runs r on r.run_uuid = p.run_uuid group by r.name"
    assert dict(rows(finished.clone, counts))["09 distill base"] > 20


def test_both_sizes_are_registered_as_challenger(finished):
    aliases = rows(finished.clone, "select name, alias, version from registered_model_aliases")
    assert sorted(aliases) == [(f"sana-sprint-smoke-{size}", "challenger", 1) for size in sorted(SIZES)]


def test_the_report_is_one_page_with_its_pictures_inside(finished):
    page = (finished.clone.root / "data/reports/index.html").read_text()
    assert page.count("data:image/png;base64,") >= 4
    assert "http://" not in page
    assert 'src="http' not in page


def test_a_second_repro_does_nothing_and_takes_little_more_than_a_list_of_the_stages(finished):
    """In seconds of a core, since other tests run beside this one."""
    costs = []
    for words in (("dvc", "stage", "list", "--name-only"), ("dvc", "repro")):
        before = children_s()
        log = finished.clone.run(*words)
        costs.append(children_s() - before)
    assert "Data and pipelines are up to date." in log
    assert stages(log) == []
    assert costs[1] < SECOND_RUN_TIMES * costs[0]
    assert "up to date" in finished.clone.run("dvc", "status", "dvc.yaml")  # experiments have a dvc.yaml of their own


def test_summary_names_places_scores_and_the_next_commands(finished):
    told = finished.clone.run("sana-sprint", "summary")
    for part in ("data/reports/index.html", "data/grids", "mlflow.db", "make ui"):
        assert part in told
    assert "registered: sana-sprint-smoke-small version 1, alias challenger" in told
    assert told.count("│ student") == 6
    assert told.count("│ teacher") == 2


def test_promote_refuses_a_smoke_student_by_its_floors(finished):
    told = finished.clone.run("sana-sprint", "promote", "--size", "small", code=3)
    assert "sana-sprint-smoke-small version 1 is not promoted, there is still no champion" in told
    assert "overall at 4 steps" in told
    assert rows(finished.clone, "select * from registered_model_aliases where alias = 'champion'") == []
    assert "sana-sprint-smoke-small, champion: none" in finished.clone.run("sana-sprint", "history")


def test_generate_writes_the_picture_that_it_names(finished, tmp_path):
    picture = tmp_path / "one.png"
    told = finished.clone.run("sana-sprint", "generate", "two red circles", "--steps", "1", "--out", str(picture))
    assert told.splitlines()[-1].startswith(f"{picture}: 32 x 32 px, 1 steps, seed 0, by ")
    assert picture.read_bytes().startswith(b"\x89PNG")


def commit(clone):
    """Commits what changed, as the README tells to after a run; returns the commit."""
    if clone.run("git", "status", "--porcelain"):
        clone.run("git", "add", "--all")
        clone.run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "a run")
    return clone.run("git", "rev-parse", "HEAD").strip()


def recorded(clone):
    """The digest of each path as dvc.lock has it."""
    entries = YAML(typ="safe").load((clone.root / "dvc.lock").read_text())["stages"].values()
    return {one["path"]: one["md5"] for entry in entries for kind in ("deps", "outs") for one in entry.get(kind, [])}


@pytest.fixture(scope="module")
def committed(finished):
    """The commit after the run."""
    return commit(finished.clone)


def test_lineage_leads_from_a_version_to_its_runs_and_data_and_from_each_datum_to_what_was_made_of_it(
    finished, committed
):
    clone = finished.clone
    told = json.loads(clone.run("sana-sprint", "lineage", f"{SMALL}@challenger", "--json"))
    outputs, known = told["data"]["outputs"], recorded(clone)
    assert outputs == {path: known[path] for path in outputs}
    assert set(outputs) >= {"data/raw", "data/latents", "data/models/teacher", "data/models/student/small"}
    assert not [path for path in outputs if "base" in path]
    assert told["data"]["committed"]["git_commit"] == committed
    runs = {name: run for run, name in rows(clone, "select run_uuid, name from runs")}
    behind = {one["name"]: one["run"] for stage, one in told["runs"].items() if stage != "parent"}
    assert behind == {name: runs[name] for name in behind}
    assert {name[3:] for name in behind} >= {"prepare", "encode", "teacher", "prune small", "distill small"}

    reads = {path: json.loads(clone.run("sana-sprint", "uses", path, "--json")) for path in MADE_OF}
    for path, readers in MADE_OF.items():
        assert [one["name"] for one in reads[path]["versions"]] == [f"sana-sprint-smoke-{size}" for size in readers]
        assert {f"distill {size}" for size in readers} == {
            one["name"][3:] for one in reads[path]["runs"] if "distill" in one["name"]
        }


def test_a_checkout_of_a_version_brings_its_commit_and_data_back(finished, committed):
    clone = finished.clone
    text = (clone.root / "profiles/smoke.yaml").read_text()
    (clone.root / "profiles/third.yaml").write_text(text.replace("train_images: 256", "train_images: 192"))
    (clone.root / "data/source/third").mkdir(exist_ok=True)
    clone.use("third")
    clone.run("dvc", "repro", "prepare")
    assert json.loads((clone.root / "data/metrics/prepare.json").read_text())["train"] == 192
    commit(clone)
    told = json.loads(clone.run("sana-sprint", "lineage", f"{SMALL}/1", "--checkout", "--json"))
    assert told["checked_out"] == committed == clone.run("git", "rev-parse", "HEAD").strip()
    assert (clone.root / "params.yaml").read_text() == "profile: smoke\n"
    assert clone.outputs() == finished.outputs
    assert "up to date" in clone.run("dvc", "status", "dvc.yaml")
    shutil.rmtree(clone.root / "data/source/third")


def test_another_profile_and_back_is_taken_from_the_cache(finished):
    clone = finished.clone
    text = (clone.root / "profiles/smoke.yaml").read_text()
    (clone.root / "profiles/other.yaml").write_text(text.replace("train_images: 256", "train_images: 128"))
    (clone.root / "data/source/other").mkdir()
    clone.use("other")
    assert stages(clone.run("dvc", "repro", "prepare")) == ["prepare"]
    assert json.loads((clone.root / "data/metrics/prepare.json").read_text())["train"] == 128
    clone.use("smoke")
    log = clone.run("dvc", "repro")
    assert stages(log) == []
    assert "Stage 'prepare' is cached - skipping run, checking out outputs" in log
    assert clone.outputs() == finished.outputs
    shutil.rmtree(clone.root / "data/source/other")
    (clone.root / "profiles/other.yaml").unlink()


def test_a_lost_output_comes_back_from_the_cache(finished):
    clone = finished.clone
    shutil.rmtree(clone.root / "data/models/student/small")
    assert stages(clone.run("dvc", "repro")) == []
    assert clone.outputs() == finished.outputs


@pytest.mark.parametrize("left", [0, 300, 8000, 50_001, 70_000])
def test_a_lock_file_that_a_kill_has_cut_costs_no_stage(finished, left):
    """8000 bytes end in the middle of a word, at which `dvc` has an unexpected error."""
    clone = finished.clone
    lock = clone.root / "dvc.lock"
    lock.write_bytes(lock.read_bytes()[:left].rstrip(b"\n"))  # at the end of a line it may be whole
    assert "dvc.lock: was cut, moved to" in clone.run("sana-sprint", "recover")
    assert stages(clone.run("dvc", "repro")) == []
    assert clone.outputs() == finished.outputs


def test_make_demo_goes_on_after_a_kill_that_cut_the_list_of_readers_and_writers(finished):
    clone = finished.clone
    (clone.root / ".dvc/tmp/rwlock").write_text("")
    assert ".dvc/tmp/rwlock" in clone.run("dvc", "repro", code=255)  # DVC itself gives up, and names the file
    log = clone.run("make", "demo", "PROFILE=smoke", "AT_ONCE=2")
    assert ".dvc/tmp/rwlock: was cut, removed" in log
    assert stages(log) == []
    assert clone.outputs() == finished.outputs
