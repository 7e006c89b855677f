"""What `mlflow ui` is given: names that sort, grouped metrics, data with digests, descriptions whose links lead on."""

import json
import re
import time

import psutil
import pytest

from sana_sprint import storage
from sana_sprint.registry import dashboard, lineage, origin, store, system_metrics, track
from tests.registry.conftest import NAME, ROOT, SIZE, evaluation


@pytest.fixture
def traced(repository):
    """The repository with the project's dvc.yaml, and a dvc.lock in which data/raw and data/latents are made."""
    (repository / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    lock = """
schema: '2.0'
stages:
  prepare:
    cmd: x
    outs:
    - {path: data/raw, md5: 11111111111111111111111111111111.dir}
  encode:
    cmd: x
    deps:
    - {path: data/raw, md5: 11111111111111111111111111111111.dir}
    outs:
    - {path: data/latents, md5: 22222222222222222222222222222222.dir}
"""
    (repository / "dvc.lock").write_text(lock)
    storage.write_json(repository / "data/metrics/encode.json", {"pictures": 7, "captions": 5})
    return repository


def of_parent(server, run):
    return server.get_run(run.parent_id)


def test_every_stage_of_dvc_yaml_has_its_place_and_its_description():
    stages = list(origin.parsed((ROOT / "dvc.yaml").read_text()))
    assert [name for name in dashboard.STAGES if name in stages] == stages
    assert set(dashboard.STAGES) == set(stages)
    names = [dashboard.run_name(stage, None) for stage in stages]
    assert sorted(names) == names
    assert dashboard.run_name("distill", "base") == "09 distill base"
    assert dashboard.run_name("export", None) == "export"


def test_names_of_commands_sort_by_time():
    name = dashboard.parent_name("dvc repro")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d dvc repro", name)
    assert abs(time.mktime(time.strptime(name[:19], "%Y-%m-%d %H:%M:%S")) - time.time()) < 60


def test_data_has_the_digest_and_the_size_that_dvc_knows(traced, server):
    with track.stage("distill", SIZE) as run:
        pass
    inputs = {one.dataset.name: one for one in server.get_run(run.run_id).inputs.dataset_inputs}
    assert inputs["data/latents"].dataset.digest == "2" * 32 + ".dir"
    assert json.loads(inputs["data/latents"].dataset.profile) == {"pictures": 7, "captions": 5}
    assert inputs["data/raw"].dataset.digest == "1" * 32 + ".dir"
    assert inputs["data/raw"].dataset.profile is None
    contexts = {name: {tag.key: tag.value for tag in one.tags} for name, one in inputs.items()}
    assert contexts["data/latents"] == {"mlflow.data.context": "read"}


def test_data_that_only_a_model_above_was_made_from_is_told_apart(traced, server):
    with track.stage("convert", SIZE) as run:  # reads data/latents, not data/raw
        pass
    inputs = server.get_run(run.run_id).inputs.dataset_inputs
    assert {one.dataset.name: one.tags[0].value for one in inputs} == {"data/raw": "upstream", "data/latents": "read"}


def test_figures_are_sections_by_score_and_curves_over_the_steps(repository, server):
    scores = evaluation(0.4, 0.6)
    with track.stage("evaluate", SIZE) as run:
        run.scores(scores)
    logged = server.get_run(run.run_id).data.metrics
    assert logged["overall/student_1_step"] == 0.4
    assert logged["overall/teacher_20_step"] == 0.7
    assert logged["standard_error/overall_student_4_step"] == 0.02
    assert logged["task_counting/student_4_step"] == 0.6
    assert logged["latency_p50_s/student_1_step"] == 0.01
    curve = [(one.step, one.value) for one in server.get_metric_history(run.run_id, "by_steps/student_overall")]
    assert curve == [(1, 0.4), (2, 0.5), (3, 0.55), (4, 0.6)]
    flat = lineage.numbers(dashboard.scores(scores))
    assert {name: logged[name] for name in flat} == flat
    assert len(flat) == sum(2 * (5 + 2) for per in scores["scores"].values() for _ in per) + 8


def test_the_command_s_run_holds_the_scores_it_led_to(repository, server):
    with track.stage("evaluate", SIZE) as run:
        run.scores(evaluation(0.4, 0.6))
    told = of_parent(server, run).data.metrics
    assert told[f"overall/{SIZE}_1_step"] == 0.4
    assert told["overall/teacher_20_step"] == 0.7
    assert not [name for name in told if "task_" in name or "undistilled" in name]


def test_the_command_s_description_lists_its_stages_and_links_to_what_came_of_them(registered, server, monkeypatch):
    monkeypatch.setenv("SANA_SPRINT_OWNER", str(psutil.Process().parent().pid))
    lineage.command_process.cache_clear()
    with track.stage("evaluate", SIZE):
        pass
    with track.stage("report") as report:
        pass
    with pytest.raises(SystemExit), track.stage("judge"):
        raise ValueError("no pictures")
    registered(evaluation(0.4, 0.6))
    lineage.command_process.cache_clear()
    note = of_parent(server, report).data.tags[dashboard.NOTE]
    rows = re.findall(r"^\| \[(.*?)\]\((.*?)\) \| (\w+) \| (\d+) \|$", note, re.M)
    assert [(name, status) for name, _, status, _ in rows] == [
        (f"11 evaluate {SIZE}", "FINISHED"),
        ("12 report", "FINISHED"),
        ("05 judge", "FAILED"),
        (f"13 register {SIZE}", "FINISHED"),
    ]
    where = f"#/experiments/{server.get_run(report.run_id).info.experiment_id}/runs"
    view = "?workflowType=machine_learning"
    assert rows[1][1] == f"{where}/{report.run_id}{view}"
    assert f"[report]({where}/{report.run_id}/artifacts/index.html{view})" in note
    assert f"[{NAME}/1](#/models/{NAME}/versions/1{view})" in note


def test_a_version_s_description_tells_its_scores_and_where_it_comes_from(registered, server):
    answer = registered(evaluation(0.4, 0.6))
    version = server.get_model_version(NAME, "1")
    assert "| 1 | 0.400 ± 0.020 |" in version.description
    assert f"/runs/{version.run_id}?" in version.description
    assert evaluation(0.4, 0.6)["protocol_digest"][:16] in version.description
    registered(evaluation(0.45, 0.6))  # the same weights, scored again
    assert answer["version"] == 1
    assert "| 1 | 0.450 ± 0.020 |" in server.get_model_version(NAME, "1").description
    server.update_model_version(NAME, "1", "ours")
    registered(evaluation(0.4, 0.6))
    assert server.get_model_version(NAME, "1").description == "ours"


def test_the_experiment_is_of_training_and_keeps_what_people_write(repository, server):
    with track.stage("prepare"):
        pass
    found = server.get_experiment_by_name("sana-sprint-demo")
    assert found.tags["mlflow.experimentKind"] == "custom_model_development"
    assert (
        f"(#/experiments/{found.experiment_id}/runs?workflowType=machine_learning&searchFilter=tags.stage"
        in (found.tags[dashboard.NOTE])
    )
    server.set_experiment_tag(found.experiment_id, dashboard.NOTE, "ours")
    store.experiment(server, store.tracking_uri(repository), "demo")
    assert server.get_experiment_by_name("sana-sprint-demo").tags[dashboard.NOTE] == "ours"


def test_the_machine_s_load_is_sampled_until_the_stage_ends(repository, server, monkeypatch):
    monkeypatch.setenv(system_metrics.INTERVAL, "0.2")
    used_mb = psutil.virtual_memory().used / 1e6
    with track.stage("teacher") as run:
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            pass  # one core at work
    history = server.get_metric_history(run.run_id, "system/system_memory_usage_megabytes")
    steps = [one.step for one in history]
    assert steps == list(range(len(steps)))
    assert len(steps) >= 3
    assert history[-1].value == pytest.approx(used_mb, rel=0.5)
    busy = [one.value for one in server.get_metric_history(run.run_id, "system/cpu_utilization_percentage")]
    assert max(busy) >= 80 / psutil.cpu_count()
    assert all(0 <= one <= 100 for one in busy)


def test_a_short_stage_has_one_sample_and_none_if_they_are_off(repository, server, monkeypatch):
    with track.stage("teacher") as run:
        pass
    assert len(server.get_metric_history(run.run_id, "system/cpu_utilization_percentage")) == 1
    monkeypatch.setenv(system_metrics.ENABLED, "false")
    with track.stage("teacher") as run:
        pass
    assert server.get_run(run.run_id).data.metrics == {}


@pytest.mark.parametrize("text", ["often", "0", "-1", "nan"])
def test_an_interval_that_cannot_be_is_told(repository, server, monkeypatch, capsys, text):
    monkeypatch.setenv(system_metrics.INTERVAL, text)
    with pytest.raises(SystemExit), track.stage("teacher"):
        pass
    assert f"{system_metrics.INTERVAL} is '{text}', not a number of seconds" in capsys.readouterr().err


def test_a_monitor_that_breaks_ends_the_samples_and_not_the_stage(repository, server, monkeypatch, capsys):
    class Broken:
        def collect_metrics(self):
            raise RuntimeError("the driver is gone")

    monkeypatch.setattr(system_metrics, "monitors", lambda: [Broken()])
    with track.stage("teacher") as run:
        run.metrics({"loss": 1.0}, 1)
    assert server.get_run(run.run_id).info.status == "FINISHED"
    assert server.get_run(run.run_id).data.metrics == {"loss": 1.0}
    assert "warning: no more system metrics" in capsys.readouterr().err
