"""Inception v3 of FID: its keys, against the same network written straight down, and what load says of a wrong file."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import avg_pool2d, batch_norm, conv2d, interpolate, max_pool2d
from torch.testing import assert_close

from sana_sprint.models import inception

SHAPES = {
    "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
    "Conv2d_1a_3x3.bn.weight": (32,),
    "Conv2d_1a_3x3.bn.bias": (32,),
    "Conv2d_1a_3x3.bn.running_mean": (32,),
    "Conv2d_1a_3x3.bn.running_var": (32,),
    "Conv2d_1a_3x3.bn.num_batches_tracked": (),
    "Conv2d_2a_3x3.conv.weight": (32, 32, 3, 3),
    "Conv2d_2b_3x3.conv.weight": (64, 32, 3, 3),
    "Conv2d_3b_1x1.conv.weight": (80, 64, 1, 1),
    "Conv2d_4a_3x3.conv.weight": (192, 80, 3, 3),
    "Mixed_5b.branch1x1.conv.weight": (64, 192, 1, 1),
    "Mixed_5b.branch5x5_1.conv.weight": (48, 192, 1, 1),
    "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
    "Mixed_5b.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
    "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
    "Mixed_5c.branch_pool.conv.weight": (64, 256, 1, 1),
    "Mixed_5d.branch3x3dbl_2.conv.weight": (96, 64, 3, 3),
    "Mixed_5d.branch_pool.bn.running_var": (64,),
    "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
    "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
    "Mixed_6b.branch7x7_1.conv.weight": (128, 768, 1, 1),
    "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
    "Mixed_6b.branch7x7_3.conv.weight": (192, 128, 7, 1),
    "Mixed_6c.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
    "Mixed_6d.branch7x7dbl_3.conv.weight": (160, 160, 1, 7),
    "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
    "Mixed_6e.branch_pool.conv.weight": (192, 768, 1, 1),
    "Mixed_7a.branch3x3_2.conv.weight": (320, 192, 3, 3),
    "Mixed_7a.branch7x7x3_2.conv.weight": (192, 192, 1, 7),
    "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
    "Mixed_7b.branch1x1.conv.weight": (320, 1280, 1, 1),
    "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
    "Mixed_7b.branch3x3_2b.conv.weight": (384, 384, 3, 1),
    "Mixed_7c.branch3x3dbl_1.conv.weight": (448, 2048, 1, 1),
    "Mixed_7c.branch3x3dbl_2.conv.weight": (384, 448, 3, 3),
    "Mixed_7c.branch3x3dbl_3b.bn.bias": (384,),
    "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1),
    "fc.weight": (1008, 2048),
    "fc.bias": (1008,),
}


@pytest.fixture(scope="module")
def network():
    """Random weights that keep the signal's size, with batch norms of every mean, variance, scale and shift."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = inception.Inception()
        for module in made.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.running_var[0] = 0.002  # where batch norm's eps shows
                module.weight.uniform_(0.8, 1.2)
                module.bias.normal_(0, 0.1)
    return made


