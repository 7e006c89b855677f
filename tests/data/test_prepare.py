import itertools
import json
import tarfile

import numpy as np
import pytest
from samples import folder_of, png_bytes, scenes_params
from test_pictures import declared

from sana_sprint import storage
from sana_sprint.data import corpus, manifest, prepare, scenes, shards


def rows_of(raw, split=None):
    return manifest.read(raw, split)


def truths(rows):
    return [manifest.truth(row) for row in rows]


def pairs(things):
    return {(thing["colour"], thing["shape"]) for thing in things}


def test_two_runs_give_equal_bytes(tmp_path, scenes_raw):
    prepare.run(scenes_params(), tmp_path, tmp_path / "again")
    assert storage.digest(tmp_path / "again") == storage.digest(scenes_raw)


def test_another_seed_gives_other_pictures(tmp_path, scenes_raw):
    prepare.run(scenes_params().model_copy(update={"seed": 1}), tmp_path, tmp_path / "other")
    same = {r.sha256 for r in rows_of(tmp_path / "other")} & {r.sha256 for r in rows_of(scenes_raw)}
    assert len(same) < 20


def test_a_folder_gives_equal_bytes_wherever_it_stands(tmp_path, own):
    for place in ("a", "b"):
        prepare.run(own, folder_of(tmp_path / place / "source"), tmp_path / place / "raw")
    assert storage.digest(tmp_path / "a/raw") == storage.digest(tmp_path / "b/raw")


def test_evaluation_is_balanced_over_tasks_and_half_held_out(scenes_raw):
    rows = rows_of(scenes_raw, "eval")
    counts = {task: sum(row.task == task for row in rows) for task in {row.task for row in rows}}
    assert counts == dict.fromkeys(("single_object", "two_object", "counting", "colors", "position", "color_attr"), 6)
    heldout = {task: sum(row.task == task and row.group == "heldout" for row in rows) for task in counts}
    assert heldout == {
        "single_object": 0,
        "two_object": 0,
        "position": 0,
        "counting": 3,
        "colors": 3,
        "color_attr": 3,
    }


def test_training_shows_no_held_out_pair_and_evaluation_names_one(scenes_raw):
    heldout = set()
    for truth in truths(row for row in rows_of(scenes_raw, "eval") if row.group == "heldout"):
        first = truth["demand"]["objects"][0]
        heldout.add((first["colour"], first["shape"]))
        assert (first["colour"], first["shape"]) in pairs(truth["things"])
    assert heldout
    assert all(pairs(truth["things"]).isdisjoint(heldout) for truth in truths(rows_of(scenes_raw, "train")))


def test_no_training_picture_is_an_evaluation_picture(scenes_raw):
    train, held = ({row.sha256 for row in rows_of(scenes_raw, split)} for split in ("train", "eval"))
    assert train.isdisjoint(held)


def test_training_scenes_are_redrawn_until_they_are_new(tmp_path):
    params = scenes_params(train_images=150, eval_images=600)
    params = params.model_copy(
        update={"source": params.source.model_copy(update={"task_weights": {"single_object": 1}})}
    )
    prepare.run(params, tmp_path, tmp_path / "raw")
    test_no_training_picture_is_an_evaluation_picture(tmp_path / "raw")


def test_rows_are_ordered_and_shards_follow_them(scenes_raw):
    rows = rows_of(scenes_raw)
    assert [(row.split, row.key) for row in rows] == sorted((row.split, row.key) for row in rows)
    assert list(dict.fromkeys(row.shard for row in rows)) == [
        "eval-00000.tar",
        "eval-00001.tar",
        "train-00000.tar",
        "train-00001.tar",
        "train-00002.tar",
    ]
    names = dict.fromkeys(row.shard for row in rows)
    read = [sample for name in names for sample in shards.read(scenes_raw / "shards" / name)]
    assert [(sample.key, sample.caption) for sample in read] == [(row.key, row.caption) for row in rows]


def test_a_shard_is_a_webdataset_tar_without_time_or_owner(scenes_raw):
    with tarfile.open(scenes_raw / "shards/eval-00000.tar") as tar:
        entries = tar.getmembers()
        record = json.load(tar.extractfile("eval-000000.json"))
    assert [entry.name for entry in entries[:3]] == ["eval-000000.png", "eval-000000.txt", "eval-000000.json"]
    about = {(entry.mtime, entry.uid, entry.gid, entry.uname, entry.mode) for entry in entries}
    assert about == {(0, 0, 0, "", 0o644)}
    assert record["truth"]["things"]
    assert record["split"] == "eval"


def test_the_manifest_describes_the_pictures(scenes_raw):
    pictures = dict(shards.images(scenes_raw, "train"))
    for row in rows_of(scenes_raw, "train"):
        assert pictures[row.key].shape == (row.height, row.width, 3) == (32, 32, 3)
        assert row.caption_length == len(row.caption)
        assert len(row.phash) == 16
    assert shards.stack(scenes_raw, "eval").shape == (36, 32, 32, 3)


def test_our_own_shards_are_a_source_as_well(tmp_path, tars, scenes_raw):
    summary = prepare.run(tars, scenes_raw / "shards", tmp_path / "raw")
    assert summary["train"] + summary["eval"] == 96


