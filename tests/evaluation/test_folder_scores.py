"""Folders of pictures are drawn and scored under a protocol, by stand-ins of the public judges' formats: nothing is
looked at twice, a run cut short goes on, and what does not fit is named."""

import html
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import save_file

from sana_sprint import storage
from sana_sprint.evaluation import (
    clip_judge,
    folder_distances,
    folder_draw,
    folder_geneval,
    folder_page,
    folder_protocol,
    folder_scores,
    folder_student,
    geneval_judge,
    picture_cache,
)
from sana_sprint.evaluation.protocol import Prompt
from sana_sprint.maths import distances, metrics
from sana_sprint.models import inception
from tests.evaluation import test_colours, test_detector

SIZE = {"width": 64, "height": 64}
DRAWN = {
    "seed": 0, "guidance": 3.0, "max_tokens": 16, "pictures_a_call": 4, "instruction": "none", "precision": "float32",
    "times": {"1": [1.5708, 0.0], "2": [1.5708, 1.0, 0.0]},
}  # fmt: skip
DEMANDS = [
    {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"},
    {"tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}],
     "prompt": "a photo of two dogs"},
    {"tag": "colors", "include": [{"class": "couch", "count": 1, "color": "red"}], "prompt": "a photo of a red couch"},
]  # fmt: skip
WEIGHTS = {name: {"folder": f"data/weights/{name}", "sha256": None} for name in ("detector", "clip", "inception")}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A repository's root with weights, GenEval's metadata and a reference folder of twelve pictures."""
    place = tmp_path_factory.mktemp("a repository")
    weights = place / "data/weights"
    test_detector.made_folder(weights / "detector", test_detector.sure_of("cat"))
    test_colours.tiny_clip().save(weights / "clip")
    (weights / "inception").mkdir()
    save_file(spread(inception.Inception()), weights / "inception/model.safetensors")
    (place / "data/source").mkdir()
    (place / "data/source/metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in DEMANDS))
    captions = {}
    for number in range(12):
        category = "animals" if number < 8 else "people"
        captions[f"{number:02d}"] = {"category": category, "prompt": f"a photo of {number} cats"}
        write(place / f"data/source/real/{category}/{number:02d}.jpg", number)
    storage.write_json(place / "data/source/real/meta_data.json", captions)
    return place


def spread(network):
    """The weights of a network whose features are of the size of its input, not next to nothing."""
    torch.manual_seed(3)
    for weight in network.parameters():
        if weight.dim() == 4:
            torch.nn.init.kaiming_normal_(weight)
    return network.state_dict()


def write(path, seed, size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def protocol_file(place, **changes):
    kinds = {
        "geneval": {
            "kind": "geneval", "metadata": "data/source/metadata.jsonl", "prompts": 3, "pictures_per_prompt": 2,
            "size_px": SIZE, "drawn": DRAWN, "detector_size": {"height": 32, "width": 64},
            **{name: WEIGHTS[name] for name in ("detector", "clip")},
        },
        "distances": {
            "kind": "distances", "reference": "data/source/real", "captions": "meta_data.json", "pictures": 12,
            "fid_pictures_min": 12, "neighbours": 2, "pairwise_pictures_max": 10, "batch": 5, "size_px": SIZE,
            "drawn": DRAWN, **{name: WEIGHTS[name] for name in ("inception", "clip")},
        },
    }  # fmt: skip
    path = place / "protocol.yaml"
    YAML().dump(kinds[changes.pop("kind")] | changes, path)
    return path


def sampled(place, root, student, kind, steps=1):
    folder = place / "pictures"
    return folder, folder_draw.run(protocol_file(place, kind=kind), student, folder, steps, root)


def score(place, root, folder, cache="cache", **changes):
    return folder_scores.run(protocol_file(place, **changes), folder, place / cache, root)


def refused(place, root, folder, **changes):
    with pytest.raises(ValueError) as told:  # noqa: PT011  each test looks at the words
        score(place, root, folder, **changes)
    return str(told.value)


@pytest.fixture
def pictures(tmp_path, root, sprint_folder):
    return sampled(tmp_path, root, sprint_folder, "geneval")[0]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def with_threads(monkeypatch, owner, name, counts):
    """Has a function note the number of threads that it computes with."""
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *a, **k: counts.append(torch.get_num_threads()) or original(*a, **k))


def test_only_missing_pictures_are_drawn_and_are_the_same_bytes_on_any_number_of_threads(
    tmp_path, root, sprint_folder, two_threads
):
    folder, (drawn, there) = sampled(tmp_path, root, sprint_folder, "geneval")
    assert (drawn, there) == (6, 6)
    first = {path.relative_to(folder): path.read_bytes() for path in folder.glob("*/samples/*.png")}
    pixels = [np.asarray(Image.open(folder / f"00000/samples/000{k}.png"), int) for k in (0, 1)]
    assert sorted(str(path) for path in first)[:3] == [
        f"{p}/samples/000{k}.png" for p, k in (("00000", 0), ("00000", 1), ("00001", 0))
    ]
    assert json.loads((folder / "00001/metadata.jsonl").read_text()) == DEMANDS[1]
    for name in list(first)[1:4]:
        (folder / name).unlink()
    torch.set_num_threads(1)
    assert sampled(tmp_path, root, sprint_folder, "geneval")[1] == (3, 6)
    assert {name: (folder / name).read_bytes() for name in first} == first
    assert np.abs(pixels[0] - pixels[1]).max() > 5  # of one prompt


def test_a_folder_drawn_otherwise_is_refused(tmp_path, root, sprint_folder):
    folder, _ = sampled(tmp_path, root, sprint_folder, "distances")
    assert len(list(folder.glob("*/*.png"))) == 12
    with pytest.raises(ValueError, match=r"drawn by another model or otherwise \(drawn, steps\); name an empty"):
        sampled(tmp_path, root, sprint_folder, "distances", steps=2)
    with pytest.raises(ValueError, match=r"no list for 3 steps; it has \['1', '2'\]"):
        sampled(tmp_path, root, sprint_folder, "distances", steps=3)
    (folder / folder_draw.DRAWN).unlink()
    with pytest.raises(ValueError, match=r"not empty, and no drawn\.json"):
        sampled(tmp_path, root, sprint_folder, "distances")


def test_geneval_scores_are_the_judges_verdicts_by_task_with_errors_over_prompts(tmp_path, root, pictures):
    found = score(tmp_path, root, pictures, kind="geneval")
    size = {"height": 32, "width": 64}
    judge = geneval_judge.load(root / "data/weights/detector", root / "data/weights/clip", size)
    for one in found["looked"]:
        number = int(one["picture"][:5])
        prompt = Prompt(number, "", "", "", "", DEMANDS[number])
        verdict, seen = judge.look(np.asarray(Image.open(pictures / one["picture"])), prompt)
        assert (one["right"], one["reason"], one["tag"]) == (*verdict[:2], DEMANDS[number]["tag"])
        assert one["seen"] == json.loads(json.dumps(seen))
    means = {d["tag"]: np.mean([o["right"] for o in found["looked"] if o["tag"] == d["tag"]]) for d in DEMANDS}
    assert {name: part["value"] for name, part in found["scores"]["tasks"].items()} == means
    assert means == {"single_object": 1, "counting": 0, "colors": 0}  # it calls everything a cat
    assert found["scores"]["overall"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["drawn"]["steps"] == 1
    assert found["protocol"]["detector"]["sha256"] == storage.digest(root / "data/weights/detector")


def test_nothing_is_looked_at_twice_and_a_line_cut_by_a_kill_is_looked_at_again(tmp_path, root, pictures, monkeypatch):
    first = score(tmp_path, root, pictures, kind="geneval")
    looks = []
    original = geneval_judge.GenEval.look
    monkeypatch.setattr(geneval_judge.GenEval, "look", lambda s, x, p: looks.append(p.index) or original(s, x, p))
    assert score(tmp_path, root, pictures, kind="geneval") == first
    assert looks == []
    (kept,) = (tmp_path / "cache").glob("geneval-*.jsonl")
    kept.write_text(kept.read_text()[:-30])
    assert score(tmp_path, root, pictures, kind="geneval") == first
    assert looks == [2]
    write(pictures / "00001/samples/0000.png", 5)
    score(tmp_path, root, pictures, kind="geneval")
    assert looks == [2, 1]


def test_judges_look_with_one_thread_however_many_there_are(tmp_path, root, pictures, monkeypatch, two_threads):
    counts = []
    with_threads(monkeypatch, geneval_judge.GenEval, "look", counts)
    score(tmp_path, root, pictures, kind="geneval")
    assert counts == [1] * 6
    assert torch.get_num_threads() == 2


def test_the_digest_covers_weights_demands_and_content(tmp_path, root, pictures):
    base = score(tmp_path, root, pictures, kind="geneval")["protocol_digest"]
    shutil.copytree(root, tmp_path / "other")
    assert score(tmp_path, tmp_path / "other", pictures, kind="geneval")["protocol_digest"] == base
    shutil.copytree(pictures, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("drawn.json"))
    elsewhere = score(tmp_path, root, tmp_path / "elsewhere", kind="geneval")
    assert elsewhere["protocol"]["drawn"] is None  # nobody knows
    digests = {base, elsewhere["protocol_digest"]}
    clip = tmp_path / "other/data/weights/clip/preprocessor_config.json"
    clip.write_text(clip.read_text() + " ")
    digests.add(score(tmp_path, tmp_path / "other", pictures, kind="geneval")["protocol_digest"])
    other = DEMANDS[0] | {"prompt": "a picture of a cat"}
    (pictures / "00000/metadata.jsonl").write_text(json.dumps(other))
    digests.add(score(tmp_path, root, pictures, kind="geneval")["protocol_digest"])
    small = {"height": 64, "width": 64}
    digests.add(score(tmp_path, root, pictures, kind="geneval", detector_size=small)["protocol_digest"])
    assert len(digests) == 5


def test_pictures_drawn_otherwise_or_of_another_size_do_not_pass_by_the_cache(tmp_path, root, pictures):
    score(tmp_path, root, pictures, kind="geneval")
    other = DRAWN | {"guidance": 4.0, "times": {"1": [1.5, 0.0]}}
    assert "drawn with other guidance, times than" in refused(tmp_path, root, pictures, kind="geneval", drawn=other)
    fewer = DRAWN | {"pictures_a_call": 2}
    told = refused(tmp_path, root, pictures, kind="geneval", drawn=fewer)
    assert "drawn with other pictures_a_call than the protocol says" in told
    large = {"width": 128, "height": 128}
    assert "64 x 64 px, the protocol asks for 128 x 128" in refused(
        tmp_path, root, pictures, kind="geneval", size_px=large
    )


def test_prompts_that_changed_are_not_drawn_into_the_pictures_of_others(tmp_path, root, sprint_folder):
    own = tmp_path / "own"
    shutil.copytree(root / "data/source", own / "data/source")
    sampled(tmp_path, own, sprint_folder, "geneval")
    path = own / "data/source/metadata.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[::-1]))
    with pytest.raises(ValueError, match=r"drawn by another model or otherwise \(prompts\)"):
        sampled(tmp_path, own, sprint_folder, "geneval")
    path.unlink()
    with pytest.raises(ValueError, match=r"metadata\.jsonl: no such file; see README, section Protocols"):
        sampled(tmp_path, own, sprint_folder, "geneval")


def test_captions_that_changed_after_the_drawing_are_not_compared_with_its_pictures(tmp_path, root, sprint_folder):
    own = tmp_path / "own"
    shutil.copytree(root / "data", own / "data")
    folder, _ = sampled(tmp_path, own, sprint_folder, "distances")
    path = own / "data/source/real/meta_data.json"
    path.write_text(path.read_text().replace("a photo of 3 cats", "a photo of 3 dogs"))
    assert "drawn with other prompts than the protocol says" in refused(tmp_path, own, folder, kind="distances")


def test_what_is_kept_is_keyed_by_the_code_and_the_libraries_behind_it(tmp_path, root, sprint_folder, monkeypatch):
    """A fault mended in a judge or in the sampler draws and looks again."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    geneval, _ = sampled(tmp_path / "one", root, sprint_folder, "geneval")
    distances, _ = sampled(tmp_path / "two", root, sprint_folder, "distances")

    def kept():
        for folder, kind in ((geneval, "geneval"), (distances, "distances")):
            score(tmp_path, root, folder, kind=kind)
        return {path.name for path in (tmp_path / "cache").iterdir()}

    before = kept()
    assert len(before) == 3
    original = picture_cache.version
    monkeypatch.setattr(picture_cache, "version", lambda name: original(name) + ("+1" if name == "torch" else ""))
    assert len(kept() - before) == 3
    with pytest.raises(ValueError, match=r"otherwise \(libraries\); name an empty folder"):
        sampled(tmp_path / "one", root, sprint_folder, "geneval")
    before, looked = kept(), list(folder_geneval.CODE)
    monkeypatch.setattr(folder_geneval, "CODE", looked[:-1])
    assert len(kept() - before) == 1


def test_two_protocols_of_the_same_pictures_draw_them_once(tmp_path, root, sprint_folder, monkeypatch):
    one = protocol_file(tmp_path, kind="distances", drawn=DRAWN | {"times": {"1": [1.5708, 0.0]}})
    other = tmp_path / "other.yaml"
    other.write_text(one.read_text().replace("neighbours: 2", "neighbours: 3"))
    found, _ = folder_student.run([one, other], sprint_folder, tmp_path / "cache", root, "base")
    (folder,) = (path for path in (tmp_path / "cache/drawn").iterdir() if path.is_dir())
    assert len(list(folder.glob("*/*.png"))) == 12
    assert found["protocol"]["1"]["protocol"]["neighbours"] == 2
    assert found["other"]["1"]["protocol"]["neighbours"] == 3
    assert found["other"]["1"]["protocol"]["inception"]["sha256"] == storage.digest(root / "data/weights/inception")


def test_a_broken_file_of_features_is_named(tmp_path, root, sprint_folder):
    folder, _ = sampled(tmp_path, root, sprint_folder, "distances")
    score(tmp_path, root, folder, kind="distances")
    path = next((tmp_path / "cache").glob("features-*/*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    assert re.search(rf"{path}: .*; delete it and run this again", refused(tmp_path, root, folder, kind="distances"))


def test_a_released_folder_without_our_sampling_is_drawn(tmp_path, root, sprint_folder):
    stock = tmp_path / "stock"
    shutil.copytree(sprint_folder, stock, ignore=shutil.ignore_patterns("sampling.json"))
    assert folder_draw.sigma_d_of(stock) == folder_draw.sigma_d_of(sprint_folder) == 0.5
    assert sampled(tmp_path, root, stock, "geneval")[1] == (6, 6)


def test_results_are_read_as_genevals_own_summary_reads_them(tmp_path, root, pictures):
    found = score(tmp_path, root, pictures, kind="geneval")
    (tmp_path / "results.jsonl").write_text(folder_geneval.results_lines(found["looked"]))
    table = pd.read_json(tmp_path / "results.jsonl", orient="records", lines=True)
    assert list(table.columns) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    by_tag = table.groupby("tag")["correct"].mean()
    assert by_tag.mean() == pytest.approx(found["scores"]["overall"]["value"], abs=1e-6)
    assert json.loads(table["metadata"][2]) == DEMANDS[1]


def test_distances_are_those_of_the_features_and_looked_at_once(
    tmp_path, root, sprint_folder, monkeypatch, two_threads
):
    counts = []
    with_threads(monkeypatch, folder_distances, "features", counts)
    with_threads(monkeypatch, folder_distances, "measured", counts)
    folder, _ = sampled(tmp_path, root, sprint_folder, "distances")
    found = score(tmp_path, root, folder, kind="distances")
    assert counts == [1] * 2
    torch.set_num_threads(1)
    captions = json.loads((root / "data/source/real/meta_data.json").read_text())
    net, clip = inception.load(root / "data/weights/inception"), clip_judge.load(root / "data/weights/clip")

    def read(place, kind):
        paths = [place / one["category"] / f"{name}.{kind}" for name, one in captions.items()]
        return [np.asarray(Image.open(path).convert("RGB")) for path in paths]

    real, drawn = read(root / "data/source/real", "jpg"), read(folder, "png")
    a, b = (net.features(pictures, 12) for pictures in (real, drawn))
    c, d = (clip.pictures(pictures) for pictures in (real, drawn))
    assert metrics.frechet(a, b) > 0.1
    rows = [0, 1, 2, 4, 5, 6, 7, 9, 10, 11]
    scores = {name: part["value"] for name, part in found["scores"].items() if "value" in part}
    texts = clip.captions([one["prompt"] for one in captions.values()])
    assert scores == pytest.approx(
        {
            "fid": metrics.frechet(a, b),
            "fid_clip": metrics.frechet(c, d),
            "kid": distances.kid(a[rows], b[rows]),
            "cmmd": distances.cmmd(c[rows], d[rows]),
            "precision": distances.precision_recall(a[rows], b[rows], 2)[0],
            "recall": distances.precision_recall(a[rows], b[rows], 2)[1],
            "clip_score": metrics.clip_score(d, texts).value,
        },
        rel=1e-2,
        abs=1e-5,
    )
    assert {name: part["n"] for name, part in found["scores"]["categories"].items()} == {"animals": 8, "people": 4}
    monkeypatch.setattr(inception.Inception, "features", lambda *_: pytest.fail("looked again"))
    monkeypatch.setattr(clip_judge.Clip, "pictures", lambda *_: pytest.fail("looked again"))
    assert score(tmp_path, root, folder, kind="distances") == found


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: shutil.rmtree(f / "00002"), "2 folders of prompts, the protocol asks for 3"),
        (lambda f: (f / "00001/samples/0001.png").unlink(), "00001/samples: 1 pictures, the protocol asks for 2"),
        (lambda f: write(f / "00001/samples/0001.png", 1, (32, 64)), "64 x 32 px, the protocol asks for 64 x 64"),
        (lambda f: (f / "00000/samples/0000.png").write_bytes(b"no"), "0000.png: not a picture that can be read"),
        (lambda f: (f / "00000/metadata.jsonl").write_text(json.dumps(DEMANDS[0] | {"tag": "taste"})), "taste"),
        (lambda f: (f / "00000/metadata.jsonl").write_text(""), "metadata.jsonl: empty"),
        (lambda f: (f / "00000/metadata.jsonl").write_text(2 * f"{json.dumps(DEMANDS[0])}\n"), "2 lines, a prompt's"),
        (lambda f: (f / "00000/metadata.jsonl").unlink(), "metadata.jsonl"),
    ],
)
def test_a_folder_that_does_not_fit_geneval_is_named(tmp_path, root, pictures, spoil, words):
    spoil(pictures)
    assert words in refused(tmp_path, root, pictures, kind="geneval")


