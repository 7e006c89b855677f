"""Evaluate's JSON: what the contract says, the same twice, held-out apart; its cache and its grids."""

import dataclasses
import json
import pickle
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch
from PIL import Image

from sana_sprint import storage
from sana_sprint.evaluation import (
    classifier,
    drawing,
    evaluate,
    generate,
    judges,
    latency,
    plots,
    protocol,
    sheets,
)
from tests.evaluation.conftest import EVALUATE, SAMPLING, train_judge

WAIT_S = 180
DRIVER = """
import pickle, sys, time
from pathlib import Path
from sana_sprint.evaluation import drawing, evaluate

original = drawing.drawn

def slowly(call):
    time.sleep(0.5)
    return original(call)

drawing.drawn = slowly
evaluate.run(*pickle.loads(Path(sys.argv[1]).read_bytes()))
"""
FOUR = {"1", "2", "3", "4"}
MODELS = {"student": FOUR, "undistilled": FOUR, "teacher": {"3"}, "teacher_fewer": {"2"}}


def timeless(result):
    return json.dumps({k: v for k, v in result.items() if k != "latency"}, sort_keys=True)


def test_the_result_has_every_model_step_count_and_score(outcome):
    result = outcome.result
    assert {model: set(by_steps) for model, by_steps in result["scores"].items()} == MODELS
    keys = {"overall", "tasks", "seen", "heldout", "fid_scene_clip", "clip_score"}
    for by_steps in result["scores"].values():
        for score in by_steps.values():
            assert set(score) == keys
            assert len(score["tasks"]) == 6
            assert all(set(part) == {"value", "se", "n"} for part in score["tasks"].values())
            assert all(set(score[k]) == {"value", "se"} for k in keys - {"tasks"})
    timed_models = {model: set(by_steps) for model, by_steps in result["latency"].items()}
    assert timed_models == {model: steps for model, steps in MODELS.items() if model != "undistilled"}
    timed = result["latency"]["student"]["4"]
    parts = {f"{part}{kind}_s" for part in ("text_encoder", "transformer", "decoder") for kind in ("", "_p95")}
    rates = {"images_per_s_at_1", "images_per_s_at_3"}
    assert set(timed) - {"energy_j"} == {"p50_s", "p95_s", "peak_memory_mb", *parts, *rates}
    assert 0 < timed["p50_s"] <= timed["p95_s"]
    assert all(timed[name] > 0 for name in (*parts, *rates))
    assert timed["peak_memory_mb"] > 50
    assert result["protocol_digest"] == protocol.digest(result["protocol"])
    assert result["times"] == SAMPLING.times


def test_a_component_takes_what_its_calls_of_a_run_take_together():
    class Slow(torch.nn.Module):
        def __init__(self, seconds):
            super().__init__()
            self.seconds = seconds

        def forward(self):
            time.sleep(self.seconds)

    vae = types.SimpleNamespace(decoder=Slow(0.0))
    pipe = types.SimpleNamespace(text_encoder=Slow(0.02), transformer=Slow(0.03), vae=vae)
    loaded = types.SimpleNamespace(pipe=pipe, device=torch.device("cpu"))

    def draw(run):
        pipe.text_encoder()
        for _ in run:
            pipe.transformer()

    found = latency.components(loaded, draw, [[1, 2, 3]] * 3 + [[1] * 12])
    assert found["text_encoder_s"] >= 0.02
    assert 3 * 0.03 <= found["transformer_s"] < found["transformer_p95_s"]
    # of runs of 3, 3, 3 and 12 calls, the 95th percentile is 85 % of the way from 3 to 12
    assert found["transformer_p95_s"] >= 0.03 * (3 + 0.85 * 9)
    assert found["decoder_s"] < 0.02
    assert not any(name.endswith("_mb") for name in found)  # a CPU tells no memory of a part
    assert not pipe.transformer._forward_hooks


def test_the_same_run_twice_gives_equal_bytes_but_for_times(outcome, folders, tmp_path, monkeypatch):
    """Whatever the batch; and one worker does without Ray."""
    monkeypatch.setenv("SANA_SPRINT_WORKERS", "1")
    monkeypatch.setitem(sys.modules, "ray", None)  # an import would raise
    other = EVALUATE.model_copy(update={"batch": 7})
    again = evaluate.run(other, SAMPLING, 0.5, dataclasses.replace(folders, cache=tmp_path), "small")
    assert timeless(again.result) == timeless(outcome.result)
    assert again.verdicts == outcome.verdicts


