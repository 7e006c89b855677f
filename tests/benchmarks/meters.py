"""What the benchmark measures with: seconds per part, peak memory, floating-point operations and bytes moved."""

from __future__ import annotations

import gc
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

Step = Callable[[], None]
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


def seconds(step: Step, device: str) -> float:
    """Returns how long a step takes, its kernels included."""
    started_at = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started_at


def medians(steps: dict[str, Step], count: int, device: str) -> dict[str, float]:
    """Returns the median seconds of each step; the steps take turns, so that a load beside this process slows all."""
    for step in steps.values():
        seconds(step, device)
    rounds = [[seconds(step, device) for step in steps.values()] for _ in range(count)]
    return dict(zip(steps, map(statistics.median, zip(*rounds, strict=True)), strict=True))


class Clock:
    """Adds up the seconds of parts. A part inside another counts for the outer one."""

    def __init__(self, device: str) -> None:
        self.device, self.spent, self.running = device, Counter[str](), False

    def watch(self, owner: Any, function: str, part: str) -> None:
        """Times every call of owner.function as `part` from here on."""
        inner = getattr(owner, function)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.running:
                return inner(*args, **kwargs)
            self.running, result = True, []
            try:
                self.spent[part] += seconds(lambda: result.append(inner(*args, **kwargs)), self.device)
            finally:
                self.running = False
            return result[0]

        setattr(owner, function, timed)

    def take(self) -> Counter[str]:
        """Returns what was spent since the last call."""
        spent, self.spent = self.spent, Counter()
        return spent


def peak_bytes(step: Step, device: str) -> int:
    """Returns the most memory that a step holds at once beyond what was held before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as made:
        step()
    events = [e for e in made.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def bytes_of(tensors: list[torch.Tensor]) -> int:
    """Returns the bytes of tensors, those that share their memory once."""
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def free(device: str) -> None:
    """Gives back what earlier networks held, before larger ones are made."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


class Bytes(TorchDispatchMode):
    """Adds up the bytes that operations read and write, views apart, as if nothing stayed in a cache."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = (x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor))
            self.total += sum(x.numel() * x.element_size() for x in tensors)
        return out


def work(step: Step) -> tuple[float, float]:
    """Returns the floating-point operations of a step's products, and the bytes its operations move."""
    with Bytes() as moved, FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops()), float(moved.total)


def roof(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """Returns the operations and the bytes per second that one large product and one large copy reach here."""
    size, length = (8192, 1 << 28) if device == "cuda" else (1024, 1 << 24)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    x = torch.empty(length, device=device)
    product = min(seconds(lambda: torch.mm(a, b).sum(), device) for _ in range(10))
    copy = min(seconds(lambda: x.clone().sum(), device) for _ in range(10))
    return 2 * size**3 / product, 3 * 4 * length / copy
