"""Networks spread over two Ray workers (FSDP2 over gloo): the losses of whole ones, checkpoints that fit any number.

The workers compute a step in two passes, and their teacher's last block is of no use to the heads; one process alone
takes the whole batch at once."""

import dataclasses
import re
import shutil

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.testing import assert_close

from sana_sprint import cluster, storage
from sana_sprint.training import checkpoints, draws, job, launch
from tests.training.small_job import changed, fit
from tests.training.test_ray import NOT_LOSSES, kill_a_worker_when

pytestmark = pytest.mark.e2e
ITERATIONS, MIDDLE = 8, 4


@pytest.fixture(scope="module", autouse=True)
def joined():
    """A cluster that stays up for the whole file."""
    with cluster.Joined():
        yield


@pytest.fixture(scope="module")
def params(distill_params):
    """Params of a few iterations of every term, each with a checkpoint."""
    often = {"checkpoint_every": 2, "keep_checkpoints": ITERATIONS, "grid_every": 4, "log_every": 1}
    heads = {"heads__virtual_batch": 2, "heads__blocks": [0]}
    return changed(distill_params, iterations=ITERATIONS, recipe="sprint_dmd", **heads, **often)


@pytest.fixture(scope="module")
def done(inputs, params, tmp_path_factory):
    """The same job on two workers, with whole networks and with sharded ones; each is run once."""

    def of(shard: str) -> job.Job:
        made = inputs.job(tmp_path_factory.getbasetemp() / f"sharded-{shard}", params, scorer=by_drawing())
        return made if made.finished() else run(made, shard)

    return of


def by_drawing():
    """A scorer that runs the network, as quick scores do, before the first step too."""
    generator = torch.Generator().manual_seed(0)
    text, noise = tiny.text(), torch.randn(3, tiny.CHANNELS, tiny.SIZE, tiny.SIZE, generator=generator)

    def scorer(network):
        from sana_sprint.models import networks

        with torch.no_grad():
            v = networks.flow_velocity(network, text, torch.full((3,), 2.0))(noise, torch.full((3,), 0.5))
        return {"1": v.abs().mean().item()}

    return scorer


def run(made: job.Job, shard: str) -> job.Job:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SANA_SPRINT_WORKERS", "2")
        patch.setenv("SANA_SPRINT_SHARD", shard)
        patch.setenv(draws.MICRO_BATCH, "2")
        assert launch.run(made) == made.final
    return made


def halfway(made: job.Job, root) -> job.Job:
    """A copy of a job in another place, that has come to its middle."""
    shutil.copytree(made.checkpoints, root / "checkpoints")
    for path in (root / "checkpoints").glob("step-*"):
        if int(path.name[-7:]) > MIDDLE:
            shutil.rmtree(path)
    places = {"checkpoints": root / "checkpoints", "curves": root / "curves.json", "grids": root / "grids"}
    return dataclasses.replace(made, **places)


def assert_alike(one: job.Job, other: job.Job) -> None:
    """The same losses at every step that both saw, and the same student."""
    first, second = (dict_of(storage.read_json(made.curves)) for made in (one, other))
    both = [key for key in first if key in second and key[0] not in NOT_LOSSES]
    assert {name for name, _ in both} >= {
        "student/scm",
        "student/ladd",
        "student/dmd",
        "heads/hinge",
        "fake_score/loss",
    }
    for key in both:
        assert_close(first[key], second[key], rtol=2e-3, atol=2e-4, msg=lambda text, key=key: f"{key}: {text}")
    students = [job.averaged(made.final, made.trigflow).state_dict() for made in (one, other)]
    assert_close(*students, rtol=1e-2, atol=1e-3)


def dict_of(curves):
    return {(name, step): value for name, points in curves.items() for step, value in points}


def test_one_worker_sees_the_losses_of_two_in_every_term(inputs, done, params, tmp_path):
    alone = inputs.job(tmp_path, params, scorer=by_drawing())
    fit(alone)
    assert_alike(done("0"), alone)


