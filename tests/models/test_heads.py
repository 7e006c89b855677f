"""The heads of LADD: shapes, gradients and the batch norm that keeps to its group."""

from collections.abc import Callable

import pytest
import tiny
import torch
from torch.testing import assert_close

from sana_sprint.maths import ladd, trigflow
from sana_sprint.models import heads
from sana_sprint.models.heads import Heads, LocalBatchNorm

WIDTH, BLOCKS = 16, [0, 2, 3]
TIMES = torch.tensor([0.4, 1.0, 1.4])


def teacher():
    return tiny.transformer(num_layers=4).requires_grad_(False)


def test_logits_are_one_per_token_and_head() -> None:
    features = heads.features(teacher(), BLOCKS, tiny.latents(), TIMES, tiny.text())
    assert [f.shape for f in features] == [(3, tiny.SIZE**2, WIDTH)] * 3
    assert Heads(WIDTH, BLOCKS, 8, "batch")(features).shape == (3, 3 * tiny.SIZE**2)


def test_features_are_the_outputs_of_the_tapped_blocks() -> None:
    network, text, x = teacher(), tiny.text(), tiny.latents()
    with torch.no_grad():
        features = heads.features(network, BLOCKS, x, TIMES, text)
        shallow = tiny.transformer(num_layers=3)
        shallow.load_state_dict({k: v for k, v in network.state_dict().items() if "blocks.3." not in k})
        of_third = heads.features(shallow, [2], x, TIMES, text)[0]
    assert torch.equal(features[1], of_third)
    assert not torch.equal(features[1], features[2])
    assert not any(block._forward_hooks for block in network.transformer_blocks), "no hook stays behind"


def test_blocks_after_the_last_tapped_one_do_not_run_and_stay_in_place() -> None:
    network, ran = teacher(), []
    for index, block in enumerate(network.transformer_blocks):
        block.register_forward_hook(lambda _m, _i, _o, index=index: ran.append(index))
    heads.features(network, [0, 1], tiny.latents(), TIMES, tiny.text())
    assert ran == [0, 1]
    assert len(network.transformer_blocks) == 4


def test_features_see_the_flow_interpolant_of_the_latents() -> None:
    network, text, x, seen = teacher(), tiny.text(), tiny.latents(), []
    network.patch_embed.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    heads.features(network, [0], x, TIMES, text)
    s = trigflow.flow_time(TIMES)[:, None, None, None]
    assert_close(seen[0], (s**2 + (1 - s) ** 2).sqrt() * x)


def test_gradient_reaches_the_picture_and_never_the_teacher() -> None:
    network, judge, x = teacher(), Heads(WIDTH, BLOCKS, 8, "batch"), tiny.latents().requires_grad_()
    ladd.student_loss(judge(heads.features(network, BLOCKS, x, TIMES, tiny.text()))).backward()
    assert (x.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(p.grad is None for p in network.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in judge.parameters())


def test_logits_depend_on_caption_and_time() -> None:
    network, judge, x = teacher(), Heads(WIDTH, BLOCKS, 8, "batch").eval(), tiny.latents()
    with torch.no_grad():
        plain, other_text, other_time = (
            judge(heads.features(network, BLOCKS, x, t, text))
            for t, text in ((TIMES, tiny.text()), (TIMES, tiny.text(seed=7)), (TIMES / 2, tiny.text()))
        )
    assert not torch.allclose(plain, other_text, atol=1e-4)
    assert not torch.allclose(plain, other_time, atol=1e-4)


def accuracy_after(norm: str, fakes: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """The accuracy of a head after 100 steps on standard normal features against those that `fakes` makes of such."""
    torch.manual_seed(0)
    judge = Heads(WIDTH, [0], 8, norm)
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-2)
    for _ in range(100):
        real, fake = torch.randn(8, 16, WIDTH), fakes(torch.randn(8, 16, WIDTH))
        loss = ladd.heads_loss(judge([real]), judge([fake]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return ladd.accuracy(judge([real]), judge([fake])).item()


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_heads_learn_to_tell_two_distributions_apart(norm) -> None:
    assert accuracy_after(norm, lambda x: x**5) > 0.8


def test_batch_norm_hides_a_difference_of_means_that_layer_norm_shows() -> None:
    shift = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    assert accuracy_after("batch", lambda x: x + shift) == pytest.approx(0.5, abs=0.1)
    assert accuracy_after("layer", lambda x: x + shift) > 0.8


def test_misaligned_pairs_change_the_features_of_a_real_picture() -> None:
    network, x, text = teacher(), tiny.latents(), tiny.text()
    aligned, misaligned = (heads.features(network, [3], y, TIMES, text)[0] for y in (x, ladd.misaligned(x)))
    moved_together = heads.features(network, [3], x.roll(1, 0), TIMES.roll(1, 0), text[[2, 0, 1]])[0]
    assert_close(moved_together, aligned.roll(1, 0), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(misaligned, moved_together, atol=1e-3)


@pytest.mark.parametrize(("batch", "group"), [(1, 1), (8, 8), (9, 3), (15, 5), (16, 8), (13, 1), (6, 6)])
def test_local_batch_norm_takes_every_batch_and_never_mixes_groups(batch: int, group: int) -> None:
    x = torch.randn(batch, 5, 12, generator=torch.Generator().manual_seed(batch)) * 3 + 1
    norm = LocalBatchNorm(5, virtual=8, eps=0.0)
    y = norm(x)
    for start in range(0, batch, group):
        own = x[start : start + group]
        mean, std = own.mean((0, 2)), own.std((0, 2), correction=0)
        expected = (own - mean[:, None]) / std[:, None]
        assert_close(y[start : start + group], expected, atol=1e-5, rtol=1e-5)
    if batch > group:
        changed = x.clone()
        changed[0] += torch.randn(5, 12)
        assert torch.equal(norm(changed)[group:], y[group:])


def test_local_batch_norm_scales_and_shifts_per_channel() -> None:
    x, norm = torch.randn(4, 3, 7), LocalBatchNorm(3, virtual=8)
    plain = norm(x)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    expected = plain * torch.tensor([1.0, 2.0, 3.0])[:, None] + torch.tensor([0.0, 1.0, 0.0])[:, None]
    assert_close(norm(x), expected)


def test_convolutions_are_spectrally_normalised() -> None:
    judge = Heads(WIDTH, [0], 8, "batch")
    with torch.no_grad():
        for _ in range(200):
            judge([torch.randn(2, 16, WIDTH)])
    convolutions = [m for m in judge.modules() if isinstance(m, torch.nn.Conv1d)]
    assert len(convolutions) == 3
    judge.eval()
    for convolution in convolutions:
        assert torch.linalg.matrix_norm(convolution.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


def test_a_block_that_the_teacher_lacks_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"distill\.heads\.blocks \[0, 4\].*0 to 3"):
        heads.features(teacher(), [0, 4], tiny.latents(), TIMES, tiny.text())
