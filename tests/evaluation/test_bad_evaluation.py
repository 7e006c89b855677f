"""What evaluate cannot work with is refused before a picture is drawn, by the file's or folder's name and with the
remedy."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sana_sprint import storage
from sana_sprint.data import manifest, shards
from sana_sprint.evaluation import classifier, drawing, evaluate
from tests.evaluation.conftest import EVALUATE, SAMPLING, train_judge


@pytest.fixture
def own(folders, tmp_path, monkeypatch):
    """Copies of what evaluate reads, to be spoilt; no picture may be drawn."""
    monkeypatch.setattr(drawing, "drawn", lambda _: pytest.fail("drew a picture"))
    names = ("student", "undistilled", "teacher", "judge", "raw")
    copies = {name: shutil.copytree(getattr(folders, name), tmp_path / name) for name in names}
    schedule = shutil.copy(folders.schedule, tmp_path / "schedule.json")
    return evaluate.Folders(**copies, schedule=schedule, cache=tmp_path / "cache")


def refused(own, judge="scenes"):
    with pytest.raises(ValueError) as told:  # noqa: PT011  each test looks at the words
        evaluate.run(EVALUATE.model_copy(update={"judge": judge}), SAMPLING, 0.5, own, "small")
    return str(told.value)


def assert_told(message, *parts):
    for part in parts:
        assert part in message, message


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def as_bin(path):
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()


def half(path):
    """A safetensors file that is whole and lacks a part of the network."""
    save_file(dict(list(load_file(path).items())[::2]), path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda folder: shutil.rmtree(folder), ["judge/reference.safetensors: no such file", "`dvc repro judge`"]),
        (
            lambda folder: cut(folder / "reference.safetensors"),
            ["judge/reference.safetensors: no weights in whole safetensors files", "`dvc repro -f judge`"],
        ),
        (
            lambda folder: save_file({"features": torch.zeros(2, 16)}, folder / "reference.safetensors"),
            ["24 prompts and 2 real pictures to compare with", "need 3", "prepare's eval share"],
        ),
        (lambda folder: shutil.rmtree(folder / "clip"), ["judge/clip: no config.json", "CLIPModel folder"]),
        (
            lambda folder: as_bin(folder / "clip/model.safetensors"),
            ["judge/clip: no model.safetensors", "safetensors weights"],
        ),
        (
            lambda folder: cut(folder / "clip/model.safetensors"),
            ["judge/clip: no weights in whole safetensors files", "copy the folder again", "`dvc repro -f judge`"],
        ),
        (lambda folder: half(folder / "clip/model.safetensors"), ["clip/model.safetensors: lacks", "CLIPModel"]),
        (
            lambda folder: (folder / "clip/preprocessor_config.json").write_text('{"size":'),
            ["clip/preprocessor_config.json: not valid JSON"],
        ),
    ],
)
def test_a_judge_that_is_missing_or_broken(own, spoil, parts):
    spoil(own.judge)
    assert_told(refused(own), *parts)


@pytest.mark.parametrize("network", ["student", "undistilled", "teacher"])
@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (shutil.rmtree, ["no model_index.json, so no diffusers pipeline; run `dvc repro`"]),
        (
            lambda folder: as_bin(folder / "transformer/diffusion_pytorch_model.safetensors"),
            ["no weights in whole safetensors files", "run `dvc repro -f`"],
        ),
        (
            lambda folder: cut(folder / "transformer/diffusion_pytorch_model.safetensors"),
            ["no weights in whole safetensors files", "run `dvc repro -f`"],
        ),
        (
            lambda folder: cut(folder / "text_encoder/model.safetensors"),
            ["no weights in whole safetensors files", "run `dvc repro -f`"],
        ),
    ],
)
def test_a_pipeline_that_is_missing_or_broken(own, network, spoil, parts):
    folder = getattr(own, network)
    spoil(folder)
    assert_told(refused(own), str(folder), *parts)


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda path: path.unlink(), ["no such file", "run `dvc repro schedule` again"]),
        (lambda path: path.write_text(path.read_text()[:-30]), ["not valid JSON", "run `dvc repro schedule` again"]),
    ],
)
def test_a_schedule_that_is_missing_or_cut(own, spoil, parts):
    spoil(own.schedule)
    assert_told(refused(own), "schedule.json: no lists of times", *parts)


def rows_of(own, change):
    """Writes the manifest anew with what `change` makes of its rows."""
    manifest.write(own.raw, change(manifest.read(own.raw)), [])


def test_no_manifest_no_eval_rows_or_too_few(own):
    rows_of(
        own, lambda rows: [row for row in rows if row.split != "eval"][:1] + [r for r in rows if r.split == "eval"][:2]
    )
    assert_told(refused(own), "data/raw: 2 prompts and 120 real pictures", "raise evaluate.prompts_per_task")
    rows_of(own, lambda rows: [row for row in rows if row.split != "eval"])
    assert_told(refused(own), "data/raw: the eval split is empty", "larger eval share")
    (own.raw / manifest.FILE).unlink()
    assert_told(refused(own), f"{own.raw / manifest.FILE}: no such file; run `dvc repro prepare`")


def demanding(change):
    """Changes what the first eval row of the first task demands."""

    def of(rows):
        first = min((row for row in rows if row.split == "eval"), key=lambda row: (row.task, row.key))
        truth = json.dumps(change(manifest.truth(first)["demand"]))
        return [dataclasses.replace(row, truth=f'{{"demand": {truth}}}') if row is first else row for row in rows]

    return of


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda demand: demand | {"objects": [{"shape": "cube"}]}, "shape 'cube'"),
        (lambda demand: demand | {"objects": [{"shape": "circle", "colour": "mauve"}]}, "colour 'mauve'"),
        (lambda demand: demand | {"relation": "inside"}, "relation 'inside'"),
        (lambda _: {}, "needs a demand"),
        (lambda demand: demand | {"objects": []}, "no objects"),
    ],
)
def test_a_task_that_the_parser_does_not_know(own, change, part):
    rows_of(own, demanding(change))
    assert_told(refused(own), "evaluate.judge: 'scenes'", "eval-", part, "choose classes or none")


def test_a_classifier_that_is_missing_broken_or_of_other_captions(own):
    assert_told(refused(own, "classes"), "judge/classifier: no classifier", "judge.model.classifier_steps above 0")
    pictures = shards.stack(own.raw, "eval")
    captions = ["a cat" if number % 2 else "a dog" for number in range(len(pictures))]
    made = classifier.train(train_judge(classifier_steps=1).model, pictures, captions)
    made.save(own.judge / "classifier")
    message = refused(own, "classes")
    assert_told(message, "evaluate.judge: 'classes' cannot judge eval-", "never saw the caption 'a", "dvc repro judge")
    cut(own.judge / "classifier/model.safetensors")
    assert_told(refused(own, "classes"), "classifier/model.safetensors: no weights in whole", "`dvc repro -f judge`")


def test_all_that_was_copied_is_taken_as_it_is(own, outcome, folders, monkeypatch):
    """The copies are refused for what a test does to them, not for being copies."""
    assert storage.digest(own.teacher) == storage.digest(folders.teacher)
    again = evaluate.run(EVALUATE, SAMPLING, 0.5, dataclasses.replace(own, cache=folders.cache), "small")
    assert again.result["scores"] == outcome.result["scores"]
