"""The judges' one signature, the CLIP and the classifier."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from sana_sprint import config, storage
from sana_sprint.data import manifest, shards
from sana_sprint.evaluation import classifier, clip_judge, judge_stage, judges, protocol
from tests.evaluation.conftest import EVALUATE, OPTIMIZER, train_judge


def digits(number, seed):
    """Two classes anyone can tell apart: a bar that stands and a bar that lies, at random places."""
    rng = np.random.default_rng(seed)
    pictures = np.full((number, 32, 32, 3), 255, np.uint8)
    captions = []
    for i, (row, column) in enumerate(rng.integers(6, 26, (number, 2))):
        if i % 2:
            pictures[i, 4:28, column - 2 : column + 2] = 30
        else:
            pictures[i, row - 2 : row + 2, 4:28] = 30
        captions.append("a standing bar" if i % 2 else "a lying bar")
    return pictures, captions


def test_the_scene_judge_passes_real_pictures_and_fails_shuffled_ones(raw):
    prompts = protocol.prompts(manifest.read(raw, "eval"), EVALUATE)
    rows = [row.key for row in manifest.read(raw, "eval")]
    pictures = shards.stack(raw, "eval")[[rows.index(p.key) for p in prompts]]
    judge = judges.load("scenes", raw)
    verdicts = judge(pictures, prompts)
    assert all(v[:2] == (True, "") for v in verdicts)
    for verdict, prompt in zip(verdicts, prompts, strict=True):
        shapes = Counter(one["label"].split(" ")[1] for one in verdict.seen)
        asked = Counter()
        for wanted in prompt.demand["objects"]:
            asked[wanted["shape"]] += wanted.get("count", 1)
        assert shapes == asked, prompt.caption
    wrong = [v for v in judge(np.roll(pictures, 5, axis=0), prompts) if not v.right]
    assert len(wrong) > 12
    assert all(v.reason for v in wrong)


def test_the_scene_judge_names_a_prompt_without_a_demand():
    prompt = protocol.Prompt(0, "own-7", "my cat", "", "seen", {})
    with pytest.raises(ValueError, match="own-7"):
        judges.scenes(np.zeros((1, 8, 8, 3), np.uint8), [prompt])


def test_no_judge_gives_no_verdicts():
    assert judges.load("none", None)(np.zeros((0, 8, 8, 3), np.uint8), []) == []


def test_the_classifier_learns_saves_and_says_what_it_read(tmp_path):
    params = train_judge(classifier_steps=60, batch=32).model
    made = classifier.train(params, *digits(120, 0))
    assert classifier.accuracy(made, *digits(80, 1)) > 0.95
    made.save(tmp_path / "classifier")
    judge = judges.load("classes", tmp_path)
    pictures, captions = digits(4, 2)
    right = [protocol.Prompt(i, str(i), c, c, "seen", {}) for i, c in enumerate(captions)]
    assert [v.right for v in judge(pictures, right)] == [True] * 4
    verdicts = judge(pictures[::-1].copy(), right)
    assert verdicts[0] == (False, "read as a standing bar", [{"label": "read as: a standing bar", "box": None}])


def test_the_classifier_is_the_same_twice():
    params = train_judge(classifier_steps=5, batch=16).model
    a, b = (classifier.train(params, *digits(32, 0)).network.state_dict() for _ in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_judge_of_classes_needs_two_captions_and_a_trained_classifier(tmp_path):
    with pytest.raises(ValueError, match="one caption"):
        classifier.train(train_judge(classifier_steps=5).model, digits(4, 0)[0], ["a bar"] * 4)
    with pytest.raises(ValueError, match="classifier_steps"):
        judges.load("classes", tmp_path)


def test_clip_learns_to_tell_captions_apart_and_survives_saving(tmp_path):
    fast = OPTIMIZER.model_copy(update={"lr": 3e-3})
    clip = clip_judge.train(train_judge(steps=150, batch=32, patch_px=8, optimizer=fast).model, *digits(200, 0))
    pictures, captions = digits(40, 1)
    features = clip.pictures(pictures)
    found = clip_judge.retrieval(clip, features, captions)
    assert found["accuracy"] > 0.9
    assert found["ranking"] == found["accuracy"]  # of two captions
    clip.save(tmp_path / "clip")
    loaded = clip_judge.load(tmp_path / "clip")
    assert torch.equal(loaded.pictures(pictures), features)
    assert torch.equal(loaded.captions(captions[:2]), clip.captions(captions[:2]))
    assert not torch.equal(loaded.captions(captions[:1]), loaded.captions(captions[1:2]))
    assert {p.suffix for p in (tmp_path / "clip").iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_equal_captions_in_a_batch_count_as_matches():
    texts = torch.eye(4)[[0, 0, 1, 1]]
    same = torch.tensor([0, 0, 1, 1])
    scale = torch.tensor(5.0)
    perfect = clip_judge.contrastive(texts, texts, scale, same)
    assert float(perfect) == pytest.approx(float(torch.tensor(2.0).log()), abs=1e-4)  # the entropy of two equal matches
    assert clip_judge.contrastive(texts.flip(0), texts, scale, same) > 10


def test_pictures_are_prepared_as_public_clip_prepares_them():
    picture = np.zeros((60, 90, 3), np.uint8)
    picture[:, 30:60] = 255
    settings = {"size": {"shortest_edge": 20}, "crop_size": {"height": 20, "width": 20}}
    settings |= {"image_mean": [0.5, 0.25, 0.5], "image_std": [0.5, 0.5, 0.25]}
    x = clip_judge.prepared([picture], settings)
    assert x.shape == (1, 3, 20, 20)
    centre = x[0, :, 10, 10].tolist()
    assert centre == pytest.approx([1.0, 1.5, 2.0], abs=1e-3)
    assert x[0, 0, 10, 0] < 0


def test_the_stage_takes_public_weights_from_a_folder_and_says_what_it_lacks(raw, judge, tmp_path):
    given = config.Judge(model=config.LoadJudge(kind="load", clip=str(judge / "clip")))
    summary = judge_stage.run(given, raw, tmp_path / "judge")
    assert summary["clip"] == "load"
    assert storage.digest(tmp_path / "judge/reference.safetensors") == storage.digest(judge / "reference.safetensors")
    lacking = config.Judge(model=config.LoadJudge(kind="load", clip=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="nowhere"):
        judge_stage.run(lacking, raw, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_stage_makes_the_same_judge_twice(raw, judge, tmp_path):
    summary = judge_stage.run(train_judge(), raw, tmp_path / "judge")
    assert storage.digest(tmp_path / "judge") == storage.digest(judge)
    assert summary == json.loads((judge / "judge.json").read_text())
    assert summary["reference_pictures"] == 120
    assert 0 <= summary["retrieval_accuracy"] <= 1


def test_patches_that_do_not_fit_are_refused_by_name(raw):
    with pytest.raises(ValueError, match="patch_px 24"):
        clip_judge.train(train_judge(patch_px=24).model, *digits(4, 0))
