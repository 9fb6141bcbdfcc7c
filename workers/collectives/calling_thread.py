"""Operators of MindSpore on the thread that calls them: see native/calling_thread.cc.

To be imported before MindSpore, whose libraries are to find ours first. Where it cannot be had, or this MindSpore has
no such function, ours is not loaded and MindSpore does as it would.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ...schemas.errors import CollectivesUnavailable
from .build import calling_thread_library
from .dynamic_symbols import defines

__all__ = ["calls", "take_over", "use_calling_thread"]

log = logging.getLogger(__name__)

_CORE = "lib/libmindspore_core.so"
_DIVIDES = "_ZN9mindspore10ThreadPool14ParallelLaunchERKSt8functionIFiPviffEES2_i"
_NUMBERS = 1 << 18  # so many that MindSpore would divide them


def take_over(mindspore: Any) -> bool:
    """Has operators run on the thread that calls them, from now on, and sees with one of them that they do.

    That takes some 20 ms, most of which the first operator of a process takes in any case. MindSpore must run on CPU.

    Args:
        mindspore: the module; nothing here imports it.

    Returns:
        Whether they do; else all is as it was, and the log says why.
    """
    if not use_calling_thread(True):
        log.info("operators run as MindSpore likes: %s", _why_not)
        return False
    given, before = np.arange(_NUMBERS, dtype=np.float32), calls()
    try:
        made = mindspore.ops.Neg()(mindspore.Tensor.from_numpy(given)).asnumpy()
        failed = "" if np.array_equal(made, -given) else "an operator gave wrong numbers"
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        failed = f"an operator failed: {(str(error).splitlines() or [''])[0]}"
    if not failed and calls() == before:
        failed = "this version does not call our function"
    if failed:
        use_calling_thread(False)
        log.warning("operators do not run on the thread that calls them, which costs speed: %s", failed)
    return not failed


def use_calling_thread(use: bool) -> bool:
    """Has operators run on the thread that calls them, from now on.

    Returns:
        Whether our function is there; else all is as it was.
    """
    if _functions is not None:
        _functions.rankmq_use_calling_thread(int(use))
    return _functions is not None


def calls() -> int:
    """How many operators have been run so in this process."""
    return int(_functions.rankmq_calling_thread_calls()) if _functions is not None else 0


def _loaded() -> tuple[ctypes.CDLL | None, str]:
    """Our library, or why there is none."""
    if "mindspore" in sys.modules:
        return None, "it was imported before"
    found = find_spec("mindspore")
    if found is None or not found.submodule_search_locations:
        return None, "it is not installed"
    if not defines(Path(found.submodule_search_locations[0]) / _CORE, _DIVIDES):
        return None, f"in this version another function, or another library than {_CORE}, divides their work"
    try:
        functions = ctypes.CDLL(str(calling_thread_library()), mode=ctypes.RTLD_GLOBAL)
    except CollectivesUnavailable as error:
        return None, error.message
    except OSError as error:
        return None, f"the compiled library cannot be loaded: {error}"
    functions.rankmq_use_calling_thread.argtypes = (ctypes.c_int,)
    functions.rankmq_use_calling_thread.restype = None
    functions.rankmq_calling_thread_calls.restype = ctypes.c_uint64
    return functions, ""


_functions, _why_not = _loaded()