@pytest.fixture(scope="module")
def weights(network):
    return {key: tensor.contiguous() for key, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (299, 299), (40, 90), (512, 300)]
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def straight(w, x):
    """The network from a state dict, written down without blocks, tables or modules."""

    def conv(name, x, stride=1, pad=(0, 0)):
        y = conv2d(x, w[f"{name}.conv.weight"], stride=stride, padding=pad)
        of = (w[f"{name}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return batch_norm(y, *of, eps=0.001).relu()

    def mean(x):
        return avg_pool2d(x, 3, 1, 1) / avg_pool2d(torch.ones_like(x), 3, 1, 1)

    x = conv("Conv2d_2b_3x3", conv("Conv2d_2a_3x3", conv("Conv2d_1a_3x3", x, 2)), pad=(1, 1))
    x = max_pool2d(x, 3, 2)
    x = max_pool2d(conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", x)), 3, 2)
    for m in ("Mixed_5b.", "Mixed_5c.", "Mixed_5d."):
        five = conv(m + "branch5x5_2", conv(m + "branch5x5_1", x), pad=(2, 2))
        double = conv(m + "branch3x3dbl_2", conv(m + "branch3x3dbl_1", x), pad=(1, 1))
        double = conv(m + "branch3x3dbl_3", double, pad=(1, 1))
        x = torch.cat([conv(m + "branch1x1", x), five, double, conv(m + "branch_pool", mean(x))], 1)
    m = "Mixed_6a."
    double = conv(m + "branch3x3dbl_2", conv(m + "branch3x3dbl_1", x), pad=(1, 1))
    x = torch.cat([conv(m + "branch3x3", x, 2), conv(m + "branch3x3dbl_3", double, 2), max_pool2d(x, 3, 2)], 1)
    for m in ("Mixed_6b.", "Mixed_6c.", "Mixed_6d.", "Mixed_6e."):
        seven = conv(m + "branch7x7_3", conv(m + "branch7x7_2", conv(m + "branch7x7_1", x), pad=(0, 3)), pad=(3, 0))
        double = conv(m + "branch7x7dbl_2", conv(m + "branch7x7dbl_1", x), pad=(3, 0))
        double = conv(m + "branch7x7dbl_4", conv(m + "branch7x7dbl_3", double, pad=(0, 3)), pad=(3, 0))
        double = conv(m + "branch7x7dbl_5", double, pad=(0, 3))
        x = torch.cat([conv(m + "branch1x1", x), seven, double, conv(m + "branch_pool", mean(x))], 1)
    m = "Mixed_7a."
    three = conv(m + "branch3x3_2", conv(m + "branch3x3_1", x), 2)
    seven = conv(m + "branch7x7x3_2", conv(m + "branch7x7x3_1", x), pad=(0, 3))
    seven = conv(m + "branch7x7x3_4", conv(m + "branch7x7x3_3", seven, pad=(3, 0)), 2)
    x = torch.cat([three, seven, max_pool2d(x, 3, 2)], 1)
    for m, pool in (("Mixed_7b.", mean), ("Mixed_7c.", lambda x: max_pool2d(x, 3, 1, 1))):
        three = conv(m + "branch3x3_1", x)
        three = [conv(m + "branch3x3_2a", three, pad=(0, 1)), conv(m + "branch3x3_2b", three, pad=(1, 0))]
        double = conv(m + "branch3x3dbl_2", conv(m + "branch3x3dbl_1", x), pad=(1, 1))
        double = [conv(m + "branch3x3dbl_3a", double, pad=(0, 1)), conv(m + "branch3x3dbl_3b", double, pad=(1, 0))]
        x = torch.cat([conv(m + "branch1x1", x), *three, *double, conv(m + "branch_pool", pool(x))], 1)
    return x.flatten(2).mean(2)


def test_keys_and_shapes_are_torchvisions(network):
    state = network.state_dict()
    assert {key: tuple(state[key].shape) for key in SHAPES} == SHAPES
    # 5 of the stem, 3 x 7 on the grid of 35, 4 between, 4 x 10 on that of 17, 6 between, 2 x 9 on that of 8
    convolutions = 5 + 21 + 4 + 40 + 6 + 18
    assert len(state) == 6 * convolutions + 2
    assert {key.rsplit(".", 2)[-2] for key in state} == {"conv", "bn", "fc"}


def test_parameters_are_as_many_as_torchvisions():
    of_1000_classes = 23_834_568  # torchvision's Inception3(num_classes=1000, aux_logits=False)
    expected = of_1000_classes + 8 * (2048 + 1)
    assert expected == 23_850_960
    with torch.device("meta"):
        assert sum(p.numel() for p in inception.Inception().parameters()) == expected


def test_grids_are_35_17_and_8(network):
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, y, name=name: seen.__setitem__(name, tuple(y.shape[1:])))
        for name, module in network.named_children()
    ]
    network(torch.zeros(1, 3, 299, 299))
    for hook in hooks:
        hook.remove()
    assert seen["Conv2d_1a_3x3"] == (32, 149, 149)
    assert seen["Conv2d_2a_3x3"] == (32, 147, 147)
    assert seen["Conv2d_2b_3x3"] == (64, 147, 147)
    assert seen["Conv2d_4a_3x3"] == (192, 71, 71)
    assert [seen[f"Mixed_5{c}"] for c in "bcd"] == [(256, 35, 35), (288, 35, 35), (288, 35, 35)]
    assert [seen[f"Mixed_6{c}"] for c in "abcde"] == [(768, 17, 17)] * 5
    assert [seen[f"Mixed_7{c}"] for c in "abc"] == [(1280, 8, 8), (2048, 8, 8), (2048, 8, 8)]


def test_features_are_those_of_the_network_written_straight_down(network, weights, pictures):
    x = torch.stack([inception.prepared(p) for p in pictures[:2]])
    ours, theirs = network(x), straight(weights, x)
    assert ours.shape == (2, 2048)
    assert (theirs[0] - theirs[1]).abs().mean() > 0.01 * theirs.abs().mean(), "the features must see the picture"
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().mean().item())


@pytest.mark.parametrize("name", ["Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6e", "Mixed_7b"])
def test_means_leave_the_padding_out(network, name):
    block = network.get_submodule(name)
    constant = torch.full((1, block.branch_pool.conv.in_channels, 6, 6), 2.0)
    flat = block.branch_pool(constant)
    assert_close(block(constant)[:, -flat.shape[1] :], flat)  # at the border too


