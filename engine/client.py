"""The producer library: publish requests, get their answers. Takes neither mindspore nor a servable's configuration.

with Client("amqp://user:password@host:5672/%2F", "matmul", "predict") as client:
    result = client.infer({"x": np.ones((128, 96), np.float32), "y": np.ones((128, 96), np.float32)})
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from ..schemas import codec
from ..schemas.errors import ClientClosed, ProducerError, ReplyTimeout
from ..schemas.messages import Reply, ReplyPart, Request, Value
from .address import BrokerAddress
from .blobs import BlobStore
from .client_blobs import ClientBlobs
from .client_book import Asked, Call, Pending
from .client_cancel import CancelState
from .client_line import ClientLine
from .client_stream import Part, Stream
from .client_terms import Terms, check_id, check_lane
from .client_values import Instances, Result, result_of, to_wire
from .message_limit import MESSAGE_OVERHEAD, too_large
from .topology import DEFAULT_LANE, requests_key

__all__ = ["CancelState", "Client", "Instances", "Part", "Pending", "Result", "Stream"]

_T = TypeVar("_T")

_FIELDS = 64 * 1024
"""Bytes of a body that may be needed beside the data of its tensors."""

_GRACE_SECONDS = 30.0


class Client:
    """Calls one method or pipeline of one servable; usable from several threads at once.

    Connects at the first call. A connection that is lost comes back by itself; what was not answered is asked again. If
    the broker stays away for longer, the calls under way fail, and the next call tries once more.

    In a forked child it connects anew; the calls that were under way are the parent's.

    Args:
        broker_url: amqp[s]://user:password@host:port/vhost.
        servable: the servable's name.
        method: a method or pipeline of it.
        version: the servable's version; 0 is the newest.
        lane: "high", "normal" or "low": which requests go first where many wait.
        timeout: seconds until a call gives up waiting.
        max_in_flight: calls under way at once; a further one waits for its turn, which counts as time waited.
        connect_timeout: seconds to go on trying to reach the broker.
        ca_file: PEM file of the authority behind the broker's certificate, for amqps.
        cert_file: PEM file of our own certificate.
        key_file: PEM file of its key.
        blob_store: where large tensors go past the broker, as fsspec knows it (file:///..., s3://...); it must be the
            engine's. None: all tensors are in the messages.
        inline_limit: largest tensor within a message, in bytes, where there is a blob store.

    Raises:
        ConfigurationError: a URL that is none, or a certificate file that is not there.
        InvalidInput: a lane that does not exist.
    """

    def __init__(
        self,
        broker_url: str,
        servable: str,
        method: str,
        version: int = 0,
        *,
        lane: str = DEFAULT_LANE,
        timeout: float = 60.0,
        max_in_flight: int = 1024,
        connect_timeout: float = 10.0,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
        blob_store: str | None = None,
        inline_limit: int = 1024 * 1024,
    ) -> None:
        self._address = BrokerAddress.parse(broker_url, ca_file=ca_file, cert_file=cert_file, key_file=key_file)
        self.servable = servable
        self.method = method
        self.version = version
        self.lane = check_lane(lane)
        self.timeout = timeout
        self._max_in_flight = max_in_flight
        self._connect_timeout = connect_timeout
        self._blobs: ClientBlobs | None = None
        if blob_store:
            store = BlobStore(blob_store)
            store.open()
            self._blobs = ClientBlobs(store, inline_limit)
        self._parents: ClientLine | None = None
        self._closed = False
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._begin_anew()
        _clients.add(self)

    def _begin_anew(self) -> None:
        self._line: ClientLine | None = None
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(self._max_in_flight)

    def _forked(self) -> None:
        """In a child there is no thread behind the line, and its socket is the parent's: it is kept and not touched."""
        self._parents = self._line or self._parents
        if self._finalizer is not None:
            self._finalizer.detach()
        self._begin_anew()

    def __enter__(self) -> Client:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._address}, {self.servable!r}, {self.method!r}, {self.version})"

    def infer(
        self,
        instances: Instances,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        lane: str | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Sends one request and waits for its result.

        Args:
            instances: one dict of named inputs, or a list of them. An input is an array (any shape, byte order and
                strides; its dtype must be the one that the servable takes), or a number, str, bytes or nested list.
            timeout: seconds to wait, once connected; the client's own if None.
            deadline: seconds from now within which the request is worth serving; for as long as the call waits if None.
                Past it no work is done for it, and it is answered with an error.
            lane: "high", "normal" or "low"; the client's own if None.
            request_id: 1 to 255 bytes of UTF-8, the key by which the request is known again; made up if None. Asked
                again under its id, with the same inputs, it is answered with the answer that it had, for as long as
                the engine remembers it.

        Returns:
            Per instance, its named outputs.

        Raises:
            InstancesFailed: some of several instances failed; its `results` has the others.
            InvalidInput: an input that cannot be sent, a lane that does not exist, or an id that cannot be.
            RequestIdReused: the id stands for a request with other inputs.
            DeadlineExceeded: the deadline passed before it was served.
            Cancelled: somebody had the engine give it up.
            RequestError: the request cannot be served as it stands: an unknown method, a wrong shape and so on.
            ServingError: the request was fine, serving it failed.
            ReplyTimeout: no reply within the time; past it the engine gives the request up, unless `deadline` is later.
            QueueFull: the requests queue is at its limit, and stays so.
            BlobUnavailable: the blob store cannot be written, and nothing was sent; or it cannot be read.
            BlobMissing: a large input or output is not in the blob store, or not any more.
            ConnectionLost: the broker went away and did not come back in time.
            BrokerUnavailable: nobody answers at the broker's address.
            BrokerRefused: wrong user, password, virtual host or certificate.
            ClientClosed: the client was closed.
        """
        return self._wait(instances, self._terms(timeout, deadline, lane, request_id), result_of)

    def infer_async(
        self,
        instances: Instances,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        lane: str | None = None,
        request_id: str | None = None,
    ) -> Pending[Result]:
        """Sends one request; the future has what `infer` returns or raises, the arguments are the same.

        Waits itself only while `max_in_flight` calls are under way, at the first call for the connection, and for the
        blob store while large inputs are written.
        Callbacks of the future run on the client's thread and must not block; `infer` in one of them raises.
        """
        return self._ask(instances, self._terms(timeout, deadline, lane, request_id), result_of)

    def stream(
        self,
        instances: Instances,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        lane: str | None = None,
        request_id: str | None = None,
    ) -> Stream:
        """Sends one request whose answer is to come in parts; the arguments are those of `infer`.

        Which parts there are, if any, the servable says. They are previews, of which some may get lost; the result is
        whole without them.

        Returns:
            To be iterated over for the parts, and asked for the result.
        """
        terms = self._terms(timeout, deadline, lane, request_id)
        stream = Stream(terms.timeout, self._must_not_wait)
        stream.follow(self._ask(instances, terms, lambda reply: reply, stream.take))
        return stream

    def request(
        self,
        instances: Instances,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        lane: str | None = None,
        request_id: str | None = None,
    ) -> Reply:
        """Sends one request and gives the reply as it came, errors and statistics included."""
        return self._wait(instances, self._terms(timeout, deadline, lane, request_id), lambda reply: reply)

    def cancel(self, request_id: str, *, timeout: float = 2.0) -> CancelState:
        """Has the engine give up a request, whoever sent it, and from wherever.

        A call that waits for it raises `Cancelled`.

        Args:
            request_id: its id.
            timeout: seconds to wait for the engine's word.

        Returns:
            "cancelled": it was under way, and is given up; "answered": it was answered before; "noted": no orchestrator
            knows it, and none will serve it should it come.

        Raises:
            InvalidInput: an id that cannot be.
            ReplyTimeout: no orchestrator has answered in time.
            ProducerError: no orchestrator runs.
            BrokerRefused: a permission is missing.
            BrokerUnavailable: nobody answers at the broker's address.
            ConnectionLost: the broker went away.
            ClientClosed: the client was closed.
        """
        check_id(request_id)
        self._must_not_wait()
        return self._connected().cancel(request_id, timeout)

    def _terms(self, timeout: float | None, deadline: float | None, lane: str | None, request_id: str | None) -> Terms:
        return Terms.of(
            request_id=request_id,
            lane=self.lane if lane is None else lane,
            timeout=self.timeout if timeout is None else timeout,
            deadline=deadline,
        )

    def _wait(self, instances: Instances, terms: Terms, read: Callable[[Reply], _T]) -> _T:
        self._must_not_wait()
        pending = self._ask(instances, terms, read)
        try:
            return pending.result(terms.timeout + _GRACE_SECONDS)
        except TimeoutError:  # a callback of somebody's holds up the client's thread
            text = f"no reply within {terms.timeout:g} s, and the client's thread does not run"
            raise ReplyTimeout(text) from None
        finally:
            pending.cancel()  # where Ctrl-C ended the wait

    def _must_not_wait(self) -> None:
        line = self._line
        if line is not None and line.is_own_thread:
            raise ProducerError("a call that waits, within a callback of the client, would wait for itself")

    def _ask(
        self,
        instances: Instances,
        terms: Terms,
        read: Callable[[Reply], _T],
        part: Callable[[ReplyPart], None] | None = None,
    ) -> Pending[_T]:
        rows, blobs, stream = to_wire(instances), self._blobs, part is not None
        body = self._encoded(rows, stream=stream) if blobs is None else b""
        line = self._connected()
        until = time.monotonic() + terms.timeout
        expires, left = terms.expires(), terms.left()
        places = self._places
        if not places.acquire(timeout=0.0 if line.is_own_thread else left):
            terms.left()
            raise ReplyTimeout(f"no place for another call within {terms.timeout:g} s: too many are under way")
        pending: Pending[_T] = Pending(terms.id)
        call = Call(pending, read, until, terms.timeout, part)
        names: tuple[str, ...] = ()
        asked: Asked | None = None

        def done(ended: Future[_T]) -> None:
            places.release()
            if ended.cancelled():
                line.forget(terms.id, call)
            if blobs is not None and (asked is None or asked.over or not asked.sent):
                blobs.discard(names)  # else the engine may read them still, and sees to it that they go

        try:
            if blobs is not None:
                rows, names = blobs.written(rows, line.max_message - MESSAGE_OVERHEAD - _FIELDS)
                body = self._encoded(rows, stream=stream)
            if len(body) + MESSAGE_OVERHEAD > line.max_message:
                raise too_large("a request", len(body), line.max_message, blobs=blobs is not None)
            key = requests_key(self.servable, terms.lane)
            asked = Asked(terms.id, key, body, expires, blobs=blobs is not None)
            line.ask(asked, call)
        except BaseException:
            places.release()
            if blobs is not None:
                blobs.discard(names)
            raise
        pending.add_done_callback(done)
        return pending

    def _encoded(self, rows: list[dict[str, Value]], *, stream: bool) -> bytes:
        request = Request(
            servable=self.servable, method=self.method, version=self.version, instances=rows, stream=stream
        )
        return codec.encode_request(request)

    def connect(self) -> None:
        """Connects, if that has not been done.

        Raises:
            BrokerUnavailable: nobody answers.
            BrokerRefused: wrong user, password, virtual host or certificate.
            ClientClosed: the client was closed.
        """
        self._connected()

    def _connected(self) -> ClientLine:
        with self._lock:
            if self._closed:
                raise ClientClosed("the client is closed")
            if self._line is None or self._line.is_over:
                self._line = ClientLine(self._address, self._connect_timeout, self._blobs)
                if self._finalizer is not None:
                    self._finalizer.detach()
                # Dropped without `close`, it leaves no thread behind, once what is under way has ended.
                self._finalizer = weakref.finalize(self, self._line.leave_alone)
                self._finalizer.atexit = False
            line = self._line
        line.await_connected()
        return line

    def close(self, timeout: float = 5.0) -> None:
        """Closes the connection, for good; calls that wait get `ClientClosed`.

        Args:
            timeout: seconds to wait for it.
        """
        with self._lock:
            self._closed = True
            line = self._line
        if line is not None:
            line.close(timeout)


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _after_fork() -> None:
    for client in list(_clients):
        client._forked()


os.register_at_fork(after_in_child=_after_fork)