def test_an_empty_folder_is_named(tmp_path, root):
    empty = tmp_path / "empty"
    empty.mkdir()
    for kind in ("geneval", "distances"):
        told = refused(tmp_path, root, empty, kind=kind)
        assert f"{empty}: empty, no picture (.png, .jpg, .jpeg, .webp) lies in it; draw some by" in told


def test_weights_that_are_cut_are_named(tmp_path, root, pictures):
    own = tmp_path / "own"
    shutil.copytree(root, own)
    for judge in ("clip", "detector"):
        path = own / f"data/weights/{judge}/model.safetensors"
        path.write_bytes(path.read_bytes()[:-50])
        message = refused(tmp_path, own, pictures, kind="geneval")
        assert f"{own}/data/weights/{judge}: no weights in whole safetensors files" in message


def test_what_does_not_fit_distances_is_named(tmp_path, root, sprint_folder):
    folder, _ = sampled(tmp_path, root, sprint_folder, "distances")
    assert "fid_pictures_min is 13" in refused(tmp_path, root, folder, kind="distances", fid_pictures_min=13)
    assert "12 captions, the protocol asks for 11" in refused(tmp_path, root, folder, kind="distances", pictures=11)
    told = refused(tmp_path, root, folder, kind="distances", pairwise_pictures_max=4, neighbours=3)
    assert "4 are too few for precision and recall with 3 neighbours" in told
    (folder / "people/10.png").unlink()
    assert "people/10: no picture of that name" in refused(tmp_path, root, folder, kind="distances")
    assert "no such folder" in refused(tmp_path, root, tmp_path / "none", kind="distances")
    told = refused(tmp_path, root, folder, kind="distances", captions="none.json")
    assert "real/none.json: no such file; put the captions there as MJHQ-30K's meta_data.json has them" in told
    other = root / "data/source/real/other.json"
    other.write_text('{"00": {"category"')
    told = refused(tmp_path, root, folder, kind="distances", captions="other.json")
    assert re.search(r"other\.json: not valid JSON .*; put the captions there as MJHQ-30K", told)
    storage.write_json(other, json.loads((other.parent / "meta_data.json").read_text()) | {"00": {"category": ".."}})
    assert "00: expected a category and a prompt" in refused(
        tmp_path, root, folder, kind="distances", captions="other.json"
    )


