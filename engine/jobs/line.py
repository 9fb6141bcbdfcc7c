"""A job's line to the broker: its requests out, its replies in from a queue that outlives the job's runner."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from ...schemas import codec
from ...schemas.errors import AlreadyRunning, BlobMissing, BrokerUnavailable, ConnectionLost, RankmqError
from ...schemas.messages import ErrorInfo, Reply
from .. import topology
from ..address import BrokerAddress
from ..claims import CLAIM_HEADER, CLAIMED_BYTES, CLAIMS_HEADER, ClaimFolder
from ..client_cancel import ask_cancel, tell_cancel
from ..confirms import Outcome
from ..connection import Channel, Connection, Properties
from ..deadline import RUN_HEADER
from ..delivery import Delivery
from ..message_limit import MessageLimit
from ..references import BLOBS_HEADER
from .manifest import Key
from .step import Answer, Asking

__all__ = ["JobLine", "key_of", "request_id"]

log = logging.getLogger(__name__)

_PREFETCH = 48
_TAKEN_SECONDS = 40.0
_TAKEN_PAUSE = 1.0
_MOST_REPLY_BYTES = 1 << 30
_ID = re.compile(r"(?P<job>[^.]+)\.(?P<first>\d+)\.(?P<attempt>\d+)(?:/.*)?")


def request_id(job: str, key: Key) -> str:
    """The id of a request: the same whenever it is sent, so that the engine knows it again."""
    return f"{job}.{key.first}.{key.attempt}"


def key_of(job: str, correlation: object) -> Key | None:
    """Which request a reply is for; None if it is for none of this job's."""
    found = _ID.fullmatch(correlation) if isinstance(correlation, str) else None
    return Key(int(found["first"]), int(found["attempt"])) if found and found["job"] == job else None


def _file(key: Key) -> str:
    """Where the body of a request is; the same when it is sent again."""
    return f"q{key.first}.{key.attempt}"


def _kind(content_type: object) -> str:
    return content_type if isinstance(content_type, str) and content_type else codec.MSGPACK