def test_splits_are_disjoint_and_stable_when_pictures_come(tmp_path, own):
    prepare.run(own, folder_of(tmp_path / "few", 12), tmp_path / "raw12")
    prepare.run(own, folder_of(tmp_path / "many", 40), tmp_path / "raw40")
    before, after = ({r.key: r.split for r in rows_of(tmp_path / name)} for name in ("raw12", "raw40"))
    assert set(before.values()) == {"train", "eval"}
    assert before == {key: after[key] for key in before}
    assert 0.1 < sum(split == "eval" for split in after.values()) / 40 < 0.5


def test_copies_of_a_picture_go_to_one_split(tmp_path, own):
    source = folder_of(tmp_path / "source", 30)
    for index in range(10, 30):
        (source / f"{index:03d}.png").write_bytes(png_bytes(0))
    prepare.run(own, source, tmp_path / "raw")
    assert len({row.split for row in rows_of(tmp_path / "raw") if row.key >= "010"}) == 1


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_neither_split_is_empty(tmp_path, own, share):
    own = own.model_copy(update={"source": own.source.model_copy(update={"eval_share": share})})
    summary = prepare.run(own, folder_of(tmp_path / "source", 3), tmp_path / "raw")
    assert min(summary["train"], summary["eval"]) == 1


def test_unreadable_pictures_are_quarantined_by_name_and_reason(tmp_path, own):
    source = folder_of(tmp_path / "source")
    (source / "003.png").write_bytes(png_bytes(3)[:-40])
    (source / "007.png").write_bytes(declared(100_000, 100_000))
    summary = prepare.run(own, source, tmp_path / "raw")
    assert summary["quarantined"] == 2
    broken, huge = manifest.read_faults(tmp_path / "raw")
    assert broken.name == "003.png"
    assert broken.reason.startswith("corrupt or truncated picture")
    assert (huge.name, huge.reason) == (
        "007.png",
        "declares 100,000 x 100,000 pixels, more than prepare.max_source_pixels = 100,000,000",
    )
    assert {"003", "007"}.isdisjoint(row.key for row in rows_of(tmp_path / "raw"))


def test_a_folder_of_unreadable_pictures_is_refused_naming_them(tmp_path, own):
    source = folder_of(tmp_path / "source", 2)
    (source / "001.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 usable pictures, .*at least two.*001.png: the file is empty"):
        prepare.run(own, source, tmp_path / "raw")


def test_a_fault_leaves_no_output_and_the_mended_source_succeeds(tmp_path, own):
    source = folder_of(tmp_path / "source")
    whole = (source / "metadata.jsonl").read_text()
    (source / "metadata.jsonl").write_text(whole.replace('"picture number 5"', '""'))
    with pytest.raises(ValueError, match="line 6: the caption is empty"):
        prepare.run(own, source, tmp_path / "out" / "raw")
    assert not list((tmp_path / "out").iterdir())
    (source / "metadata.jsonl").write_text(whole)
    assert prepare.run(own, source, tmp_path / "out" / "raw")["quarantined"] == 0


def test_a_fault_leaves_the_output_of_before(tmp_path, own):
    source = folder_of(tmp_path / "source")
    prepare.run(own, source, tmp_path / "raw")
    before = storage.digest(tmp_path / "raw")
    (source / "metadata.jsonl").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        prepare.run(own, source, tmp_path / "raw")
    assert storage.digest(tmp_path / "raw") == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shapes": ["circle", "blob"]}, r"prepare.source.shapes: \['blob'\] cannot be drawn"),
        ({"task_weights": {"colours": 1.0}}, r"task_weights: \['colours'\] are no tasks; choose from"),
        ({"task_weights": {"colors": 0.0}}, r"task_weights: all are 0"),
        ({"heldout_share": 1.0}, r"no seen pair goes with a blue circle; lower heldout_share \(1.0\)"),
    ],
)
def test_a_world_that_cannot_be_drawn_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        prepare.run(scenes_params(**changes), tmp_path, tmp_path / "raw")


def test_a_world_whose_scenes_all_stand_in_evaluation_is_refused():
    world = scenes.World(("circle", "square"), ("red",), (2,), frozenset())
    grid = range(0, 64, 4)
    places = itertools.product(world.shapes, grid, grid, (24, 28, 32))
    every = {
        scenes.draw(scenes.Scene("", "", {}, (scenes.Thing(shape, "red", x, y, size),)), 32).tobytes()
        for shape, x, y, size in places
    }
    with pytest.raises(ValueError, match=r"no single_object scene left .*; lower eval_images or add shapes"):
        corpus.fresh(np.random.default_rng(0), world, "single_object", 32, every)


def test_a_missing_or_broken_manifest_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"manifest.parquet: no such file; run `dvc repro prepare`"):
        manifest.read(tmp_path)
    (tmp_path / "manifest.parquet").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"manifest.parquet: not a readable manifest"):
        manifest.read(tmp_path)


def test_a_shard_that_lacks_a_picture_is_named(tmp_path):
    with tarfile.open(tmp_path / "train-00000.tar", "w") as tar:
        shards.add(tar, "a.txt", b"a circle")
        shards.add(tar, "a.json", b"{}")
    with pytest.raises(ValueError, match=r"train-00000.tar: a lacks its picture or caption; run `dvc repro"):
        list(shards.read(tmp_path / "train-00000.tar"))


def test_an_empty_split_is_named(tmp_path):
    manifest.write(tmp_path, [], [])
    with pytest.raises(ValueError, match=r"split 'train' holds no pictures"):
        shards.stack(tmp_path, "train")
