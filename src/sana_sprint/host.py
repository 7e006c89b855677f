"""What machine this is, as times and lineage name it."""

import platform
from pathlib import Path


def cpu_name() -> str:
    """Returns the processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def gpu_names(place: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """Returns the names of the NVIDIA GPUs as their driver tells them, without a framework; [] where there is none."""
    lines = (line for file in sorted(place.glob("*/information")) for line in file.read_text().splitlines())
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
