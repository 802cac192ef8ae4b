"""The machine that figures were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from dcase.versions import versions


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, GPU, versions, load.

    Args:
        device: That is used.

    Returns:
        ``processor``, ``cores`` (that this process may use), ``threads`` (PyTorch's), ``gpu`` (name
        of the one used, else of the first there is; or None), ``gpu_used``, ``system``,
        ``versions``, ``load_average`` (programs that wanted to run in the last minute; None where
        the system does not count them).
    """
    used = device.type != "cpu"
    gpu = None
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_name(device if device.type == "cuda" else 0)
    elif used:
        gpu = str(device)
    return {
        "processor": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "gpu_used": used,
        "system": platform.platform(),
        "versions": versions(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def busy(facts: dict[str, Any]) -> str:
    """Why figures from this machine would be too slow now, in one line, or ""."""
    load = facts["load_average"]
    if load is None or load + facts["threads"] <= facts["cores"] + 0.5:
        return ""
    return (
        f"load average {load:.1f} on {facts['cores']} cores: other programs run or have just run; "
        "figures from a busy machine are too slow"
    )