def test_the_teacher_is_drawn_once_for_all_sizes(outcome, folders, monkeypatch):
    drawn = []
    original = drawing.drawn
    monkeypatch.setattr(drawing, "drawn", lambda call: drawn.append(call.network) or original(call))
    times = SAMPLING.times | {"3": [1.5683, 1.2, 0.7, 0.0]}
    other = folders.schedule.with_name("other.json")
    storage.write_json(other, {"times": times})
    again = evaluate.run(EVALUATE, SAMPLING, 0.5, dataclasses.replace(folders, schedule=other), "base")
    assert drawn == ["student"] * 2  # by its own times: 3 steps of 24 prompts, 16 a call
    assert again.result["scores"]["teacher"] == outcome.result["scores"]["teacher"]
    assert again.result["scores"]["student"]["2"] == outcome.result["scores"]["student"]["2"]
    assert again.result["scores"]["student"]["3"] != outcome.result["scores"]["student"]["3"]


def test_times_are_measured_of_pictures_drawn_now(outcome, folders, monkeypatch):
    """With every picture in the cache, the networks run for the latency alone."""
    batches = []
    original = generate.Loaded.student
    monkeypatch.setattr(generate.Loaded, "student", lambda s, c, n: batches.append(len(c)) or original(s, c, n))
    again = evaluate.run(EVALUATE, SAMPLING, 0.5, folders, "small")
    assert timeless(again.result) == timeless(outcome.result)
    assert set(batches) == {1, *EVALUATE.latency_batches}
    assert all(timed["p50_s"] > 0 for timed in again.result["latency"]["student"].values())


def test_classes_are_tasks_and_none_has_no_verdicts(folders, judge, raw, tmp_path):
    from sana_sprint.data import manifest, shards

    own = tmp_path / "judge"
    import shutil

    shutil.copytree(judge, own)
    eval_rows = manifest.read(raw, "eval")
    two = sorted({row.caption for row in eval_rows})[:2]
    pictures = shards.stack(raw, "eval")
    classifier.train(train_judge(classifier_steps=2).model, pictures, [two[i % 2] for i in range(len(pictures))]).save(
        own / "classifier"
    )
    chosen = [row for row in eval_rows if row.caption in two]
    params = EVALUATE.model_copy(update={"judge": "classes"})
    prompts = protocol.prompts(chosen, params)
    for kind, names in (
        ("classes", {"overall", "tasks", "seen", "fid_corpus_clip", "clip_score"}),
        ("none", {"fid_corpus_clip", "clip_score"}),
    ):
        court = evaluate.summon(params.model_copy(update={"judge": kind}), own, prompts)
        outcome = evaluate.Outcome({"scores": {"student": {}}}, prompts, {"student": {}}, {"student": {}})
        drawn = np.random.default_rng(0).integers(0, 255, (len(prompts), 64, 64, 3), dtype=np.uint8)
        evaluate.enter(outcome, court, "student", "1", drawn)
        score = outcome.result["scores"]["student"]["1"]
        assert set(score) - {"heldout"} == names
        if kind == "classes":
            assert set(score["tasks"]) == set(two)


def test_grids_hold_the_shown_pictures_and_every_verdict(outcome, tmp_path):
    evaluate.write_grids(outcome, tmp_path / "small")
    names = {p.name for p in (tmp_path / "small").iterdir()}
    steps = {f"{k}_step.png" for k in (1, 2, 3, 4)}
    assert names == steps | {"teacher.png", "teacher_vs_student.png", "gallery", "verdicts.json"}
    content = storage.read_json(tmp_path / "small/verdicts.json")
    assert len(content["verdicts"]["student"]["1"]) == len(content["prompts"]) == 24
    with Image.open(tmp_path / "small/2_step.png") as sheet:
        tile = sheets.cut(sheet, 7, tuple(content["tile_px"]))
    assert np.array_equal(np.asarray(tile), outcome.shown["student"]["2"][7])


