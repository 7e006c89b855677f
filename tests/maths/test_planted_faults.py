"""The proofs of maths/ have teeth: a fault planted in a copy of a module is caught by a test of that module.

A fault replaces one piece of source text. The copy is loaded beside the true module and handed to the
module's own tests in place of the fixture of conftest.py.
"""

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import test_difference
import test_distances
import test_dmd
import test_ema
import test_flow
import test_forward
import test_importance
import test_ladd
import test_sample
import test_scm
import test_times
import test_trigflow

from sana_sprint import maths

TESTS = {
    "trigflow": test_trigflow,
    "scm": test_scm,
    "difference": test_difference,
    "dmd": test_dmd,
    "sample": test_sample,
    "times": test_times,
    "ladd": test_ladd,
    "flow": test_flow,
    "forward": test_forward,
    "importance": test_importance,
    "ema": test_ema,
    "distances": test_distances,
}


@dataclass(frozen=True)
class Fault:
    """Source text of maths/<module>.py and what stands there by mistake."""

    module: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.module}: {self.old} -> {self.new}"


FAULTS = [
    Fault("trigflow", "return t.cos() * x_0 + t.sin() * z", "return t.sin() * x_0 + t.cos() * z"),
    Fault("trigflow", "return t.cos() * z - t.sin() * x_0", "return t.cos() * z + t.sin() * x_0"),
    Fault("trigflow", "return t.cos() * z - t.sin() * x_0", "return z - x_0"),
    Fault("trigflow", "x - t.sin() * sigma_d * F", "x + t.sin() * sigma_d * F"),
    Fault("trigflow", "x - t.sin() * sigma_d * F", "x - t.sin() * F"),
    Fault("trigflow", "x - t.sin() * sigma_d * F", "x - t.cos() * sigma_d * F"),
    Fault("trigflow", "t_B.sin() / (t_B.sin()", "t_B.cos() / (t_B.sin()"),
    Fault("trigflow", "t_B.sin() / (t_B.sin()", "t_B / (t_B.sin()"),
    Fault("trigflow", "torch.atan2(s_B, 1 - s_B)", "torch.atan2(1 - s_B, s_B)"),
    Fault("trigflow", "torch.atan2(s_B, 1 - s_B)", "torch.atan(s_B)"),
    Fault("trigflow", "x_s = scale * x", "x_s = x"),
    Fault("trigflow", "x_s = scale * x", "x_s = x / scale"),
    Fault("trigflow", "return ((1 - 2 * s) * x_s +", "return ((2 * s - 1) * x_s +"),
    Fault("trigflow", "return ((1 - 2 * s) * x_s +", "return ((1 - s) * x_s +"),
    Fault("trigflow", "+ scale**2 * v(x_s, s_B)", "+ scale * v(x_s, s_B)"),
    Fault("trigflow", "+ scale**2 * v(x_s, s_B)", "- scale**2 * v(x_s, s_B)"),
    Fault("trigflow", "v(x_s, s_B)) / scale", "v(x_s, 1 - s_B)) / scale"),
    Fault("trigflow", "v(x_s, s_B)) / scale", "v(x_s, t_B)) / scale"),
    Fault("trigflow", "v(x_s, s_B)) / scale", "v(x, s_B)) / scale"),
    Fault("trigflow", "scale - (1 - 2 * s) * x_s", "scale + (1 - 2 * s) * x_s"),
    Fault("trigflow", "F(x_s / scale, trig_time(s_B))", "F(x_s, trig_time(s_B))"),
    Fault("trigflow", "/ scale**2\n", "/ scale\n"),
    Fault("scm", "weight_B = t_B.cos() * t_B.sin()", "weight_B = t_B.cos()"),
    Fault("scm", "over(weight_B, x) * dxdt / sigma_d", "over(weight_B, x) * dxdt"),
    Fault("scm", "over(weight_B, x) * dxdt / sigma_d", "dxdt / sigma_d"),
    Fault("scm", "dxdt / sigma_d, weight_B)", "dxdt / sigma_d, 0 * t_B)"),
    Fault("scm", "primals = (x / sigma_d, t_B)", "primals = (x, t_B)"),
    Fault("scm", "t.cos() ** 2 * (sigma_d", "t.cos() * (sigma_d"),
    Fault("scm", "t.cos() ** 2 * (sigma_d", "t.sin() ** 2 * (sigma_d"),
    Fault("scm", "(sigma_d * F_minus - dxdt)", "(F_minus - dxdt)"),
    Fault("scm", "(sigma_d * F_minus - dxdt)", "(sigma_d * F_minus + dxdt)"),
    Fault("scm", "return -toward_teacher - r *", "return toward_teacher - r *"),
    Fault("scm", "return -toward_teacher - r *", "return -toward_teacher + r *"),
    Fault("scm", "return -toward_teacher - r * (", "return -r * toward_teacher - ("),
    Fault("scm", "- r * (t.cos() * t.sin() * x + sigma_d", "- (t.cos() * t.sin() * x + r * sigma_d"),
    Fault("scm", "t.sin() * x + sigma_d * cos_sin_dF", "t.sin() * x + cos_sin_dF"),
    Fault("scm", "t.sin() * x + sigma_d * cos_sin_dF", "t.sin() * x - sigma_d * cos_sin_dF"),
    Fault("scm", "t.cos() * t.sin() * x +", "t.sin() * x +"),
    Fault("scm", "g.flatten(1).norm(dim=1)", "g.norm().expand(len(g))"),
    Fault("scm", "(over(norm_B, g) + c)", "over(norm_B, g).clamp(min=c)"),
    Fault("scm", "if size_invariant:", "if not size_invariant:"),
    Fault("scm", "/ g[0].numel() ** 0.5", "/ g[0].numel()"),
    Fault("scm", "/ g[0].numel() ** 0.5", "* g[0].numel() ** 0.5"),
    Fault("scm", "/ g[0].numel() ** 0.5", "/ g.numel() ** 0.5"),
    Fault("scm", "/ g[0].numel() ** 0.5", "/ len(g[0]) ** 0.5"),
    Fault("scm", "1 / (sigma_d * t_B.tan())", "1 / t_B.tan()"),
    Fault("scm", "1 / (sigma_d * t_B.tan())", "t_B.tan() / sigma_d"),
    Fault("scm", "(F - F_minus - g)", "(F - F_minus + g)"),
    Fault("scm", "(-logvar_B).exp()", "logvar_B.exp()"),
    Fault("scm", "error_B + logvar_B", "error_B - logvar_B"),
    Fault("scm", "error_B + logvar_B", "error_B"),
    Fault("difference", "t_B.sin()\n    along_x", "t_B.sin() ** 2\n    along_x"),
    Fault("difference", "along_x = over(weight_B, x) * dxdt / sigma_d", "along_x = over(weight_B, x) * dxdt"),
    Fault("difference", "along_x = over(weight_B, x) * dxdt / sigma_d", "along_x = dxdt / sigma_d"),
    Fault("difference", "F(y, t_B), (x / sigma_d,)", "F(y, t_B), (x,)"),
    Fault("difference", "in_t = (F(x / sigma_d, t_B + step)", "in_t = (F(x, t_B + step)"),
    Fault("difference", "F(x / sigma_d, t_B - step))", "F(x / sigma_d, t_B))"),
    Fault("difference", "(2 * step)\n    return F_minus", "step\n    return F_minus"),
    Fault("difference", "in_x + over(weight_B, x) * in_t", "in_x + in_t"),
    Fault("difference", "in_x + over(weight_B, x) * in_t", "in_x - over(weight_B, x) * in_t"),
    Fault("difference", "in_x + over(weight_B, x) * in_t", "in_x"),
    Fault("difference", "    u = over(weight_B, x) * dxdt / sigma_d", "    u = over(weight_B, x) * dxdt"),
    Fault("difference", "    u = over(weight_B, x) * dxdt / sigma_d", "    u = dxdt / sigma_d"),
    Fault("difference", "+ step * u, t_B + step * weight_B", "+ step * u, t_B + step"),
    Fault("difference", "- step * u, t_B - step * weight_B", "- step * u, t_B"),
    Fault("difference", "- step * u, t_B - step * weight_B", "+ step * u, t_B - step * weight_B"),
    Fault("difference", "behind = F(x / sigma_d - step * u, t_B - step * weight_B)", "behind = F(x / sigma_d, t_B)"),
    Fault("difference", "(ahead - behind) / (2 * step)", "(behind - ahead) / (2 * step)"),
    Fault("difference", "(ahead - behind) / (2 * step)", "(ahead - behind) / step"),
    Fault("difference", "return F(x / sigma_d, t_B), (ahead", "return (ahead + behind) / 2, (ahead"),
    Fault("dmd", "return ((fake - real)", "return ((real - fake)"),
    Fault("dmd", "return ((fake - real)", "return ((x_0 - real)"),
    Fault("dmd", "(x_0 - real).abs()", "(x_0 - fake).abs()"),
    Fault("dmd", "(x_0 - real).abs()", "(x_0 - real).square()"),
    Fault("dmd", "(x_0 - real).abs()", "(x_0 - real)"),
    Fault("dmd", ".flatten(1).mean(1)", ".mean().expand(len(x_0))"),
    Fault("dmd", ".flatten(1).mean(1)", ".flatten(1).sum(1)"),
    Fault("dmd", ".clamp_min(1e-6)", ".clamp_min(0)"),
    Fault("dmd", "x_0)).detach()", "x_0))"),
    Fault("dmd", "(x_0 - grad).detach()", "(x_0 - grad)"),
    Fault("dmd", "(x_0 - grad).detach()", "(x_0 + grad).detach()"),
    Fault("dmd", ".square().mean() / 2", ".square().mean()"),
    Fault("dmd", ".square().mean() / 2", ".square().sum() / 2"),
    Fault("sample", "x = noise * sigma_d if", "x = noise if"),
    Fault("sample", "t.cos() * x_0 +", "x_0 +"),
    Fault("sample", "t.cos() * x_0 + t.sin()", "t.sin() * x_0 + t.cos()"),
    Fault("sample", "t.sin() * sigma_d * noise", "t.sin() * noise"),
    Fault("sample", "consistency_step(F, x_0, noise, t,", "consistency_step(F, x_0, noises[0], t,"),
    Fault("sample", "consistency_step(F, x_0, noise, t,", "consistency_step(F, None, noise, t,"),
    Fault("sample", "F(x / sigma_d, t_B), t_B, sigma_d)", "F(x, t_B), t_B, sigma_d)"),
    Fault("sample", "(now - after).cos() * x - (now", "(now - after).cos() * x + (now"),
    Fault("sample", "(now - after).sin() * sigma_d", "(now - after) * sigma_d"),
    Fault("sample", "(now - after).sin() * sigma_d", "(after - now).sin() * sigma_d"),
    Fault("sample", "x = x + (after - now) * v", "x = x - (after - now) * v"),
    Fault("sample", "v(x, now.expand", "v(x, 1 - now.expand"),
    Fault("times", ".exp() / sigma_d)", ".exp() * sigma_d)"),
    Fault("times", "(mean + std * normal_B).exp()", "(mean + std**2 * normal_B).exp()"),
    Fault("times", "torch.atan((mean", "torch.sin((mean"),
    Fault("times", "torch.sigmoid(mean + std * normal_B)", "torch.sigmoid(-mean - std * normal_B)"),
    Fault("times", "torch.full_like(t_B, math.pi / 2)", "torch.full_like(t_B, prob)"),
    Fault("times", "uniform_B < prob", "uniform_B > prob"),
    Fault("ladd", "relu(1 - real)", "relu(1 + real)"),
    Fault("ladd", "relu(1 + fake)", "relu(1 - fake)"),
    Fault("ladd", "relu(1 - real)", "(1 - real)"),
    Fault("ladd", "return -fake.mean()", "return fake.mean()"),
    Fault("ladd", "x_0.roll(1, 0)", "x_0.roll(1, 1)"),
    Fault("ladd", "x_0.roll(1, 0) if len(x_0) > 1 else x_0[:0]", "x_0.roll(1, 0)"),
    Fault("ladd", "(fake < 0)", "(fake > 0)"),
    Fault("flow", "(1 - s) * x_0 + s * z", "s * x_0 + (1 - s) * z"),
    Fault("flow", "(v - (z - x_0))", "(v - (x_0 - z))"),
    Fault("flow", "v_uncond + over(scale_B, v_cond) *", "v_cond + over(scale_B, v_cond) *"),
    Fault("flow", "shift * s / (1 + (shift - 1) * s)", "s / (shift - (shift - 1) * s)"),
    Fault("forward", "func(dx, weight, None, *how)", "func(dx, weight, bias, *how)"),
    Fault("forward", "(p * ds).sum(-1, keepdim=True)", "ds.sum(-1, keepdim=True)"),
    Fault("forward", "dp = p * (ds -", "dp = p * (ds +"),
    Fault("forward", " / q.shape[-1] ** 0.5", ""),
    Fault("forward", "q @ k_T + attn_mask", "q @ k_T"),
    Fault("importance", "return 1 - cosine", "return 1 + cosine"),
    Fault("importance", ".sum(1).abs()", ".abs().sum(1)"),
    Fault("importance", "torch.topk(scores, count)", "torch.topk(-scores, count)"),
    Fault("ema", ", 1 - d)", ", d)"),
    Fault("ema", "(10 + step))\n", "(10 + step) + 1)\n"),
    Fault("ema", "d = min(decay, (1 + step) / (10 + step))\n", "d = decay\n"),
    Fault("distances", "x @ y.T / x.shape[1] + 1", "x @ y.T + 1"),
    Fault("distances", "/ BANDWIDTH**2", "/ (2 * BANDWIDTH**2)"),
    Fault("distances", "functional.normalize(x, dim=1) @", "x @"),
    Fault("distances", "own.sum() - own.trace()", "own.sum()"),
    Fault("distances", "total += 2 * sum(", "total += sum("),
    Fault("distances", "- 2 * across", "- across"),
    Fault("distances", "neighbours + 1  # a row", "neighbours  # a row"),
    Fault("distances", "reached <= radii_r[r, None]).any(0)", "reached <= radii_r[r, None]).all(0)"),
    Fault("distances", "covered_g[g] |=", "covered_g[g] ="),
    Fault("distances", "distances - rounding", "distances"),
]


