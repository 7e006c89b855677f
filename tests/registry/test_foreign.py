"""Students made elsewhere: a stock folder becomes a version that stock clients read; what is none is refused."""

import json
import os
import shutil

import pytest
from diffusers import SanaSprintPipeline
from huggingface_hub._local_folder import write_download_metadata

from sana_sprint import storage
from sana_sprint.registry import draw, package, store, versions
from tests.registry.conftest import evaluation
from tests.test_cli import call, refused
from tests.test_cli_registry import parsed

TOLD = ["--name", "mine", "--licence", "MIT", "--description", "made by others"]


@pytest.fixture
def folder(sprint_folder, tmp_path):
    """A stock folder, without what this pipeline adds to one."""
    place = tmp_path / "downloads/student"
    shutil.copytree(sprint_folder, place, ignore=shutil.ignore_patterns("sampling.json"))
    return place


def test_a_stock_folder_becomes_a_version_once_and_draws_with_the_times_of_the_profile(folder, repository):
    for name in ("model_index.json", "vae/config.json"):  # as `hf download --local-dir` notes what it brought
        write_download_metadata(folder, name, commit_hash="c" * 40, etag="e")
    assert list((folder / ".cache").rglob("*.metadata"))
    parts = ["--part-licence", "text_encoder=gemma", "--part-licence", "data=CC-BY-4.0"]
    first = parsed("register", str(folder), *TOLD, *parts, "--training", "by hand")
    assert (first["name"], first["version"], first["alias"], first["new"]) == ("mine", 1, "challenger", True)
    shutil.rmtree(folder / ".cache")
    assert "version 1, alias challenger: the same weights" in call("register", str(folder), *TOLD)
    server = store.client(store.tracking_uri())
    version = versions.resolve(server, "models:/mine@challenger")
    place = versions.fetched(server, version) / versions.PIPELINE
    sampling = storage.read_json(place / "sampling.json")
    assert (sampling["height_px"], sampling["width_px"], sampling["sigma_d"]) == (64, 64, 0.5)
    assert draw.picture(place, "a red circle", 2, 0, None).size == (64, 64)
    SanaSprintPipeline.from_pretrained(place, local_files_only=True)
    card = (place / "README.md").read_text()
    assert "license: mit" in card
    assert "made by others" in card
    assert "| text encoder | gemma |\n| autoencoder | unknown |" in card
    assert "sCM" not in card
    assert "## Training\n\nby hand\n" in card
    assert not (folder / "README.md").exists()
    assert not list(place.rglob(".cache"))
    told = parsed("lineage", "models:/mine/1")
    assert (told["made"], told["data"]["outputs"], told["made_on"]) == ("elsewhere", {}, {})


def test_without_scores_no_gate_of_scores_holds_and_with_them_they_stand_in_the_version(folder, repository, tmp_path):
    call("register", str(folder), *TOLD)
    told = refused("promote", "mine", code=3)
    assert "overall" in told or "clip_score" in told
    storage.write_json(tmp_path / "scores.json", evaluation(0.6, 0.7))
    call("register", str(folder), *TOLD, "--scores", str(tmp_path / "scores.json"))
    tags = versions.resolve(store.client(store.tracking_uri()), "models:/mine/1").tags
    assert json.loads(tags["scores"])["student"]["1"]["overall"] == [0.6, 0.02]


def test_what_is_no_student_is_refused_by_name(folder, repository, tmp_path):
    storage.write_json(tmp_path / "wrong.json", {"scores": {}})
    told = refused("register", str(folder), *TOLD, "--scores", str(tmp_path / "wrong.json"))
    assert "wrong.json: keys ['protocol', 'protocol_digest'] are missing" in told
    index = storage.read_json(folder / "model_index.json")
    storage.write_json(folder / "model_index.json", index | {"_class_name": "SanaPipeline"})
    assert "model_index.json: a SanaPipeline, and SanaSprintPipeline is asked for" in refused(
        "register", str(folder), *TOLD
    )
    (folder / "vae/diffusion_pytorch_model.bin").write_bytes(b"\x80\x02N.")
    assert "vae/diffusion_pytorch_model.bin: holds pickle" in refused("register", str(folder), *TOLD)
    assert "no-such/model_index.json" in refused("register", str(tmp_path / "no-such"), *TOLD)


def without(folder, name):
    shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def no_weights(folder, part):
    for path in (folder / part).glob("*.safetensors"):
        path.unlink()


def unnamed(folder, part):
    index = storage.read_json(folder / "model_index.json")
    storage.write_json(folder / "model_index.json", index | {part: [None, None]})


@pytest.mark.parametrize(
    ("spoil", "part", "told"),
    [
        (without, "vae", "no folder vae"),
        (without, "tokenizer", "no folder tokenizer"),
        (no_weights, "transformer", "no weights in transformer"),
        (unnamed, "scheduler", "model_index.json names no scheduler"),
    ],
)
def test_a_pipeline_that_could_not_be_loaded_is_refused_by_what_it_lacks(folder, repository, spoil, part, told):
    spoil(folder, part)
    said = refused("register", str(folder), *TOLD)
    assert said == f"error: {folder}: {told}; download or save the whole pipeline"
    assert store.client(store.tracking_uri()).search_registered_models() == []


def test_scores_whose_protocol_was_changed_are_refused(folder, repository, tmp_path):
    changed = evaluation(0.6, 0.7)
    changed["protocol"]["seeds"] = [1]
    storage.write_json(tmp_path / "scores.json", changed)
    told = refused("register", str(folder), *TOLD, "--scores", str(tmp_path / "scores.json"))
    assert f"scores.json: protocol_digest is {changed['protocol_digest'][:12]}, that of the protocol in it " in told


def test_a_name_that_leads_elsewhere_is_refused_before_anything_is_touched(folder, repository):
    before = sorted(repository.rglob("*"))
    for name in ("..", "../..", ".", "a/b", "a\\b", "/absolute", "models:/a", "", "a' or 'b", "x.history"):
        told = refused("register", str(folder), "--name", name, *TOLD[2:])
        assert told.startswith(f"error: --name {name!r}: no name of a registered model: ")
    assert sorted(repository.rglob("*")) == before


def test_a_licence_of_no_part_is_refused(folder, repository):
    for told in ("tokenizer=MIT", "data", "data="):
        said = refused("register", str(folder), *TOLD, "--part-licence", told)
        assert f"--part-licence '{told}': name one as PART=LICENCE, of the parts text_encoder, autoencoder," in said


@pytest.mark.parametrize("name", ["..", "../..", "a/b", "/absolute", "mine"])
def test_the_place_where_a_model_is_put_together_is_within_the_store_whatever_its_name(tmp_path, name):
    place = package.staging(tmp_path, name)
    assert place.resolve().parent == tmp_path / store.FOLDER / ".staging"
    assert place.name not in ("", ".", "..")


def test_a_snapshot_of_the_hub_s_cache_is_refused_with_the_command_that_brings_files(folder, repository, tmp_path):
    """The cache of the Hub's client: snapshots/<revision> holds links to blobs/<digest>."""
    cached = tmp_path / "hub/models--anna--small-student"
    snapshot = cached / "snapshots" / ("c" * 40)
    (cached / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, cached / "blobs" / str(number))
        link.symlink_to(os.path.relpath(cached / "blobs" / str(number), link.parent))
    SanaSprintPipeline.from_pretrained(snapshot, local_files_only=True)
    told = refused("register", str(snapshot), *TOLD)
    assert f"`hf download anna/small-student --revision {'c' * 40} --local-dir FOLDER`" in told