@pytest.mark.parametrize(("name", "is_maximum"), [("Mixed_7b", False), ("Mixed_7c", True)])
def test_the_last_block_alone_pools_by_maximum(network, name, is_maximum):
    block = network.get_submodule(name)
    peak = torch.zeros(1, block.branch_pool.conv.in_channels, 5, 5)
    peak[..., 2, 2] = 3.0
    spread = torch.zeros_like(peak)
    spread[..., 1:4, 1:4] = 3.0
    assert torch.allclose(block(peak)[:, -192:], block.branch_pool(spread)) == is_maximum


def test_features_are_independent_of_the_batch(network, pictures):
    whole = network.features(pictures, 4)
    assert whole.shape == (4, 2048)
    assert whole.dtype == torch.float32
    for batch in (1, 3, 50):
        assert_close(network.features(pictures, batch), whole, rtol=1e-5, atol=1e-5 * whole.abs().mean().item())
    assert network.features([], 2).shape == (0, 2048)


def test_pictures_are_resized_without_antialiasing_to_minus_one_to_one(pictures):
    for picture in pictures:
        x = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
        theirs = interpolate(x, (299, 299), mode="bilinear", align_corners=False, antialias=False)[0] * 2 - 1
        assert_close(inception.prepared(picture), theirs)
    for level, expected in ((0, -1.0), (255, 1.0)):
        plain = inception.prepared(np.full((8, 8, 3), level, np.uint8))
        assert_close(plain, torch.full((3, 299, 299), expected))
    fine = np.zeros((598, 598, 3), np.uint8)
    fine[::4] = 255  # every second row of the small picture is half of one of these: no filter reaches the next
    assert sorted(inception.prepared(fine).unique().tolist()) == [-1.0, 0.0]


@pytest.mark.parametrize("picture", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4))])
def test_other_than_rgb_uint8_is_refused(network, picture):
    with pytest.raises(ValueError, match=r"RGB uint8 pictures \(H, W, 3\), not"):
        network.features([picture], 1)


def test_load_returns_the_network_of_the_file(network, weights, pictures, tmp_path):
    save_file(weights, tmp_path / inception.WEIGHTS)
    state = torch.random.get_rng_state()
    loaded = inception.load(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not loaded.training
    assert torch.equal(loaded.features(pictures[:1], 1), network.features(pictures[:1], 1))


def test_the_remedy_in_the_message_converts_the_public_file(network, weights, pictures, tmp_path):
    old = {k: v for k, v in weights.items() if "num_batches_tracked" not in k}
    old["fc.weight"] = old["fc.weight"].T.contiguous().T  # as weights that were transposed come
    torch.save(old, tmp_path / "pt_inception-2015-12-05-6726825d.pth")
    with pytest.raises(ValueError, match=inception.WEIGHTS) as caught:
        inception.load(tmp_path)
    line = re.search(r'python -c "(.*)"', str(caught.value)).group(1)
    subprocess.run([sys.executable, "-c", line], cwd=tmp_path, check=True)
    assert load_file(tmp_path / inception.WEIGHTS).keys() == old.keys()
    assert torch.equal(inception.load(tmp_path).features(pictures[:1], 1), network.features(pictures[:1], 1))


def refusal(folder):
    with pytest.raises(ValueError, match=r"torch\.load\(.*weights_only=True\).*save_file") as caught:
        inception.load(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    assert f"{tmp_path / 'nowhere'}: no model.safetensors" in refusal(tmp_path / "nowhere")


def test_a_file_of_another_kind_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / inception.WEIGHTS)
    assert "broken safetensors file" in refusal(tmp_path)


def test_keys_and_shapes_that_do_not_fit_are_named(weights, tmp_path):
    wrong = weights | {"AuxLogits.fc.bias": torch.zeros(8), "fc.bias": torch.zeros(1000)}
    del wrong["Mixed_6b.branch1x1.bn.weight"]
    save_file(wrong, tmp_path / inception.WEIGHTS)
    message = refusal(tmp_path)
    for part in (
        "missing Mixed_6b.branch1x1.bn.weight; ",
        "unexpected AuxLogits.fc.bias; ",
        "wrong shape fc.bias [1000] for [1008]; ",
    ):
        assert part in message


def test_one_wrong_key_or_shape_is_enough(weights, tmp_path):
    for change in ({"more": torch.zeros(1)}, {"fc.weight": torch.zeros(1000, 2048)}):
        save_file(weights | change, tmp_path / inception.WEIGHTS)
        assert next(iter(change)) in refusal(tmp_path)
    save_file({k: v for k, v in weights.items() if k != "fc.bias"}, tmp_path / inception.WEIGHTS)
    assert "missing fc.bias" in refusal(tmp_path)
