"""A job's end of the blob store: large inputs are written to it, outputs by reference are read from it."""

from __future__ import annotations

from ...schemas.errors import BlobUnavailable, JobStopped
from ...schemas.messages import Reply, Value
from .. import retry
from ..client_blobs import ClientBlobs
from ..references import names_of, outputs_of

__all__ = ["JobBlobs"]

_PATIENCE = 15.0

Rows = list[dict[str, Value]]


class JobBlobs:
    """What the steps of a job write and read there. Belongs to the thread that takes the steps.

    Whoever answers a request deletes its inputs. What a step has read may go when the step is on disk, and what it has
    written goes when it is not: the rows are written once more, under other names.

    Args:
        blobs: the store.
        patience: seconds to go on trying while it cannot be reached.
    """

    def __init__(self, blobs: ClientBlobs, patience: float = _PATIENCE) -> None:
        self._blobs = blobs
        self._patience = patience
        self._written: list[str] = []
        self._read: list[str] = []

    def written(self, rows: Rows, together: int) -> tuple[Rows, tuple[str, ...]]:
        """The inputs of a request as they are to be sent, and the names of the blobs that were written for it.

        Args:
            rows: its instances.
            together: how many bytes the message has room for.

        Raises:
            JobStopped: the store cannot be written.
        """
        try:
            found, names = retry.reaching_blobs(self._patience)(self._blobs.written, rows, together)
        except BlobUnavailable as error:
            raise JobStopped(error.message) from error
        self._written += names
        return found, names

    def whole(self, reply: Reply) -> Reply:
        """A reply with all its outputs.

        Raises:
            BlobMissing: one is not there.
            InvalidInput: one is not what its reference says.
            JobStopped: the store cannot be read.
        """
        try:
            whole: Reply = retry.reaching_blobs(self._patience)(self._blobs.whole, reply)
        except BlobUnavailable as error:
            raise JobStopped(error.message) from error
        finally:
            self._read += names_of(outputs_of(reply))
        return whole

    def drop(self, reply: Reply) -> None:
        """A reply does not count: nobody reads its outputs."""
        self._read += names_of(outputs_of(reply))

    def discard(self, names: tuple[str, ...]) -> None:
        """What was written for a request is not sent."""
        self._blobs.discard(names)

    def step_ended(self, *, on_disk: bool) -> None:
        """A step is over.

        Args:
            on_disk: what it has done is on record; else it is as if it had never been.
        """
        self._blobs.discard(self._read if on_disk else self._written)
        self._written, self._read = [], []
