"""How many threads to compute with: measured, because two can be slower than one on a busy machine."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

TRIES = 15
LARGE_ENOUGH = 1.15  # more threads must be this much faster to be worth it


def use_fastest(cores: int | None = None) -> int:
    """Sets and returns the number of threads, among 1 and all cores, that runs a small training step fastest.
    SANA_SPRINT_THREADS decides instead where it is set. Raises ValueError when it is no positive number."""
    chosen = os.environ.get("SANA_SPRINT_THREADS", "")
    if chosen:
        if not chosen.isdigit() or chosen == "0":
            raise ValueError(f"SANA_SPRINT_THREADS={chosen}: must be a positive number of threads")
        threads = int(chosen)
    else:
        cores = cores or len(os.sched_getaffinity(0))
        threads = cores if cores > 1 and _faster(cores) else 1
    torch.set_num_threads(threads)
    return threads


def go_on_with(threads: int) -> None:
    """Sets the number of threads that a training began with, since sums over another number are rounded in another
    order. SANA_SPRINT_THREADS decides instead where it is set."""
    if not os.environ.get("SANA_SPRINT_THREADS"):
        torch.set_num_threads(threads)


@contextmanager
def one() -> Iterator[None]:
    """Computes with one thread: sums over several are rounded in another order, so that a score's last digits would
    depend on how many there were."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _faster(cores: int) -> bool:
    """Whether `cores` threads beat one, by the fastest of interleaved tries: a short load beside this process slows
    some of them, a lasting one all."""
    tries = [(_seconds(1), _seconds(cores)) for _ in range(TRIES)]
    one, many = (min(times) for times in zip(*tries, strict=True))
    return many * LARGE_ENOUGH < one


def _seconds(threads: int) -> float:
    torch.set_num_threads(threads)
    layer = torch.nn.Sequential(torch.nn.Linear(128, 640), torch.nn.SiLU(), torch.nn.Linear(640, 128))
    x = torch.randn(1024, 128)
    started_at = time.perf_counter()
    layer(x).square().mean().backward()
    return time.perf_counter() - started_at
