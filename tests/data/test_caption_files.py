"""Embeddings of captions in files of bounded size: the same numbers, and a kill loses one file's."""

import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from encoding import encode, encoding, sampling
from safetensors.torch import load_file, save_file

from sana_sprint import storage
from sana_sprint.data import latents, loader


@pytest.fixture
def small_portions(monkeypatch) -> None:
    """Embeddings in files of two batches of 7."""
    monkeypatch.setattr(latents, "PORTION", 15)


def text_files(folder: Path) -> list[Path]:
    files = storage.read_json(folder / loader.INDEX)["captions_files"]
    assert {one["file"] for one in files} == {path.name for path in folder.glob("captions-*")}
    return [folder / one["file"] for one in files]


@pytest.mark.parametrize("batch", [1, 2, 7, 16, 100])
@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 33, 60])
def test_files_of_embeddings_end_where_batches_do(small_portions, count, batch):
    parts = latents.portions(count, batch)
    assert [row for part in parts for row in part] == list(range(count))
    starts = range(1, count, batch)
    assert all(part.start in starts for part in parts[1:])
    assert all(len(part) <= max(15, batch) + (part.start == 0) for part in parts)
    assert all(len(part) + batch > 15 for part in parts[:-1])


def test_embeddings_in_parts_are_the_same_to_the_bit(scenes_raw, foundation, tmp_path, monkeypatch):
    encode(scenes_raw, foundation, tmp_path / "one")
    monkeypatch.setattr(latents, "PORTION", 15)
    encode(scenes_raw, foundation, tmp_path / "parts")
    one, parts = (loader.Latents(tmp_path / name, "train") for name in ("one", "parts"))
    assert len(text_files(tmp_path / "one")) == 1
    assert len(text_files(tmp_path / "parts")) == 4
    assert torch.equal(one.embeds[:], parts.embeds[:])
    assert torch.equal(one.mask[:], parts.mask[:])
    rows = torch.arange(len(one)).flip(0)
    assert torch.equal(one.text(rows)[0], parts.text(rows)[0])
    assert torch.equal(one.x[rows], parts.x[rows])


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-100])])
def test_a_lost_or_cut_part_alone_is_made_again(scenes_raw, foundation, tmp_path, small_portions, spoil):
    encode(scenes_raw, foundation, tmp_path)
    whole = storage.digest(tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    lost = text_files(tmp_path)[2]
    spoil(lost)
    assert encode(scenes_raw, foundation, tmp_path)["encoded"] == 0
    assert storage.digest(tmp_path) == whole
    assert {path for path, when in stamps.items() if path.stat().st_mtime_ns != when} == {lost}


KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from sana_sprint.data import latents

given, out = pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])
latents.PORTION, save = 15, latents.save_file

def save_and_die(tensors, unfinished):
    save(tensors, unfinished)
    if list(out.glob("captions-*")):
        os.kill(os.getpid(), signal.SIGKILL)

latents.save_file = save_and_die
latents.encode(*given, out)
"""


def test_a_killed_run_goes_on_with_the_parts_that_are_there(scenes_raw, foundation, tmp_path, small_portions):
    """Killed when the second part is written but not yet in its place."""
    encode(scenes_raw, foundation, tmp_path / "undisturbed")
    out = tmp_path / "latents"
    (tmp_path / "given").write_bytes(pickle.dumps((encoding(), sampling(), scenes_raw, foundation)))
    process = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "given", out], capture_output=True, text=True, check=False
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    (first,) = out.glob("captions-*")
    assert list(out.glob(f"{storage.UNFINISHED}captions-*"))
    assert not (out / loader.INDEX).exists()
    written = first.stat().st_mtime_ns
    assert encode(scenes_raw, foundation, out)["encoded"] == 96
    assert first.stat().st_mtime_ns == written
    assert text_files(out)[0] == first
    assert storage.digest(out) == storage.digest(tmp_path / "undisturbed")


def as_before_parts(folder: Path) -> None:
    """Puts the embeddings into one file, as they were before they came in parts."""
    files, index = text_files(folder), storage.read_json(folder / loader.INDEX)
    tensors = [load_file(path) for path in files]
    whole = {name: torch.cat([part[name] for part in tensors]) for name in ("embeds", "mask")}
    for path in files:
        path.unlink()
    del index["captions_files"]
    index["captions_file"] = files[0].name.rsplit("-", 2)[0] + ".safetensors"
    save_file(whole, folder / index["captions_file"])
    storage.write_json(folder / loader.INDEX, index)


def test_a_cache_from_before_parts_is_read_and_its_pictures_are_kept(scenes_raw, foundation, tmp_path, small_portions):
    encode(scenes_raw, foundation, tmp_path)
    whole, new = storage.digest(tmp_path), loader.Latents(tmp_path, "eval")
    as_before_parts(tmp_path)
    old = loader.Latents(tmp_path, "eval")
    assert torch.equal(old.embeds[:], new.embeds[:])
    assert torch.equal(old.mask[:], new.mask[:])
    assert encode(scenes_raw, foundation, tmp_path)["encoded"] == 0
    assert storage.digest(tmp_path) == whole
