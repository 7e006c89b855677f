"""How this machine carries out the passes of a SANA network, by two variables of the environment: SANA_SPRINT_COMPILE=1
compiles its blocks, SANA_SPRINT_ACTIVATION_CHECKPOINTING=1 computes a block's activations again in the backward pass
instead of keeping them. What is computed stays the same, and so do the names of weights.

Blocks are compiled, not whole networks: all blocks of a network share what one of them was compiled to; hooks on a
block, the recomputation of its activations and the slices of sharding.py stay around it.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers import SanaTransformer2DModel

COMPILE, CHECKPOINTING = "SANA_SPRINT_COMPILE", "SANA_SPRINT_ACTIVATION_CHECKPOINTING"
SWITCHES = (COMPILE, CHECKPOINTING)
PROGRAMS = 64  # of a block: by batch, by its input's precision, with and without gradient
CACHE = "TORCHINDUCTOR_CACHE_DIR"  # torch's own variable: where it keeps what it compiles


def arrange(*networks: SanaTransformer2DModel) -> None:
    """Makes networks pass as the environment asks. Raises ValueError where this machine cannot compile, or where a
    switch is neither 1 nor 0."""
    compiled, checkpointed = (_is_on(name) for name in SWITCHES)
    if compiled and (cause := hindrance()):
        raise ValueError(f"{COMPILE}=1: {cause}")
    for network in networks:
        if compiled:
            compile_blocks(network)
        if checkpointed:
            network.enable_gradient_checkpointing()


def hindrance() -> str:
    """Returns why torch.compile cannot work on this machine and what to do, '' where it can. A CPU's code is C++, that
    which launches a GPU's C."""
    if torch.cuda.is_available():
        return _hindrance_of_triton()
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    headers, cache = Path(sysconfig.get_path("include")), os.environ.get(CACHE) or tempfile.gettempdir()
    if not shutil.which(compiler):
        return f"no C++ compiler {compiler} on the PATH; on Debian: apt install g++; or name another one in CXX"
    if not (headers / "Python.h").is_file():
        return f"no Python.h in {headers}; on Debian: apt install python3-dev"
    if " " in torch.__file__:
        return f"calls of {compiler} break at the space in '{Path(torch.__file__).parent}'; install torch elsewhere"
    if " " in cache:
        return f"calls of {compiler} break at the space in '{cache}'; name a folder without one in {CACHE}"
    return ""


def _hindrance_of_triton() -> str:
    if not any(shutil.which(name) for name in (os.environ.get("CC", "gcc"), "clang")):
        return "no C compiler on the PATH; on Debian: apt install gcc; or name another one in CC"
    headers = Path(sysconfig.get_path("include"))
    return "" if (headers / "Python.h").is_file() else f"no Python.h in {headers}; on Debian: apt install python3-dev"


def compile_blocks(network: SanaTransformer2DModel) -> None:
    """Makes every pass through a network's blocks a compiled one, but for forward-mode derivatives."""
    torch._dynamo.config.recompile_limit = PROGRAMS  # torch's own 8 would leave passes as written
    for block in network.transformer_blocks:
        block.forward = functools.partial(_forward, block)  # a partial, so that a copied block computes with its own


def _forward(block: nn.Module, hidden: Tensor, *rest: Any) -> Tensor:
    """Returns what the block makes of its inputs. Compiled code loses a tangent without a word (torch 2.13), so where
    there is one the block passes as it is written."""
    as_written = type(block).forward
    if any(forward_ad.unpack_dual(x).tangent is not None for x in (hidden, *rest) if isinstance(x, Tensor)):
        return as_written(block, hidden, *rest)
    return _compiled(as_written)(block, hidden.contiguous(), *rest)  # the first block's strides are others


@functools.cache
def _compiled(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns a block's forward compiled, anew for every shape, since code for any batch is slower."""
    return torch.compile(forward, dynamic=False)


def _is_on(name: str) -> bool:
    """Whether a switch is on."""
    chosen = os.environ.get(name, "")
    if chosen not in ("", "0", "1"):
        raise ValueError(f"{name}={chosen}: must be 1 or 0")
    return chosen == "1"
