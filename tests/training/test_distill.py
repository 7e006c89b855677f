"""Each turn moves its own weights only, steps are functions of (seed, step), and resuming changes nothing."""

import copy

import lightning as L
import pytest
import tiny
import torch
from torch.utils.data import DataLoader

from sana_sprint.data.loader import Latents
from sana_sprint.models import networks
from sana_sprint.models.networks import Text
from sana_sprint.training import batches, checkpoints, distill, draws, health, saving

SIGMA_D = 0.5
ONE = draws.Share(0, 1)


def module(latents_folder, params, share=ONE):
    teacher = tiny.transformer()
    torch.manual_seed(1)
    student = networks.embed_guidance(teacher)
    null = Text(*Latents(latents_folder, "train").null)
    return distill.Distillation(student, teacher, null, params, SIGMA_D, share)


def run(made, latents_folder, params, start, stop, extra=()):
    steps = params.turns * params.iterations
    data = batches.Pairs(Latents(latents_folder, "train"), params.global_batch, params.seed, steps, made.share)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(extra),
    )
    trainer.fit(made, DataLoader(data, batch_size=None, sampler=range(start, stop)))
    return trainer


def weights(network):
    return {k: v.detach().clone() for k, v in network.state_dict().items()}


def moved(before, network):
    return {k for k, v in network.state_dict().items() if not torch.equal(before[k], v)}


def test_the_student_turn_moves_student_and_average_and_never_heads_or_teacher(latents_folder, distill_params):
    made = module(latents_folder, distill_params)
    before = {n: weights(getattr(made, n)) for n in ("student", "heads")}
    teacher = weights(made._teacher[0])
    run(made, latents_folder, distill_params, 0, 1)
    still = {k for k in before["student"] if k not in moved(before["student"], made.student)}
    assert moved(before["student"], made.student)
    assert not {k for k in still if "linear_1" not in k and "guidance" in k and "linear_2.weight" in k}
    heads_moved = {k for k in moved(before["heads"], made.heads) if not k.endswith((".0._u", ".0._v"))}
    assert not heads_moved  # the power iteration of spectral norm is no training
    assert not moved(teacher, made._teacher[0])
    assert all(p.grad is None for p in made._teacher[0].parameters())


def test_the_heads_turn_moves_the_heads_alone(latents_folder, distill_params):
    made = module(latents_folder, distill_params)
    before = {n: weights(getattr(made, n)) for n in ("student", "averaged", "heads")}
    run(made, latents_folder, distill_params, 1, 2)
    assert not moved(before["student"], made.student)
    assert not moved(before["averaged"], made.averaged)
    assert {k for k in moved(before["heads"], made.heads) if k.endswith("original")}


def test_real_fake_and_misaligned_meet_the_same_heads(latents_folder, distill_params):
    made, twin = (module(latents_folder, distill_params) for _ in range(2))
    batch = batches.Pairs(Latents(latents_folder, "train"), 8, 0, 1, ONE)[0]
    seen = distill.Seen(batch["x_0"], batch["misaligned"], draws.text_of(batch), draws.Draws(0, 0, 8, ONE, "cpu"), 0, 1)
    made.logits([seen.x_0, seen.x_0, seen.misaligned], seen)
    twin.logits([seen.x_0], seen)
    assert not moved(weights(made.heads), twin.heads)  # a power iteration a step, however many sets


def test_every_guidance_weight_moves_and_the_output_depends_on_guidance(latents_folder, distill_params):
    made = module(latents_folder, distill_params)
    before = weights(made.student.transformer.time_embed.guidance_embedder)
    run(made, latents_folder, distill_params, 0, 5)
    assert moved(before, made.student.transformer.time_embed.guidance_embedder) == set(before)
    x, t_B = torch.randn(3, tiny.CHANNELS, tiny.SIZE, tiny.SIZE), torch.full((3,), 1.0)
    low, high = (made.student.velocity(tiny.text(3), torch.full((3,), s))(x, t_B) for s in (1.0, 4.0))
    assert (low - high).abs().max() > 1e-6


