"""CLIP of local folders in the public ones' format: pictures are prepared and scored as transformers does, and folders
that will not do are named."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sana_sprint.evaluation import clip_judge
from sana_sprint.maths import metrics
from tests.evaluation import test_colours

# what openai/clip-vit-base-patch32 and clip-vit-large-patch14 both have
PUBLIC = {
    "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": 224,
    "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
SIZES = ((75, 100), (301, 224), (224, 333), (480, 331), (31, 200), (225, 224), (224, 224))
CAPTIONS = ["a photo of a red cat", "a photo of a blue cat", "a photo of a dog", "a cat", "a red dog", "blue", "red"]


@pytest.fixture(scope="module", params=[(32, 48, 24), (14, 64, 32)], ids=["patch-32", "patch-14"])
def folder(request, tmp_path_factory):
    """A small CLIP of random weights whose pictures and texts are of two widths, at the public resolution."""
    from transformers import CLIPConfig, CLIPModel

    patch, width, text_width = request.param
    tokenizer = clip_judge.make_tokenizer(CAPTIONS, 96, 16)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 20}
    text = shape | special | {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    text |= {"hidden_size": text_width, "intermediate_size": 2 * text_width}
    vision = shape | {"image_size": 224, "patch_size": patch, "hidden_size": width, "intermediate_size": 2 * width}
    torch.manual_seed(patch)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)).eval()
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.1 if "position" in name else 0.3)
    place = tmp_path_factory.mktemp("clip")
    clip_judge.Clip(model, tokenizer, PUBLIC).save(place)
    return place


@pytest.fixture(scope="module")
def pictures():
    """Gradients with noise, so that a shift of a pixel shows."""
    made = []
    for seed, (height, width) in enumerate(SIZES):
        rows, columns = np.mgrid[:height, :width]
        waves = [np.sin(rows / 7 + seed), np.cos(columns / 5 - seed), np.sin((rows + columns) / 11)]
        noise = np.random.default_rng(seed).normal(0, 0.2, (height, width, 3))
        made.append(((np.stack(waves, 2) + noise).clip(-1, 1) * 127.5 + 127.5).astype(np.uint8))
    return made


def test_pictures_that_are_not_square_are_prepared_as_transformers_prepares_them(folder, pictures):
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    ours = clip_judge.prepared(pictures, clip_judge.load(folder).preprocessor)
    for picture, mine in zip(pictures, ours, strict=True):
        theirs = processor(picture, input_data_format="channels_last", return_tensors="pt")["pixel_values"][0]
        assert float((mine - theirs).abs().max()) < 1e-4, picture.shape  # a grey level is 0.014


def test_the_clip_score_is_that_of_transformers_own_logits(folder, pictures):
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    pixels = [processor(p, input_data_format="channels_last", return_tensors="pt")["pixel_values"] for p in pictures]
    tokens = AutoTokenizer.from_pretrained(folder)(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=torch.cat(pixels))
        cosines = (out.logits_per_image / model.logit_scale.exp()).double()
    clip = clip_judge.load(folder)
    features, texts = clip.pictures(pictures), clip.captions(CAPTIONS)
    for k in range(len(CAPTIONS)):
        theirs = 100 * cosines.diagonal(k).clamp(min=0)
        ours = metrics.clip_score(features[: len(theirs)], texts[k:])
        assert ours.value == pytest.approx(float(theirs.mean()), abs=1e-3)
    assert float(cosines.max()) > 0.1
    assert float(cosines.std()) > 0.02


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_another_shape(path):
    weights = load_file(path)
    weights["visual_projection.weight"] = torch.zeros(3, 5)
    save_file(weights, path, metadata={"format": "pt"})


def without(*names):
    def spoil(path):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in content.items() if key not in names}))

    return spoil


def having(**changes):
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "spoil", "told"),
    [
        ("config.json", cut, "clip/config.json: not valid JSON"),
        ("config.json", lambda path: path.write_text("[]"), "clip/config.json: no JSON object"),
        ("preprocessor_config.json", cut, "clip/preprocessor_config.json: not valid JSON"),
        ("preprocessor_config.json", without("image_mean"), "must have size, crop_size, image_mean and image_std"),
        ("preprocessor_config.json", without("size", "crop_size"), "that make a picture 32 x 32 px as CLIP does"),
        ("preprocessor_config.json", having(crop_size=48), "clip/preprocessor_config.json: must have size"),
        ("preprocessor_config.json", having(resample=2), "bicubic and cut from the centre"),
        ("model.safetensors", of_another_shape, "clip/model.safetensors: 1 weights of another shape than config.json"),
        ("model.safetensors", of_another_shape, "(visual_projection.weight: [3, 5] for [16, 24])"),
        ("tokenizer.json", cut, "clip: no tokenizer.json that can be read"),
        ("tokenizer.json", lambda path: path.unlink(), "clip: no tokenizer.json that can be read"),
        ("tokenizer_config.json", lambda path: path.unlink(), "model_max_length up to 16"),
    ],
)
def test_a_file_that_is_cut_or_does_not_fit_is_named_in_one_line(tmp_path, name, spoil, told):
    test_colours.tiny_clip().save(tmp_path / "clip")
    spoil(tmp_path / "clip" / name)
    with pytest.raises(ValueError) as error:  # noqa: PT011  looked at below
        clip_judge.load(tmp_path / "clip")
    assert told in str(error.value)
    assert str(error.value).endswith(f"; {clip_judge.REMEDY}")
    assert "\n" not in str(error.value)
