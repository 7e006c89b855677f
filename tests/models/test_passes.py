"""Compiled blocks lose no tangent and no name, and what stands in the way of compiling is named."""

import copy
import sysconfig

import pytest
import tiny
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from sana_sprint.maths import forward
from sana_sprint.models import networks, passes

TIME_B = torch.tensor([0.2, 0.5, 0.9])


@pytest.fixture
def never_compiled(monkeypatch):
    """Fails the test when a pass is a compiled one."""

    def refused(*_):
        pytest.fail("a compiled pass")

    monkeypatch.setattr(passes, "_compiled", refused)


def velocity(network):
    return networks.flow_velocity(network, tiny.text())


@pytest.mark.parametrize("jvp", [forward.jvp, torch.func.jvp], ids=["ours", "torch"])
@pytest.mark.parametrize("moving", [(1, 1), (1, 0), (0, 1)], ids=["both", "latents", "time"])
def test_a_tangent_never_meets_compiled_code_and_is_that_of_the_network_as_written(never_compiled, jvp, moving):
    network = tiny.transformer()
    tangents = [k * torch.randn_like(x) for k, x in zip(moving, (tiny.latents(), TIME_B), strict=True)]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        expected = jvp(velocity(network), (tiny.latents(), TIME_B), tuple(tangents))
        passes.compile_blocks(network)
        given = jvp(velocity(network), (tiny.latents(), TIME_B), tuple(tangents))
    assert given[0].equal(expected[0])
    assert given[1].equal(expected[1])
    assert given[1].abs().max() > 1e-3


def test_a_pass_without_a_tangent_is_a_compiled_one(never_compiled):
    network = tiny.transformer()
    passes.compile_blocks(network)
    with pytest.raises(pytest.fail.Exception, match="a compiled pass"):
        velocity(network)(tiny.latents(), TIME_B)


def test_compiled_blocks_keep_the_names_of_weights_and_a_copy_computes_with_its_own(monkeypatch):
    monkeypatch.setattr(passes, "_compiled", lambda forward: forward)
    network = tiny.transformer()
    names = list(network.state_dict())
    passes.compile_blocks(network)
    assert list(network.state_dict()) == names
    other = copy.deepcopy(network)
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
        assert velocity(other)(tiny.latents(), TIME_B).equal(velocity(tiny.transformer())(tiny.latents(), TIME_B))


def test_nothing_is_arranged_where_no_switch_is_on(monkeypatch):
    network = tiny.transformer()
    monkeypatch.setenv(passes.COMPILE, "0")
    monkeypatch.delenv(passes.CHECKPOINTING, raising=False)
    passes.arrange(network)
    assert not any("forward" in vars(block) for block in network.transformer_blocks)
    assert not network.is_gradient_checkpointing


@pytest.mark.parametrize("name", passes.SWITCHES)
def test_a_switch_that_is_neither_1_nor_0_is_named(monkeypatch, name):
    monkeypatch.setenv(name, "yes")
    with pytest.raises(ValueError, match=f"^{name}=yes: must be 1 or 0$"):
        passes.arrange(tiny.transformer())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda patch, tmp: patch.setenv("PATH", str(tmp)), "no C++ compiler g++ on the PATH"),
        (lambda patch, tmp: patch.setenv("CXX", "no-such"), "no C++ compiler no-such on the PATH"),
        (lambda patch, tmp: patch.setattr(sysconfig, "get_path", lambda _: str(tmp)), "no Python.h in "),
        (lambda patch, tmp: patch.setattr(torch, "__file__", "/a b/__init__.py"), "g++ break at the space in '/a b'"),
        (lambda patch, tmp: patch.setenv(passes.CACHE, "/a b"), "g++ break at the space in '/a b'; name a folder"),
    ],
    ids=["no compiler", "another compiler", "no headers", "a space", "another space"],
)
def test_what_hinders_the_compiler_on_a_cpu_is_one_line(monkeypatch, tmp_path, change, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "g++").touch(0o755)
    (tmp_path / "include").mkdir()
    (tmp_path / "include/Python.h").touch()
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv(passes.CACHE, "/tmp")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path / "include"))
    monkeypatch.setattr(torch, "__file__", "/here/torch/__init__.py")
    assert passes.hindrance() == ""
    empty = tmp_path / "empty"
    empty.mkdir()
    change(monkeypatch, empty)
    monkeypatch.setenv(passes.COMPILE, "1")
    with pytest.raises(ValueError, match=f"^{passes.COMPILE}=1: ") as error:
        passes.arrange(tiny.transformer())
    assert said in str(error.value)
    assert "\n" not in str(error.value)
