"""A run that falls ill says how, goes back to its last good checkpoint, and gives up with a cause and a remedy. Every
illness is brought about for real, by what brings it about in life."""

import itertools
import json
import math
import re
import shutil
import statistics
from pathlib import Path

import lightning as L
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from sana_sprint import config
from sana_sprint.data.loader import Latents
from sana_sprint.models import bundle, networks
from sana_sprint.models.networks import Text
from sana_sprint.training import attempts, batches, callbacks, checkpoints, distill, draws, flow, health
from tests.training import small_job
from tests.training.small_job import Record, changed, fit

ONE = draws.Share(0, 1)
WATCHED = {
    *(f"student/{name}" for name in ("scm", "ladd", "tangent_norm", "logvar", "r", "sample_std", "drift")),
    *(f"heads/{name}" for name in ("hinge", "real", "fake", "misaligned", "accuracy")),
    *(f"{network}/{name}" for network in ("student", "heads") for name in ("grad_norm", "lr")),
    "images_per_s",
    "time_left_s",
    "peak_memory_mb",
    "grid/diversity",
}
SMOKE = Path("profiles/smoke.yaml")
EXPLODING = {"health__sample_std_max": 1e9, "health__tangent_norm_max": None}  # until something is not finite
PLAIN_PICTURE = torch.tensor([1.0, -1.0, 0.5, -0.5])[:, None, None]


def curves(made):
    """The values of a job's curves, without their steps."""
    points = json.loads(made.curves.read_text())
    return {name: [value for _, value in points[name]] for name in points}


def spoilt(latents_folder, to, change):
    """A copy of data/latents with `change` applied to the tensors of each split."""
    shutil.copytree(latents_folder, to)
    for split in ("train", "eval"):
        save_file(change(load_file(to / f"{split}.safetensors")), to / f"{split}.safetensors")
    return to


def of_one_picture(tensors):
    """Tensors of a split with the same picture for every caption."""
    return tensors | {"latents": PLAIN_PICTURE.expand_as(tensors["latents"]).contiguous()}


def of_one_pair(tensors):
    """Tensors of a split with the same picture and caption over and over."""
    return of_one_picture(tensors) | {"captions": torch.ones_like(tensors["captions"])}


def iterations_of_return(out):
    """The iterations from which a run went on, as it told them."""
    return [int(line[-7:]) for line in out.splitlines() if "going on from" in line]