def test_the_average_is_the_closed_form_of_the_students(latents_folder, distill_params):
    made = module(latents_folder, distill_params)
    name = "transformer.proj_out.weight"
    expected = made.student.state_dict()[name].clone()

    class Follow(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            nonlocal expected
            if batch["step"] % 2 == 0:
                k = batch["step"] // 2
                d = min(distill_params.ema_decay, (1 + k) / (10 + k))
                expected = d * expected + (1 - d) * pl_module.student.state_dict()[name]

    run(made, latents_folder, distill_params, 0, 8, [Follow()])
    assert torch.allclose(made.averaged.state_dict()[name], expected, atol=1e-7)


@pytest.mark.parametrize("recipe", ["sprint", "sprint_dmd", "scm"])
def test_resuming_from_a_checkpoint_ends_bit_for_bit_where_a_straight_run_ends(
    latents_folder, distill_params, tmp_path, recipe
):
    params = distill_params.model_copy(update={"recipe": recipe})
    turns = params.turns
    steps = turns * params.iterations
    straight = module(latents_folder, params)
    run(straight, latents_folder, params, 0, steps)

    first = module(latents_folder, params)
    well = health.Health(params)
    keep = saving.Checkpoints(tmp_path, None, "key", params, well)
    run(first, latents_folder, params, 0, 2 * turns, [keep])
    source = checkpoints.newest(tmp_path, "key")
    assert source is not None
    assert source.name == "step-0000002"
    resumed = module(latents_folder, params)
    again = saving.Checkpoints(tmp_path, source, "key", params, well)
    run(resumed, latents_folder, params, 2 * turns, steps, [again])
    for name in straight.networks:
        assert not moved(weights(getattr(straight, name)), getattr(resumed, name)), name
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-0000004", "step-0000006"]


def test_a_fault_of_the_last_iteration_alone_withholds_no_checkpoint(latents_folder, distill_params, tmp_path):
    limits = distill_params.health.model_copy(update={"grad_norm_max": 1e-9, "patience_iterations": 100})
    params = distill_params.model_copy(update={"health": limits, "iterations": 1})
    watch = health.Health(params)
    keep = saving.Checkpoints(tmp_path, None, "key", params, watch)
    run(module(latents_folder, params), latents_folder, params, 0, 2 * params.iterations, [watch, keep])
    assert not watch.well
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-0000001"]


def test_checkpoints_of_other_params_are_removed_and_broken_ones_named(
    latents_folder, distill_params, tmp_path, capsys
):
    made = module(latents_folder, distill_params)
    optimizers = made.configure_optimizers()
    _, whole, cut = (
        saving.save(tmp_path, made, optimizers, {"iteration": k, "key": "key", "proved": 0}, 3) for k in (2, 4, 6)
    )
    (cut / "heads.safetensors").write_bytes((cut / "heads.safetensors").read_bytes()[:100])
    assert checkpoints.newest(tmp_path, "key") == whole
    assert "step-0000006: half-written checkpoint (heads.safetensors" in capsys.readouterr().err
    assert checkpoints.newest(tmp_path, "another key") is None
    assert not whole.exists()


def test_a_checkpoint_that_cannot_be_read_now_is_no_broken_one(latents_folder, distill_params, tmp_path):
    """A storage that fails for a while would else cost all that has been trained."""
    made = module(latents_folder, distill_params)
    optimizers = made.configure_optimizers()
    before, path = (
        saving.save(tmp_path, made, optimizers, {"iteration": k, "key": "key", "proved": 0}, 3) for k in (2, 4)
    )
    state = path / checkpoints.STATE
    content = state.read_text()
    state.unlink()
    state.symlink_to(state.name)  # a loop: there, and for the system not readable
    with pytest.raises(OSError, match=r"step-0000004/checkpoint\.json"):
        checkpoints.newest(tmp_path, "key")
    state.unlink()
    state.write_text(content)
    assert checkpoints.newest(tmp_path, "key") == path
    assert before.exists()


def test_a_checkpoint_that_cannot_be_read_now_hinders_no_later_one(latents_folder, distill_params, tmp_path):
    made = module(latents_folder, distill_params)
    optimizers = made.configure_optimizers()

    def save(iteration):
        scores = {"1": 0.1 * iteration}
        state = {"iteration": iteration, "key": "key", "proved": iteration, "scores": scores}
        return saving.save(tmp_path, made, optimizers, state, 1)

    (save(2) / checkpoints.STATE).unlink()
    (tmp_path / "step-0000002" / checkpoints.STATE).symlink_to(checkpoints.STATE)
    newest = [save(4), save(6)][-1]
    assert list(tmp_path.glob("step-*")) == [newest]
    assert checkpoints.newest(tmp_path, "key") == newest


def test_two_shares_of_a_batch_draw_the_numbers_of_one(latents_folder, distill_params):
    whole = draws.Draws(3, 5, 8, ONE, "cpu")
    halves = [draws.Draws(3, 5, 8, draws.Share(r, 2), "cpu") for r in (0, 1)]
    for draw in (lambda d: d.normal(2, 2), lambda d: d.uniform(), lambda d: d.choice([2.0, 3.0])):
        assert torch.equal(draw(whole), torch.cat([draw(h) for h in halves]))
    with pytest.raises(ValueError, match="cannot be shared by 3 workers"):
        draws.Draws(3, 5, 8, draws.Share(0, 3), "cpu").uniform()


def test_one_batch_can_be_learnt_by_heart(latents_folder, distill_params):
    """sCM alone on one batch at fixed draws: the loss against the first step's target falls."""
    params = distill_params.model_copy(update={"recipe": "scm", "tangent_warmup_iterations": 0})
    made = module(latents_folder, params)
    data = draws.Batches(Latents(latents_folder, "train"), 8, 0, 1, ONE)[0]
    text, x_0 = draws.text_of(data), data["x_0"] * SIGMA_D
    optimizer = torch.optim.AdamW(made.student.parameters(), lr=2e-3)
    frozen = copy.deepcopy(made.student)
    losses = []
    for _ in range(30):
        seen = distill.Seen(x_0, x_0[:0], text, draws.Draws(0, 0, 8, ONE, "cpu"), 10, 0)
        found = made.student_losses(seen)[0]["student/scm"]
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        losses.append(found.item())
    assert losses[-1] < losses[0] - 0.05
    assert moved(weights(frozen), made.student)
