"""The producer library's end of the blob store: large inputs are written to it, outputs by reference read from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from msgspec import structs

from ..schemas.errors import RankmqError
from ..schemas.messages import Reply, Value
from ..schemas.tensors import Tensor
from .blobs import BlobStore
from .references import chosen, names_of, outputs_of

__all__ = ["ClientBlobs"]

_THREADS = 4

Rows = list[dict[str, Value]]


class ClientBlobs:
    """The blobs of one client; usable from several threads, and in forked children.

    Args:
        store: where they are.
        inline_limit: largest tensor within a message, in bytes.
    """

    def __init__(self, store: BlobStore, inline_limit: int) -> None:
        self._store = store
        self._inline_limit = inline_limit
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def written(self, rows: Rows, together: int) -> tuple[Rows, tuple[str, ...]]:
        """The inputs of a request as they are to be sent, and the names of the blobs that were written for it.

        Args:
            rows: its instances.
            together: how many bytes the message has room for.

        Raises:
            BlobUnavailable: the store cannot be written; nothing is left in it.
        """
        places = [(row, name, it) for row in rows for name, it in row.items() if isinstance(it, Tensor)]
        indexes = sorted(chosen([it for _, _, it in places], self._inline_limit, together))
        if not indexes:
            return rows, ()
        tensors = self._store.put_all([places[index][2] for index in indexes])
        for index, tensor in zip(indexes, tensors, strict=True):
            row, name, _ = places[index]
            row[name] = tensor
        return rows, names_of(tensors)

    def read(self, reply: Reply, then: Callable[[Reply | RankmqError], None]) -> None:
        """Calls `then` with the whole reply, on a thread that reads what is there by reference, and deletes it then."""

        def run() -> None:
            try:
                whole: Reply | RankmqError = self.whole(reply)
            except RankmqError as error:
                whole = error
            then(whole)
            if isinstance(whole, Reply):
                self._store.delete(names_of(outputs_of(reply)))

        self._threads().submit(run)

    def whole(self, reply: Reply) -> Reply:
        """A reply with all its tensors.

        Raises:
            InvalidInput: a blob is not what its reference says.
            BlobMissing: one is not there.
            BlobUnavailable: the store cannot be read.
        """
        outputs = [
            row and {name: it if it.blob is None else self._store.get(it) for name, it in row.items()}
            for row in reply.outputs
        ]
        return structs.replace(reply, outputs=outputs)

    def discard(self, names: Sequence[str]) -> None:
        """Has blobs deleted, on a thread."""
        if names:
            self._threads().submit(self._store.delete, names)

    def _threads(self) -> ThreadPoolExecutor:
        """Those of this process; a fork leaves the parent's behind."""
        pool = self._pool
        if pool is None or pool[0] != os.getpid():
            pool = self._pool = os.getpid(), ThreadPoolExecutor(_THREADS, "rankmq-blobs")
        return pool[1]
