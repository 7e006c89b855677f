"""Pruning keeps what it says it keeps: with everything kept the network is the same, and the least important goes."""

import pytest
import tiny
import torch

from sana_sprint.models import networks, prune


def output(network, seed=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, tiny.CHANNELS, tiny.SIZE, tiny.SIZE, generator=generator)
    return networks.flow_velocity(network, tiny.text(3))(x, torch.tensor([0.1, 0.5, 0.9]))


def with_gradients(network):
    output(network).square().mean().backward()
    return network


def test_keeping_every_block_is_the_identity():
    teacher = tiny.transformer(num_layers=3)
    assert torch.equal(output(prune.keep_blocks(teacher, [0, 1, 2])), output(teacher))


def test_keeping_all_heads_and_channels_is_the_identity():
    teacher = with_gradients(tiny.transformer())
    assert torch.equal(output(prune.narrow(teacher, 2, 2.0)), output(teacher))


def test_a_block_that_passes_its_input_on_is_the_least_important():
    teacher = tiny.transformer(num_layers=3)
    idle = teacher.transformer_blocks[1]
    with torch.no_grad():
        for layer in (idle.attn1.to_out[0], idle.attn2.to_out[0]):
            layer.weight.zero_()
            layer.bias.zero_()
        idle.ff.conv_point.weight.zero_()
    scores = prune.block_importance(teacher, lambda: output(teacher))
    assert scores.argmin() == 1
    assert scores[1] < 1e-6
    assert torch.allclose(output(prune.keep_blocks(teacher, [0, 2])), output(teacher), atol=1e-6)


def test_channels_without_effect_go_first():
    teacher = tiny.transformer()
    idle = torch.tensor([1, 4, 7, 9, 12, 20, 22, 31])
    with torch.no_grad():
        for block in teacher.transformer_blocks:
            block.ff.conv_point.weight[:, idle] = 0
    smaller = prune.narrow(with_gradients(teacher), 2, 1.5)
    assert smaller.config.mlp_ratio == 1.5
    assert torch.allclose(output(smaller), output(teacher), atol=1e-6)


def test_a_narrower_network_has_the_kept_rows_of_the_best_head():
    teacher = with_gradients(tiny.transformer(num_cross_attention_heads=1, cross_attention_head_dim=16))
    best = int(torch.stack(prune.head_importance(teacher)).sum(0).argmax())
    smaller = prune.narrow(teacher, 1, 2.0)
    rows = slice(best * 8, best * 8 + 8)
    for old, new in zip(teacher.transformer_blocks, smaller.transformer_blocks, strict=True):
        assert torch.equal(new.attn1.to_q.weight, old.attn1.to_q.weight[rows, rows])
    assert torch.isfinite(output(smaller)).all()


def test_a_width_that_cross_attention_cannot_share_is_refused():
    teacher = tiny.transformer(num_cross_attention_heads=16, cross_attention_head_dim=1)
    with pytest.raises(ValueError, match=r"prune.sizes: 1 heads of 8 channels do not fit 16 cross-attention heads"):
        prune.narrow(with_gradients(teacher), 1, 2.0)


def test_a_kept_block_stands_for_the_last_one_before_the_next_that_is_kept():
    assert prune.follows([0, 3, 4], 6) == [2, 3, 5]
    assert prune.follows([0, 1, 2], 3) == [0, 1, 2]
