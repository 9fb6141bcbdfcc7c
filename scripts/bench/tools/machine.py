"""What the figures were taken on, in one line."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import psutil

__all__ = ["describe"]

_PACKAGES = ("mindspore", "numpy", "pika")


def describe() -> str:
    """Cores, memory, load and versions."""
    versions = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    memory = psutil.virtual_memory().total / 2**30
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, load {load:.1f} at the end, {', '.join(versions)}"
