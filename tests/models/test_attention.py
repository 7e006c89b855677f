"""Linear attention: diffusers' own where nothing is rounded, float32 products where autocast would round them."""

import pytest
import tiny
import torch
from diffusers.models.attention_processor import SanaLinearAttnProcessor2_0
from torch import nn

from sana_sprint.models import attention, networks

TOKENS, WIDTH = 4096, 16


def block(**config) -> nn.Module:
    return tiny.transformer(**config).transformer_blocks[0].attn1


@pytest.mark.parametrize("qk_norm", ["rms_norm_across_heads", None])
def test_without_autocast_it_is_diffusers_to_the_bit(qk_norm) -> None:
    attn = block(qk_norm=qk_norm)
    x = torch.randn(3, 50, WIDTH)
    assert isinstance(attn.processor, SanaLinearAttnProcessor2_0)
    with torch.no_grad():
        theirs = attn(x)
        attn.set_processor(attention.LinearAttention())
        assert torch.equal(attn(x), theirs)


def test_under_autocast_sums_over_many_tokens_keep_float32() -> None:
    """The error against float32 is that of the rounded projections alone, not of rounded sums too."""
    attn = block()
    torch.manual_seed(0)
    x = torch.randn(1, TOKENS, WIDTH).bfloat16().float() + 1  # all tokens alike: the sums are large
    with torch.no_grad():
        exact = attn(x)
        error = {}
        for name, processor in (("theirs", SanaLinearAttnProcessor2_0()), ("ours", attention.LinearAttention())):
            attn.set_processor(processor)
            with torch.autocast("cpu", torch.bfloat16):
                seen = attn(x)
            error[name] = ((seen - exact).norm() / exact.norm()).item()
    assert error["ours"] < 0.01
    assert error["ours"] < 0.8 * error["theirs"]


def test_every_block_of_a_network_gets_it_and_velocity_keeps_its_bits() -> None:
    network, text, x = tiny.transformer(), tiny.text(), tiny.latents()
    s_B = torch.tensor([0.2, 0.5, 0.9])
    with torch.no_grad():
        before = networks.flow_velocity(network, text)(x, s_B)
        networks.keep_float32(network)
        assert torch.equal(networks.flow_velocity(network, text)(x, s_B), before)
    assert all(isinstance(b.attn1.processor, attention.LinearAttention) for b in network.transformer_blocks)
