"""How long one picture takes, where the time goes, how much memory and energy: from the prompt's text to the PNG bytes,
warm-up excluded."""

from __future__ import annotations

import io
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from sana_sprint import host
from sana_sprint.evaluation import energy, generate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sana_sprint.config import Evaluate
    from sana_sprint.evaluation.generate import Draw, Loaded
    from sana_sprint.evaluation.protocol import Prompt

WARM_UP = 2
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def to_png(picture: np.ndarray) -> bytes:
    """Returns a picture (H, W, 3) uint8 as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def elapsed_s(loaded: Loaded, draw: Draw, prompts: Sequence[Prompt], steps: int, seed: int) -> float:
    """Returns the seconds that one batch takes from captions to PNG."""
    started_at = time.perf_counter()
    for picture in draw([p.caption for p in prompts], generate.noises(loaded, prompts, steps, seed)):
        to_png(picture)
    return time.perf_counter() - started_at


def measure(
    loaded: Loaded, draw: Draw, prompts: Sequence[Prompt], steps: int, seed: int, params: Evaluate
) -> dict[str, float]:
    """Returns {"p50_s", "p95_s"} of single pictures over evaluate.latency_runs, what `components` says of as many,
    "images_per_s_at_<batch>" (the best of two, so that another process does not count), "peak_memory_mb" of all these
    runs, and "energy_j" of a picture at the largest batch where the device tells."""
    forget_peak()
    many = [prompts[i % len(prompts)] for i in range(max(params.latency_batches))]
    for _ in range(WARM_UP):
        elapsed_s(loaded, draw, prompts[:1], steps, seed)
    picked = [[many[i % len(many)]] for i in range(params.latency_runs)]
    single = [elapsed_s(loaded, draw, one, steps, seed) for one in picked]
    p50, p95 = np.percentile(single, [50, 95]).tolist()
    peak_mb = peak_memory_mb()
    parts = components(loaded, lambda one: elapsed_s(loaded, draw, one, steps, seed), picked)
    found = {name: round(value, 5) for name, value in ({"p50_s": p50, "p95_s": p95} | parts).items()}
    for batch in params.latency_batches:
        before = energy.joules()
        taken = [elapsed_s(loaded, draw, many[:batch], steps, seed) for _ in range(2)]
        found[f"images_per_s_at_{batch}"] = round(batch / min(taken), 3)
        spent = energy.since(before)
    if spent is not None:
        found["energy_j"] = round(spent / (2 * batch), 4)
    peak_mb = max([peak_mb, peak_memory_mb(), *(value for name, value in parts.items() if name.endswith("_mb"))])
    return found | {"peak_memory_mb": round(peak_mb, 1)}


def components(loaded: Loaded, draw: Callable[[list[Prompt]], float], runs: Sequence[list[Prompt]]) -> dict[str, float]:
    """Returns "<component>_s" and "<component>_p95_s" of text_encoder, transformer and decoder: the median and the 95th
    percentile of the seconds that all its calls of a run take together, by hooks around it. On a GPU also
    "<component>_peak_mb", the most that was allocated in a call, weights of all components included. A CPU's process
    has one high-water mark, which says nothing of its parts."""
    pipe = loaded.pipe
    modules = {"text_encoder": pipe.text_encoder, "transformer": pipe.transformer, "decoder": pipe.vae.decoder}
    watches = {name: Watch(module, loaded.device) for name, module in modules.items()}
    for run in runs:
        for watch in watches.values():
            watch.runs.append(0.0)
        draw(run)
    found: dict[str, float] = {}
    for name, watch in watches.items():
        watch.remove()
        median, p95 = np.percentile(watch.runs, [50, 95]).tolist()
        found |= {f"{name}_s": median, f"{name}_p95_s": p95}
        found |= {f"{name}_peak_mb": watch.peak_mb} if watch.gpu else {}
    return found


class Watch:
    """Adds up what the calls of a module take in each run, and keeps the most GPU memory that one of them had."""

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        self.gpu, self.began, self.runs, self.peak_mb = device.type == "cuda", 0.0, list[float](), 0.0
        self.handles = [module.register_forward_pre_hook(self.start), module.register_forward_hook(self.stop)]

    def now(self) -> float:
        """Returns the clock when the device has done what it was told."""
        if self.gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(self, *_: object) -> None:
        """Takes down when a call begins."""
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        self.began = self.now()

    def stop(self, *_: object) -> None:
        """Adds a call that ends."""
        self.runs[-1] += self.now() - self.began
        if self.gpu:
            self.peak_mb = max(self.peak_mb, torch.cuda.max_memory_allocated() / 1e6)

    def remove(self) -> None:
        """Takes the hooks off."""
        for handle in self.handles:
            handle.remove()


def forget_peak() -> None:
    """Starts the high-water mark anew where the system lets us: of the GPU, or of the process under Linux."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return


def peak_memory_mb() -> float:
    """Returns the high-water mark in MB (10^6 bytes): allocated GPU memory, else the process's resident
    set.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    if STATUS.is_file():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    import psutil

    return psutil.Process().memory_info().rss / 1e6


def machine() -> dict[str, str | int]:
    """Returns what the times were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "cpu": host.cpu_name(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }
