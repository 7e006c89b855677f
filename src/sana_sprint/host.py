"""What machine this is, as times and lineage name it."""

import platform
from pathlib import Path


def cpu_name() -> str:
    """Returns the processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
