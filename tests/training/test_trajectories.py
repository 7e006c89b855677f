"""A student can learn from captions alone: the teacher's latents stand in for the pictures'."""

import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from sana_sprint import storage
from sana_sprint.data import loader
from sana_sprint.data.loader import Latents
from sana_sprint.maths import sample
from sana_sprint.models import networks
from sana_sprint.models.networks import Text
from sana_sprint.training import trajectories
from tests.training import small_job
from tests.training.small_job import SAMPLING, fit


@pytest.fixture(scope="module")
def drawn(inputs, tmp_path_factory):
    return trajectories.drawn(inputs.latents, inputs.teacher, SAMPLING, 3, tmp_path_factory.mktemp("trajectories"))


def test_each_training_caption_gets_the_teachers_own_latents(inputs, drawn):
    made, given = Latents(drawn, "train"), Latents(inputs.latents, "train")
    assert made.captions.equal(given.captions)
    row = 17
    text, null = Text(*given.text(torch.tensor([row]))), Text(*given.null)
    v = networks.guided_velocity(tiny.transformer(), text, null, torch.tensor([SAMPLING.teacher_guidance]))
    noise = trajectories.noise_of(row, 3, made.x.shape[1:])[None]
    with torch.no_grad():
        alone = sample.flow_ode(v, noise, sample.flow_times(SAMPLING.teacher_steps, SAMPLING.teacher_shift))
    torch.testing.assert_close(made.x[row], alone[0], rtol=1e-4, atol=1e-5)


def test_pictures_leave_no_trace_in_what_the_student_learns_from(inputs, drawn, tmp_path):
    given = Latents(inputs.latents, "train")
    other = tmp_path / "latents"
    other.mkdir()
    for file in inputs.latents.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    save_file({"latents": -given.x[:], "captions": given.captions}, other / "train.safetensors")
    again = trajectories.drawn(other, inputs.teacher, SAMPLING, 3, tmp_path)
    assert load_file(again / "train.safetensors")["latents"].equal(load_file(drawn / "train.safetensors")["latents"])


def test_files_of_another_disk_are_copied(inputs, drawn, tmp_path):
    """As with DVC's symbolic links to a cache elsewhere."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        (other := tmp_path / "latents").mkdir()
        for file in inputs.latents.iterdir():
            (other / file.name).symlink_to(shutil.copy(file, elsewhere))
        again = trajectories.drawn(other, inputs.teacher, SAMPLING, 3, tmp_path)
    assert storage.digest(again) == storage.digest(drawn)


def test_they_are_drawn_once_and_anew_for_another_seed(inputs, drawn, monkeypatch):
    with monkeypatch.context() as patched:
        patched.delattr(trajectories, "pictures")
        assert trajectories.drawn(inputs.latents, inputs.teacher, SAMPLING, 3, drawn.parent) == drawn
    other = trajectories.drawn(inputs.latents, inputs.teacher, SAMPLING, 4, drawn.parent)
    assert not Latents(other, "train").x[:].equal(Latents(drawn, "train").x[:])


def in_two_shards(latents, folder):
    """The same training split, as stage encode writes a longer one."""
    folder.mkdir()
    for file in latents.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    index, whole = storage.read_json(folder / loader.INDEX), load_file(folder / "train.safetensors")
    (folder / "train.safetensors").unlink()
    (only,) = (part for part in index["shards"] if part["split"] == "train")
    parts = [
        only | {"file": f"train-{n}.safetensors", "count": count} for n, count in enumerate((5, only["count"] - 5))
    ]
    for part, rows in zip(parts, (slice(None, 5), slice(5, None)), strict=True):
        save_file({name: x[rows].contiguous() for name, x in whole.items()}, folder / part["file"])
    index["shards"] = [part for part in index["shards"] if part["split"] != "train"] + parts
    storage.write_json(folder / loader.INDEX, index)
    return folder


def test_of_a_run_that_was_cut_short_the_shards_stay(inputs, drawn, tmp_path, monkeypatch):
    latents, counts, original = in_two_shards(inputs.latents, tmp_path / "latents"), [], trajectories.pictures

    def cut_short(network, data, rows, *rest):
        if counts == [5]:
            counts.clear()
            raise KeyboardInterrupt
        counts.append(len(rows))
        return original(network, data, rows, *rest)

    monkeypatch.setattr(trajectories, "pictures", cut_short)
    with pytest.raises(KeyboardInterrupt):
        trajectories.drawn(latents, inputs.teacher, SAMPLING, 3, tmp_path / "cache")
    made = trajectories.drawn(latents, inputs.teacher, SAMPLING, 3, tmp_path / "cache")
    assert counts == [len(Latents(drawn, "train")) - 5]
    torch.testing.assert_close(Latents(made, "train").x[:], Latents(drawn, "train").x[:], rtol=1e-4, atol=1e-5)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [made.name]


def test_two_sizes_that_begin_at_once_draw_once(inputs, tmp_path, monkeypatch):
    """As `make demo` distils them; the second waits for what the first draws."""
    calls, entered, original = [], threading.Event(), trajectories.pictures

    def slowly(*arguments):
        calls.append(entered.wait(60))
        return original(*arguments)

    monkeypatch.setattr(trajectories, "pictures", slowly)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(trajectories.drawn, inputs.latents, inputs.teacher, SAMPLING, 3, tmp_path) for _ in "ab"]
        while not calls and not any(one.done() for one in both):
            entered.wait(0.05)
        entered.wait(0.5)  # time for the second to come in
        entered.set()
        one, other = (future.result() for future in both)
    assert one == other
    assert len(calls) == 1
    assert len(Latents(one, "train")) == len(Latents(inputs.latents, "train"))


def test_a_job_trains_on_them(inputs, drawn, distill_params, tmp_path):
    fit(made := inputs.job(tmp_path, distill_params, latents=drawn))
    assert made.finished()


def test_the_switch_is_checked_by_name(distill_params):
    with pytest.raises(ValueError, match="latents"):
        small_job.changed(distill_params, latents="tecaher")
