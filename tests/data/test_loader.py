import pytest
import torch
from safetensors.torch import save_file

from sana_sprint import storage
from sana_sprint.data import loader


@pytest.fixture
def folder(tmp_path):
    """Two train shards of 5 and 3 pictures and one eval shard of 2; a latent holds its picture's number."""
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
    embeds = torch.arange(4.0).reshape(4, 1, 1).expand(4, 6, 5).contiguous()
    save_file({"embeds": embeds, "mask": torch.ones(4, 6, dtype=torch.int64)}, tmp_path / "t.safetensors")
    index = {"shards": shards, "captions_file": "t.safetensors", "captions": ["", "x", "y", "z"]}
    storage.write_json(tmp_path / "index.json", index | {"scaling_factor": 0.5, "key": "k"})
    return tmp_path


def test_shards_of_a_split_follow_each_other(folder):
    latents = loader.Latents(folder, "train")
    assert latents.x.shape == (8, 2, 3, 4)
    assert latents.x[:, 0, 0, 0].tolist() == list(range(8))
    assert len(loader.Latents(folder, "eval")) == 2


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


@pytest.mark.parametrize("name", ["a.safetensors", "t.safetensors"])
def test_a_missing_or_truncated_file_is_named(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-8])
    with pytest.raises(ValueError, match=rf"{name}: corrupt .*; delete the file and run `dvc repro -f encode`"):
        loader.Latents(folder, "train")
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"{name}: no such file; run `dvc repro -f encode`"):
        loader.Latents(folder, "train")


def test_a_file_that_does_not_fit_the_index_is_named(folder):
    save_file({"latents": torch.zeros(4, 2, 3, 4), "captions": torch.zeros(4).long()}, folder / "a.safetensors")
    with pytest.raises(ValueError, match=r"a.safetensors: not 5 pictures"):
        loader.Latents(folder, "train")
    save_file({"latents": torch.zeros(5, 2, 3, 4)}, folder / "a.safetensors")
    with pytest.raises(ValueError, match=r"a.safetensors: lacks \['captions'\]"):
        loader.Latents(folder, "train")
    save_file({"embeds": torch.zeros(2, 6, 5), "mask": torch.ones(2, 6)}, folder / "t.safetensors")
    with pytest.raises(ValueError, match=r"t.safetensors: does not fit index.json"):
        loader.Latents(folder, "eval")


def test_a_missing_index_or_split_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no latents of split 'test'"):
        loader.Latents(folder, "test")
    (folder / "index.json").unlink()
    with pytest.raises(ValueError, match=r"index.json: no such file; run `dvc repro`"):
        loader.Latents(folder, "train")
