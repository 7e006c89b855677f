"""Energy where the device reports it: the GPU's counter by NVML, else the processor's packages by Linux's powercap."""

from __future__ import annotations

from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
Reading = dict[str, tuple[float, float]]  # counter -> (joules, joules after which it starts anew)


def joules() -> Reading:
    """Returns the readings of all counters there are, {} where the device tells nothing."""
    return gpu() if torch.cuda.is_available() else packages()


def since(before: Reading) -> float | None:
    """Returns the joules spent since a reading, None where nothing is told."""
    after = joules()
    common = [name for name in before if name in after]
    if not common:
        return None
    return sum((after[name][0] - before[name][0]) % before[name][1] for name in common)


def packages() -> Reading:
    """Returns the counters of the processor's packages (Intel and AMD RAPL), readable by root alone on most systems."""
    found = {}
    for zone in sorted(POWERCAP.glob("intel-rapl:*")):
        try:
            is_package = (zone / "name").read_text().startswith("package")  # others are parts, or the whole platform
            spent, most = (int((zone / name).read_text()) for name in ("energy_uj", "max_energy_range_uj"))
        except (OSError, ValueError):
            continue
        if is_package:
            found[zone.name] = (spent / 1e6, most / 1e6)
    return found


def gpu() -> Reading:
    """Returns the counter of the current GPU, {} without NVML or a counter."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
        return {"gpu": (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, float("inf"))}
    except pynvml.NVMLError:
        return {}
