"""The SANA networks as functions of maths: teacher and student around diffusers' SanaTransformer2DModel.

Text is closed over, so that every loss and sampler sees (latents, time_B) -> velocity. Time reaches the network as
the paper's dense c_noise: flow time s in [0, 1] for teacher and student, 1000 s for the base model
(arXiv:2503.09641, section 3.1.1).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sana_sprint.maths import flow, trigflow
from sana_sprint.models import attention

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from diffusers import SanaTransformer2DModel

    from sana_sprint.maths.trigflow import Velocity


@dataclass(frozen=True)
class Text:
    """Caption embeddings (B, L, D) and their attention mask (B, L), 1 where a token stands."""

    embeds: Tensor
    mask: Tensor

    def __getitem__(self, rows: Any) -> Text:
        """Returns the captions of some rows."""
        return Text(self.embeds[rows], self.mask[rows])

    def repeat(self, times: int) -> Text:
        """Returns the captions stacked `times` times along the batch."""
        return Text(self.embeds.repeat(times, 1, 1), self.mask.repeat(times, 1))

    def to(self, device: torch.device | str) -> Text:
        """Returns the captions on a device."""
        return Text(self.embeds.to(device), self.mask.to(device))

    def chunk(self, count: int) -> list[Text]:
        """Returns the captions in `count` equal parts."""
        return [Text(*part) for part in zip(self.embeds.chunk(count), self.mask.chunk(count), strict=True)]

    def __len__(self) -> int:
        """Returns the number of captions."""
        return len(self.embeds)


def cat(*texts: Text) -> Text:
    """Returns captions joined along the batch."""
    return Text(torch.cat([t.embeds for t in texts]), torch.cat([t.mask for t in texts]))


def time_scale(transformer: SanaTransformer2DModel) -> float:
    """Returns the factor on flow time s: 1 for a network with dense time, 1000 for the base model. SanaPipeline
    multiplies times in [0, 1000] by `timestep_scale`; SanaSprintPipeline passes s itself."""
    config = transformer.config
    return 1.0 if config.guidance_embeds else 1000.0 * config.timestep_scale


def keep_float32(transformer: SanaTransformer2DModel) -> None:
    """Makes the network compute its time embedding and the products of its linear attention in float32 under any
    autocast: in bfloat16 the sines of time take 44 distinct values of 2000 near pi/2."""
    attention.in_float32(transformer)
    inner = type(transformer.time_embed).forward

    def forward(self: nn.Module, timestep: Tensor, *args: Any, **kwargs: Any) -> Any:
        kwargs["hidden_dtype"] = torch.float32
        with torch.autocast(timestep.device.type, enabled=False):
            return inner(self, timestep.float(), *args, **kwargs)

    transformer.time_embed.forward = partial(forward, transformer.time_embed)


def flow_velocity(transformer: SanaTransformer2DModel, text: Text, guidance_B: Tensor | None = None) -> Velocity:
    """Returns v(x_s, s_B), the network's rectified-flow velocity for these captions. `guidance_B` is the guidance
    scale embedded by a student; a teacher takes none."""
    scale = time_scale(transformer)
    extra = {}
    if guidance_B is not None:
        extra["guidance"] = guidance_B * transformer.config.guidance_embeds_scale

    def v(x_s: Tensor, s_B: Tensor) -> Tensor:
        return transformer(
            x_s,
            encoder_hidden_states=text.embeds,
            timestep=s_B * scale,
            encoder_attention_mask=text.mask,
            return_dict=False,
            **extra,
        )[0]

    return v


def guided_velocity(transformer: SanaTransformer2DModel, text: Text, null: Text, scale_B: Tensor) -> Velocity:
    """Returns the teacher's classifier-free guided velocity, both passes in one batch. `null` holds one row, the
    embedding of the empty caption with its own mask."""
    both = cat(Text(null.embeds.expand_as(text.embeds), null.mask.expand_as(text.mask)), text)
    v = flow_velocity(transformer, both)

    def guided(x_s: Tensor, s_B: Tensor) -> Tensor:
        v_uncond, v_cond = v(x_s.repeat(2, 1, 1, 1), s_B.repeat(2)).chunk(2)
        return flow.guided(v_uncond, v_cond, scale_B)

    return guided


def guided_teacher(transformer: SanaTransformer2DModel, text: Text, null: Text, scale_B: Tensor) -> Velocity:
    """Returns F(x_t / sigma_d, t) of the guided teacher in TrigFlow."""
    return trigflow.from_flow(guided_velocity(transformer, text, null, scale_B))


@contextmanager
def first_blocks(transformer: SanaTransformer2DModel, count: int) -> Iterator[None]:
    """Within the block a pass ends after the first `count` blocks, and what follows them has no meaning."""
    every = transformer.transformer_blocks
    transformer.transformer_blocks = every[:count]
    try:
        yield
    finally:
        transformer.transformer_blocks = every


@contextmanager
def block_outputs(transformer: SanaTransformer2DModel, blocks: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Yields what the newest pass made inside gave at these blocks, counted from 0: block to output (B, N, width)."""
    seen: dict[int, Tensor] = {}
    hooks = [
        transformer.transformer_blocks[i].register_forward_hook(
            lambda _module, _inputs, output, i=i: seen.__setitem__(i, output)
        )
        for i in blocks
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


class Student(nn.Module):
    """A guidance-embedded SANA in TrigFlow with the learned log-variance of its sCM loss.

    The log-variance is a linear map of the time and guidance embedding, Xavier weight and zero bias
    (arXiv:2410.11081, section 4.2).
    """

    def __init__(self, transformer: SanaTransformer2DModel) -> None:
        super().__init__()
        if not transformer.config.guidance_embeds:
            raise ValueError("a student needs guidance_embeds: true in its transformer's config.json")
        self.transformer = transformer
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        self.logvar = nn.Linear(width, 1)
        nn.init.xavier_uniform_(self.logvar.weight)
        nn.init.zeros_(self.logvar.bias)

    def velocity(self, text: Text, guidance_B: Tensor) -> Velocity:
        """Returns F(x_t / sigma_d, t) for these captions and guidance scales."""
        return trigflow.from_flow(flow_velocity(self.transformer, text, guidance_B))

    def log_variance(self, t_B: Tensor, guidance_B: Tensor) -> Tensor:
        """Returns the log-variance (B,) that weighs the sCM loss at times t_B, float32 under any autocast: near -10,
        where a large model's lies, neighbours in bfloat16 are .06 apart, which is 6 % of the weight."""
        guidance = guidance_B * self.transformer.config.guidance_embeds_scale
        time_embed = self.transformer.time_embed
        with torch.autocast(t_B.device.type, enabled=False):
            conditioning = time_embed(trigflow.flow_time(t_B), guidance=guidance, hidden_dtype=t_B.dtype)[1]
            return self.logvar(conditioning).squeeze(1)


def reshaped(network: SanaTransformer2DModel, **changes: object) -> SanaTransformer2DModel:
    """Returns a network of the same class and config but for `changes`, with random weights. `from_config` drops
    what the private key _use_default_values names, so the private keys stay behind."""
    config = {key: value for key, value in network.config.items() if not key.startswith("_")}
    return type(network).from_config(config | changes)


def embed_guidance(teacher: SanaTransformer2DModel) -> SanaTransformer2DModel:
    """Returns a student network: the teacher's weights plus a guidance embedder that starts silent. Only its last
    layer is zero, so that it receives gradient from the first step on (with all layers zero, as in a public script,
    the guidance scale is ignored for ever)."""
    if time_scale(teacher) != 1:
        scale = teacher.config.timestep_scale
        raise ValueError(f"a student needs a teacher of dense time: timestep_scale is {scale}, not 0.001")
    student = reshaped(teacher, guidance_embeds=True, timestep_scale=1.0)
    embedder = student.time_embed.guidance_embedder
    nn.init.normal_(embedder.linear_1.weight, std=0.02)
    nn.init.zeros_(embedder.linear_1.bias)
    nn.init.zeros_(embedder.linear_2.weight)
    nn.init.zeros_(embedder.linear_2.bias)
    rename = {"time_embed.emb.timestep_embedder.": "time_embed.timestep_embedder."}
    weights = teacher.state_dict()
    for old, new in rename.items():
        weights = {new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in weights.items()}
    silent = {k: v for k, v in student.state_dict().items() if ".guidance_embedder." in k}
    student.load_state_dict(weights | silent, strict=True)
    return student
