"""A rank's end of the blob store: it reads what is too large for the messages of its steps, and writes such results."""

from __future__ import annotations

import logging

from msgspec import structs

from ..engine.blobs import BlobStore
from ..engine.step_blobs import large_in, replaced, whole
from ..schemas.errors import BlobUnavailable
from ..schemas.messages import Column, Form, RankReply
from ..schemas.tensors import Tensor
from .lockstep import Step

__all__ = ["RankBlobs"]

log = logging.getLogger(__name__)


class RankBlobs:
    """The blobs of one rank; used by the thread that computes.

    Args:
        store: by this host's own settings; None where they name none.
    """

    def __init__(self, store: BlobStore | None) -> None:
        self._store = store
        self._limit = 0

    @property
    def there(self) -> bool:
        """Whether references may be sent here."""
        return self._store is not None

    def form(self, form: Form) -> None:
        """An epoch begins: the orchestrator says what is too large for messages."""
        self._limit = form.inline_limit

    def filled(self, step: Step) -> Step:
        """A step with the data of all its tensors.

        Raises:
            BlobUnavailable: they cannot be read.
        """
        if not any(it.blob is not None for tensors in step.inputs for it in tensors):
            return step
        if self._store is None:
            raise BlobUnavailable("a tensor by reference, and this rank has no blob store: set blob_store on its host")
        columns = whole(self._store, [Column(index=0, tensors=tensors) for tensors in step.inputs])
        return Step(step.step, step.work, tuple(column.tensors for column in columns), step.requests)

    def written(self, reply: RankReply) -> RankReply:
        """A reply as it is to be sent: what is too large for a message is in the store, where that can be written."""
        large = large_in(reply.outputs, self._limit) if self._store is not None and self._limit else []
        if self._store is None or not large:
            return reply
        try:
            written: list[Tensor] = self._store.put_all(large)
        except BlobUnavailable as error:
            log.warning("step %d is sent without the blob store: %s", reply.step, error.message)
            return reply
        by = {id(old): new for old, new in zip(large, written, strict=True)}
        return structs.replace(reply, outputs=replaced(reply.outputs, by))