def source(module: str) -> str:
    return Path(maths.__path__[0], f"{module}.py").read_text()


def loaded(module: str, text: str, folder: Path) -> ModuleType:
    """Returns a module made of `text`, which no import finds."""
    path = folder / f"{module}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(f"planted_{module}", path)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


def proofs(module: str) -> list[Callable[[ModuleType], None]]:
    """Returns the tests of a module whose one argument is that module."""
    functions = [f for _, f in inspect.getmembers(TESTS[module], inspect.isfunction)]
    tests = [f for f in functions if f.__name__.startswith("test_")]
    return [f for f in tests if list(inspect.signature(f).parameters) == [module]]


def refuting(module: str, copy: ModuleType) -> str | None:
    """Returns the name of the first test that refutes a copy; a crash is no refutation and passes through."""
    for proof in proofs(module):
        try:
            proof(copy)
        except AssertionError:
            return proof.__name__
    return None


@pytest.mark.parametrize("module", TESTS)
def test_a_true_copy_is_accepted(module: str, tmp_path: Path) -> None:
    assert len(proofs(module)) >= 3
    assert refuting(module, loaded(module, source(module), tmp_path)) is None


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_planted_fault_is_caught(fault: Fault, tmp_path: Path) -> None:
    text = source(fault.module)
    assert text.count(fault.old) == 1, f"maths/{fault.module}.py must say {fault.old!r} once: plant it anew"
    copy = loaded(fault.module, text.replace(fault.old, fault.new), tmp_path)
    assert refuting(fault.module, copy), f"no test of maths/{fault.module}.py notices {fault}"
