"""The lossless conversion to TrigFlow (arXiv:2503.09641, proposition 3.1): no training, no changed weight, and the
proof on the network itself."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch

from sana_sprint.data.loader import Latents
from sana_sprint.maths import sample, trigflow
from sana_sprint.models import networks
from sana_sprint.models.networks import Text

if TYPE_CHECKING:
    from diffusers import SanaTransformer2DModel

    from sana_sprint.config import Convert


@torch.inference_mode()
def prove(
    params: Convert, student: SanaTransformer2DModel, data: Latents, guidance: float, sigma_d: float
) -> dict[str, float]:
    """Returns the largest absolute errors of (1) velocity -> F -> velocity in float64 and (2) the same ODE sampled in
    flow and in TrigFlow, in float32, relative to the latents' deviation. Raises ValueError above the tolerances."""
    rows = data.batch(0, params.samples, params.seed)
    generator = torch.Generator().manual_seed(params.seed)
    noise = torch.randn(data.x[rows].shape, generator=generator)
    s_B = torch.linspace(0.02, 0.98, len(rows), dtype=torch.float64)
    text, guidance_B = Text(*data.text(rows)), torch.full((len(rows),), guidance)
    errors = {
        "round_trip_error": round_trip(student, text, guidance_B, noise, s_B),
        "sampling_error": sampling(params, student, text, guidance_B, noise, sigma_d),
    }
    for name, limit in (
        ("round_trip_error", params.round_trip_tolerance),
        ("sampling_error", params.sampling_tolerance),
    ):
        if not errors[name] <= limit:
            raise ValueError(f"convert.{name} is {errors[name]:.3g}, above {limit:.3g}: the map lost something")
    return errors


def round_trip(
    student: SanaTransformer2DModel,
    text: Text,
    guidance_B: torch.Tensor,
    noise: torch.Tensor,
    s_B: torch.Tensor,
) -> float:
    """Returns max |v - to_flow(from_flow(v))| in float64."""
    exact = copy.deepcopy(student).double()
    wide = Text(text.embeds.double(), text.mask)
    v = networks.flow_velocity(exact, wide, guidance_B.double())
    back = trigflow.to_flow(trigflow.from_flow(v))
    return float((v(noise.double(), s_B) - back(noise.double(), s_B)).abs().max())


def sampling(
    params: Convert,
    student: SanaTransformer2DModel,
    text: Text,
    guidance_B: torch.Tensor,
    noise: torch.Tensor,
    sigma_d: float,
) -> float:
    """Returns the largest difference between the Euler path of the flow and the rotation path of TrigFlow over the
    same times, divided by the latents' deviation. Both are first-order and coincide exactly for equal signal-to-noise
    steps."""
    flow_times = torch.linspace(1, 0, params.steps + 1, dtype=torch.float64)
    trig_times = trigflow.trig_time(flow_times).tolist()
    v = networks.flow_velocity(student, text, guidance_B)
    straight = sample.flow_ode(v, noise, flow_times.tolist())
    turned = sample.ode(trigflow.from_flow(v), noise, trig_times, sigma_d)
    assert math.isclose(trig_times[0], math.pi / 2)
    return float((straight - turned).abs().max() / straight.std())