@pytest.mark.parametrize(
    ("kind", "judge"),
    [("geneval", "detector"), ("geneval", "clip"), ("distances", "inception"), ("distances", "clip")],
)
def test_weights_that_are_missing_or_others_are_named_with_the_files_expected(tmp_path, root, pictures, kind, judge):
    folder = pictures if kind == "geneval" else root / "data/source/real"
    missing = WEIGHTS[judge] | {"folder": "data/weights/none"}
    told = refused(tmp_path, root, folder, kind=kind, **{judge: missing})
    assert f"{root}/data/weights/none: no such folder; it must hold" in told
    assert [path.name for path in (root / "data/weights" / judge).iterdir() if path.name not in told] == []
    other = WEIGHTS[judge] | {"sha256": "0" * 64}
    assert "the protocol asks for 000" in refused(tmp_path, root, folder, kind=kind, **{judge: other})


def test_a_protocol_file_is_strict(tmp_path, root, pictures):
    assert "no such file" in refused_file(tmp_path / "none.yaml")
    assert "protocol.yaml: geneval.prompts" in refused(tmp_path, root, pictures, kind="geneval", prompts=0)
    assert "geneval.colour: Extra inputs" in refused(tmp_path, root, pictures, kind="geneval", colour=1)
    (tmp_path / "p.yaml").write_text("kind: taste\n")
    assert "p.yaml" in refused_file(tmp_path / "p.yaml")


