"""The samplers against closed forms on Gaussian data, in float64 (the module comes from conftest.py).

A sampler over a linear network is affine in its noises: evaluated at zero and at unit noises it yields the
exact mean and covariance of its samples, so nothing here is estimated from draws.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType

import pytest
import torch
from diffusers import SCMScheduler
from gaussian import DIM, DOUBLE, SHAPE, Gaussian, network, normal
from torch import Tensor
from torch.testing import assert_close

SIGMA = 0.5
PAPER = {
    1: [1.5708, 0.0],
    2: [1.5683, 1.3, 0.0],
    3: [1.5683, 1.3, 0.8, 0.0],
    4: [1.5683, 1.3, 1.1, 0.6, 0.0],
}
FROM_NOISE = {n: [math.pi / 2, *times[1:]] for n, times in PAPER.items()}


def moments(sampler: Callable[[list[Tensor]], Tensor], num_noises: int) -> tuple[Tensor, Tensor]:
    """Returns the exact mean (D,) and covariance (D, D) of an affine sampler of standard normal noises."""
    unit = torch.eye(num_noises * DIM, dtype=DOUBLE).reshape(-1, num_noises, *SHAPE)
    probes = torch.cat([torch.zeros_like(unit[:1]), unit])
    outputs = sampler(list(probes.unbind(1))).flatten(1)
    mean, columns = outputs[0], outputs[1:] - outputs[0]
    return mean, columns.T @ columns


def test_perfect_student_samples_the_data_exactly_in_1_to_4_steps(sample: ModuleType) -> None:
    data = Gaussian.drawn(40)
    for steps, times in FROM_NOISE.items():
        mean, cov = moments(lambda n, times=times: sample.consistency(data.student, n, times, SIGMA), steps)
        assert_close(mean, data.mean, atol=1e-12, rtol=0)
        assert_close(cov, data.covariance, atol=1e-12, rtol=0)


def test_any_time_list_gives_the_moments_of_the_closed_form(sample: ModuleType) -> None:
    data = Gaussian.drawn(40)
    for steps, times in (PAPER | {5: [1.2, 0.9, 0.7, 0.5, 0.2, 0.0]}).items():
        mean, cov = torch.zeros(DIM, dtype=DOUBLE), torch.eye(DIM, dtype=DOUBLE)
        for step, t in enumerate(times[:-1]):
            cos, sin = math.cos(t), math.sin(t)
            if step:
                mean, cov = cos * mean, cos**2 * cov + sin**2 * torch.eye(DIM, dtype=DOUBLE)
            spectrum = data.contraction(torch.tensor([t], dtype=DOUBLE))[0]
            A = data.axes @ torch.diag(spectrum) @ data.axes.T
            mean, cov = data.mean + A @ (mean - cos * data.mean), A @ cov @ A.T
        got = moments(lambda n, times=times: sample.consistency(data.student, n, times, SIGMA), steps)
        assert_close(got, (mean, cov), atol=1e-11, rtol=0)


def test_consistency_asks_the_network_at_each_time_but_zero(sample: ModuleType) -> None:
    asked = []

    def F(x: Tensor, t_B: Tensor) -> Tensor:
        asked.append(t_B)
        return network(x, t_B)

    sample.consistency(F, [normal(i, 3, *SHAPE) for i in range(4)], PAPER[4], SIGMA)
    assert_close(torch.stack(asked), torch.tensor(PAPER[4][:-1], dtype=DOUBLE)[:, None].expand(4, 3))


def test_consistency_equals_the_scheduler_of_diffusers(sample: ModuleType) -> None:
    shape = (3, *SHAPE)

    def F(x: Tensor, t_B: Tensor) -> Tensor:
        return network(x.double(), t_B.double()).float()

    for steps, times in PAPER.items():
        scheduler = SCMScheduler(sigma_data=SIGMA)
        scheduler.set_timesteps(steps, timesteps=times, max_timesteps=None, intermediate_timesteps=None)
        generator = torch.Generator().manual_seed(steps)
        latents = torch.randn(shape, generator=generator) * SIGMA
        for t in scheduler.timesteps[:-1]:
            output = F(latents / SIGMA, t.expand(3)) * SIGMA
            latents, clean = scheduler.step(output, t, latents, generator=generator, return_dict=False)
        generator = torch.Generator().manual_seed(steps)
        noises = [torch.randn(shape, generator=generator) for _ in range(steps)]
        assert_close(sample.consistency(F, noises, times, SIGMA), clean / SIGMA, atol=1e-6, rtol=0)


def test_ode_reaches_the_moments_of_the_data(sample: ModuleType) -> None:
    data = Gaussian.drawn(41)
    errors = []
    for steps in (200, 400):
        times = torch.linspace(math.pi / 2, 0, steps + 1, dtype=DOUBLE).tolist()
        mean, cov = moments(lambda n, times=times: sample.ode(data.velocity, n[0], times, SIGMA), 1)
        errors.append(max((mean - data.mean).abs().max(), (cov - data.covariance).abs().max()))
    assert errors[1] < 0.02
    assert 1.7 < errors[0] / errors[1] < 2.3, "a first-order solver halves its error with its step"


def test_flow_ode_reaches_the_moments_of_the_data(sample: ModuleType) -> None:
    data = Gaussian.drawn(41)
    errors = []
    for steps in (200, 400):
        times = sample.flow_times(steps, 1.0)
        mean, cov = moments(lambda n, times=times: sample.flow_ode(data.flow_velocity, n[0], times), 1)
        errors.append(max((mean - data.mean).abs().max(), (cov - data.covariance).abs().max()))
    assert errors[1] < 0.02
    assert 1.7 < errors[0] / errors[1] < 2.3, "a first-order solver halves its error with its step"


def test_both_odes_and_the_perfect_student_end_in_the_same_picture(sample: ModuleType) -> None:
    data, noise = Gaussian.drawn(42), normal(43, 5, *SHAPE)
    trig = torch.linspace(math.pi / 2, 0, 1001, dtype=DOUBLE).tolist()
    by_ode = sample.ode(data.velocity, noise, trig, SIGMA)
    by_flow = sample.flow_ode(data.flow_velocity, noise, sample.flow_times(1000, 3.0))
    by_student = sample.consistency(data.student, [noise], FROM_NOISE[1], SIGMA)
    assert_close(by_ode, by_student, atol=0.01, rtol=0)
    assert_close(by_flow, by_student, atol=0.01, rtol=0)


def test_ode_is_exact_in_one_step_for_a_single_picture(sample: ModuleType) -> None:
    picture, noise = normal(44, 1, *SHAPE), normal(45, 2, *SHAPE)

    def F(x: Tensor, t_B: Tensor) -> Tensor:
        t = t_B.reshape(-1, 1, 1, 1)
        z = (x - t.cos() * picture) / t.sin()
        return t.cos() * z - t.sin() * picture

    for times in ([math.pi / 2, 0.0], [math.pi / 2, 1.0, 0.0]):
        assert_close(sample.ode(F, noise, times, SIGMA), picture.expand(2, -1, -1, -1), atol=1e-12, rtol=0)


def test_flow_times_fall_from_one_to_zero_shifted_to_noise(sample: ModuleType) -> None:
    times = sample.flow_times(20, 3.0)
    assert len(times) == 21
    assert (times[0], times[-1]) == (1.0, 0.0)
    assert all(a > b for a, b in pairwise(times))
    assert times[10] == pytest.approx(0.75)  # odds of noise 1:1 times 3
    assert sample.flow_times(4, 1.0) == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_a_wrong_number_of_noises_is_refused(sample: ModuleType) -> None:
    with pytest.raises(ValueError, match="2 steps need as many noises, got 3"):
        sample.consistency(network, [normal(0, 1, *SHAPE)] * 3, PAPER[2], SIGMA)
