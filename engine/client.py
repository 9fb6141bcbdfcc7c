"""The producer library: publish requests, get their answers. Takes neither mindspore nor a servable's configuration.

with Client("amqp://user:password@host:5672/%2F", "matmul", "predict") as client:
    result = client.infer({"x": np.ones((128, 96), np.float32), "y": np.ones((128, 96), np.float32)})
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..schemas import codec
from ..schemas.errors import (
    ClientClosed,
    ConnectionLost,
    InstancesFailed,
    InvalidInput,
    LimitExceeded,
    ProducerError,
    RankmqError,
    ReplyTimeout,
    from_wire,
)
from ..schemas.messages import Reply, Request, Value
from ..schemas.tensors import Tensor, from_array, to_array
from . import topology
from .address import BrokerAddress
from .confirms import Outcome
from .connection import Channel, Connection, Properties
from .delivery import Delivery

__all__ = ["Client", "Instances", "Result"]

log = logging.getLogger(__name__)

Instances = Mapping[str, Any] | Sequence[Mapping[str, Any]]
Result = list[dict[str, np.ndarray[Any, Any]]]

_DIRECT = "amq.rabbitmq.reply-to"
_MIB = 1024 * 1024


@dataclass(eq=False, slots=True)
class _Asked:
    """A request that waits for its reply; kept whole, to be sent again when the connection was lost."""

    id: str
    body: bytes
    future: Future[Reply]
    timer: asyncio.TimerHandle | None = None


class Client:
    """Calls one method or pipeline of one servable; usable from several threads at once.

    Connects at the first call. A connection that is lost comes back by itself; what was not answered is asked again.

    Args:
        broker_url: amqp[s]://user:password@host:port/vhost.
        servable: the servable's name.
        method: a method or pipeline of it.
        version: the servable's version; 0 is the newest.
        timeout: seconds until a call gives up waiting.
        max_in_flight: calls under way at once; a further one waits for its turn, `timeout` seconds at most.
        connect_timeout: seconds to go on trying to reach the broker.
        ca_file: PEM file of the authority behind the broker's certificate, for amqps.
        cert_file: PEM file of our own certificate.
        key_file: PEM file of its key.
    """

    def __init__(
        self,
        broker_url: str,
        servable: str,
        method: str,
        version: int = 0,
        *,
        timeout: float = 60.0,
        max_in_flight: int = 1024,
        connect_timeout: float = 10.0,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
    ) -> None:
        self._address = BrokerAddress.parse(broker_url, ca_file=ca_file, cert_file=cert_file, key_file=key_file)
        self.servable = servable
        self.method = method
        self.version = version
        self.timeout = timeout
        self._connect_timeout = connect_timeout
        self._places = threading.BoundedSemaphore(max_in_flight)
        self._lock = threading.Lock()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._channel: Channel | None = None
        self._max_message = 128 * _MIB
        self._asked: dict[str, _Asked] = {}

    def __enter__(self) -> Client:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._address}, {self.servable!r}, {self.method!r}, {self.version})"

    # ------------------------------------------------------------------------------------------------------- calling

    def infer(self, instances: Instances, *, timeout: float | None = None) -> Result:
        """Sends one request and waits for its result.

        Args:
            instances: one dict of named inputs, or a list of them. An input is an array (any shape, byte order and
                strides; its dtype must be the one that the servable takes), or a number, str, bytes or nested list.
            timeout: seconds to wait; the client's own if None.

        Returns:
            Per instance, its named outputs.

        Raises:
            InstancesFailed: some of several instances failed; its `results` has the others.
            RequestError: the request cannot be served as it stands: an unknown method, a wrong shape and so on.
            ServingError: the request was fine, serving it failed.
            ReplyTimeout: no reply within the time.
            ConnectionLost: the broker went away and did not come back in time.
        """
        return self.infer_async(instances, timeout=timeout).result()

    def infer_async(self, instances: Instances, *, timeout: float | None = None) -> Future[Result]:
        """Sends one request; the future has what `infer` returns or raises.

        Waits itself only while `max_in_flight` calls are under way, and at the first call for the connection.
        """
        seconds = self.timeout if timeout is None else timeout
        future: Future[Result] = Future()
        for name, reply in self._ask(instances, seconds):
            reply.add_done_callback(lambda done: _pass_on(done, future))
            log.debug("asked", extra={"request": name})
        return future

    def request(self, instances: Instances, *, timeout: float | None = None) -> Reply:
        """Sends one request and gives the reply as it came, errors and statistics included."""
        seconds = self.timeout if timeout is None else timeout
        ((_, reply),) = self._ask(instances, seconds)
        return reply.result()

    def _ask(self, instances: Instances, seconds: float) -> list[tuple[str, Future[Reply]]]:
        rows = [instances] if isinstance(instances, Mapping) else list(instances)
        if not rows:
            raise InvalidInput("a request needs at least one instance")
        request = Request(
            servable=self.servable,
            method=self.method,
            version=self.version,
            instances=[{name: _value(name, value) for name, value in row.items()} for row in rows],
        )
        body = codec.encode_request(request)
        loop = self.connect()
        if len(body) + 4096 > self._max_message:
            raise LimitExceeded(f"a request of {len(body)} bytes: the broker takes {self._max_message}")
        if not self._places.acquire(timeout=seconds):
            raise ReplyTimeout(f"no place for another call within {seconds:g} s: too many are under way")
        asked = _Asked(uuid.uuid4().hex, body, Future())
        asked.future.add_done_callback(lambda _: self._places.release())
        try:
            loop.call_soon_threadsafe(self._begin, asked, seconds)
        except RuntimeError:  # the loop was closed by another thread
            asked.future.set_exception(ClientClosed("the client is closed"))
        return [(asked.id, asked.future)]

    # ---------------------------------------------------------------------------------------------------- connecting

    def connect(self) -> asyncio.AbstractEventLoop:
        """Connects, if that has not been done.

        Raises:
            BrokerUnavailable: nobody answers.
            BrokerRefused: wrong user, password, virtual host or certificate.
            ClientClosed: the client was closed.
        """
        with self._lock:
            if self._closed:
                raise ClientClosed("the client is closed")
            if self._loop is None:
                ready: Future[asyncio.AbstractEventLoop] = Future()
                self._thread = threading.Thread(
                    target=lambda: asyncio.run(self._main(ready)), name="rankmq-client", daemon=True
                )
                self._thread.start()
                try:
                    self._loop = ready.result()
                except RankmqError:
                    self._thread.join()
                    raise
            return self._loop

    def close(self, timeout: float = 5.0) -> None:
        """Closes the connection; calls that wait get `ClientClosed`.

        Args:
            timeout: seconds to wait for it.
        """
        with self._lock:
            self._closed = True
            loop, stop, thread = self._loop, self._stop, self._thread
        if loop is not None and stop is not None and thread is not None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(stop.set)
            thread.join(timeout)

    async def _main(self, ready: Future[asyncio.AbstractEventLoop]) -> None:
        self._stop = asyncio.Event()
        stopped = asyncio.ensure_future(self._stop.wait())
        patience = self._connect_timeout
        reason: RankmqError = ClientClosed("the client was closed before the reply came")
        try:
            while not self._stop.is_set():
                connection = await Connection.open(
                    self._address, name="rankmq producer", patience=patience, stopped=self._stop.is_set
                )
                self._max_message = (16 if connection.server_version >= (4,) else 128) * _MIB
                await self._open_channel(connection)
                if not ready.done():
                    ready.set_result(asyncio.get_running_loop())
                for asked in list(self._asked.values()):
                    self._publish(asked)
                channel = self._channel
                waits: list[asyncio.Future[Any]] = [stopped, connection.closed, *([channel.closed] if channel else [])]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                self._channel = None
                if channel is not None and channel.closed.done() and not connection.closed.done():
                    self._fail_all(_lost(channel.closed.result()))
                await connection.close()
                patience = max(self._connect_timeout, 30.0)
        except RankmqError as error:
            reason = (
                error if not ready.done() else ConnectionLost(f"the broker went away and did not come back: {error}")
            )
            if not ready.done():
                ready.set_exception(error)
        finally:
            stopped.cancel()
            with self._lock if ready.done() and ready.exception() is None else threading.Lock():
                self._closed = True
            self._fail_all(reason)

    async def _open_channel(self, connection: Connection) -> None:
        channel = await connection.channel()
        await channel.consume(_DIRECT, self._on_reply, no_ack=True)
        self._channel = channel

    # ------------------------------------------------------------------------------------------------- on the loop

    def _begin(self, asked: _Asked, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._asked[asked.id] = asked
        asked.timer = loop.call_later(seconds, self._timed_out, asked, seconds)
        self._publish(asked)

    def _publish(self, asked: _Asked) -> None:
        channel = self._channel
        if channel is None or not channel.is_open:
            return  # sent when the connection is back
        properties = Properties(
            message_id=asked.id,
            correlation_id=asked.id,
            reply_to=_DIRECT,
            content_type=codec.MSGPACK,
            delivery_mode=2,
            timestamp=int(time.time()),
        )

        def then(outcome: Outcome) -> None:
            if outcome is Outcome.REJECTED:
                self._finish(asked.id, ProducerError("the broker refused the request: its queue is full"))
            elif outcome is Outcome.RETURNED:
                self._finish(asked.id, ProducerError("no queue takes requests for this servable on this broker"))

        try:
            channel.publish(topology.REQUESTS, self.servable, asked.body, properties, then=then)
        except ConnectionLost:
            log.debug("sent when the connection is back", extra={"request": asked.id})

    def _on_reply(self, delivery: Delivery) -> None:
        request_id = delivery.properties.correlation_id
        if request_id not in self._asked:
            log.debug("a reply that nobody waits for", extra={"request": request_id})
            return
        try:
            reply = codec.decode_reply(delivery.body, delivery.properties.content_type or codec.MSGPACK)
        except RankmqError as error:
            self._finish(request_id, ProducerError(f"a reply that cannot be read: {error.message}"))
            return
        self._finish(request_id, reply)

    def _timed_out(self, asked: _Asked, seconds: float) -> None:
        where = "" if self._channel is not None else " (the broker is not reached)"
        self._finish(asked.id, ReplyTimeout(f"no reply within {seconds:g} s{where}"))

    def _finish(self, request_id: str, outcome: Reply | RankmqError) -> None:
        asked = self._asked.pop(request_id, None)
        if asked is None:
            return
        if asked.timer is not None:
            asked.timer.cancel()
        if not asked.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, RankmqError):
            asked.future.set_exception(outcome)
        else:
            asked.future.set_result(outcome)

    def _fail_all(self, reason: RankmqError) -> None:
        for request_id in list(self._asked):
            self._finish(request_id, reason)


def _lost(reason: RankmqError) -> RankmqError:
    return ProducerError(f"the broker closed the channel: {reason.message}")


def _pass_on(done: Future[Reply], future: Future[Result]) -> None:
    error = done.exception()
    if error is not None:
        future.set_exception(error)
        return
    try:
        future.set_result(_result(done.result()))
    except RankmqError as failure:
        future.set_exception(failure)


def _result(reply: Reply) -> Result:
    if reply.error is not None:
        raise from_wire(reply.error.code, reply.error.message)
    failed = {it.index: from_wire(it.error.code, it.error.message) for it in reply.errors}
    rows: list[dict[str, Any] | RankmqError] = []
    for index, row in enumerate(reply.outputs):
        if row is None:
            rows.append(failed.get(index) or ProducerError("no outputs and no error"))
        else:
            rows.append({name: to_array(tensor).copy() for name, tensor in row.items()})
    good = [row for row in rows if not isinstance(row, RankmqError)]
    if len(good) < len(rows):
        first = next(row for row in rows if isinstance(row, RankmqError))
        raise InstancesFailed(
            f"{len(rows) - len(good)} of {len(rows)} instances failed; the first: {first.message}", rows
        )
    return good


def _value(name: str, value: object) -> Value:
    try:
        if isinstance(value, bytes | bytearray):
            return Tensor("bytes", (), (bytes(value),))
        if isinstance(value, np.ndarray | np.generic):
            return from_array(np.asarray(value))
        if value is None or isinstance(value, bool | int | float | str | list):
            return value
        if isinstance(value, tuple):
            return list(value)
        return from_array(np.asarray(value))
    except RankmqError as error:
        raise type(error)(f"input {name}: {error.message}") from error
