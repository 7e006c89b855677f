"""How long one picture takes and how much memory: from the prompt's text to the PNG bytes, warm-up
excluded.
"""

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

from sana_sprint.evaluation import generate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sana_sprint.evaluation.generate import Draw, Loaded
    from sana_sprint.evaluation.protocol import Prompt

WARM_UP = 2
THROUGHPUT_BATCH = 16
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
    loaded: Loaded, draw: Draw, prompts: Sequence[Prompt], steps: int, seed: int, runs: int
) -> dict[str, float]:
    """Returns {"p50_s", "p95_s"} of single pictures over `runs`, {"images_per_s"} at batch 16 (the best of
    two, so that another process does not count) and {"peak_memory_mb"} of these runs.
    """
    forget_peak()
    many = [prompts[i % len(prompts)] for i in range(THROUGHPUT_BATCH)]
    for _ in range(WARM_UP):
        elapsed_s(loaded, draw, prompts[:1], steps, seed)
    single = [elapsed_s(loaded, draw, [many[i % THROUGHPUT_BATCH]], steps, seed) for i in range(runs)]
    batch = min(elapsed_s(loaded, draw, many, steps, seed) for _ in range(2))
    p50, p95 = np.percentile(single, [50, 95]).tolist()
    return {
        "p50_s": round(p50, 5),
        "p95_s": round(p95, 5),
        "images_per_s": round(THROUGHPUT_BATCH / batch, 3),
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }


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
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def cpu_name() -> str:
    """Returns the processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