def test_a_run_logs_what_it_watches_and_says_how_long_it_still_takes(
    inputs, distill_params, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv(health.BLOCKS, "1")
    params = changed(distill_params, grid_every=3, log_every=1)
    made = inputs.job(tmp_path, params, scorer=lambda network: {"1": network.proj_out.weight.norm().item()})
    fit(made)
    found = curves(made)
    blocks = [f"student/grad_norm_block_{i:02d}" for i in (0, 1)]
    assert set(found) == {*WATCHED, *blocks, "score/1_step"}
    assert all(len(found[name]) == 6 for name in WATCHED - {"grid/diversity"})
    for one, other, whole in zip(*(found[name] for name in (*blocks, "student/grad_norm")), strict=True):
        assert 0 < one**2 + other**2 < whole**2  # other weights have gradients too
    assert found["student/r"] == [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]
    assert found["student/drift"][-1] > 0
    assert found["time_left_s"][-1] == 0 < min(found["time_left_s"][:-1])
    assert min(found["grid/diversity"]) > 0.6
    assert [p.name for p in sorted(made.grids.iterdir())] == [f"iteration-{n:06d}.png" for n in (0, 3, 6)]
    said = capsys.readouterr().out
    assert "iteration 3  quick score by steps: 1 " in said
    assert said.count("distill tiny: with distill.heads.norm batch the heads' accuracy is about 0.5 also when") == 1
    last = re.search(r"^distill tiny  12/12  (.*)$", said, re.MULTILINE).group(1)
    groups = dict(part.split(": ") for part in last.split("  ") if ": " in part)
    told = {f"{group}/{one.split()[0]}" for group, metrics in groups.items() for one in metrics.split(", ")}
    assert told == {name for name in found if "/" in name}
    assert "images_per_s" in last
    assert "time_left_s" not in last
    assert last.endswith("0m00s left")
    assert said.rstrip().endswith("0m00s left")


def test_blocks_are_not_watched_unless_asked(inputs, distill_params, tmp_path, monkeypatch):
    monkeypatch.delenv(health.BLOCKS, raising=False)
    made = inputs.job(tmp_path, changed(distill_params, iterations=2, log_every=1, grid_every=2))
    fit(made)
    assert set(curves(made)) == WATCHED


def test_a_learning_rate_of_100_times_ends_in_returns_and_a_diagnosis(inputs, distill_params, tmp_path, capsys):
    rate = 100 * distill_params.student.lr
    params = changed(distill_params, iterations=12, student__lr=rate, student__warmup_steps=0, **EXPLODING)
    record = Record()
    made = inputs.job(tmp_path, params, recorder=record)
    with pytest.raises(ValueError, match=r"^ill 3 times, given up: student/\w+ is .*: lower distill.student.lr$"):
        fit(made)
    out = capsys.readouterr().out
    assert out.count("likely the learning rate is too high") == 2
    assert "distill tiny: return 2, other draws" in out
    assert list(record.texts) == ["return-1.txt", "return-2.txt"]
    assert all("likely the learning rate is too high" in text for text in record.texts.values())
    first, second = iterations_of_return(out)
    assert second <= first
    assert second == max(checkpoints.number(path) for path in made.checkpoints.iterdir())
    for path in made.checkpoints.glob("*/*.safetensors"):
        assert all(weights.isfinite().all() for weights in load_file(path).values())


def test_a_checkpoint_that_a_return_has_tried_in_vain_is_not_tried_again(inputs, distill_params, tmp_path, capsys):
    well = changed(distill_params, iterations=4, grid_every=8)
    fit(inputs.job(tmp_path, well))
    capsys.readouterr()
    params = changed(well, iterations=12, student__lr=1e4, student__warmup_steps=0, **EXPLODING)
    made = inputs.job(tmp_path, params)
    with pytest.raises(health.Ill, match="ill 3 times, given up"):
        fit(made)
    assert iterations_of_return(capsys.readouterr().out) == [4, 4, 2]
    assert [checkpoints.number(path) for path in made.checkpoints.iterdir()] == [2], "the last that there is stays"


@pytest.mark.parametrize(
    ("tried", "proved", "left"),
    [(None, None, [2, 4, 6]), (4, None, [2, 4, 6]), (6, None, [2, 4]), (2, 4, [2, 4]), (6, 6, [2, 4, 6])],
)
def test_a_return_leaves_what_holds_no_fault(inputs, distill_params, tmp_path, tried, proved, left):
    made = inputs.job(tmp_path, changed(distill_params, iterations=6, grid_every=8, keep_checkpoints=3))
    fit(made)
    of = {checkpoints.number(path): path for path in made.checkpoints.iterdir()}
    attempts.go_back(made, ONE, health.Ill("ill", proved), 1, of.get(tried))
    assert sorted(map(checkpoints.number, made.checkpoints.iterdir())) == left


def test_a_broken_checkpoint_is_none_to_go_back_to(inputs, distill_params, tmp_path):
    made = inputs.job(tmp_path, changed(distill_params, iterations=4, grid_every=8))
    fit(made)
    before, last = sorted(made.checkpoints.iterdir())
    (before / checkpoints.STATE).unlink()
    attempts.go_back(made, ONE, health.Ill("ill"), 1, last)
    assert last.is_dir()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_weight_that_is_far_too_high_shows_in_the_gradient_norm_by_the_limit_that_profiles_ship(
    inputs, distill_params, tmp_path, seed
):
    assert distill_params.health.grad_norm_max == 1e3
    params = changed(distill_params, seed=seed, iterations=12, ladd_weight=1e7, health__returns_max=0)
    told = r"^ill 1 time, given up: .*student/grad_norm stays above 1000 for 4 iterations .* or distill.ladd_weight"
    with pytest.raises(ValueError, match=told):
        fit(inputs.job(tmp_path, params))
    made = inputs.job(tmp_path / "well", changed(distill_params, seed=seed, iterations=12))
    fit(made)
    assert statistics.median(curves(made)["student/grad_norm"]) < 1e3 / 4


def test_weights_that_blow_up_are_laid_to_the_student_and_not_to_the_heads_that_see_its_pictures(
    inputs, distill_params, tmp_path
):
    params = changed(distill_params, student__lr=100.0, student__warmup_steps=0, health__returns_max=0)
    with pytest.raises(ValueError, match=r"ill 1 time, given up: student/.* lower distill.student.lr"):
        fit(inputs.job(tmp_path, params))


def with_time_times(scale, latents_folder, params, metric):
    """A run of sCM whose student sees `scale` t, and what it will have logged of a metric."""
    teacher = tiny.transformer()
    null = Text(*Latents(latents_folder, "train").null)
    module = distill.Distillation(networks.embed_guidance(teacher), teacher, null, params, small_job.SIGMA_D, ONE)
    module.student.transformer.time_embed.time_proj.scale = scale
    norms = []

    class Norms(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            norms.append(float(trainer.callback_metrics[metric]))

    data = batches.Pairs(Latents(latents_folder, "train"), params.global_batch, params.seed, params.iterations, ONE)
    callbacks.quiet()
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Norms(), health.Health(params)],
    )  # fmt: skip
    return norms, lambda: trainer.fit(module, DataLoader(data, batch_size=None))


