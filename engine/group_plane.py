"""The shared memory of one group, epoch by epoch: offered when the group forms, used if all ranks could open it.

Where one of them could not, it is given back at once, and the log says why: once for a reason, and not in every epoch.
"""

from __future__ import annotations

import logging

from msgspec import structs

from ..schemas.errors import RankmqError
from ..schemas.messages import Form, GroupId, RankReply, Ready
from .plane import PlaneReader, PlaneWriter
from .shared_file import ELSEWHERE, SharedFile, why_not

__all__ = ["GroupPlane"]

log = logging.getLogger(__name__)

_LEAST_BYTES = 1024 * 1024
"""What is worth having, unless less is wanted."""


class GroupPlane:
    """The orchestrator's end.

    Args:
        group: whose.
        size: how many ranks it has.
        nbytes: how much memory to share for what goes to the ranks; for what comes back as much in all. 0: none.
    """

    def __init__(self, group: GroupId, size: int, nbytes: int) -> None:
        self._group = group
        self._size = size
        self._nbytes = nbytes
        self._epoch = -1
        self._own: SharedFile | None = None
        self._ready: set[int] = set()
        self._without: dict[int, str] = {}  # by rank, why
        self._results: dict[int, SharedFile] = {}
        self._told: set[str] = set()

    def offer(self, form: Form) -> Form:
        """The message to a rank, with the memory that it may open; one memory for all ranks of an epoch."""
        if form.epoch != self._epoch:
            self.close()
            self._epoch = form.epoch
            self._own = self._make()
        if self._own is None:
            return form
        each = max(min(_LEAST_BYTES, self._nbytes), self._nbytes // self._size)
        return structs.replace(form, plane=self._own.name, plane_bytes=each)

    def _make(self) -> SharedFile | None:
        if not self._nbytes:
            return None
        try:
            return SharedFile.make(self._nbytes, least=min(_LEAST_BYTES, self._nbytes))
        except OSError as error:
            self._tell("", why_not(error))
            return None

    def accept(self, ready: Ready) -> None:
        """A rank is ready: with its own memory open to us, or without."""
        if ready.epoch != self._epoch or self._own is None:
            return
        self._ready.add(ready.rank)
        try:
            if ready.plane:
                self._results[ready.rank] = SharedFile.open(ready.plane)
                self._results[ready.rank].unlink()
            else:
                self._without[ready.rank] = ready.no_plane or "it has none"
        except OSError as error:
            self._without[ready.rank] = why_not(error)
        if len(self._ready) == self._size:
            self._own.unlink()  # nobody else is to open it, and nothing is left of it should we be killed

    def writer(self) -> PlaneWriter | None:
        """For what goes to the ranks, once all are ready; None where one of them is without."""
        if self._own is None or len(self._ready) < self._size:
            return None
        if self._without:
            for reason in dict.fromkeys(self._without.values()):
                ranks = [str(rank) for rank, why in sorted(self._without.items()) if why == reason]
                self._tell(f"rank {', '.join(ranks)} of ", reason)
            self._own.release()
            self._own = None
            return None
        return PlaneWriter(self._own.memory)

    def _tell(self, whom: str, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            level = logging.INFO if reason == ELSEWHERE else logging.WARNING
            log.log(
                level, "no shared memory with %s%s: %.300s; tensors go through the broker", whom, self._group, reason
            )

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
