"""The detector: a tiny Mask2Former end to end, and its outputs read as mmdetection reads them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sana_sprint.evaluation import detector
from sana_sprint.evaluation.detector import Sizes
from tests.evaluation import test_colours

LABELS = ("cat", "dog", "mouse", "sofa")
NAMES = ("cat", "dog", "computer mouse", "couch")  # as GenEval has them
SMALL = {"size": {"height": 64, "width": 64}, "size_divisor": 32}
# what the public folder's preprocessor_config.json has besides the size
HUB = {
    "do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255, "resample": 2,
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "ignore_index": 255,
    "reduce_labels": False, "num_labels": 4, "image_processor_type": "Mask2FormerImageProcessor",
}  # fmt: skip


def tiny_model(seed=0):
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = SwinConfig(
        image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=2, out_features=stages
    )
    shape = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 2}
    shape |= {"encoder_feedforward_dim": 32, "dim_feedforward": 32, "encoder_layers": 1, "decoder_layers": 4}
    config = Mask2FormerConfig(backbone_config=swin, num_queries=6, id2label=dict(enumerate(LABELS)), **shape)
    torch.manual_seed(seed)
    model = Mask2FormerForUniversalSegmentation(config).eval()
    for weight in model.class_predictor.parameters():
        torch.nn.init.normal_(weight)  # else all classes are nearly as likely
    return model


def sure_of(name):
    """Returns what makes a network call everything it sees `name`."""

    def change(model):
        model.class_predictor.weight.data.zero_()
        model.class_predictor.bias.data = torch.tensor([20.0 * (label == name) for label in (*LABELS, "none")])

    return change


def made_folder(folder, change=None, **settings):
    model = tiny_model()
    if change:
        change(model)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(HUB | SMALL | settings))
    return folder


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return detector.load(made_folder(tmp_path_factory.mktemp("detector")))


def noise(number, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, height, width, 3), dtype=np.uint8)


def listed(found):
    return [(name, one.box, one.score) for name, objects in found.items() for one in objects]


def same(a, b):
    masks = [[one.mask for objects in found.values() for one in objects] for found in (a, b)]
    return listed(a) == listed(b) and all(np.array_equal(x, y) for x, y in zip(*masks, strict=True))


# --- reading the outputs --------------------------------------------------------------------------


def bilinear(image, height, width):
    """Returns a map at another size, pixel by pixel: the mean of the four nearest centres by distance."""
    h, w = image.shape
    out = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            y, x = max((row + 0.5) * h / height - 0.5, 0), max((column + 0.5) * w / width - 0.5, 0)
            top, left = min(int(y), h - 1), min(int(x), w - 1)
            bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
            b, r = y - top, x - left
            upper = image[top, left] * (1 - r) + image[top, right] * r
            out[row, column] = upper * (1 - b) + (image[bottom, left] * (1 - r) + image[bottom, right] * r) * b
    return out


def by_hand(class_logits, mask_logits, sizes):
    """Returns [(class, box, score, mask)], surest class first, in plain numpy."""
    pairs = []
    for q, row in enumerate(class_logits):
        odds = np.exp(row - row.max())
        pairs += [(odds[c] / odds.sum(), q, c) for c in range(len(row) - 1)]
    maps = []
    for logits in mask_logits:
        seen = bilinear(logits, *sizes.padded)[: sizes.resized[0], : sizes.resized[1]]
        maps.append(bilinear(seen, *sizes.picture))
    found = []
    for prob, q, c in sorted(pairs, key=lambda pair: -pair[0])[:100]:
        inside = maps[q][maps[q] > 0]
        if len(inside):
            ys, xs = np.nonzero(maps[q] > 0)
            quality = (1 / (1 + np.exp(-inside))).sum() / (len(inside) + 1e-6)
            found.append((c, (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), prob * quality, maps[q] > 0))
    return found


def assert_equals_by_hand(found, names, class_logits, mask_logits, sizes):
    wanted = by_hand(class_logits.double().numpy(), mask_logits.double().numpy(), sizes)
    assert sum(len(objects) for objects in found.values()) == len(wanted) > 0
    for c, name in enumerate(names):
        theirs = [one for one in wanted if one[0] == c]
        assert len(found.get(name, [])) == len(theirs)
        for one, (_, box, score, mask) in zip(found.get(name, []), theirs, strict=True):
            assert one.box == box
            assert one.score == pytest.approx(score, rel=1e-5)
            assert np.array_equal(one.mask, mask)


def square(top, left, bottom, right, inside=2.0, size=(12, 16)):
    logits = torch.full(size, -3.0)
    logits[top:bottom, left:right] = inside
    return logits


AS_IS = Sizes((12, 16), (12, 16), (12, 16))


def test_hand_set_logits_give_exact_boxes_and_scores():
    # softmax of [log 6, log 3, log 1] is [0.6, 0.3, 0.1], the last of which is "no object"
    class_logits = torch.tensor([[6.0, 3.0, 1.0], [1.0, 1.0, 8.0]]).log()
    mask_logits = torch.stack([square(2, 3, 5, 9), square(0, 0, 12, 16, inside=0.5)])
    found = detector.instances(class_logits, mask_logits, ["cat", "dog"], AS_IS)
    sure, half = 1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(-0.5))
    assert [one.box for one in found["cat"]] == [(3, 2, 9, 5), (0, 0, 16, 12)]
    assert [one.score for one in found["cat"]] == pytest.approx([0.6 * sure, 0.1 * half], rel=1e-5)
    assert [one.box for one in found["dog"]] == [(3, 2, 9, 5), (0, 0, 16, 12)]  # a query may be two classes
    assert [one.score for one in found["dog"]] == pytest.approx([0.3 * sure, 0.1 * half], rel=1e-5)
    mask = np.zeros((12, 16), bool)
    mask[2:5, 3:9] = True
    assert np.array_equal(found["cat"][0].mask, mask)


def test_masks_overlap_freely_and_empty_ones_are_dropped():
    class_logits = torch.tensor([[9.0, 0.0], [8.0, 0.0], [7.0, 0.0]])
    mask_logits = torch.stack([square(0, 0, 6, 6), square(0, 0, 6, 6), torch.zeros(12, 16)])  # 0 is not above 0
    found = detector.instances(class_logits, mask_logits, ["cat"], AS_IS)
    assert [one.box for one in found["cat"]] == [(0, 0, 6, 6)] * 2
    assert detector.instances(class_logits[2:], mask_logits[2:], ["cat"], AS_IS) == {}


def test_the_hundred_likeliest_pairs_are_read():
    generator = torch.Generator().manual_seed(0)
    class_logits = torch.randn(30, 5, generator=generator)
    mask_logits = square(1, 1, 2, 2).expand(30, 12, 16)
    found = detector.instances(class_logits, mask_logits, list("abcd"), AS_IS)
    scores = sorted((one.score for objects in found.values() for one in objects), reverse=True)
    assert len(scores) == 100
    everything = class_logits.softmax(1)[:, :-1].flatten().sort(descending=True).values
    assert scores == pytest.approx((everything[:100] * (1 / (1 + np.exp(-2.0)))).tolist(), rel=1e-5)


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes((12, 16), (12, 16), (12, 16)),
        Sizes((24, 32), (24, 32), (15, 20)),
        Sizes((24, 32), (18, 29), (30, 21)),  # padded below and on the right
    ],
)
def test_outputs_are_read_as_a_slow_computation_reads_them(sizes):
    generator = torch.Generator().manual_seed(1)
    class_logits, mask_logits = torch.randn(4, 3, generator=generator), torch.randn(4, 6, 8, generator=generator)
    found = detector.instances(class_logits, mask_logits, ["cat", "dog"], sizes)
    assert_equals_by_hand(found, ["cat", "dog"], class_logits, mask_logits, sizes)


def test_padding_is_no_part_of_the_picture():
    logits = square(0, 0, 12, 8)
    logits[:, 8:] = 5.0  # in the padding
    kept = detector.at_picture(logits, Sizes((12, 16), (12, 8), (12, 8)))
    assert torch.equal(kept, torch.full((12, 8), 2.0))


# --- the network ----------------------------------------------------------------------------------


def test_a_picture_is_read_from_the_networks_raw_outputs(loaded):
    picture = noise(1, 40, 52)[0]
    found = loaded.detect([picture])[0]
    pixels = loaded.processor([picture], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 64, 64)
    with torch.inference_mode():
        out = loaded.model(pixel_values=pixels)
    sizes = Sizes((64, 64), (64, 64), (40, 52))
    assert_equals_by_hand(found, NAMES, out.class_queries_logits[0], out.masks_queries_logits[0], sizes)


def test_boxes_and_masks_are_in_the_pictures_own_pixels(loaded):
    for height, width in ((64, 64), (33, 90), (120, 50)):
        (found,) = loaded.detect(noise(1, height, width))
        assert found
        for objects in found.values():
            for one in objects:
                rows, columns = np.nonzero(one.mask.any(1))[0], np.nonzero(one.mask.any(0))[0]
                assert one.mask.shape == (height, width)
                assert one.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
                assert 0 < one.score < 1


def test_pictures_are_normalised_and_sized_as_the_folder_says(tmp_path):
    edges = {"size": {"shortest_edge": 64, "longest_edge": 128}}
    made = detector.load(made_folder(tmp_path / "edges", **edges))
    picture = np.full((50, 100, 3), 128, np.uint8)
    seen = []
    made.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    (found,) = made.detect([picture])
    ((pixels, mask),) = seen
    assert pixels.shape == (1, 3, 64, 128)
    assert bool(mask.all())
    wanted = (128 / 255 - torch.tensor(HUB["image_mean"])) / torch.tensor(HUB["image_std"])
    assert torch.allclose(pixels, wanted[None, :, None, None].expand(pixels.shape), atol=1e-5)
    assert all(one.mask.shape == (50, 100) for objects in found.values() for one in objects)


def test_a_folder_that_pads_maps_back_to_the_picture(tmp_path):
    made = detector.load(made_folder(tmp_path, size={"height": 32, "width": 64}, pad_size={"height": 96, "width": 96}))
    picture = noise(1, 48, 48)[0]
    (found,) = made.detect([picture])
    inputs = made.processor([picture], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 96, 96)
    with torch.inference_mode():
        out = made.model(**inputs)
    sizes = Sizes((96, 96), (32, 64), (48, 48))
    assert_equals_by_hand(found, NAMES, out.class_queries_logits[0], out.masks_queries_logits[0], sizes)


def test_the_same_picture_is_seen_the_same_alone_or_among_others(loaded):
    pictures = [*noise(2, 64, 64), noise(1, 40, 72, seed=5)[0]]
    together = loaded.detect(pictures)
    assert all(same(a, b) for a, b in zip(together, loaded.detect(pictures), strict=True))
    for picture, found in zip(pictures, together, strict=True):
        assert same(found, loaded.detect([picture])[0])
    assert not same(together[0], together[1])


def test_array_and_list_are_the_same_and_a_saved_folder_keeps_its_weights(loaded, tmp_path):
    pictures = noise(2, 32, 32)
    a, b = loaded.detect(pictures), detector.load(made_folder(tmp_path)).detect(list(pictures))
    assert all(same(x, y) for x, y in zip(a, b, strict=True))


# --- names ----------------------------------------------------------------------------------------

COCO = [
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator",
    "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
]  # fmt: skip


def test_geneval_renames_three_of_cocos_classes_and_vocs_names_are_read_as_cocos():
    ours = [detector.GENEVAL_NAMES.get(name, name) for name in COCO]
    assert len(set(ours)) == 80
    assert [(a, b) for a, b in zip(COCO, ours, strict=True) if a != b] == [
        ("mouse", "computer mouse"),
        ("remote", "tv remote"),
        ("keyboard", "computer keyboard"),
    ]
    voc = {"motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "potted plant": "pottedplant"}
    voc |= {"dining table": "diningtable", "tv": "tvmonitor"}
    assert [detector.GENEVAL_NAMES.get(voc.get(name, name), voc.get(name, name)) for name in COCO] == ours


def test_a_folder_gives_its_classes_geneval_names_in_their_order(loaded):
    assert loaded.names == NAMES


# --- folders that will not do ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_folder_that_lacks_a_file_is_named_with_it(tmp_path, name):
    (made_folder(tmp_path / "mine") / name).unlink()
    with pytest.raises(ValueError, match=rf"mine: no {name}"):
        detector.load(tmp_path / "mine")


def test_another_architecture_is_refused_by_name(tmp_path):
    test_colours.tiny_clip().save(tmp_path / "clip")
    with pytest.raises(ValueError, match=r"clip: holds CLIPModel, the detector must be Mask2Former"):
        detector.load(tmp_path / "clip")


def cut(path):
    path.write_text(path.read_text()[:-30])


def of_another_shape(path):
    weights = load_file(path)
    weights["class_predictor.bias"] = torch.zeros(3)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "spoil", "told"),
    [
        ("config.json", cut, "config.json: not valid JSON ("),
        ("config.json", lambda path: path.write_text("[]"), "config.json: no JSON object"),
        ("preprocessor_config.json", cut, "preprocessor_config.json: not valid JSON ("),
        ("model.safetensors", of_another_shape, "model.safetensors: 1 weights of another shape than config.json gives"),
        ("model.safetensors", of_another_shape, "(class_predictor.bias: [3] for [5])"),
    ],
)
def test_a_file_that_is_cut_or_does_not_fit_is_named_in_one_line(tmp_path, name, spoil, told):
    spoil(made_folder(tmp_path / "mine") / name)
    with pytest.raises(ValueError) as error:  # noqa: PT011  looked at below
        detector.load(tmp_path / "mine")
    assert str(error.value).startswith(f"{tmp_path}/mine/{name}: ")
    assert told in str(error.value)
    assert str(error.value).endswith("; fetch the folder again")
    assert "\n" not in str(error.value)


def test_weights_that_are_missing_are_named_and_never_random(tmp_path):
    path = made_folder(tmp_path) / "model.safetensors"
    weights = load_file(path)
    weights.pop("class_predictor.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights \(class_predictor\.weight\)"):
        detector.load(tmp_path)