def test_time_that_reaches_the_student_as_1000_t_shows_in_the_tangent_norm(latents_folder, distill_params):
    params = changed(distill_params, recipe="scm", iterations=24)
    limit = params.health.tangent_norm_max
    norms, run = with_time_times(1, latents_folder, params, health.TANGENT)
    run()
    assert len(norms) == 24
    assert max(norms) < limit / 2
    assert statistics.median(norms) < limit / 4
    norms, run = with_time_times(1000, latents_folder, params, health.TANGENT)
    told = rf"student/tangent_norm stays above {limit:g} for 4 iterations .* time .* as 1000 t, .* QK-norm"
    with pytest.raises(health.Ill, match=told):
        run()
    assert min(norms[-4:]) > limit
    norms, run = with_time_times(1000, latents_folder, changed(params, health__tangent_norm_max=None), health.TANGENT)
    run()
    assert statistics.median(norms) > 2 * limit


def test_time_that_reaches_the_student_as_1000_t_shows_in_the_gradient_norm(latents_folder, distill_params):
    """Tangents are hardly normalised here (c = 100): normalised ones keep the gradient of a tiny network small."""
    limit = 0.05
    params = changed(
        distill_params, recipe="scm", iterations=24, tangent_norm_c=100.0, log_variance=False,
        time={"mean": 0.0, "std": 0.5}, health__grad_norm_max=limit, health__tangent_norm_max=None,
    )  # fmt: skip
    norms, run = with_time_times(1, latents_folder, params, "student/grad_norm")
    run()
    assert len(norms) == 24
    assert statistics.median(norms) < limit / 5
    norms, run = with_time_times(1000, latents_folder, params, "student/grad_norm")
    with pytest.raises(health.Ill, match=r"student/grad_norm stays above 0.05 for 4 iterations .* time .* as 1000 t"):
        run()
    assert min(norms[-4:]) > limit


def test_latents_that_are_not_finite_are_named_by_row_and_no_return_is_tried(
    inputs, latents_folder, distill_params, tmp_path, capsys
):
    def without_row_7(tensors):
        tensors["latents"][7, 0, 0, 0] = float("nan")
        return tensors

    folder = spoilt(latents_folder, tmp_path / "latents", without_row_7)
    with pytest.raises(ValueError, match=r"the latents of training pictures \[7\] .* `dvc repro -f encode`") as told:
        fit(inputs.job(tmp_path, distill_params, latents=folder))
    assert not isinstance(told.value, health.Ill)
    assert "return" not in capsys.readouterr().out


def trained_on(folder, vae, root, latents=None):
    """What a job reads whose teacher has learnt what is in a folder; it distils on that, or on other latents."""
    data, params = Latents(folder, "train"), config.parse(config.Teacher, "teacher", SMOKE).flow
    fast = params.optimizer.model_copy(update={"lr": 1e-2})
    params = params.model_copy(update={"steps": 200, "batch": 8, "ema_decay": 0.9, "optimizer": fast})
    teacher = flow.FlowTraining(tiny.transformer().train(), Text(*data.null), params, 0)
    flow.fit(teacher, draws.Batches(data, 8, 0, 200, ONE), 200, [], "teacher")
    return small_job.Inputs.make(root, latents or folder, vae, teacher.averaged.eval())