def refused_file(path):
    with pytest.raises(ValueError) as told:  # noqa: PT011  each test looks at the words
        folder_protocol.load(path)
    return str(told.value)


def test_the_protocols_that_ship_can_be_read(request):
    for path in (request.config.rootpath / "profiles/protocols").glob("*.yaml"):
        assert folder_protocol.load(path).drawn.instruction == "pipeline"


def test_the_other_clip_of_the_literature_is_another_protocol_on_the_same_pictures(request):
    one, other = (
        folder_protocol.load(request.config.rootpath / f"profiles/protocols/{name}.yaml").model_dump()
        for name in ("mjhq", "mjhq-b32")
    )
    assert one.pop("clip")["folder"].endswith("clip-vit-large-patch14")
    assert other.pop("clip")["folder"].endswith("clip-vit-base-patch32")
    assert one == other


def test_evaluate_scores_a_student_under_public_protocols_and_draws_nothing_twice(tmp_path, root, sprint_folder):
    file = protocol_file(tmp_path, kind="geneval")
    cache = tmp_path / "cache"
    found, looked = folder_student.run([file], sprint_folder, cache, root, "base")
    pictures = {path: path.stat().st_mtime_ns for path in cache.glob("drawn/*/*/samples/*.png")}
    assert len(pictures) == 2 * 6
    for steps in ("1", "2"):
        folder, drawn = tmp_path / steps, folder_draw.run(file, sprint_folder, tmp_path / steps, int(steps), root)
        assert drawn == (6, 6)
        alone = score(tmp_path, root, folder, kind="geneval")
        assert found["protocol"][steps]["scores"] == alone["scores"]
        assert found["protocol"][steps]["protocol_digest"] == alone["protocol_digest"]
    told = folder_student.headline(found)["protocol/overall_2_step"]
    assert told == found["protocol"]["2"]["scores"]["overall"]["value"]
    assert folder_student.run([file], sprint_folder, cache, root, "base") == (found, looked)
    assert {path: path.stat().st_mtime_ns for path in cache.glob("drawn/*/*/samples/*.png")} == pictures


def test_the_page_of_geneval_shows_every_picture_its_boxes_and_the_reason(tmp_path, root, pictures):
    found = score(tmp_path, root, pictures, kind="geneval")
    looked = found.pop("looked")
    page = tmp_path / "data/scores/index.html"
    folder_page.write(page, pictures, found, looked)
    text = page.read_text()
    sources = re.findall(r'<img [^>]*src="([^"]+)"', text)
    assert sorted((page.parent / source).resolve() for source in sources) == sorted(pictures.glob("*/samples/*.png"))
    boxes = [seen["box"] for one in looked for seen in one["seen"]]
    assert text.count("<rect ") == len(boxes) > 0
    assert f'<rect x="{boxes[0][0]}" y="{boxes[0][1]}"' in text
    for one in looked:
        assert one["right"] or html.escape(one["reason"], quote=True) in text
