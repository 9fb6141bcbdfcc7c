"""Operators of MindSpore on the thread that calls them: see native/calling_thread.cc.

To be imported before MindSpore, whose libraries are to find ours first. Where it cannot be had, MindSpore does as it
would.
"""

from __future__ import annotations

import ctypes
import logging
import sys

from ...schemas.errors import CollectivesUnavailable
from .build import calling_thread_library

__all__ = ["calls", "use_calling_thread"]

log = logging.getLogger(__name__)


def use_calling_thread(use: bool) -> bool:
    """Has operators run on the thread that calls them, from now on.

    Returns:
        Whether that can be done; else all is as it was.
    """
    if _functions is not None:
        _functions.rankmq_use_calling_thread(int(use))
    return _functions is not None


def calls() -> int:
    """How many operators have been run so in this process; those with nothing to divide are not among them."""
    return int(_functions.rankmq_calling_thread_calls()) if _functions is not None else 0


def _loaded() -> ctypes.CDLL | None:
    if "mindspore" in sys.modules:
        log.debug("MindSpore is there already: operators run as it likes")
        return None
    try:
        functions = ctypes.CDLL(str(calling_thread_library()), mode=ctypes.RTLD_GLOBAL)
    except (CollectivesUnavailable, OSError) as error:
        log.debug("operators run as MindSpore likes: %s", error)
        return None
    functions.rankmq_use_calling_thread.argtypes = (ctypes.c_int,)
    functions.rankmq_use_calling_thread.restype = None
    functions.rankmq_calling_thread_calls.restype = ctypes.c_uint64
    return functions


_functions = _loaded()