def test_one_prompt_and_picture_over_and_over_collapse_the_grid(
    latents_folder, sprint_folder, distill_params, tmp_path
):
    folder = spoilt(latents_folder, tmp_path / "latents", of_one_pair)
    inputs = trained_on(folder, sprint_folder / "vae", tmp_path / "inputs")
    params = changed(distill_params, grid_every=4, health__returns_max=0)
    with pytest.raises(ValueError, match=r"all captions give nearly one picture: .* pictures of data/raw repeat"):
        fit(inputs.job(tmp_path, params))


@pytest.mark.parametrize("collapsed", [True, False])
def test_a_student_that_has_one_picture_for_all_captions_is_told_of_on_data_that_are_well(
    latents_folder, sprint_folder, distill_params, tmp_path, collapsed
):
    folder = spoilt(latents_folder, tmp_path / "latents", of_one_picture) if collapsed else latents_folder
    inputs = trained_on(folder, sprint_folder / "vae", tmp_path / "inputs", latents_folder)
    made = inputs.job(tmp_path, changed(distill_params, grid_every=2, health__returns_max=0))
    if collapsed:
        with pytest.raises(ValueError, match=r"all captions give nearly one picture: .* or LADD outweighs sCM"):
            fit(made)
    else:
        fit(made)
        assert min(curves(made)["grid/diversity"]) > 2 * made.params.health.diversity_min


def test_a_student_that_forgets_is_told_of_by_its_score(inputs, distill_params, tmp_path):
    def nearness(network):
        """Of the output weights to those before training."""
        return {"1": math.exp(-20 * (network.proj_out.weight - start.proj_out.weight).norm().item())}

    start = bundle.load_transformer(inputs.trigflow)
    params = changed(
        distill_params, recipe="scm", iterations=20, grid_every=4, student__lr=2e-2, health__score_kept_min=0.9,
        health__returns_max=0,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"the quick score fell from 1\.000 to 0\.\d+: .* lower distill.student.lr"):
        fit(inputs.job(tmp_path / "fast", params, scorer=nearness))
    slow = inputs.job(tmp_path / "slow", changed(params, student__lr=1e-6), scorer=nearness)
    fit(slow)
    assert slow.finished()


def test_a_return_goes_behind_the_checkpoints_that_hold_the_fault_already(inputs, distill_params, tmp_path, capsys):
    """The third grid tells; the checkpoints since the second, whole as they are, hold what it tells of."""
    grids = itertools.count()
    scores = [0.5, 0.4, 0.5, 0.1, 0.4, 0.5]  # undistilled, grids 4, 8 and 12, after the return 12 and 16
    params = changed(
        distill_params, recipe="scm", iterations=16, grid_every=4, checkpoint_every=2, keep_checkpoints=1,
        health__score_kept_min=0.5,
    )  # fmt: skip
    made = inputs.job(tmp_path, params, scorer=lambda _: {"1": scores[next(grids)]})
    fit(made)
    out = capsys.readouterr().out
    assert out.count("the quick score fell from 0.500 to 0.100") == 1
    assert iterations_of_return(out) == [8]
    assert next(grids) == len(scores)
    assert curves(made)["score/1_step"][0] == 0.5
    assert checkpoints.state(made.final)["best_score"] == 0.5


def test_a_run_that_falls_below_its_start_at_the_first_grid_is_told_of(inputs, distill_params, tmp_path):
    scores = iter([0.5, 0.1])
    params = changed(distill_params, grid_every=6, health__score_kept_min=0.5, health__returns_max=0)
    with pytest.raises(ValueError, match=r"the quick score fell from 0\.500 to 0\.100"):
        fit(inputs.job(tmp_path, params, scorer=lambda _: {"1": next(scores)}))


def test_a_collapse_after_the_last_of_the_regular_grids_is_seen(inputs, distill_params, tmp_path):
    scores = iter([0.5, 0.5, 0.1])
    params = changed(distill_params, iterations=6, grid_every=4, health__score_kept_min=0.5, health__returns_max=0)
    with pytest.raises(ValueError, match=r"the quick score fell from 0\.500 to 0\.100"):
        fit(inputs.job(tmp_path, params, scorer=lambda _: {"1": next(scores)}))


def test_a_score_that_is_nan_before_the_first_step_is_no_best(inputs, distill_params, tmp_path):
    made = inputs.job(tmp_path, changed(distill_params, health__returns_max=0), scorer=lambda _: {"1": math.nan})
    with pytest.raises(ValueError, match="score/1_step is nan"):
        fit(made)


