"""The bodies of a job's requests, made of its rows; what is too large for a message goes through the blob store."""

from __future__ import annotations

from ...schemas import codec
from ...schemas.errors import RequestError
from ...schemas.messages import Request
from ...schemas.tensors import Tensor
from ..message_limit import MESSAGE_OVERHEAD, too_large
from .columns import Input
from .job_blobs import JobBlobs
from .spec import Spec

__all__ = ["RequestBodies"]


class RequestBodies:
    """Makes them.

    Args:
        spec: what the job is to do.
        blobs: for tensors that are too large for messages; None where there is no blob store.
    """

    def __init__(self, spec: Spec, blobs: JobBlobs | None) -> None:
        self._spec = spec
        self._blobs = blobs

    def made(self, rows: list[Input], most: int, *, to_try: bool = False) -> tuple[bytes, int]:
        """The body of a request, and how many bytes it has and refers to.

        Args:
            rows: of the request.
            most: the largest message that the broker takes, in bytes.
            to_try: it is not to be sent, and what is written for it goes again.

        Raises:
            RequestError: it is too large, or cannot be sent.
            JobStopped: the blob store cannot be written.
        """
        spec = self._spec
        names: tuple[str, ...] = ()
        instances = [dict(it.values) for it in rows]
        if self._blobs is not None:
            instances, names = self._blobs.written(instances, most - 2 * MESSAGE_OVERHEAD)
        try:
            body = codec.encode_request(
                Request(servable=spec.servable, method=spec.method, version=spec.version, instances=instances)
            )
            if len(body) + MESSAGE_OVERHEAD > most:
                raise too_large("a row", len(body), most, blobs=self._blobs is not None)
        except RequestError:
            to_try = True
            raise
        finally:
            if self._blobs is not None and to_try:
                self._blobs.discard(names)
        referred = (it.blob.bytes for row in instances for it in row.values() if isinstance(it, Tensor) and it.blob)
        return body, len(body) + sum(referred)
