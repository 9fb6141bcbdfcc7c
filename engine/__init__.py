"""The broker side of rankmq: servable configurations, the orchestrator, and the producer library.

Names are imported when they are first used: a configuration file needs no broker, a producer no registry of methods.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import distributed, register
    from .client import Client, Part, Pending, Stream
    from .jobs.job import Job

__all__ = ["Client", "Job", "Part", "Pending", "Stream", "distributed", "register"]

_HOMES = {**dict.fromkeys(("Client", "Part", "Pending", "Stream"), ".client"), "Job": ".jobs.job"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    return importlib.import_module(f".{name}", __name__)