def test_sharded_networks_see_the_losses_of_whole_ones(done):
    assert_alike(done("0"), done("1"))


def test_a_worker_holds_half_of_every_weight_and_moment(done):
    files = sorted(done("1").final.glob("*.safetensors"))
    assert [file.name[:11] for file in files] == ["shard-00001", "shard-00002"]
    assert list(done("1").checkpoints.glob(f"{storage.UNFINISHED}*")) == []
    whole = load_file(done("0").final / "student.safetensors")
    halves = []
    for file in files:
        with safe_open(file, "pt") as shard:
            names = [n for n in shard.keys() if n.startswith("student.")]  # noqa: SIM118  no mapping
            halves.append({name: shard.get_tensor(name) for name in names})
    split = {name for name in whole if whole[name].dim() and len(whole[name]) > 1}
    assert len(split) > 20
    for name in split:
        key = f"student.{name}"
        for suffix in ("", ".exp_avg", ".exp_avg_sq"):
            assert len(halves[0][key + suffix]) == -(-len(whole[name]) // 2)
        assert_close(torch.cat([half[key] for half in halves]), whole[name], rtol=1e-2, atol=1e-3)


def test_sharded_networks_go_on_after_a_killed_worker_to_the_bits_of_a_straight_run(done, tmp_path, capfd):
    other = halfway(done("1"), tmp_path)
    killer = kill_a_worker_when(other.checkpoints / f"step-{MIDDLE + 2:07d}")
    run(other, "1")
    killer.join()
    assert capfd.readouterr().out.count("going on from") == 2
    for file in sorted(other.final.glob("shard-*")):  # their headers name the same in any order
        assert_close(load_file(file), load_file(done("1").final / file.name), rtol=0, atol=0)
    assert len(list(other.final.glob("shard-*"))) == 2


def test_two_sharded_workers_that_fall_ill_return_to_the_last_good_slices_and_give_up_together(
    inputs, params, tmp_path, capfd
):
    """They fall ill when the rate has been rising for some iterations, with a checkpoint behind them."""
    exploding = {"health__sample_std_max": 1e9, "health__tangent_norm_max": None}  # until something is not finite
    warm = {"student__lr": 100.0, "student__warmup_steps": 10_000}
    made = inputs.job(tmp_path, changed(params, iterations=40, health__returns_max=1, **warm, **exploding))
    with pytest.raises(ValueError, match=r"stopped: ill 2 times, given up: student/.* lower distill.student.lr"):
        run(made, "1")
    out = capfd.readouterr().out
    assert out.count("return 1, other draws") == 1
    (source,) = re.findall(r"going on from \S*/(step-\d+)", out)
    assert len(list((made.checkpoints / source).glob("shard-*"))) == 2


def test_one_whole_worker_goes_on_from_two_sharded_ones(done, tmp_path, capsys):
    other = halfway(done("1"), tmp_path)
    fit(other)
    assert f"going on from {other.checkpoints / f'step-{MIDDLE:07d}'}" in capsys.readouterr().out
    assert_alike(done("0"), other)


def test_two_sharded_workers_go_on_from_whole_networks(done, tmp_path, capfd):
    other = run(halfway(done("0"), tmp_path), "1")
    assert f"going on from {other.checkpoints / f'step-{MIDDLE:07d}'}" in capfd.readouterr().out
    assert_alike(done("0"), other)


def test_a_shard_cut_short_is_named_and_the_checkpoint_before_goes_on(done, tmp_path, capsys):
    other = halfway(done("1"), tmp_path)
    newest = other.checkpoints / f"step-{MIDDLE:07d}"
    cut = next(newest.glob("shard-00002*"))
    cut.write_bytes(cut.read_bytes()[:1000])
    assert checkpoints.newest(other.checkpoints, other.key) == other.checkpoints / "step-0000002"
    assert f"half-written checkpoint ({cut.name} does not match its digest)" in capsys.readouterr().err
