"""The flow <-> TrigFlow map, in float64 (the module comes from conftest.py)."""

import math
from types import ModuleType

import torch
from gaussian import DOUBLE, SHAPE, Gaussian, network, normal
from torch.testing import assert_close

SIGMA = 0.5
TIMES = torch.tensor([0.02, 0.3, math.pi / 4, 1.1, 1.5, math.pi / 2], dtype=DOUBLE)
B = len(TIMES)


def column(t_B: torch.Tensor) -> torch.Tensor:
    return t_B.reshape(-1, 1, 1, 1)


def test_closed_form_of_the_gaussian_is_the_regression_on_samples() -> None:
    data = Gaussian.drawn(0)
    x_0 = data.mean + normal(1, 200_000, 4) @ (data.axes * data.variance.sqrt()).T
    z = normal(2, 200_000, 4)
    s = torch.full((3,), 0.35, dtype=DOUBLE)
    x_s = 0.65 * x_0 + 0.35 * z
    design = torch.cat([x_s, torch.ones(len(x_s), 1, dtype=DOUBLE)], 1)
    fit = torch.linalg.lstsq(design, z - x_0).solution
    probe = normal(3, 3, *SHAPE)
    regressed = torch.cat([probe.flatten(1), torch.ones(3, 1, dtype=DOUBLE)], 1) @ fit
    assert_close(data.flow_velocity(probe, s).flatten(1), regressed, atol=0.03, rtol=0)


def test_true_flow_velocity_maps_to_true_trigflow_velocity(trigflow: ModuleType) -> None:
    data, x = Gaussian.drawn(0), normal(5, B, *SHAPE)
    mapped = trigflow.from_flow(data.flow_velocity)(x, TIMES)
    assert_close(mapped, data.velocity(x, TIMES), atol=1e-12, rtol=0)


def test_true_trigflow_velocity_maps_to_true_flow_velocity(trigflow: ModuleType) -> None:
    data, x, s = Gaussian.drawn(0), normal(5, B, *SHAPE), torch.linspace(0.01, 1, B, dtype=DOUBLE)
    assert_close(trigflow.to_flow(data.velocity)(x, s), data.flow_velocity(x, s), atol=1e-12, rtol=0)


def test_network_sees_the_flow_interpolant_at_the_flow_time(trigflow: ModuleType) -> None:
    x_0, z, seen = normal(1, B, *SHAPE), normal(2, B, *SHAPE), []

    def velocity(x_s: torch.Tensor, s_B: torch.Tensor) -> torch.Tensor:
        seen.append((x_s, s_B))
        return z - x_0

    x_t = SIGMA * (column(TIMES).cos() * x_0 + column(TIMES).sin() * z)
    F = trigflow.from_flow(velocity)(x_t / SIGMA, TIMES)
    (x_s, s_B), *rest = seen
    assert not rest, "one evaluation of the network is enough"
    s = column(s_B)
    assert_close((1 - s_B) * TIMES.sin(), s_B * TIMES.cos(), atol=1e-15, rtol=0)
    assert_close(x_s, (1 - s) * x_0 + s * z, atol=1e-12, rtol=0)
    assert_close(F, column(TIMES).cos() * z - column(TIMES).sin() * x_0, atol=1e-12, rtol=0)


def test_round_trip_is_lossless(trigflow: ModuleType) -> None:
    x = normal(3, B, *SHAPE)
    s = torch.linspace(0, 1, B, dtype=DOUBLE)
    there_and_back = trigflow.to_flow(trigflow.from_flow(network))(x, s)
    back_and_there = trigflow.from_flow(trigflow.to_flow(network))(x, TIMES)
    assert_close(there_and_back, network(x, s), atol=1e-12, rtol=0)
    assert_close(back_and_there, network(x, TIMES), atol=1e-12, rtol=0)


def test_endpoints_of_the_map(trigflow: ModuleType) -> None:
    x = normal(4, 2, *SHAPE)
    ends = torch.tensor([0.0, math.pi / 2], dtype=DOUBLE)
    F = trigflow.from_flow(network)(x, ends)
    v = network(x, torch.tensor([0.0, 1.0], dtype=DOUBLE))
    assert_close(F[0], v[0] + x[0], atol=1e-12, rtol=0)  # all data: F = z = x_0 + v
    assert_close(F[1], v[1] - x[1], atol=1e-12, rtol=0)  # all noise: F = -x_0 = v - z


def test_flow_time_has_the_same_signal_to_noise_ratio(trigflow: ModuleType) -> None:
    t = torch.linspace(0.01, 1.56, 50, dtype=DOUBLE)
    s = trigflow.flow_time(t)
    assert_close((1 - s) / s, t.cos() / t.sin(), rtol=1e-10, atol=0)
    ends = trigflow.flow_time(torch.tensor([0, math.pi / 4, math.pi / 2], dtype=DOUBLE))
    assert_close(ends, torch.tensor([0, 0.5, 1], dtype=DOUBLE), atol=1e-15, rtol=0)


def test_trig_time_inverts_flow_time(trigflow: ModuleType) -> None:
    t = torch.linspace(0, math.pi / 2, 101, dtype=DOUBLE)
    s = torch.linspace(0, 1, 101, dtype=DOUBLE)
    assert_close(trigflow.trig_time(trigflow.flow_time(t)), t, atol=1e-14, rtol=0)
    assert_close(trigflow.flow_time(trigflow.trig_time(s)), s, atol=1e-14, rtol=0)


def test_velocity_is_the_time_derivative_of_the_interpolant(trigflow: ModuleType) -> None:
    x_0, z, h = normal(1, B, *SHAPE), normal(2, B, *SHAPE), 1e-5
    after, before = (trigflow.interpolate(x_0, z, TIMES + d) for d in (h, -h))
    assert_close(trigflow.velocity(x_0, z, TIMES), (after - before) / (2 * h), atol=1e-9, rtol=0)


def test_interpolant_runs_from_data_to_noise(trigflow: ModuleType) -> None:
    x_0, z = normal(1, 2, *SHAPE), normal(2, 2, *SHAPE)
    ends = trigflow.interpolate(x_0, z, torch.tensor([0.0, math.pi / 2], dtype=DOUBLE))
    assert_close(ends, torch.stack([x_0[0], z[1]]), atol=1e-15, rtol=0)
    middle = trigflow.interpolate(x_0, z, torch.tensor([0.6, 0.6], dtype=DOUBLE))
    assert_close(middle, math.cos(0.6) * x_0 + math.sin(0.6) * z)


def test_denoise_inverts_the_interpolant(trigflow: ModuleType) -> None:
    x_0, z = SIGMA * normal(1, B, *SHAPE), SIGMA * normal(2, B, *SHAPE)
    x = trigflow.interpolate(x_0, z, TIMES)
    F = trigflow.velocity(x_0, z, TIMES) / SIGMA
    assert_close(trigflow.denoise(x, F, TIMES, SIGMA), x_0, atol=1e-14, rtol=0)


def test_over_multiplies_each_sample_by_its_own_number(trigflow: ModuleType) -> None:
    x = normal(6, 3, *SHAPE)
    product = trigflow.over(torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE), x) * x
    assert_close(product, torch.stack([x[0], 2 * x[1], 3 * x[2]]))
