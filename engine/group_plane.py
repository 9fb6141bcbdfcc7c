"""The shared memory of one group, epoch by epoch: offered when the group forms, used if all ranks could open it."""

from __future__ import annotations

import logging

from msgspec import structs

from ..schemas.errors import RankmqError
from ..schemas.messages import Form, RankReply, Ready
from .plane import PlaneReader, PlaneWriter
from .shared_file import SharedFile

__all__ = ["GroupPlane"]

log = logging.getLogger(__name__)

_LEAST_BYTES = 1024 * 1024


class GroupPlane:
    """The orchestrator's end.

    Args:
        size: how many ranks the group has.
        nbytes: how much memory to share for what goes to the ranks; for what comes back as much in all. 0: none.
    """

    def __init__(self, size: int, nbytes: int) -> None:
        self._size = size
        self._nbytes = nbytes
        self._epoch = -1
        self._own: SharedFile | None = None
        self._ready: set[int] = set()
        self._without: set[int] = set()
        self._results: dict[int, SharedFile] = {}
        self._told = False

    def offer(self, form: Form) -> Form:
        """The message to a rank, with the memory that it may open; one memory for all ranks of an epoch."""
        if form.epoch != self._epoch:
            self.close()
            self._epoch = form.epoch
            self._own = self._make()
        if self._own is None:
            return form
        return structs.replace(form, plane=self._own.name, plane_bytes=max(_LEAST_BYTES, self._nbytes // self._size))

    def _make(self) -> SharedFile | None:
        if self._nbytes < _LEAST_BYTES:
            return None
        try:
            return SharedFile.make(self._nbytes, least=_LEAST_BYTES)
        except OSError as error:
            if not self._told:
                self._told = True
                log.warning("no shared memory for tensors (%s): they go through the broker", error.strerror or error)
            return None

    def accept(self, ready: Ready) -> None:
        """A rank is ready: with its own memory open to us, or without."""
        if ready.epoch != self._epoch or self._own is None:
            return
        self._ready.add(ready.rank)
        try:
            self._results[ready.rank] = SharedFile.open(ready.plane)
            self._results[ready.rank].unlink()
        except OSError:
            self._without.add(ready.rank)
        if len(self._ready) == self._size:
            self._own.unlink()  # nobody else is to open it, and nothing is left of it should we be killed

    def writer(self) -> PlaneWriter | None:
        """For what goes to the ranks, once all are ready; None where one of them is elsewhere."""
        if self._own is None or self._without or len(self._ready) < self._size:
            if self._without:
                log.info("rank %s is on another host: tensors go through the broker", sorted(self._without))
            return None
        return PlaneWriter(self._own.memory)

    def read(self, reply: RankReply) -> RankReply:
        """A reply with all its tensors.

        Raises:
            RankmqError: it speaks of memory that is not there.
        """
        if not any(column.placed for column in reply.outputs):
            return reply
        memory = self._results.get(reply.rank)
        if memory is None or reply.epoch != self._epoch:
            raise RankmqError(f"rank {reply.rank} speaks of shared memory that is not open")
        return structs.replace(reply, outputs=PlaneReader(memory.memory).columns(reply.outputs, copy=True))

    def close(self) -> None:
        """The epoch is over."""
        for file in (self._own, *self._results.values()):
            if file is not None:
                file.close()
        self._own = None
        self._epoch = -1
        self._results.clear()
        self._ready.clear()
        self._without.clear()
