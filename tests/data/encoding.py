"""The stage encode as its tests call it."""

from sana_sprint import config
from sana_sprint.data import latents


def encoding(batch: int = 7, dtype: str = "float32") -> config.Encode:
    return config.Encode(batch=batch, dtype=dtype)


def sampling(max_tokens: int = 12, instruction=()) -> config.Sampling:
    return config.Sampling(
        height_px=32,
        width_px=32,
        guidance=3.0,
        teacher_guidance=3.0,
        teacher_steps=4,
        teacher_shift=3.0,
        max_tokens=max_tokens,
        instruction=list(instruction),
        times={"1": [1.57, 0.0]},
    )


def encode(raw, foundation, out, batch=7, dtype="float32", **prompt):
    return latents.encode(encoding(batch, dtype), sampling(**prompt), raw, foundation, out)
