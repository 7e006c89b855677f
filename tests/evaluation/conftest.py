"""A small prepared corpus, judges trained on it for a moment, tiny pipelines: real classes, random weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from sana_sprint import config, storage
from sana_sprint.data import prepare, scenes
from sana_sprint.evaluation import evaluate, judge_stage, plots

OPTIMIZER = config.Optimizer(
    lr=1e-3, betas=[0.9, 0.98], weight_decay=0.1, warmup_steps=2, decay_share=1.0, grad_norm_max=1.0
)
SAMPLING = config.Sampling(
    height_px=64,
    width_px=64,
    guidance=3.0,
    teacher_guidance=3.0,
    teacher_steps=3,
    teacher_shift=3.0,
    max_tokens=16,
    instruction=[],
    times={
        "1": [1.5708, 0.0],
        "2": [1.5683, 1.3, 0.0],
        "3": [1.5683, 1.3, 0.8, 0.0],
        "4": [1.5683, 1.3, 1.1, 0.6, 0.0],
    },
)
EVALUATE = config.Evaluate(
    seed=1,
    judge="scenes",
    prompts_per_task=4,
    batch=5,
    teacher_fewer_steps=[2],
    latency_runs=2,
    latency_batches=[1, 3],
    protocols=[],
)


def train_judge(**changes) -> config.Judge:
    values = {
        "kind": "train", "seed": 0, "width": 24, "layers": 1, "heads": 2, "embedding": 16, "patch_px": 16,
        "vocabulary": 96, "max_tokens": 16, "steps": 3, "batch": 16, "classifier_steps": 0, "optimizer": OPTIMIZER,
    }  # fmt: skip
    return config.Judge(model=config.TrainJudge(**values | changes))


@pytest.fixture(scope="session")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "raw"
    source = config.Scenes(
        kind="scenes",
        shapes=["circle", "square", "triangle"],
        colours=["red", "green", "blue", "yellow"],
        counts=[2, 3],
        train_images=96,
        eval_images=120,
        heldout_share=0.17,
        task_weights=dict.fromkeys(scenes.TASKS, 1.0),
    )
    params = config.Prepare(seed=0, resolution_px=64, images_per_shard=50, max_source_pixels=10**6, source=source)
    prepare.run(params, folder.parent / "source", folder)
    return folder


@pytest.fixture(scope="session")
def judge(raw, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "judge"
    judge_stage.run(train_judge(), raw, folder)
    return folder


@pytest.fixture(scope="session")
def teacher_folder(sprint_folder, tmp_path_factory) -> Path:
    import torch
    from diffusers import (
        DPMSolverMultistepScheduler,
        SanaPipeline,
        SanaSprintPipeline,
        SanaTransformer2DModel,
    )

    torch.manual_seed(1)
    sprint = SanaSprintPipeline.from_pretrained(sprint_folder)
    shape = dict(sprint.transformer.config) | {"guidance_embeds": False, "timestep_scale": 0.001}
    parts = {"tokenizer": sprint.tokenizer, "text_encoder": sprint.text_encoder, "vae": sprint.vae}
    transformer = SanaTransformer2DModel.from_config(shape)
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    folder = tmp_path_factory.mktemp("models") / "teacher"
    SanaPipeline(**parts, transformer=transformer, scheduler=scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(sprint_folder, teacher_folder, raw, judge, tmp_path_factory) -> evaluate.Folders:
    base = tmp_path_factory.mktemp("evaluate")
    storage.write_json(base / "schedule.json", {"times": SAMPLING.times})
    return evaluate.Folders(
        sprint_folder, base / "schedule.json", sprint_folder, teacher_folder, raw, judge, base / "cache"
    )


@pytest.fixture(scope="session")
def outcome(folders) -> evaluate.Outcome:
    return evaluate.run(EVALUATE, SAMPLING, 0.5, folders, "small")


def search():
    """What the stage schedule found, by a search of two step counts."""
    score = {"value": 0.5, "se": 0.1}
    times = {"1": [1.5, 0.0], "2": [1.5, 1.0, 0.0]}
    trials = {k: [{"new": t, "smoothed": t, "score": score} for t in (0.5, 1.0, 1.5)[: 4 - int(k)]] for k in times}
    return {"measure": "overall", "times": times, "found": times, "trials": trials}


@pytest.fixture(scope="session")
def report_data(outcome, tmp_path_factory) -> Path:
    """What the report reads: two sizes with the scores of one, some curves, and numbers of a stage."""
    folder = tmp_path_factory.mktemp("report") / "data"
    for size in ("small", "base"):
        own = copy.copy(outcome)
        own.result = json.loads(json.dumps(outcome.result)) | {"size": size, "protocols": {}}
        evaluate.write_grids(own, folder / "grids" / size)
        storage.write_json(folder / f"metrics/evaluate/{size}.json", own.result)
        plots.scores(own.result, folder / f"plots/scores-{size}.png")
        plots.tasks(own.result, folder / f"plots/tasks-{size}.png")
        plots.pareto(own.result, folder / f"plots/pareto-{size}.png")
        plots.schedule(search(), folder / f"plots/schedule-{size}.png")
    storage.write_json(folder / "metrics/teacher.json", {"loss": 0.25, "score": {"overall": 0.7}})
    curves = {"loss": [[k, 1 / k] for k in range(1, 200)], "grad_norm": [[10, 1.0], [20, 0.5]], "none": []}
    storage.write_json(folder / "metrics/curves/distill-small.json", curves)
    return folder
