"""Colours of objects by CLIP: the crop's pixels, and the same colours as transformers' own CLIPModel says."""

import numpy as np
import pytest
import torch

from sana_sprint.evaluation import clip_judge, colours, geneval
from sana_sprint.evaluation.geneval import Found
from tests.evaluation.conftest import train_judge

SIZE_PX = 32


def tiny_clip(seed=2):
    """A CLIP of random weights, spread so that its colours differ."""
    texts = [f"a photo of a {colour} cat" for colour in geneval.COLOURS] + ["a photo of a red-colored object dog"]
    params = train_judge(patch_px=8, vocabulary=128).model
    tokenizer = clip_judge.make_tokenizer(texts, params.vocabulary, params.max_tokens)
    torch.manual_seed(seed)
    model = clip_judge.make_model(params, tokenizer, SIZE_PX).eval()
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.1 if "position" in name else 0.5)
    half = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    settings = {"size": {"shortest_edge": SIZE_PX}, "crop_size": {"height": SIZE_PX}} | half
    return clip_judge.Clip(model, tokenizer, settings)


def blobs(number, seed=1):
    """A picture of flat patches of random colours and a Found for each, some cut by a mask."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    found = []
    for i in range(number):
        left, top = (int(x) for x in rng.integers(0, 30, 2))
        width, height = (int(x) for x in rng.integers(8, 30, 2))
        picture[top : top + height, left : left + width] = rng.integers(0, 256, 3)
        mask = np.zeros(picture.shape[:2], bool)
        mask[top : top + height, left : left + width] = rng.random((height, width)) < 0.8
        found.append(Found((left, top, left + width, top + height), 0.9, mask if i % 3 else None))
    return picture, found


def test_a_cut_out_is_the_box_with_grey_outside_the_mask():
    picture = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:5] = True
    mask[1, 2] = False
    crop = colours.cut_out(picture, Found((2.0, 1.0, 6.0, 5.0), 0.9, mask))
    assert crop.shape == (4, 4, 3)
    assert crop.dtype == np.uint8
    inside = mask[1:5, 2:6]
    assert np.array_equal(crop[inside], picture[1:5, 2:6][inside])
    assert (crop[~inside] == [0x99, 0x99, 0x99]).all()
    assert (~inside).sum() == 8
    bare = colours.cut_out(picture, Found((2.0, 1.0, 6.0, 5.0), 0.9, None))
    assert np.array_equal(bare, picture[1:5, 2:6])
    assert np.array_equal(picture, np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3))


def test_a_mask_of_another_size_is_no_mask_of_this_picture():
    with pytest.raises(AssertionError, match="mask"):
        colours.cut_out(np.zeros((6, 8, 3), np.uint8), Found((0, 0, 2, 2), 0.9, np.ones((8, 6), bool)))


def test_colours_are_those_of_transformers_own_clip():
    clip = tiny_clip()
    picture, found = blobs(24)
    got = colours.Colours(clip).of(picture)(found, "cat")
    texts = [
        [f"a photo of a {c} cat", f"a photo of a {c}-colored cat", f"a photo of a {c} object"] for c in geneval.COLOURS
    ]
    tokens = clip_judge.encoded(clip.tokenizer, [text for three in texts for text in three])
    pixels = clip_judge.prepared([colours.cut_out(picture, one) for one in found], clip.preprocessor)
    with torch.no_grad():
        out = clip.model(**tokens, pixel_values=pixels)
        scale = clip.model.logit_scale.exp()
    means = out.text_embeds.reshape(10, 3, -1).mean(1)  # transformers gives both embeddings normalised
    logits = scale * out.image_embeds @ (means / means.norm(dim=1, keepdim=True)).T
    top = logits.topk(2, dim=1).values
    assert float((top[:, 0] - top[:, 1]).min()) > 1e-4  # no tie that rounding could turn
    assert got == [geneval.COLOURS[i] for i in logits.argmax(1)]
    assert len(set(got)) > 1


def test_the_mean_over_texts_is_of_normalised_embeddings():
    class Texts:
        """Text embeddings of very different lengths: a mean before normalising would be the longest one."""

        def captions(self, texts):
            return torch.stack(
                [torch.tensor([100.0, 0.0]) if "-colored" in t else torch.tensor([0.0, 1.0]) for t in texts]
            )

    made = colours.Colours(Texts()).classifier("cat")
    mean = torch.tensor([1 / 3, 2 / 3])
    assert torch.allclose(made, (mean / mean.norm()).expand(10, 2))


def test_a_class_is_read_once_and_classes_differ():
    clip = tiny_clip()
    asked = []

    class Counting:
        pictures = clip.pictures

        def captions(self, texts):
            asked.append(texts)
            return clip.captions(texts)

    made = colours.Colours(Counting())
    picture, found = blobs(6)
    first = made.of(picture)(found, "cat")
    assert made.of(picture)(found, "cat") == first
    assert len(asked) == 1
    made.of(picture)(found, "dog")
    assert len(asked) == 2
    assert asked[1][:3] == ["a photo of a red dog", "a photo of a red-colored dog", "a photo of a red object"]
    assert len(asked[1]) == 30
    assert not torch.equal(made.classifier("cat"), made.classifier("dog"))


def test_an_objects_colour_does_not_depend_on_the_others():
    picture, found = blobs(5)
    colours_of = colours.Colours(tiny_clip()).of(picture)
    assert [colours_of([one], "cat")[0] for one in found] == colours_of(found, "cat")