class JobLine:
    """One connection. Lives on one loop.

    Args:
        connection: to the broker.
        job: the job's id.
        key: the routing key of its requests.
        on_answer: called with each reply and its delivery tag.
        folder: for bodies, where the engine is on this host; None: all of them go with their messages.
        blobs: whether tensors of the replies may be by reference.
        deadline: seconds that a request may take once it has begun.
    """

    def __init__(
        self,
        connection: Connection,
        job: str,
        key: str,
        on_answer: Callable[[Answer, int], None],
        folder: ClaimFolder | None = None,
        *,
        blobs: bool = False,
        deadline: float | None = None,
    ) -> None:
        self._connection = connection
        self._job = job
        self._key = key
        self._on_answer = on_answer
        self._folder = folder
        self._speaks: dict[str, Any] = {BLOBS_HEADER: True} if blobs else {}
        if deadline is not None:
            self._speaks[RUN_HEADER] = max(1, round(1000 * deadline))
        self._offers = folder is not None
        self.near = False  # what the engine said last
        self._in: Channel | None = None
        self._out: Channel | None = None
        self._deleted: asyncio.Future[RankmqError] = connection.loop.create_future()
        self.is_new = False
        self.waiting = 0

    @classmethod
    async def open(
        cls,
        address: BrokerAddress,
        job: str,
        key: str,
        on_answer: Callable[[Answer, int], None],
        folder: ClaimFolder | None,
        *,
        blobs: bool,
        deadline: float | None,
        patience: float,
        stopped: Callable[[], bool],
        limit: MessageLimit,
    ) -> JobLine:
        """Connects, and takes up the job's replies.

        Args:
            address: the broker.
            job: the job's id.
            key: the routing key of its requests.
            on_answer: called with each reply and its delivery tag.
            folder: for bodies, where the engine is on this host.
            blobs: whether tensors of the replies may be by reference.
            deadline: seconds that a request may take once it has begun.
            patience: seconds to go on trying while nobody answers.
            stopped: asked between attempts; True gives up.
            limit: what is known of how large a message may be.

        Raises:
            BrokerUnavailable: nobody answers.
            BrokerRefused: wrong user, password or virtual host, or a permission is missing.
            AlreadyRunning: somebody else takes the job's replies.
            ConnectionLost: the broker went away again.
        """
        connection = await Connection.open(
            address, name=f"rankmq job {job}", patience=patience, stopped=stopped, limit=limit
        )
        line = cls(connection, job, key, on_answer, folder, blobs=blobs, deadline=deadline)
        try:
            await line._begin()
        except BaseException:
            await connection.close()
            raise
        return line

    async def _begin(self) -> None:
        self.is_new = not await self._is_there()
        self._out = await self._connection.channel()
        await self._out.declare(topology.job(self._job))
        until = time.monotonic() + _TAKEN_SECONDS
        while True:
            self._in = await self._connection.channel(confirm=False, prefetch=_PREFETCH)
            try:
                self.waiting = (await self._in.depth(topology.job_queue(self._job))).messages
                await self._in.consume(
                    topology.job_queue(self._job), self._on_delivery, exclusive=True, cancelled=self._on_deleted
                )
            except AlreadyRunning:
                # A runner whose host is gone holds it until the broker misses its heartbeats.
                if time.monotonic() > until:
                    raise AlreadyRunning(f"the replies to {self._job} go to another runner") from None
                await asyncio.sleep(_TAKEN_PAUSE)
            else:
                return

    def _on_deleted(self) -> None:
        if not self._deleted.done():
            self._deleted.set_result(ConnectionLost("somebody has deleted the queue for the job's replies"))

    async def _is_there(self) -> bool:
        channel = await self._connection.channel(confirm=False)
        try:
            await channel.depth(topology.job_queue(self._job))
        except AlreadyRunning:
            return True
        except BrokerUnavailable:
            return False
        finally:
            await channel.close()
        return True

    def _on_delivery(self, delivery: Delivery) -> None:
        properties = delivery.properties
        key = key_of(self._job, properties.correlation_id)
        if key is None:
            log.debug("a reply to nothing that the job has asked: %r", properties.correlation_id)
            key = Key(-1, -1)
        headers = delivery.headers
        if not key.attempt:  # what was sent again had no folder to name
            self.near = self._offers and headers.get(CLAIMS_HEADER) is True
        claim = headers.get(CLAIM_HEADER)
        if isinstance(claim, str):
            answer = Answer(key, *self._claimed(claim, properties.content_type), claim)
        else:
            answer = Answer(key, delivery.body, _kind(properties.content_type))
        self._on_answer(answer, delivery.tag)

    def _claimed(self, claim: str, content_type: object) -> tuple[bytes, str]:
        """What a reply is a claim to, and of what type it is; where that is gone, a reply that says so."""
        try:
            if self._folder is None:
                raise BlobMissing("its folder cannot be had")
            return self._folder.get(claim, _MOST_REPLY_BYTES), _kind(content_type)
        except (OSError, RankmqError) as error:
            log.debug("a reply is lost: %s", error)
            lost = ErrorInfo(code=BlobMissing.code, message="a reply whose body is gone", side=BlobMissing.side)
            return codec.encode_reply(Reply(error=lost)), codec.MSGPACK

    def keep_bodies(self) -> None:
        """All bodies go with their messages from now on: what is put into the folder is not found at the other end,
        which has another one of the same name, on another host.
        """
        self._offers = self.near = False

    def forget(self, answers: Iterable[Answer], keys: Iterable[Key]) -> None:
        """Deletes the bodies of replies that are on disk, and of requests that are not asked again."""
        if self._folder is not None:
            for claim in (it.claim for it in answers if it.claim):
                self._folder.drop(claim)
            for key in keys:
                self._folder.drop(_file(key))

    @property
    def max_message(self) -> int:
        """The largest message that the broker takes, in bytes."""
        return self._connection.max_message

    @property
    def blocked(self) -> bool:
        """Whether the broker takes no messages."""
        return self._connection.blocked

    def ended(self) -> RankmqError | None:
        """Why it is of no use any more; None if it is."""
        return next((it.result() for it in self._ends() if it.done()), None)

    def when_ended(self, then: Callable[[], None]) -> None:
        """Has `then` called when it is of no use any more."""
        for it in self._ends():
            it.add_done_callback(lambda _: then())

    def _ends(self) -> list[asyncio.Future[RankmqError]]:
        return [it.closed for it in (self._connection, self._in, self._out) if it is not None] + [self._deleted]

    def publish(self, asking: Asking, question: str, then: Callable[[Outcome], None]) -> None:
        """Sends a request.

        Args:
            asking: the request.
            question: told apart from other questions under the same id; "" for the first.
            then: called with what became of it.

        Raises:
            ConnectionLost: the connection is gone.
        """
        number = request_id(self._job, asking.key)
        headers, body = self._sent(asking)
        properties = Properties(
            message_id=number,
            correlation_id=number + question,
            reply_to=topology.job_queue(self._job),
            content_type=codec.MSGPACK,
            delivery_mode=2,
            timestamp=int(time.time()),
            app_id="rankmq job",
            headers=headers,
        )
        if self._out is None:
            raise ConnectionLost("the connection to the broker is closed")
        self._out.publish(topology.REQUESTS, self._key, body, properties, then=then)

    def _sent(self, asking: Asking) -> tuple[dict[str, Any] | None, bytes]:
        """The headers and the body of a request's message."""
        if self._folder is None or not self._offers or asking.key.attempt:
            return self._speaks or None, asking.body  # what is sent again goes another way than the first time
        headers: dict[str, Any] = {**self._speaks, CLAIMS_HEADER: self._folder.token}
        if not self.near or len(asking.body) < CLAIMED_BYTES:
            return headers, asking.body
        try:
            return {**headers, CLAIM_HEADER: self._folder.put(asking.body, _file(asking.key))}, b""
        except OSError as error:
            log.debug("a request goes with its message: %s", error)
            return headers, asking.body

    def ack(self, tag: int) -> None:
        """Acknowledges all replies up to one."""
        if self._in is not None:
            self._in.ack(tag, multiple=True)

    async def is_heard(self) -> bool:
        """Whether an orchestrator is there: else nobody gives up what waits in the queue, and it is answered later."""
        try:
            return bool(await ask_cancel(self._connection, [f"{self._job}.{uuid.uuid4().hex}"], settle=0.0))
        except RankmqError as error:
            log.debug("nobody is heard: %s", error)
            return False

    async def cancel(self, keys: list[Key]) -> None:
        """Has the engine give up requests."""
        await tell_cancel(self._connection, [request_id(self._job, key) for key in keys])

    async def delete_queue(self) -> None:
        """Nothing is to come any more."""
        channel: Any = self._out
        if channel is not None:
            await channel.delete_queue(topology.job_queue(self._job))

    async def close(self) -> None:
        """Closes the connection."""
        await self._connection.close()
