"""Weights that several versions hold lie on the disk once, and each version is whole without the others."""

import json
import shutil

import pytest

from sana_sprint import storage
from sana_sprint.registry import draw, shared_files
from tests.registry.conftest import NAME, TIMES, evaluation


def test_a_version_with_other_times_shares_the_weights_and_outlives_the_first(registered, server):
    scores = evaluation(0.3, 0.5)
    first = registered(scores)
    second = registered(scores | {"times": TIMES | {"2": [1.5708, 0.9, 0.0]}})
    assert (first["version"], second["version"]) == (1, 2)
    one, other = (draw.folder_of(answer["uri"], None)[0] for answer in (first, second))
    places = [
        shared_files.local(server.get_logged_model(answer["model_id"]).artifact_location) for answer in (first, second)
    ]
    weights = [next(place.glob("**/transformer/*.safetensors")) for place in places]
    assert weights[0].samefile(weights[1])
    cards = [next(place.glob("**/pipeline/sampling.json")) for place in places]
    assert not cards[0].samefile(cards[1])
    assert json.loads(cards[1].read_text())["times"]["2"] == [1.5708, 0.9, 0.0]
    digest = storage.digest(places[1])
    shutil.rmtree(places[0])
    assert storage.digest(places[1]) == digest
    assert draw.picture(other, "a red circle", 2, 0, None).size == (64, 64)
    assert server.get_model_version(NAME, "2").tags["weights_digest"] == first["tags"]["weights_digest"]
    assert one != other


@pytest.fixture
def folders(tmp_path):
    """Two folders: equal weights, others of the same length, equal small files, a link where a file is here."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        (folder / "a").mkdir(parents=True)
        (folder / "a/weights").write_bytes(b"w" * 10_000)
        (folder / "a/changed").write_bytes(folder.name.encode() * 3_000)
        (folder / "small").write_bytes(b"s")
    (one / "elsewhere").write_bytes(b"e" * 10_000)
    (two / "linked").symlink_to(one / "elsewhere")
    (one / "linked").write_bytes(b"e" * 10_000)
    return one, two


def test_only_equal_big_files_become_one(folders):
    one, two = folders
    before = storage.digest(one)
    assert shared_files.link(one, [two]) == 10_000
    assert (one / "a/weights").samefile(two / "a/weights")
    assert [(one / name).stat().st_nlink for name in ("a/changed", "small", "linked")] == [1, 1, 1]
    assert storage.digest(one) == before
    assert {path.name for path in one.rglob("*")} == {"a", "weights", "changed", "small", "elsewhere", "linked"}


def test_a_disk_without_links_keeps_the_copy(folders, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(shared_files.os, "link", refuse)
    one, two = folders
    assert shared_files.link(one, [two]) == 0
    assert (one / "a/weights").read_bytes() == b"w" * 10_000


def test_a_store_of_objects_is_left_alone():
    assert shared_files.local("s3://bucket/models/m-1/artifacts") is None
    assert shared_files.link_version("s3://bucket/models/m-1/artifacts") == 0
