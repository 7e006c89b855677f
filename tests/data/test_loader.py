import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from sana_sprint import storage
from sana_sprint.data import loader

EMBEDS = torch.arange(4.0).reshape(4, 1, 1).expand(4, 6, 5).contiguous()
# what the index says of the embeddings' files and which of the four sentences each holds
FORMS = {
    "one file": ({"captions_file": "t.safetensors"}, {"t.safetensors": slice(4)}),
    "parts": (
        {"captions_files": [{"file": "t.safetensors", "count": 3}, {"file": "u.safetensors", "count": 1}]},
        {"t.safetensors": slice(3), "u.safetensors": slice(3, 4)},
    ),
}


@pytest.fixture(params=FORMS)
def folder(tmp_path, request):
    """Two train shards of 5 and 3 pictures and one eval shard of 2; a latent holds its picture's number. Embeddings
    in parts, and in one file as of before there were parts."""
    shards = []
    for name, split, numbers in (
        ("a", "train", range(5)),
        ("b", "train", range(5, 8)),
        ("c", "eval", range(8, 10)),
    ):
        latents = torch.tensor(list(numbers), dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 2, 3, 4).contiguous()
        captions = 1 + torch.tensor(list(numbers)) % 3
        save_file({"latents": latents, "captions": captions}, tmp_path / f"{name}.safetensors")
        shards.append({"file": f"{name}.safetensors", "split": split, "count": len(numbers), "source_sha256": ""})
    said, files = FORMS[request.param]
    for name, rows in files.items():
        embeds = EMBEDS[rows].contiguous()
        save_file({"embeds": embeds, "mask": torch.ones(embeds.shape[:2], dtype=torch.int64)}, tmp_path / name)
    index = {"shards": shards, "captions": ["", "x", "y", "z"], "scaling_factor": 0.5, "key": "k"}
    storage.write_json(tmp_path / "index.json", index | said)
    return tmp_path


# --- rows of many files ---------------------------------------------------------------------------

COUNTS = [(7,), (1, 1, 1), (3, 1, 4), (2, 0, 5)]


