"""Steps of one group whose tensors are in the blob store: too large for messages, and not to be had in shared memory.

A step whose tensors have to be written waits until they are, on a thread; it is numbered when it is sent. What ranks
have written is read on a thread too, and their answers go on in the order in which they came. Only ranks that say that
they have a blob store are sent references, and only if all of them do.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import structs

from ..schemas.errors import BlobUnavailable, RankmqError
from ..schemas.messages import Column, ErrorInfo, Form, RankReply, Ready
from ..schemas.tensors import Tensor
from .batch import Batch
from .blobs import BlobStore
from .conveyor import Flight
from .references import names_of
from .scatter import Scattered

__all__ = ["StepBlobs", "StepWriter", "large_in", "replaced", "whole"]

log = logging.getLogger(__name__)

InPool = Callable[[Callable[[], Any], Callable[[Any], None]], None]
Delete = Callable[[Sequence[str]], None]


def large_in(columns: Sequence[Column], limit: int) -> list[Tensor]:
    """The tensors of numbers that have more bytes than a message should carry."""
    return [
        it
        for column in columns
        for it in column.tensors
        if it.blob is None and isinstance(it.data, memoryview) and it.data.nbytes > limit
    ]


def replaced(columns: Sequence[Column], by: dict[int, Tensor]) -> tuple[Column, ...]:
    """Columns with other tensors, by the identity of the old ones."""
    return tuple(
        structs.replace(column, tensors=tuple(by.get(id(it), it) for it in column.tensors))
        if column.tensors
        else column
        for column in columns
    )


def whole(store: BlobStore, columns: Sequence[Column]) -> tuple[Column, ...]:
    """Columns with the data of their tensors; called on a thread.

    Raises:
        BlobUnavailable: a blob cannot be read, or is not there.
    """
    referred = [it for column in columns for it in column.tensors if it.blob is not None]
    try:
        return replaced(columns, {id(it): store.get(it) for it in referred})
    except RankmqError as error:
        raise BlobUnavailable(f"a tensor of a step: {error.message}") from error


@dataclass(eq=False, slots=True)
class _Write:
    """What is written for a batch at one stage: the step as it was, then as it is to be sent, or what went wrong."""

    batch: Batch
    scattered: Scattered
    names: tuple[str, ...] = ()
    error: RankmqError | None = None
    done: bool = False
    dropped: bool = False


class StepWriter:
    """For what goes to the ranks, in one epoch.

    Args:
        store: where to write.
        in_pool: runs something on a thread, then something with its result on the loop.
        delete: has blobs deleted.
        limit: largest tensor within a message, in bytes.
        written: called when a step can be sent that had to wait.
    """

    def __init__(
        self, store: BlobStore, in_pool: InPool, delete: Delete, limit: int, written: Callable[[], None]
    ) -> None:
        self._store = store
        self._in_pool = in_pool
        self._delete = delete
        self._limit = limit
        self._written = written
        self._writes: dict[int, _Write] = {}
        self._sent: dict[Flight, tuple[str, ...]] = {}

    def needs(self, scattered: Scattered) -> bool:
        """Whether something in a step is too large for a message."""
        return any(large_in(columns, self._limit) for columns in (scattered.replicated, *scattered.sharded))

    def write(self, flight: Flight, scattered: Scattered) -> None:
        """Begins to write what is large in a step."""
        self._drop(flight.stage)  # of a batch that is not wanted any more
        write = self._writes[flight.stage] = _Write(flight.batch, scattered)
        parts = (scattered.replicated, *scattered.sharded)
        tensors = [it for columns in parts for it in large_in(columns, self._limit)]

        def work() -> list[Tensor] | RankmqError:
            try:
                return self._store.put_all(tensors)
            except RankmqError as error:
                return error

        def done(found: list[Tensor] | RankmqError) -> None:
            write.done = True
            if isinstance(found, RankmqError):
                write.error = found
            else:
                write.names = names_of(found)
                by = {id(old): new for old, new in zip(tensors, found, strict=True)}
                replicated, *sharded = (replaced(columns, by) for columns in parts)
                write.scattered = Scattered(replicated, tuple(sharded))
            if write.dropped:
                self._delete(write.names)
            else:
                self._written()

        self._in_pool(work, done)

    def is_writing(self, flight: Flight) -> bool:
        """Whether a step has to wait until it is written."""
        write = self._writes.get(flight.stage)
        return write is not None and write.batch is flight.batch and not write.done

    def take(self, flight: Flight) -> tuple[Scattered, RankmqError | None] | None:
        """A step that was written, once; with the error, as it was, where it could not be. None: it is not written."""
        write = self._writes.get(flight.stage)
        if write is None or write.batch is not flight.batch:
            return None
        del self._writes[flight.stage]
        self._sent[flight] = write.names
        return write.scattered, write.error

    def finished(self, flight: Flight) -> None:
        """All ranks have answered a step, or it is not sent after all."""
        names = self._sent.pop(flight, ())
        if names:
            self._delete(names)

    def ended(self) -> None:
        """The epoch is over."""
        for stage in list(self._writes):
            self._drop(stage)
        for flight in list(self._sent):
            self.finished(flight)

    def _drop(self, stage: int) -> None:
        write = self._writes.pop(stage, None)
        if write is not None:
            write.dropped = True
            if write.names:
                self._delete(write.names)


@dataclass(eq=False, slots=True)
class _Reading:
    reply: RankReply
    done: bool


class StepBlobs:
    """The blob store of one group, epoch by epoch.

    Args:
        store: where the blobs are.
        in_pool: runs something on a thread, then something with its result on the loop.
        delete: has blobs deleted.
        limit: largest tensor within a message, in bytes.
        size: how many ranks the group has.
        written: called when a step can be sent that had to wait.
    """

    def __init__(
        self, store: BlobStore, in_pool: InPool, delete: Delete, *, limit: int, size: int, written: Callable[[], None]
    ) -> None:
        self._store = store
        self._in_pool = in_pool
        self._delete = delete
        self._limit = limit
        self._size = size
        self._written = written
        self._epoch = -1
        self._with: set[int] = set()
        self._lines: dict[int, deque[_Reading]] = {}

    def offer(self, form: Form) -> Form:
        """The message to a rank, which is told what is too large for a message."""
        if form.epoch != self._epoch:
            self._epoch = form.epoch
            self._with.clear()
        return structs.replace(form, inline_limit=self._limit)

    def accept(self, ready: Ready) -> None:
        """A rank is ready: with a blob store or without."""
        if ready.epoch == self._epoch and ready.blobs:
            self._with.add(ready.rank)

    def writer(self) -> StepWriter | None:
        """For what goes to the ranks, once all are ready; None where one of them has no blob store."""
        if len(self._with) < self._size:
            return None
        return StepWriter(self._store, self._in_pool, self._delete, self._limit, self._written)

    def read(self, reply: RankReply, then: Callable[[RankReply], None]) -> None:
        """Calls `then` with a rank's answer when its tensors are there, behind the answers that came before it."""
        referred = [it for column in reply.outputs for it in column.tensors if it.blob is not None]
        line = self._lines.get(reply.rank)
        if not referred and line is None:
            then(reply)
            return
        if line is None:
            line = self._lines[reply.rank] = deque()
        reading = _Reading(reply, done=not referred)
        line.append(reading)
        if not referred:
            return

        def work() -> RankReply:
            try:
                return structs.replace(reply, outputs=whole(self._store, reply.outputs))
            except RankmqError as error:
                info = ErrorInfo(code=error.code, message=error.message, side=error.side)
                return structs.replace(reply, outputs=(), error=info)

        def done(found: RankReply) -> None:
            reading.reply, reading.done = found, True
            self._delete(names_of(referred))
            while line and line[0].done:
                first = line.popleft()
                if not line:
                    del self._lines[reply.rank]
                then(first.reply)

        self._in_pool(work, done)
