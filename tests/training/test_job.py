"""A job that is stopped, re-made, cut short or out of disk loses nothing."""

import itertools
import os
import re
import resource
import shutil
import threading
from contextlib import contextmanager

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from sana_sprint import storage
from sana_sprint.data.loader import Latents
from sana_sprint.models import heads, networks
from sana_sprint.training import checkpoints, distill, draws, grids, sharding
from tests.training.small_job import MACHINES, Record, changed, fit


@pytest.fixture
def stopping(distill_params):
    """Params of 6 iterations with a grid after the fourth, where tests interfere."""
    return changed(distill_params, iterations=6, checkpoint_every=6, grid_every=4, log_every=1)


def at_the_grid(act):
    """A scorer that acts in the middle of a training, but not when it is first asked, before the first step."""
    asked = itertools.count()

    def scorer(network):
        if next(asked):
            act()
        return {}

    return scorer


def ask_to_stop(made):
    (made.checkpoints / checkpoints.STOP).touch()


OTHERWISE = {
    "sprint": {},
    "sprint_dmd": {"recipe": "sprint_dmd"},
    "ladd_dmd": {"recipe": "ladd_dmd"},
    "bfloat16": {"precision": "bf16-mixed"},
    "two steps of the heads": {"heads__steps": 2},
}


@pytest.mark.parametrize("how", OTHERWISE)
def test_a_stopped_job_goes_on_to_the_bits_of_a_straight_one(inputs, stopping, tmp_path, capsys, how):
    params = changed(stopping, **OTHERWISE[how])
    straight = inputs.job(tmp_path / "straight", params)
    fit(straight)
    halves = inputs.job(tmp_path / "halves", params)
    halves.checkpoints.mkdir(parents=True)
    fit(inputs.job(tmp_path / "halves", params, scorer=at_the_grid(lambda: ask_to_stop(halves))))
    assert not halves.finished()
    (source,) = halves.checkpoints.glob("step-*")
    assert source.name == "step-0000004"
    (halves.checkpoints / checkpoints.STOP).unlink()
    capsys.readouterr()
    fit(halves)
    said = capsys.readouterr()
    assert f"going on from {source}" in said.out
    assert "the code of this training" not in said.err
    one, other = (checkpoints.state(made.final)["files"] for made in (straight, halves))
    assert one == other
    networks = {"student", "averaged", "heads", *(["fake_score"] if "dmd" in how else [])}
    assert set(one) == {"optimisers.pt", *(f"{name}.safetensors" for name in networks)}


def test_a_job_that_is_stopped_while_a_fault_is_running_says_that_it_saves_nothing_then(
    inputs, stopping, tmp_path, capsys
):
    straight = inputs.job(tmp_path / "straight", stopping)
    fit(straight)
    faulty = changed(stopping, checkpoint_every=3, health__grad_norm_max=1e-9, health__patience_iterations=100)
    halves = inputs.job(tmp_path / "halves", faulty, scorer=at_the_grid(lambda: ask_to_stop(halves)))
    halves.checkpoints.mkdir(parents=True)
    fit(halves)
    assert "a fault is running, so iteration 4 is not saved; the run will go on from its start" in (
        capsys.readouterr().err
    )
    assert not list(halves.checkpoints.glob("step-*"))
    (halves.checkpoints / checkpoints.STOP).unlink()
    well = inputs.job(tmp_path / "halves", stopping)
    fit(well)
    one, other = (checkpoints.state(made.final)["files"] for made in (straight, well))
    assert one == other


def test_curves_of_a_stopped_job_are_those_of_a_straight_one(inputs, stopping, tmp_path):
    straight, halves = inputs.job(tmp_path / "straight", stopping), inputs.job(tmp_path / "halves", stopping)
    fit(straight)
    halves.checkpoints.mkdir(parents=True)
    fit(inputs.job(tmp_path / "halves", stopping, scorer=at_the_grid(lambda: ask_to_stop(halves))))
    (halves.checkpoints / checkpoints.STOP).unlink()
    fit(halves)
    one, other = (storage.read_json(made.curves) for made in (straight, halves))
    for name in set(one) - MACHINES:
        assert other[name] == (one[name] if name != "grid/diversity" else one[name][::2])  # between grids old news


def test_the_pictures_of_a_run_that_goes_on_begin_at_the_undistilled_student_too(inputs, stopping, tmp_path):
    """In MLflow they are series of another command, and its page shows the first of a series at step 0."""
    before, after, params = Record(), Record(), changed(stopping, grid_every=2)
    made = inputs.job(tmp_path, params, recorder=before, scorer=at_the_grid(lambda: ask_to_stop(made)))
    made.checkpoints.mkdir(parents=True)
    fit(made)
    (made.checkpoints / checkpoints.STOP).unlink()
    fit(inputs.job(tmp_path, params, recorder=after))
    series = {f"distill_tiny/{steps}_step" for steps in grids.STEPS}
    drawn = [{step for name, step in album.pictures if name in series} for album in (before, after)]
    assert drawn == [{0, 2}, {0, 4, 6}]
    for name in series:
        assert before.pictures[name, 0] == after.pictures[name, 0] != before.pictures[name, 2]


