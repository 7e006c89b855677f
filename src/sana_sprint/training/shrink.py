"""From teacher to pruned and healed student: depth, width, guidance embedding, healing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sana_sprint.data.loader import Latents
from sana_sprint.maths import flow as flow_maths
from sana_sprint.maths import importance, times
from sana_sprint.models import bundle, networks, passes, prune
from sana_sprint.models.networks import Text
from sana_sprint.training import draws

if TYPE_CHECKING:
    from collections.abc import Iterator

    import lightning as L
    from diffusers import SanaTransformer2DModel

    from sana_sprint.config import Prune, Size
    from sana_sprint.training.kept import Kept


def cut(
    params: Prune, size: Size, teacher: SanaTransformer2DModel, data: Latents
) -> tuple[prune.Cut, dict[str, float]]:
    """Returns the teacher cut to a size with a silent guidance embedder, and the importance of every block. Raises
    ValueError for a size larger than the teacher."""
    config = teacher.config
    if size.layers > config.num_layers or size.heads > config.num_attention_heads:
        raise ValueError(
            f"prune.sizes: {size.layers} layers and {size.heads} heads do not fit into a teacher of "
            f"{config.num_layers} layers and {config.num_attention_heads} heads"
        )
    scores = prune.block_importance(teacher, lambda: [*calibrate(params, teacher, data)])
    kept = importance.keep(scores, size.layers)
    smaller = prune.keep_blocks(teacher, kept)
    channels = torch.arange(config.num_attention_heads * config.attention_head_dim)
    if size.heads < config.num_attention_heads or size.mlp_ratio < config.mlp_ratio:
        for loss in calibrate(params, smaller, data):
            loss.backward()
        channels = prune.kept_channels(smaller, size.heads)
        smaller = prune.narrow(smaller, size.heads, size.mlp_ratio)
    found = {f"block_importance/{i}": float(score) for i, score in enumerate(scores)}
    torch.manual_seed(params.seed)  # the guidance embedder is drawn
    follows = prune.follows(kept, config.num_layers)
    return prune.Cut(networks.embed_guidance(smaller), follows, channels), found


def calibrate(params: Prune, network: SanaTransformer2DModel, data: Latents) -> Iterator[torch.Tensor]:
    """Yields the flow loss of a network on the calibration samples, over all times, in the parts of as many passes as
    SANA_SPRINT_MICRO_BATCH asks for; their sum is the mean over all samples."""
    rows = data.batch(0, params.calibration_samples, params.seed)
    count, device = draws.passes_of(len(rows)), next(network.parameters()).device
    numbers = draws.Draws(params.seed, 0, len(rows), draws.Share(0, 1), device)
    for some, own in zip(rows.chunk(count), numbers.parts(count), strict=True):
        x_0 = data.x[some].to(device)
        s_B = times.logit_normal(own.normal(), params.healing.time_mean, params.healing.time_std)
        z = own.normal(*x_0.shape[1:])
        v = networks.flow_velocity(network, Text(*data.text(some)).to(device))
        yield flow_maths.loss(v(flow_maths.interpolate(x_0, z, s_B), s_B), x_0, z) / count


def heal(
    params: Prune,
    name: str,
    cut: prune.Cut,
    teacher: Path,
    data: Latents,
    extra: list[L.Callback],
    kept: Kept | None = None,
) -> SanaTransformer2DModel:
    """Returns the healed student's EMA; with `kept` it goes on from where a run that was killed has come."""
    from sana_sprint.training import flow  # with Lightning, which cutting does without

    torch.manual_seed(params.seed)
    cut.network.train()
    module = flow.Healing(cut, bundle.load_transformer(teacher), Text(*data.null), params)
    passes.arrange(module.teacher, module.transformer)
    steps = params.healing.steps
    batches = draws.Batches(data, params.healing.batch, params.seed, steps, draws.Share(0, 1))
    flow.fit(module, batches, steps, extra, f"heal {name}", params.precision, kept)
    return module.averaged.eval()
