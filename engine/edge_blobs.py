"""Requests and replies of producers whose tensors are in the blob store: read before the request starts, written when
it is done. Reading and writing is done on threads; the rest is called on the loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from msgspec import structs

from ..schemas import codec
from ..schemas.errors import InvalidInput, LimitExceeded, RankmqError
from ..schemas.messages import Reply
from ..schemas.plain import tensor_from_json
from ..schemas.tensors import Tensor, blob_of
from .blobs import BlobStore
from .open_request import OpenRequest, contained
from .references import chosen, inputs_of, names_of, outputs_of, refers
from .room import Room

__all__ = ["EdgeBlobs", "Fetched", "look_up"]

log = logging.getLogger(__name__)

_JSON_BYTES = 10
"""As many characters as a byte of a tensor may take in a reply in JSON."""

_OVERHEAD = 64 * 1024

Fetched = list[Mapping[str, Any] | RankmqError]
InPool = Callable[[Callable[[], Any], Callable[[Any], None]], None]


class EdgeBlobs:
    """The blobs of one service.

    Args:
        store: where they are.
        in_pool: runs something on a thread, then something with its result on the loop.
        discard: has blobs deleted, by their names, once nobody may ask for them any more.
        inline_limit: largest tensor within a reply, in bytes, for producers that read the store.
        most_bytes: how many bytes of blobs requests may bring at once.
        max_message: largest message that the broker takes, in bytes.
    """

    def __init__(
        self,
        store: BlobStore,
        in_pool: InPool,
        discard: Callable[[Sequence[str]], None],
        *,
        inline_limit: int,
        most_bytes: int,
        max_message: int,
    ) -> None:
        self._store = store
        self._in_pool = in_pool
        self._discard = discard
        self._inline_limit = inline_limit
        self._max_message = max_message
        self._room: Room[OpenRequest] = Room(most_bytes)

    @property
    def most_bytes(self) -> int:
        """How many bytes of blobs a request may bring; and so what one may take along, at most."""
        return self._room.most

    def fetch(
        self, open_: OpenRequest, instances: Sequence[Mapping[str, Any]], then: Callable[[Fetched], None]
    ) -> None:
        """Reads what the inputs of a request refer to.

        Args:
            open_: the request.
            instances: its inputs.
            then: called once with, per instance, its inputs or the error that it met; not if the request ends before.

        Raises:
            LimitExceeded: it refers to more bytes than any request may.
        """
        tensors = inputs_of(instances)
        open_.blobs = names_of(tensors)
        total = sum(it.blob.bytes for it in tensors if isinstance(it, Tensor) and it.blob is not None)
        if total > self._room.most:
            raise LimitExceeded(f"tensors by reference of {total} bytes: {self._room.most} are allowed")

        def done(fetched: Fetched) -> None:
            if not open_.answered:
                then(fetched)

        def start() -> None:
            self._in_pool(lambda: _fetched(self._store, instances, open_), done)

        self._room.enter(open_, total, start)

    def gives(self, open_: OpenRequest, reply: Reply) -> bool:
        """Whether outputs of a reply are to go by reference."""
        return open_.reads_blobs and bool(self._chosen(open_, reply))

    def give(self, open_: OpenRequest, reply: Reply, then: Callable[[Reply | RankmqError], None]) -> None:
        """Writes the large outputs of a reply; `then` is called with the reply as it is to be sent, or the error."""
        places, indexes = _places(reply), self._chosen(open_, reply)
        large = [place for index, place in enumerate(places) if index in indexes]

        def write() -> Reply | RankmqError:
            written = contained(open_, lambda: self._store.put_all([tensor for _, _, tensor in large]))
            if isinstance(written, RankmqError):
                return written
            outputs = [None if row is None else dict(row) for row in reply.outputs]
            for (row, name, _), tensor in zip(large, written, strict=True):
                (outputs[row] or {})[name] = tensor
            return structs.replace(reply, outputs=outputs)

        self._in_pool(write, then)

    def _chosen(self, open_: OpenRequest, reply: Reply) -> set[int]:
        room = self._max_message - _OVERHEAD
        if open_.content_type == codec.JSON:
            room //= _JSON_BYTES
        return chosen([tensor for _, _, tensor in _places(reply)], self._inline_limit, room)

    def take_back(self, reply: Reply) -> None:
        """A reply is not sent after all."""
        self._discard(names_of(outputs_of(reply)))

    def answered(self, open_: OpenRequest) -> None:
        """A request has its outcome, and not among the dead letters: what it brought is not needed any more."""
        names = open_.names_of_blobs()
        if names:
            self._discard(names)

    def ended(self, open_: OpenRequest) -> None:
        """A request is not under way any more: its place in memory is free."""
        self._room.leave(open_)


def _places(reply: Reply) -> list[tuple[int, str, Tensor]]:
    return [(row, name, it) for row, outputs in enumerate(reply.outputs) if outputs for name, it in outputs.items()]


def _fetched(store: BlobStore, instances: Sequence[Mapping[str, Any]], open_: OpenRequest) -> Fetched:
    """On a thread: the instances with their data. What several refer to is read once."""
    read: dict[Any, Tensor] = {}
    out: Fetched = []
    for instance in instances:
        out.append(contained(open_, partial(_read_all, store, read, instance, open_)))
    return out


def _read_all(
    store: BlobStore, read: dict[Any, Tensor], instance: Mapping[str, Any], open_: OpenRequest
) -> Mapping[str, Any]:
    return {name: _read(store, read, name, value, open_) for name, value in instance.items()}


def _read(store: BlobStore, read: dict[Any, Tensor], name: str, value: Any, open_: OpenRequest) -> Any:
    if not refers(value):
        return value
    try:
        if open_.life.over is not None:
            raise open_.life.over  # nobody waits for it
        tensor = value if isinstance(value, Tensor) else tensor_from_json(value)
        blob = blob_of(tensor)
        if blob not in read:
            read[blob] = store.get(tensor)
        return Tensor(tensor.dtype, tensor.shape, read[blob].data)
    except RankmqError as error:
        raise type(error)(f"input {name}: {error.message}") from error


def look_up(
    blobs: EdgeBlobs | None, open_: OpenRequest, instances: Sequence[Mapping[str, Any]], then: Callable[[Fetched], None]
) -> None:
    """Calls `then` with the inputs of a request: at once, or when those that are there by reference have been read.

    Args:
        blobs: None where there is no blob store: whatever is there by reference meets an error.
        open_: the request.
        instances: its inputs.
        then: called once, if the request does not end before.

    Raises:
        LimitExceeded: it refers to more bytes than any request may.
    """
    if not any(refers(value) for instance in instances for value in instance.values()):
        open_.blobs = ()
        then(list(instances))
    elif blobs is not None:
        blobs.fetch(open_, instances, then)
    else:
        then(_refused(instances))


def _refused(instances: Sequence[Mapping[str, Any]]) -> Fetched:
    out: Fetched = []
    for instance in instances:
        name = next((name for name, value in instance.items() if refers(value)), None)
        text = f"input {name} is a tensor by reference, and this engine has no blob store: set blob_store, or send data"
        out.append(instance if name is None else InvalidInput(text))
    return out
