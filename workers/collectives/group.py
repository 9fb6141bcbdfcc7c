"""A group of ranks of one host that talk through shared memory."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...schemas.errors import GroupError
from ...schemas.tensors import dtype_name
from .binding import DTYPES, KINDS, REDUCTIONS, Fault, Native
from .segment import opened

__all__ = ["SharedGroup"]

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
Reduction = Literal["sum", "max", "min"]

_SLOT_BYTES = 1 << 18
_LINE = 64
_LOOK_MS = 100


class SharedGroup:
    """This process's place in a group.

    The graphs that this process runs use the group through the operators of the same library. A process is in one
    group at a time; it can leave it and open the next, in another epoch, as often as it likes.

    Whatever goes wrong in a collective breaks the group for all ranks, and no graph hears of it: its outputs are NaN,
    or zeros where there is no NaN. So ask for the `fault` after every call of a graph.

    Args:
        library: from `library`.
        slot_bytes: how much a rank can give at once; what is larger takes several rounds. The ranks share twice as
            much for each of them.
        timeout: seconds that a rank waits in a collective for the others. Ranks that have died are seen within 100 ms
            all the same; this is for those that hang.

    Raises:
        CollectivesUnavailable: the library cannot be loaded.
    """

    def __init__(self, library: Path, *, slot_bytes: int = _SLOT_BYTES, timeout: float = 120.0) -> None:
        self._native = Native(library)
        self._slot_bytes = slot_bytes
        self._timeout = timeout
        self._size = 0

    def open(
        self,
        name: str,
        rank: int,
        size: int,
        timeout: float = 90.0,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Open the group together with the other ranks; returns when all are there.

        Args:
            name: from `segment_name`, the same for all ranks, and another one for every epoch.
            rank: this process's, from 0.
            size: number of ranks, up to 64.
            timeout: seconds to wait for the others.
            stopped: asked every 100 ms, also before anything is opened that `abort` could break: whether to give up.

        Raises:
            GroupError: a rank is missing or has died meanwhile, one was told to give up, the rank is taken, or there
                is no room.
        """
        self.close()
        native, began = self._native, time.monotonic()
        # At least a line for each rank, or a scattered tensor would have no room.
        slot = max(math.ceil(self._slot_bytes / _LINE), size) * _LINE
        with opened(name, native.segment_bytes(size, slot)) as file:
            fault = native.open(file, rank, size, slot, round(self._timeout * 1000))
            try:
                while fault is None and (ready := native.wait_for_all(_LOOK_MS)) != 1:
                    waited = time.monotonic() - began
                    if ready == 0 and stopped():
                        native.abort()
                    elif ready == 0 and waited > timeout:
                        native.give_up_waiting(round(waited * 1000))
                    fault = native.fault()
            except BaseException:  # an interrupt
                native.close()
                raise
        if fault is not None:
            native.close()
            raise GroupError(f"rank {rank} of {size} cannot open the group: {fault.message}")
        self._size = size
        log.info("rank %d of %d opened the group %s in %.3f s", rank, size, name, time.monotonic() - began)

    def begin_step(self, step: int) -> None:
        """Say that the collectives that follow belong to a step: ranks that are in different ones find out."""
        self._native.begin_step(step)

    def fault(self) -> Fault | None:
        """The first fault since the group was opened; None if there was none."""
        return self._native.fault()

    def abort(self) -> None:
        """Break the group, from any thread: every rank that waits in it, this one too, returns at once."""
        self._native.abort()

    def close(self) -> None:
        """Leave the group; the others can no longer use it either."""
        if self._size:
            self._size = 0
            self._native.close()

    # ---------------------------------------------------------------------------------------- outside of a graph

    def all_reduce(self, array: Array, reduction: Reduction = "sum") -> Array:
        """The elements of all ranks' arrays put together, the same bit for bit on every rank.

        Raises:
            GroupError: the group is broken; likewise in the methods below.
        """
        return self._run("all_reduce", array, array.shape, reduction=reduction)

    def all_gather(self, array: Array) -> Array:
        """All ranks' arrays, one after the other along the first axis."""
        shape = (self._size * array.shape[0], *array.shape[1:])
        return self._run("all_gather", array, shape)

    def broadcast(self, array: Array, root: int) -> Array:
        """The array of one rank; the others give one of the same shape and dtype."""
        return self._run("broadcast", array, array.shape, root=root)

    def reduce_scatter(self, array: Array, reduction: Reduction = "sum") -> Array:
        """This rank's share, along the first axis, of all ranks' arrays put together."""
        shape = (array.shape[0] // max(1, self._size), *array.shape[1:])
        return self._run("reduce_scatter", array, shape, reduction=reduction)

    def barrier(self) -> None:
        """Return when every rank has called it."""
        self._check(self._native.run(KINDS.index("barrier"), 0, 0, 0, 0, None, None))

    def _run(self, kind: str, array: Array, shape: tuple[int, ...], reduction: str = "none", root: int = 0) -> Array:
        given = np.ascontiguousarray(array)
        out = np.empty(shape, given.dtype)
        self._check(
            self._native.run(
                KINDS.index(kind),
                DTYPES.index(dtype_name(given.dtype)),
                REDUCTIONS.index(reduction),
                root,
                given.size,
                given.ctypes.data,
                out.ctypes.data,
            )
        )
        return out

    def _check(self, code: int) -> None:
        if code != 0:
            fault = self.fault()
            raise GroupError(fault.message if fault is not None else "the group was closed meanwhile")
