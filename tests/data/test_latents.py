import shutil
from pathlib import Path

import pytest
import torch
from encoding import encode, encoding, sampling
from safetensors.torch import load_file, save_file
from samples import scenes_params

from sana_sprint import storage
from sana_sprint.data import latents, loader, manifest, prepare, shards

INSTRUCTION = ["Draw what the caption says.", "Caption: "]


@pytest.fixture(scope="module")
def encoded(scenes_raw, foundation, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("encoded") / "latents"
    assert encode(scenes_raw, foundation, out)["encoded"] == 96
    return out


@pytest.fixture
def copy(encoded, tmp_path) -> Path:
    return Path(shutil.copytree(encoded, tmp_path / "latents"))


@pytest.fixture(scope="module")
def stock(foundation):
    """The stock pipelines that a user would load."""
    from diffusers import SanaPipeline, SanaSprintPipeline

    base = SanaPipeline.from_pretrained(foundation)
    return base, SanaSprintPipeline(**base.components)


def changed(foundation: Path, folder: Path, part: str) -> Path:
    """A foundation with one weight of a part moved."""
    shutil.copytree(foundation, folder)
    (path,) = (folder / part).glob("*.safetensors")
    weights = load_file(path)
    name = min(weights)
    save_file(weights | {name: weights[name] + 0.1}, path, metadata={"format": "pt"})
    return folder


def test_latents_are_the_autoencoders_times_the_scaling_factor(scenes_raw, encoded, stock):
    vae = stock[0].vae
    data = loader.Latents(encoded, "train")
    pixels = torch.from_numpy(shards.stack(scenes_raw, "train")).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = vae.encode(pixels.float() / 127.5 - 1).latent * vae.config.scaling_factor
    assert data.x.dtype == torch.float32
    torch.testing.assert_close(data.x[:], expected, atol=1e-5, rtol=1e-4)
    assert data.scaling_factor == vae.config.scaling_factor


def test_pixels_go_in_as_the_stock_image_processor_scales_them(scenes_raw, stock):
    pixels = shards.stack(scenes_raw, "eval")[:2]
    ours = latents.latent(stock[1], pixels)
    with torch.no_grad():
        theirs = stock[1].vae.encode(stock[1].image_processor.preprocess(pixels / 255.0).float()).latent
    torch.testing.assert_close(ours, theirs * stock[1].vae.config.scaling_factor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("instruction", [(), INSTRUCTION])
def test_text_is_what_the_stock_pipelines_see_at_inference(scenes_raw, foundation, stock, tmp_path, instruction):
    encode(scenes_raw, foundation, tmp_path / "latents", instruction=instruction)
    data = loader.Latents(tmp_path / "latents", "eval")
    captions = [row.caption for row in manifest.read(scenes_raw, "eval")]
    embeds, mask = data.text(torch.arange(len(captions)))
    base, sprint = stock
    for index in (0, 3, 17, 35):
        with torch.no_grad():
            theirs, their_mask = sprint.encode_prompt(
                captions[index], max_sequence_length=12, complex_human_instruction=list(instruction)
            )
        torch.testing.assert_close(embeds[index], theirs[0], atol=1e-5, rtol=1e-4)
        assert (mask[index] == their_mask[0]).all()
    with torch.no_grad():
        _, _, null, null_mask = base.encode_prompt(
            captions[0], True, "", max_sequence_length=12, complex_human_instruction=list(instruction)
        )
    torch.testing.assert_close(data.null[0], null, atol=1e-5, rtol=1e-4)
    assert (data.null[1] == null_mask).all()


def test_captions_and_pictures_belong_together(scenes_raw, encoded):
    for split in ("train", "eval"):
        data = loader.Latents(encoded, split)
        assert [data.sentences[row] for row in data.captions] == [r.caption for r in manifest.read(scenes_raw, split)]
    assert data.sentences[0] == ""
    assert len(set(data.sentences)) == len(data.sentences)


def test_a_second_run_encodes_nothing_and_changes_no_byte(scenes_raw, foundation, copy):
    stamps = {path.name: path.stat().st_mtime_ns for path in copy.glob("*.safetensors")}
    before = storage.digest(copy)
    assert encode(scenes_raw, foundation, copy) == {"pictures": 96, "encoded": 0, "kept": 96} | {
        "captions": len(storage.read_json(copy / "index.json")["captions"]) - 1
    }
    assert storage.digest(copy) == before
    assert stamps == {path.name: path.stat().st_mtime_ns for path in copy.glob("*.safetensors")}


def test_the_batch_is_no_part_of_the_key(scenes_raw, foundation, copy):
    assert encode(scenes_raw, foundation, copy, batch=64)["encoded"] == 0


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_changed_weight_encodes_anew_and_removes_the_stale(scenes_raw, foundation, copy, tmp_path, part):
    before = {path.name for path in copy.glob("*.safetensors")}
    other = changed(foundation, tmp_path / "foundation", part)
    assert encode(scenes_raw, other, copy)["encoded"] == 96
    after = {path.name for path in copy.glob("*.safetensors")}
    assert len(after) == len(before)
    assert not {name for name in before & after if name.startswith(("train", "eval"))}
    assert any(name.startswith("captions") for name in before & after) == (part == "vae")


def test_other_prompt_settings_or_dtype_encode_anew(scenes_raw, foundation, copy):
    assert encode(scenes_raw, foundation, copy, max_tokens=10)["encoded"] == 96
    assert loader.Latents(copy, "eval").embeds.shape[1] == 10
    assert encode(scenes_raw, foundation, copy, dtype="bfloat16")["encoded"] == 96
    data = loader.Latents(copy, "eval")
    assert data.x.dtype == data.text(torch.tensor([0]))[0].dtype == torch.float32


def test_an_interrupted_run_goes_on_where_it_stopped(scenes_raw, foundation, copy):
    whole = storage.digest(copy)
    (lost,) = copy.glob("train-00001-*.safetensors")
    lost.unlink()
    (copy / "index.json").unlink()
    (copy / f"{storage.UNFINISHED}{lost.name}").write_bytes(b"half of it")
    assert encode(scenes_raw, foundation, copy)["encoded"] == 25
    assert storage.digest(copy) == whole


def test_a_corrupt_cached_file_is_made_again(scenes_raw, foundation, copy):
    whole = storage.digest(copy)
    (broken,) = copy.glob("eval-00000-*.safetensors")
    broken.write_bytes(broken.read_bytes()[:-100])
    assert encode(scenes_raw, foundation, copy)["encoded"] == 25
    assert storage.digest(copy) == whole


def test_only_shards_that_changed_are_encoded(foundation, tmp_path):
    """Same captions, one training picture more: the evaluation shards and the full training shards stay."""
    for count, expected in ((50, 74), (51, 1)):
        params = scenes_params(train_images=count, eval_images=24, heldout_share=0.0)
        single = params.source.model_copy(update={"task_weights": {"single_object": 1.0}})
        prepare.run(params.model_copy(update={"source": single}), tmp_path, tmp_path / "raw")
        assert encode(tmp_path / "raw", foundation, tmp_path / "latents")["encoded"] == expected


def test_a_foundation_that_is_not_whole_is_named(scenes_raw, foundation, tmp_path):
    shutil.copytree(foundation, tmp_path / "foundation")
    (path,) = (tmp_path / "foundation/vae").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"foundation: no readable foundation .*run `dvc repro -f foundation`"):
        encode(scenes_raw, tmp_path / "foundation", tmp_path / "latents")
    with pytest.raises(ValueError, match=r"nowhere.*no such file or folder"):
        encode(scenes_raw, tmp_path / "nowhere", tmp_path / "latents")


def test_a_truncated_shard_is_named(scenes_raw, foundation, tmp_path):
    raw = Path(shutil.copytree(scenes_raw, tmp_path / "raw"))
    path = raw / "shards/train-00000.tar"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"train-00000.tar: truncated or broken tar after member train-0"):
        encode(raw, foundation, tmp_path / "latents")
    assert not list((tmp_path / "latents").glob(f"train-00000-*{storage.UNFINISHED}*"))


def test_data_of_another_size_than_sampling_is_refused(scenes_raw, foundation, tmp_path):
    other = sampling().model_copy(update={"height_px": 64})
    with pytest.raises(ValueError, match=r"eval-000000: the picture is 32 x 32 px but .* say 64 x 32; make"):
        latents.encode(encoding(), other, scenes_raw, foundation, tmp_path / "latents")