def test_one_training_at_a_time_has_a_folder_of_checkpoints(tmp_path, capsys):
    entered = threading.Event()

    def second():
        with checkpoints.owned(tmp_path / "base"):
            entered.set()

    with checkpoints.owned(tmp_path / "base"), checkpoints.owned(tmp_path / "small"):
        other = threading.Thread(target=second)
        other.start()
        assert not entered.wait(0.3)
    assert entered.wait(10)
    other.join()
    assert "base: another training still writes here; waiting for its end" in capsys.readouterr().err


def test_a_finished_job_that_is_made_again_trains_nothing(inputs, stopping, tmp_path):
    fit(inputs.job(tmp_path, stopping))
    again = inputs.job(tmp_path, stopping)
    assert again.finished()
    digest = storage.digest(again.final)
    fit(again)
    assert storage.digest(again.final) == digest
    assert not inputs.job(tmp_path, stopping, key="of other params").finished()


def test_a_truncated_newest_checkpoint_is_named_and_the_one_before_goes_on(inputs, stopping, tmp_path, capsys):
    params = changed(stopping, checkpoint_every=2)
    made = inputs.job(tmp_path, params)
    fit(made)
    digest = checkpoints.state(made.final)["files"]
    os.truncate(made.final / "averaged.safetensors", 1000)
    assert not made.finished()
    fit(made)
    told = capsys.readouterr()
    assert f"{made.final}: half-written checkpoint (averaged.safetensors does not match its digest)" in told.err
    assert "going on from" in told.out
    assert made.finished()
    assert checkpoints.state(made.final)["files"] == digest


def test_a_broken_checkpoint_pushes_out_no_whole_one(inputs, stopping, tmp_path):
    """It lies ahead of those that follow it, and is not the newest of anything."""
    params = changed(stopping, checkpoint_every=1, keep_checkpoints=1)
    made = inputs.job(tmp_path, params, scorer=at_the_grid(lambda: ask_to_stop(made)))
    made.checkpoints.mkdir(parents=True)
    fit(made)
    (made.checkpoints / checkpoints.STOP).unlink()
    (source,) = made.checkpoints.glob("step-*")
    ahead = made.checkpoints / "step-0000006"
    shutil.copytree(source, ahead)
    os.truncate(ahead / "averaged.safetensors", 1000)
    ask_to_stop(made)
    fit(made)
    there = sorted(made.checkpoints.glob("step-*"))
    assert [path.name for path in there] == ["step-0000004", "step-0000005"]  # the newest of a good grid, the newest
    assert not any(map(checkpoints.broken, there))


def test_every_grid_has_its_checkpoint_and_the_end_its_grid(inputs, distill_params, tmp_path):
    """Else no earlier student could be the best that is kept, and nobody would look at what becomes the output."""
    params = changed(distill_params, iterations=10, checkpoint_every=4, grid_every=3, keep_checkpoints=1)
    scores = iter([0.1, 0.2, 0.9, 0.6, 0.7])
    made = inputs.job(tmp_path, params, scorer=lambda network: {"1": next(scores)})
    fit(made)
    assert [path.name for path in sorted(made.checkpoints.glob("step-*"))] == ["step-0000006", "step-0000010"]
    assert checkpoints.state(made.final)["scores"] == {"score/1_step": pytest.approx(0.7)}
    assert (made.grids / "iteration-000010.png").is_file()


def test_a_checkpoint_that_other_code_has_made_is_told_of(inputs, stopping, tmp_path, capsys, monkeypatch):
    made = inputs.job(tmp_path, stopping, scorer=at_the_grid(lambda: ask_to_stop(made)))
    made.checkpoints.mkdir(parents=True)
    fit(made)
    (made.checkpoints / checkpoints.STOP).unlink()
    monkeypatch.setattr(checkpoints, "code", lambda: "mended since")
    fit(made)
    told = f"step-0000004: the code of this training was another one then, .* to begin anew delete {made.checkpoints}"
    assert re.search(told, capsys.readouterr().err)


def test_the_newest_and_the_best_by_score_are_kept(inputs, distill_params, tmp_path):
    often = {"checkpoint_every": 2, "grid_every": 2}
    params = changed(distill_params, iterations=10, keep_checkpoints=2, health__score_kept_min=0.0, **often)
    scores = iter(
        [{"1": 0.0}, {"1": 0.1, "2": 0.3}, {"1": 0.4, "2": 0.6}, {"1": 0.9, "2": 0.0}, {"1": 0.2}, {"1": 0.3}]
    )
    made = inputs.job(tmp_path, params, scorer=lambda network: next(scores))
    fit(made)
    assert [path.name[-2:] for path in sorted(made.checkpoints.glob("step-*"))] == ["04", "08", "10"]
    assert checkpoints.best(made.checkpoints) == made.checkpoints / "step-0000004"


