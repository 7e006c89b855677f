"""The cache of evaluate's pictures: its key covers what a picture depends on and nothing else, and no broken file
passes for a picture."""

import dataclasses
import os
import time

import numpy as np
import pytest
from PIL import Image

from sana_sprint import storage
from sana_sprint.data import manifest
from sana_sprint.evaluation import drawing, generate, picture_cache, protocol
from tests.evaluation.conftest import EVALUATE, SAMPLING


@pytest.fixture(scope="module")
def order(sprint_folder, raw):
    prompts = protocol.prompts(manifest.read(raw, "eval"), EVALUATE)[:7]
    digest = storage.digest(sprint_folder)
    return drawing.Order(sprint_folder, digest, "student", SAMPLING, 0.5, 2, 1, "float32", 3, prompts)


@pytest.fixture
def calls(monkeypatch):
    """The prompts of every call of the student's network."""
    seen = []
    original = generate.Loaded.student
    monkeypatch.setattr(generate.Loaded, "student", lambda s, c, n: seen.append(list(c)) or original(s, c, n))
    return seen


def pictures(order, cache):
    with drawing.Crew() as crew:
        return picture_cache.pictures(order, cache, crew, "")


def changed(order, **sampling):
    return dataclasses.replace(order, sampling=order.sampling.model_copy(update=sampling))


def test_the_key_covers_what_a_picture_depends_on(order):
    two, other = SAMPLING.times | {"2": [1.5, 1.0, 0.0]}, dataclasses.replace(order.prompts[0], caption="a cat")
    teacher = dataclasses.replace(order, network="teacher")
    different = [
        order,
        dataclasses.replace(order, digest="other weights"),
        dataclasses.replace(order, steps=1),
        dataclasses.replace(order, seed=2),
        dataclasses.replace(order, sigma_d=0.4),
        dataclasses.replace(order, precision="bf16-mixed"),
        dataclasses.replace(order, prompts=order.prompts[1:]),
        dataclasses.replace(order, prompts=[other, *order.prompts[1:]]),
        changed(order, times=two),
        changed(order, guidance=1.0),
        changed(order, height_px=32),
        changed(order, max_tokens=8),
        changed(order, instruction=["Draw"]),
        teacher,
        changed(teacher, teacher_steps=9),
        changed(teacher, teacher_guidance=1.0),
        changed(teacher, teacher_shift=1.0),
    ]
    assert len({picture_cache.key(one) for one in different}) == len(different)


def test_the_key_covers_nothing_else(order, tmp_path):
    one = SAMPLING.times | {"1": [1.2, 0.0]}
    moved = dataclasses.replace(order.prompts[0], group="heldout", task="other")
    same = [
        dataclasses.replace(order, folder=tmp_path),
        dataclasses.replace(order, prompts=[moved, *order.prompts[1:]]),
        changed(order, times=one, teacher_steps=9, teacher_guidance=1.0),
    ]
    assert {picture_cache.key(each) for each in same} == {picture_cache.key(order)}


def test_only_calls_with_a_missing_picture_are_made_and_what_is_there_stays(order, tmp_path, calls):
    whole = pictures(order, tmp_path)
    captions = [prompt.caption for prompt in order.prompts]
    assert calls == [captions[:3], captions[3:6], captions[6:]]
    folder = tmp_path / picture_cache.key(order)
    indices = [prompt.index for prompt in order.prompts]
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{index}.png" for index in indices)
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    calls.clear()
    assert np.array_equal(pictures(order, tmp_path), whole)
    assert calls == []
    lost = folder / f"{indices[4]}.png"
    lost.unlink()
    assert np.array_equal(pictures(order, tmp_path), whole)
    assert calls == [captions[3:6]]
    assert {p for p in written if p.stat().st_mtime_ns != written[p]} == {lost}


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def emptied(path):
    path.write_bytes(b"")


def zeroed(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def small(path):
    Image.new("RGB", (32, 64)).save(path)


def foreign(path):
    path.write_text("no picture")


@pytest.mark.parametrize("spoil", [cut, emptied, zeroed, small, foreign])
def test_a_spoilt_file_is_drawn_again(order, tmp_path, spoil):
    whole = pictures(order, tmp_path)
    path = tmp_path / picture_cache.key(order) / f"{order.prompts[1].index}.png"
    before = path.read_bytes()
    spoil(path)
    assert np.array_equal(pictures(order, tmp_path), whole)
    assert path.read_bytes() == before


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def die(self, target):
        raise KeyboardInterrupt

    path = tmp_path / "1.png"
    picture_cache.keep(path, np.zeros((8, 8, 3), np.uint8))
    before = path.read_bytes()
    monkeypatch.setattr(type(path), "replace", die)
    with pytest.raises(KeyboardInterrupt):
        picture_cache.keep(path, np.ones((8, 8, 3), np.uint8))
    assert path.read_bytes() == before


def test_what_no_finished_run_uses_goes_after_a_day(tmp_path):
    for name in ("mine", "before", "of-base", "of-a-run-at-work", "of-a-run-given-up"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").touch()
    (tmp_path / "teacher-1.npy").touch()
    picture_cache.forget(tmp_path, "small", {"mine", "before"})
    picture_cache.forget(tmp_path, "base", {"of-base"})
    (tmp_path / "of-a-run-that-draws" / "people").mkdir(parents=True)
    days_ago = time.time() - 3 * 24 * 3600
    for path in tmp_path.iterdir():
        if path.name != "of-a-run-at-work":
            os.utime(path, (days_ago, days_ago))
    picture_cache.forget(tmp_path, "small", {"mine"})
    kept = {"mine", "of-base", "of-a-run-at-work", "of-a-run-that-draws"}
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".json"} == kept


def test_what_nobody_used_for_a_month_is_swept(tmp_path):
    (tmp_path / "features").mkdir()
    for days, name in ((1, "used"), (29, "features/real"), (31, "features/of-a-student-long-gone")):
        path = tmp_path / name
        path.touch()
        os.utime(path, (time.time() - days * 24 * 3600,) * 2)
    picture_cache.sweep(tmp_path)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"used", "real"}