def test_a_fault_that_one_good_iteration_interrupts_is_still_running(distill_params):
    """Three bad ones of four come to the patience; a rare one never does, and is forgotten after as many good ones."""
    params = changed(distill_params, iterations=1000, grid_every=1000, health__patience_iterations=8)

    def iterations_until_ill(bad, most=200):
        watch, well = health.Health(params), []
        for iteration, is_bad in zip(range(1, most), itertools.cycle(bad), strict=False):
            watch.values = {"student/grad_norm": 2 * params.health.grad_norm_max * is_bad}
            try:
                watch.judge(iteration)
            except health.Ill:
                return iteration, well
            well.append(watch.well)
        return None, well

    assert iterations_until_ill([True])[0] == 8
    ill_at, well = iterations_until_ill([True, True, True, False])
    assert ill_at == 14
    assert not any(well)
    ill_at, well = iterations_until_ill([True, False, False, False])
    assert ill_at is None
    assert well[:4] == [False, True, True, True]


ILL = {
    "student/sample_std": {"student/sample_std": 1e6},
    health.DIVERSITY: {health.DIVERSITY: 0.0},
    health.SCORE: {"score/1_step": 0.1},
}


@pytest.mark.parametrize("fault", ILL)
@pytest.mark.parametrize("recipe", config.RECIPES)
def test_a_remedy_names_the_weights_that_the_recipe_has_and_no_others(distill_params, recipe, fault):
    watch = health.Health(changed(distill_params, recipe=recipe, health__score_kept_min=0.5))
    watch.best, watch.values = 0.9, ILL[fault]
    (told,) = watch.faults().values()
    assert ("distill.ladd_weight" in told) == ("ladd" in config.RECIPES[recipe])
    assert ("distill.dmd.weight" in told) == ("dmd" in config.RECIPES[recipe])
    assert ("outweighs sCM" in told) <= ("scm" in config.RECIPES[recipe])
    assert "distill.ladd_weight" in told or "distill.dmd.weight" in told or "distill.student.lr" in told


def test_time_as_1000_t_is_no_cause_of_a_critics_norm(distill_params):
    watch = health.Health(changed(distill_params, recipe="sprint_dmd"))
    watch.values = {f"{name}/grad_norm": 1e9 for name in ("student", "heads", "fake_score")}
    told = watch.faults()
    assert [name for name, words in told.items() if "1000 t" in words] == ["student/grad_norm"]
    assert "lower distill.heads.optimizer.lr" in told["heads/grad_norm"]
    assert "lower distill.dmd.optimizer.lr" in told["fake_score/grad_norm"]


def test_nothing_is_saved_while_a_fault_is_running_and_the_end_is_no_excuse(inputs, distill_params, tmp_path):
    params = changed(distill_params, health__grad_norm_max=1e-9, health__patience_iterations=100, health__returns_max=0)
    made = inputs.job(tmp_path, params)
    with pytest.raises(ValueError, match=r"grad_norm stays above 1e-09 for 6 iterations"):
        fit(made)
    assert list(made.checkpoints.glob("*")) == []


def test_a_return_draws_other_numbers_and_can_end_well(inputs, distill_params, tmp_path, capsys):
    """Of these params' draws those of iteration 11 give a gradient above all others; another seed does not meet it."""
    params = changed(
        distill_params, seed=1, recipe="scm", iterations=20, tangent_norm_c=100.0, log_variance=False,
        time={"mean": 0.0, "std": 0.5}, checkpoint_every=6, health__grad_norm_max=0.025, health__patience_iterations=1,
    )  # fmt: skip
    made = inputs.job(tmp_path, params)
    fit(made)
    out = capsys.readouterr().out
    assert out.count("student/grad_norm stays above 0.025 for 1 iterations") == 1
    assert iterations_of_return(out) == [6]
    assert made.finished()
    assert checkpoints.state(made.final)["attempt"] == 1


def test_curves_of_a_returned_run_hold_each_step_once(inputs, distill_params, tmp_path):
    rate = 100 * distill_params.student.lr
    params = changed(
        distill_params,
        iterations=12,
        student__lr=rate,
        student__warmup_steps=0,
        log_every=1,
        **EXPLODING,
    )
    made = inputs.job(tmp_path, params)
    with pytest.raises(ValueError, match="given up"):
        fit(made)
    steps = [step for step, _ in json.loads(made.curves.read_text())["student/scm"]]
    assert all(a < b for a, b in itertools.pairwise(steps))