def test_a_checkpoint_between_grids_claims_no_score(inputs, distill_params, tmp_path):
    params = changed(distill_params, iterations=4, checkpoint_every=1, grid_every=2, keep_checkpoints=4)
    made = inputs.job(tmp_path, params, scorer=lambda network: {"1": 0.5})
    fit(made)
    scores = [checkpoints.state(path)["scores"] for path in sorted(made.checkpoints.glob("step-*"))]
    assert scores == [{}, {"score/1_step": 0.5}, {}, {"score/1_step": 0.5}]


@contextmanager
def limited_files():
    """Within the block this process can be told to write no file above some size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("too_large", ["student.safetensors", "optimisers.pt"])
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(inputs, distill_params, tmp_path, capsys, too_large):
    params = changed(distill_params, iterations=8, checkpoint_every=2, grid_every=4, log_every=1)
    made = inputs.job(tmp_path, params)
    sizes = {}

    def shrink_and_grow_again():
        if not sizes:
            source = checkpoints.newest(made.checkpoints, made.key)
            sizes.update({file.name: file.stat().st_size for file in source.iterdir()})
            limit(sizes[too_large] - 1)
        else:
            limit(resource.RLIM_INFINITY)

    with limited_files() as limit:
        fit(inputs.job(tmp_path, params, scorer=at_the_grid(shrink_and_grow_again)))
    told = re.findall(
        r"^warning: no checkpoint of (.+?): .*; free space, the run goes on$", capsys.readouterr().err, re.M
    )
    assert told == ["iteration 4", "iteration 6"]
    assert [path.name for path in sorted(made.checkpoints.iterdir())] == ["step-0000002", "step-0000008"]
    assert made.finished()


def test_a_disk_too_full_for_the_last_checkpoint_ends_the_run_and_leaves_the_one_before(
    inputs, distill_params, tmp_path
):
    made = inputs.job(tmp_path, changed(distill_params, iterations=4, checkpoint_every=2, grid_every=4))
    told = r"(student|averaged)\.safetensors could not be written, .*; free space and start again: it goes"
    with limited_files() as limit, pytest.raises(OSError, match=told):
        fit(inputs.job(tmp_path, made.params, scorer=at_the_grid(lambda: limit(20_000))))
    assert [path.name for path in made.checkpoints.iterdir()] == ["step-0000002"]
    assert checkpoints.newest(made.checkpoints, made.key).name == "step-0000002"


@pytest.fixture
def mesh(tmp_path):
    """A group of workers of which this process is the only one."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_a_disk_too_full_for_a_shard_is_an_oserror_and_the_next_write_is_whole(
    latents_folder, distill_params, tmp_path, mesh
):
    """What torch.distributed.checkpoint raises is a BaseException, which would end the run."""
    teacher, null = tiny.transformer(), networks.Text(*Latents(latents_folder, "train").null)
    student, share = networks.embed_guidance(teacher), draws.Share(0, 1)
    module = distill.Distillation(student, teacher, null, distill_params, 0.5, share)
    sharding.shard(module, mesh)
    optimizers = module.configure_optimizers()
    folder = tmp_path / "checkpoints"
    with limited_files() as limit:
        limit(20_000)
        with pytest.raises(OSError, match=r"checkpoints/.*shards: .*File too large"):
            sharding.write(folder, module, optimizers)
    (whole,) = sharding.write(folder, module, optimizers).glob("*.safetensors")
    wanted = {key.removeprefix("student."): value for key, value in load_file(whole).items()}
    for name, weight in module.student.state_dict().items():
        assert sharding.whole(weight).equal(wanted[name])


def test_no_block_of_a_sharded_teacher_stays_whole_even_where_the_heads_pass_comes_first(mesh):
    """Of four blocks that pass uses two, so that FSDP2 meets the others later."""
    teacher, x, t_B = tiny.transformer(num_layers=4).requires_grad_(False), tiny.latents(), torch.full((3,), 0.5)
    sharding._shard_transformer(teacher, mesh, tapped=True)
    heads.features(teacher, [0, 1], x, t_B, tiny.text())
    for _ in range(2):
        networks.flow_velocity(teacher, tiny.text())(x, t_B)
    weights = [weight for block in teacher.transformer_blocks for weight in block.parameters()]
    assert all(isinstance(weight, DTensor) for weight in weights)


def test_the_weights_of_a_checkpoint_are_safetensors_that_fit_the_pipeline(inputs, stopping, tmp_path):
    from sana_sprint.training import job

    made = inputs.job(tmp_path, stopping)
    fit(made)
    averaged = load_file(made.final / "averaged.safetensors")
    network = job.averaged(made.final, made.trigflow)
    for name, weight in network.state_dict().items():
        assert weight.equal(averaged[f"transformer.{name}"])


def test_draws_of_all_returns_differ(distill_params):
    from sana_sprint.training import draws

    seeds = [draws.seed(seed, attempt) for seed, attempt in itertools.product(range(3), range(4))]
    assert len(set(seeds)) == len(seeds)