def rows_of(counts, dtype):
    parts = [torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(count)).to(dtype) for count in counts]
    return loader.Rows(parts), torch.cat(parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", COUNTS)
def test_rows_are_those_of_the_concatenation(counts, dtype):
    rows, joined = rows_of(counts, dtype)
    assert (len(rows), rows.shape, rows.dtype) == (len(joined), joined.shape, dtype)
    chosen = torch.randint(len(joined), (50,), generator=torch.Generator().manual_seed(0))
    bounds = torch.tensor([0, *torch.tensor(counts).cumsum(0)[:-1].tolist(), len(joined) - 1])
    for index in (
        chosen,
        bounds,
        bounds.flip(0),
        bounds.repeat(3),
        torch.arange(len(joined)).flip(0),
        torch.tensor([-1, 0]),
        torch.zeros(0, dtype=torch.int64),
        chosen.reshape(5, 10),
        torch.tensor(1),
        1,
        -1,
        slice(None),
        slice(1, -1),
        slice(5, 5),
        joined[:, 0, 0] > 0,
    ):
        assert rows[index].dtype == dtype
        assert torch.equal(rows[index], joined[index]), index


@pytest.mark.parametrize("index", [8, -9])
def test_a_row_that_is_not_there_is_refused(index):
    rows, _ = rows_of((3, 1, 4), torch.float32)
    with pytest.raises(IndexError):
        rows[torch.tensor([0, index])]


def test_rows_are_copies():
    rows, joined = rows_of((3, 1, 4), torch.float32)
    rows[torch.tensor([0, 4])].zero_()
    rows[:].zero_()
    assert torch.equal(rows[:], joined)


@pytest.mark.parametrize("other", [torch.zeros(1, 2, 1), torch.zeros(1, 2, 3, dtype=torch.float64)])
def test_rows_of_unlike_kinds_are_refused(other):
    with pytest.raises(ValueError, match="unlike rows"):
        loader.Rows([torch.zeros(1, 2, 3), other])


READ = """
import sys
from pathlib import Path
import psutil
from sana_sprint.data.loader import Latents

def resident_mb():
    return psutil.Process().memory_info().rss / 2**20

latents = Latents(Path(sys.argv[1]), "train")  # imports all that loading needs
latents.text(latents.batch(0, 2, 0))
del latents
before = resident_mb()
latents = Latents(Path(sys.argv[1]), "train")
rows = latents.batch(0, 4, 0)
x, text = latents.x[rows], latents.text(rows)
print(resident_mb() - before)
"""


def test_a_batch_of_a_large_corpus_takes_no_more_memory_than_its_rows(tmp_path):
    """96 MB of pictures and as much of embeddings, in parts."""
    shards, texts = [], []
    for number in range(3):
        x = {"latents": torch.zeros(64, 4, 128, 256), "captions": torch.arange(64) + 64 * number}
        save_file(x, tmp_path / f"{number}.safetensors")
        text = {"embeds": torch.zeros(64, 128, 1024), "mask": torch.ones(64, 128, dtype=torch.int64)}
        save_file(text, tmp_path / f"text-{number}.safetensors")
        shards.append({"file": f"{number}.safetensors", "split": "train", "count": 64})
        texts.append({"file": f"text-{number}.safetensors", "count": 64})
    index = {"shards": shards, "captions_files": texts, "captions": [str(n) for n in range(192)], "scaling_factor": 1.0}
    storage.write_json(tmp_path / "index.json", index)
    process = subprocess.run([sys.executable, "-c", READ, tmp_path], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert float(process.stdout) < 48


# --- the split ------------------------------------------------------------------------------------


def test_shards_of_a_split_follow_each_other(folder):
    latents = loader.Latents(folder, "train")
    assert latents.x.shape == (8, 2, 3, 4)
    assert latents.x[:][:, 0, 0, 0].tolist() == list(range(8))
    assert len(loader.Latents(folder, "eval")) == 2


def test_sentences_have_their_embeddings_in_whatever_files(folder):
    latents = loader.Latents(folder, "train")
    assert latents.embeds.shape == (4, 6, 5)
    embeds, mask = latents.sentence(torch.tensor([3, 0, 2, 3]))
    assert torch.equal(embeds, EMBEDS[[3, 0, 2, 3]])
    assert mask.all()


def test_text_of_a_picture_is_the_embedding_of_its_caption(folder):
    latents = loader.Latents(folder, "train")
    embeds, mask = latents.text(torch.tensor([0, 4, 7]))
    assert embeds.shape == (3, 6, 5)
    assert mask.shape == (3, 6)
    assert embeds[:, 0, 0].tolist() == [1.0, 2.0, 2.0]
    assert [latents.sentences[row] for row in latents.captions[[0, 4, 7]]] == ["x", "y", "y"]


def test_null_is_the_empty_caption(folder):
    embeds, mask = loader.Latents(folder, "eval").null
    assert embeds.shape == (1, 6, 5)
    assert mask.shape == (1, 6)
    assert not embeds.any()


@pytest.mark.parametrize(("count", "batch"), [(8, 3), (8, 8), (5, 12), (7, 1), (1, 4)])
def test_every_epoch_is_a_permutation(count, batch):
    epochs = 6
    steps = -(-count * epochs // batch)
    row = torch.cat([loader.permuted(count, step, batch, seed=3) for step in range(steps)])
    orders = row[: count * epochs].reshape(epochs, count)
    assert (orders.sort(dim=1).values == torch.arange(count)).all()
    if count > 4:
        assert len({tuple(order.tolist()) for order in orders}) > 1


def test_a_batch_depends_on_seed_and_step_alone(folder):
    straight = loader.Latents(folder, "train")
    rows = [straight.batch(step, 3, seed=5) for step in range(10)]
    resumed = loader.Latents(folder, "train")
    assert (resumed.batch(9, 3, seed=5) == rows[9]).all()
    assert any((resumed.batch(step, 3, seed=6) != rows[step]).any() for step in range(10))


@pytest.mark.parametrize("at", [0, -1])
@pytest.mark.parametrize("kind", ["[ab]", "[tu]"])
def test_a_missing_or_truncated_file_is_named(folder, kind, at):
    path = sorted(folder.glob(f"{kind}.safetensors"))[at]
    data = path.read_bytes()
    path.write_bytes(data[:-8])
    with pytest.raises(ValueError, match=rf"{path.name}: corrupt .*; delete the file and run `dvc repro -f encode`"):
        loader.Latents(folder, "train")
    path.unlink()
    with pytest.raises(ValueError, match=rf"{path.name}: no such file; run `dvc repro -f encode`"):
        loader.Latents(folder, "train")


def test_a_file_that_does_not_fit_the_index_is_named(folder):
    save_file({"latents": torch.zeros(4, 2, 3, 4), "captions": torch.zeros(4).long()}, folder / "a.safetensors")
    with pytest.raises(ValueError, match=r"a.safetensors: does not fit index.json, which says 5 rows; delete"):
        loader.Latents(folder, "train")
    save_file({"latents": torch.zeros(5, 2, 3, 4)}, folder / "a.safetensors")
    with pytest.raises(ValueError, match=r"a.safetensors: lacks \['captions'\]"):
        loader.Latents(folder, "train")
    for embeds, mask in ((2, 2), (3, 2)):
        save_file({"embeds": torch.zeros(embeds, 6, 5), "mask": torch.ones(mask, 6)}, folder / "t.safetensors")
        with pytest.raises(ValueError, match=r"t.safetensors: does not fit index.json, which says [34] rows"):
            loader.Latents(folder, "eval")


def test_an_index_that_lacks_captions_is_named(folder):
    for name in ("a", "b"):
        tensors = load_file(folder / f"{name}.safetensors")
        save_file(tensors | {"captions": tensors["captions"] + 1}, folder / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"index.json: does not fit the files it names; delete"):
        loader.Latents(folder, "train")
    loader.Latents(folder, "eval")


def test_a_missing_index_or_split_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no latents of split 'test'"):
        loader.Latents(folder, "test")
    (folder / "index.json").unlink()
    with pytest.raises(ValueError, match=r"index.json: no such file; run `dvc repro`"):
        loader.Latents(folder, "train")
