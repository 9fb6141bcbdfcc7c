"""Where a job's rows become requests, and replies go on record. Belongs to one thread; knows no broker.

A step takes the replies that came, plans further requests, and puts all of it on disk at once. Only then may the
replies be acknowledged and the requests be sent.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...schemas import codec
from ...schemas.errors import BlobMissing, LimitExceeded, RankmqError, RequestError
from ...schemas.messages import ErrorInfo, Reply
from ..references import outputs_of
from .columns import Input
from .job_blobs import JobBlobs
from .manifest import Chunk, Failure, Key, Manifest, made_id
from .outcomes import Again, Outcome, outcome_of
from .packing import Packing
from .reader import Reader
from .request_bodies import RequestBodies
from .row_ids import RowIds
from .spool import Spool
from .step import Answer, Asking, Room, Step

__all__ = ["MANIFEST", "SPOOL", "Desk"]

MANIFEST = "job.sqlite"
SPOOL = "job.replies"

_PAUSES = (0.5, 2.0, 8.0)
_STEP_BYTES = 4 << 20


class Desk:
    """The side of a job that is on disk.

    Args:
        folder: of the manifest.
        max_message: the largest message that the broker takes, in bytes.
        blobs: for tensors that are too large for messages; None where there is no blob store.

    Raises:
        ConfigurationError: the folder has no job.
        JobStopped: the input is another by now, or something cannot be read.
    """

    def __init__(self, folder: Path, *, max_message: int = 128 << 20, blobs: JobBlobs | None = None) -> None:
        self._manifest = Manifest(folder / MANIFEST)
        self.spec = spec = self._manifest.spec
        self.counts = self._manifest.counts
        self.max_message = max_message
        self._blobs = blobs
        self._packing = Packing(spec.rows_per_request, spec.most_bytes)
        self._halved_at = 0
        self._bodies = RequestBodies(spec, blobs)
        self._ids = RowIds(self._manifest)
        self._reader: Reader | None = None
        self._spool = Spool(folder / SPOOL, self.counts.end)
        self._backlog = self._manifest.pending()[::-1]
        self._later: list[tuple[float, Key]] = []
        self._out: set[Key] = set()
        self._began = time.monotonic() - self.counts.seconds
        self.counts.runs += 1

    @property
    def has_blobs(self) -> bool:
        """Whether tensors may be by reference, in requests and in replies."""
        return self._blobs is not None

    @property
    def rows_each(self) -> int:
        """How many rows the next request will have; may be asked for by any thread."""
        return self._packing.rows

    @property
    def reader(self) -> Reader:
        """The input, opened when it is first needed; see `Reader`."""
        if self._reader is None:
            self._reader = Reader(self.spec, self.counts.position)
        return self._reader

    def close(self) -> None:
        """Closes its files; may be called from any thread once no step runs."""
        self._manifest.close()
        self._spool.close()

    # ------------------------------------------------------------------------------------------------------- the step

    def step(self, answers: Sequence[Answer], room: Room, *, cancelling: bool = False) -> Step:
        """Puts replies on record and plans what comes next.

        Args:
            answers: the replies that came.
            room: how much may be planned.
            cancelling: the job is given up: nothing is planned.

        Raises:
            JobStopped: no space left, or the input or the blob store cannot be read; what was on record before is so
                still.
            RankmqError: an error that every row would meet.
        """
        if room.rows_per_second:
            self._packing.measured(room.rows_per_second)
            self.counts.rate = room.rows_per_second
        self._packing.travels(near=room.near, most=self.max_message // 2)
        step, on_disk, end = Step(self.counts), False, self.counts.end
        try:
            with self._manifest.transaction():
                fatal = [it for answer in answers if (it := self._take(answer, step, cancelling=cancelling))]
                if not cancelling and not fatal:
                    self._plan(room.requests, step)
                self.counts.seconds = time.monotonic() - self._began
                if answers:
                    self._spool.sync()
                self._manifest.save(self.counts)
            on_disk = True
        finally:
            if not on_disk:
                self._spool.cut(end)
            if self._blobs is not None:
                self._blobs.step_ended(on_disk=on_disk)
        step.fatal = f"every row would fail: {fatal[0].message}" if fatal else ""
        self._out.update(it.key for it in step.asking)
        self._out.difference_update(step.settled)
        step.next_due = max(0.0, self._later[0][0] - time.monotonic()) if self._later else None
        unread = self.reader.has_more
        step.more = unread or bool(self._backlog) or step.next_due == 0.0
        step.over = not (unread or self._out or self._backlog or self._later)
        step.cancel_asked = self._manifest.cancel_asked
        return step

    def ask_again(self, key: Key) -> None:
        """Has a request planned once more that was not answered for long; between two steps."""
        self._out.discard(key)
        self._backlog.append(key)

    def take_apart(self) -> list[Key]:
        """Has the rows of requests that are under way sent one by one from now on; between two steps.

        Returns:
            The requests, whose answers count no more.

        Raises:
            JobStopped: no space left.
        """
        found = self._anew(sorted(self._out), apart=True)
        self._out.difference_update(found)
        return found

    def renew(self) -> list[Key]:
        """Has what an earlier run has sent asked once more under other ids; before anything is planned.

        Returns:
            The requests, whose answers count no more.

        Raises:
            JobStopped: no space left.
        """
        keys, self._backlog = self._backlog, []
        return self._anew(keys, apart=False)

    def _anew(self, keys: Sequence[Key], *, apart: bool) -> list[Key]:
        found = []
        with self._manifest.transaction():
            for key in keys:
                count = self._manifest.count_of(key)
                chunk = self._manifest.chunk_of(key.first)
                rows = [] if count is None else chunk.rows(key.first, count)
                if count is None or (apart and len(rows) < 2):
                    continue
                again = [Again(index, 1) for index in range(len(rows))] if apart else [Again(0, len(rows))]
                self._settle(key, count, chunk, rows, Outcome(again=again))
                self._manifest.answered(key, self._spool.append(b""))
                found.append(key)
            self._manifest.save(self.counts)
        return found

    # -------------------------------------------------------------------------------------------------------- replies

    def _take(self, answer: Answer, step: Step, *, cancelling: bool) -> ErrorInfo | None:
        count = self._manifest.count_of(answer.key)
        if count is None:  # on record already, or of a plan that was lost before it was on record
            step.settled.setdefault(answer.key, 0)
            if self._blobs is not None:
                self._blobs.drop(_read(answer))
            return None
        key = answer.key
        rows = self._manifest.chunk_of(key.first).rows(key.first, count)
        reply, body = self._whole(answer)
        step.claims_lost |= reply.error is not None and reply.error.code == BlobMissing.code
        self._packing.answered(len(rows), len(body))
        refused = reply.error is not None and reply.error.code == LimitExceeded.code and len(rows) > 1
        if refused and key.first >= self._halved_at:  # what was packed before that says nothing of what is packed now
            self._too_large()
        return self._book(key, count, reply, body, step, cancelling=cancelling)

    def _book(
        self, key: Key, count: int, reply: Reply, body: bytes, step: Step, *, cancelling: bool = False
    ) -> ErrorInfo | None:
        chunk = self._manifest.chunk_of(key.first)
        rows = chunk.rows(key.first, count)
        bounded = self.spec.deadline is not None
        outcome = outcome_of(reply, len(rows), key.attempt, cancelling=cancelling, bounded=bounded)
        self._settle(key, count, chunk, rows, outcome)
        if outcome.open != len(rows):
            kept = body if outcome.done else b""  # of one without results, what it said is on record already
            self._manifest.answered(key, self._spool.append(kept))
            self.counts.end += len(kept)
        step.settled[key] = outcome.done + len(outcome.failed)
        return outcome.fatal

    def _whole(self, answer: Answer) -> tuple[Reply, bytes]:
        """A reply, and its body, with all outputs in it."""
        reply = _read(answer)
        if self._blobs is None or not outputs_of(reply):
            return reply, answer.body
        try:
            reply = self._blobs.whole(reply)
        except RequestError as error:  # deleted, or written over: the rows are computed again
            reply = Reply(
                error=_info(BlobMissing(f"an output of the reply is not in the blob store any more: {error.message}"))
            )
        return reply, codec.encode_reply(reply)

    def _settle(self, key: Key, count: int, chunk: Chunk, rows: list[int], outcome: Outcome) -> None:
        self._manifest.add_failures(
            [
                Failure(rows[index], chunk.id_of(rows[index]), error.code, error.message)
                for index, error in outcome.failed.items()
            ]
        )
        due = time.monotonic() + _PAUSES[min(key.attempt, len(_PAUSES) - 1)]
        for again in outcome.again:
            whole = again.count == len(rows)
            following = Key(key.first if whole else rows[again.first], key.attempt + 1)
            self._manifest.add_request(following, count if whole else again.count)
            heapq.heappush(self._later, (due, following))
            self.counts.retries += 1
            self.counts.requests += 1
        self.counts.completed += outcome.done
        self.counts.failed += len(outcome.failed)

    # ------------------------------------------------------------------------------------------------------- planning

    def _plan(self, requests: int, step: Step) -> None:
        """Requests that were planned before come first, then those that are sent again, then new ones."""
        nbytes, now = 0, time.monotonic()
        for _ in range(requests):
            if self._backlog:
                asking: Asking | None = self._again(self._backlog.pop(), step)
            elif self._later and self._later[0][0] <= now:
                asking = self._again(heapq.heappop(self._later)[1], step)
            elif not self.reader.has_more:
                break
            else:
                asking = self._next()
            if asking is not None:
                step.asking.append(asking)
                nbytes += asking.nbytes
            if nbytes >= _STEP_BYTES:
                break
        self.counts.position = self.reader.position
        if not self.reader.has_more:
            self.counts.total = self.counts.planned

    def _next(self) -> Asking | None:
        """The next rows; None if all of those that were read cannot be sent."""
        first, position = self.counts.planned, -1
        good: list[Input] = []
        bad: list[int] = []
        ids: list[str | None] = []
        failures: list[Failure] = []
        nbytes, most, lenient = 0, self._packing.rows, None
        while len(ids) < most:
            taken = self.reader.take()
            if taken is None:
                break
            row, made = taken
            if (
                isinstance(made, Input)
                and good
                and (made.lenient != lenient or nbytes + row.nbytes > self._packing.most_bytes)
            ):
                self.reader.put_back(taken)
                break
            position = row.position if position < 0 else position
            number = first + len(ids)
            custom_id, wrong = self._ids.of(row.custom_id, number, first, ids)
            made = wrong or made
            ids.append(custom_id)
            if isinstance(made, RankmqError):
                bad.append(number - first)
                failures.append(Failure(number, custom_id or made_id(number), made.code, made.message))
                continue
            lenient = made.lenient
            good.append(made)
            nbytes += row.nbytes
        if not ids:
            return None
        return self._planned(Chunk(first, len(ids), position, tuple(bad), tuple(ids)), good, failures)

    def _planned(self, chunk: Chunk, good: list[Input], failures: list[Failure]) -> Asking | None:
        """Takes down a chunk, and makes its request. Rows that cannot be sent are found one by one if need be."""
        sent = self._together(good)
        if sent is None:
            chunk, good, more = self._sifted(chunk, good)
            failures += more
            sent = self._together(good) if more else None
        if sent is None:
            self._apart(chunk, failures)
            return None
        self._take_down(chunk, failures)
        if not good:
            return None
        key = Key(chunk.first, 0)
        self._manifest.add_request(key, chunk.count)
        self.counts.requests += 1
        return Asking(key, len(good), *sent)

    def _take_down(self, chunk: Chunk, failures: list[Failure]) -> None:
        self._manifest.add_chunk(chunk)
        self._manifest.add_failures(failures)
        self.counts.planned += chunk.count
        self.counts.failed += len(failures)

    def _together(self, rows: list[Input]) -> tuple[bytes, int] | None:
        """The request of so many rows, which may be none; None if they make none together."""
        try:
            return self._bodies.made(rows, self.max_message) if rows else (b"", 0)
        except RequestError:
            return None

    def _apart(self, chunk: Chunk, failures: list[Failure]) -> None:
        """Takes down rows that can be sent, but not together: each will be a request by itself."""
        self._too_large()
        self._take_down(chunk, failures)
        keys = [Key(row, 0) for row in chunk.rows(chunk.first, chunk.count)]
        for key in reversed(keys):
            self._manifest.add_request(key, 1)
            self._backlog.append(key)
        self.counts.requests += len(keys)

    def _too_large(self) -> None:
        self._packing.too_large()
        self._halved_at = self.counts.planned

    def _sifted(self, chunk: Chunk, good: list[Input]) -> tuple[Chunk, list[Input], list[Failure]]:
        rows = chunk.rows(chunk.first, chunk.count)
        kept, bad, failures = [], list(chunk.bad), []
        for row, made in zip(rows, good, strict=True):
            try:
                self._bodies.made([made], self.max_message, to_try=True)
            except RequestError as error:
                bad.append(row - chunk.first)
                failures.append(Failure(row, chunk.id_of(row), error.code, error.message))
            else:
                kept.append(made)
        return replace(chunk, bad=tuple(sorted(bad))), kept, failures

    def _again(self, key: Key, step: Step) -> Asking | None:
        """A request that is on record, made once more out of its rows; None if it cannot be sent any more."""
        count = self._manifest.count_of(key)
        if count is None:
            return None
        chunk = self._manifest.chunk_of(key.first)
        inputs = self.reader.again(chunk)
        good = [inputs[row] for row in chunk.rows(key.first, count)]
        try:
            return Asking(key, len(good), *self._bodies.made(good, self.max_message))
        except RequestError as error:  # the broker takes less than it was believed to
            self._book(key, count, Reply(error=_info(error)), b"", step)
            return None


def _info(error: RankmqError) -> ErrorInfo:
    return ErrorInfo(code=error.code, message=error.message, side=error.side)


def _read(answer: Answer) -> Reply:
    try:
        return codec.decode_reply(answer.body, answer.content_type)
    except RankmqError as error:
        text = f"a reply that cannot be read: {error.message}"
        return Reply(error=ErrorInfo(code="internal", message=text, side="engine"))