def test_the_gallery_holds_a_tile_for_each_of_its_prompts_and_what_the_judge_saw(outcome, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "SHOWN", 7)
    evaluate.write_grids(outcome, tmp_path / "small")
    content = storage.read_json(tmp_path / "small/verdicts.json")
    assert content["gallery"] == [p.index for p in protocol.shown(outcome.prompts, evaluate.GALLERY)]
    assert len(content["gallery"]) == 24
    assert content["gallery"][:7] == content["shown"]
    names = {"teacher-3": ("teacher", "3")} | {f"student-{k}": ("student", k) for k in ("4", "2", "1")}
    assert {p.stem for p in (tmp_path / "small/gallery").iterdir()} == set(names)
    order = [outcome.prompts[index] for index in content["gallery"]]
    for name, (model, steps) in names.items():
        with Image.open(tmp_path / f"small/gallery/{name}.png") as sheet:
            tiles = [np.asarray(sheets.cut(sheet, n, tuple(content["tile_px"]))) for n in range(len(order))]
        said = [content["verdicts"][model][steps][index] for index in content["gallery"]]
        assert [v._asdict() for v in judges.scenes(np.stack(tiles), order)] == said
    with Image.open(tmp_path / "small/1_step.png") as sheet:
        assert sheet.height == 2 * content["tile_px"][1]


def test_plots_are_png_and_the_same_twice(outcome, tmp_path):
    result = json.loads(json.dumps(outcome.result))
    for write in (plots.scores, plots.tasks, plots.pareto):
        write(result, tmp_path / "a.png")
        write(result, tmp_path / "b.png")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
        assert Image.open(tmp_path / "a.png").width > 300


@pytest.mark.parametrize("workers", ["0", "two"])
def test_a_number_of_workers_that_cannot_be_is_refused(folders, monkeypatch, workers):
    monkeypatch.setenv("SANA_SPRINT_WORKERS", workers)
    with pytest.raises(ValueError, match=f"SANA_SPRINT_WORKERS={workers}: must be a positive number of workers"):
        evaluate.run(EVALUATE, SAMPLING, 0.5, folders, "small")


def wait_for_pictures(cache, number, process):
    deadline = time.monotonic() + WAIT_S
    while len(list(cache.glob("*/[0-9]*.png"))) < number:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_run_goes_on_picture_by_picture(outcome, folders, tmp_path, monkeypatch):
    mine = dataclasses.replace(folders, cache=tmp_path / "cache")
    (tmp_path / "given").write_bytes(pickle.dumps((EVALUATE, SAMPLING, 0.5, mine, "small")))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path / "given")], stdout=log, stderr=log)
    wait_for_pictures(mine.cache, 60, process)
    process.kill()
    process.wait()
    written = {path: path.stat().st_mtime_ns for path in mine.cache.glob("*/[0-9]*.png")}
    assert 60 <= len(written) < 6 * 24
    cut = next(iter(written))
    cut.write_bytes(cut.read_bytes()[:100])  # as a crash of the machine leaves it
    calls = []
    original = drawing.drawn
    monkeypatch.setattr(drawing, "drawn", lambda call: calls.append(call) or original(call))
    again = evaluate.run(EVALUATE, SAMPLING, 0.5, mine, "small")
    assert timeless(again.result) == timeless(outcome.result)
    assert again.verdicts == outcome.verdicts
    assert {path for path, when in written.items() if path.stat().st_mtime_ns != when} == {cut}
    assert not list(mine.cache.rglob(f"{storage.UNFINISHED}*"))
    whole = set(written) - {cut}
    groups = [(folder, rows) for folder in mine.cache.glob("*/") for rows in (range(16), range(16, 24))]
    done = sum(all(folder / f"{index}.png" in whole for index in rows) for folder, rows in groups)
    assert len(groups) == 12  # the student at 4 step counts, which is the undistilled one too, and the teacher at 2
    assert done >= 2
    assert len(calls) == len(groups) - done


def test_a_missing_time_list_or_judge_is_named(folders, tmp_path):
    short = tmp_path / "short.json"
    for content, fault in (
        ({"1": [1.5708, 0.0]}, r"short\.json: no times for \[2, 3, 4\] steps"),
        ({"2": [1.0, 1.3, 0.0]}, r"short\.json: no lists of times: .*2 falling times .*`dvc repro schedule`"),
        (None, r"short\.json: no lists of times"),
    ):
        storage.write_json(short, {"times": content})
        with pytest.raises(ValueError, match=fault):
            evaluate.run(EVALUATE, SAMPLING, 0.5, dataclasses.replace(folders, schedule=short), "small")
    with pytest.raises(ValueError, match="judge"):
        evaluate.run(EVALUATE, SAMPLING, 0.5, dataclasses.replace(folders, judge=tmp_path), "small")
