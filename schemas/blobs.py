"""A tensor by reference: its bytes are in a blob store, and the message says under which name.

A reference names no place and no store: which store is meant is for each process's own settings to say. The name is a
plain token of a fixed form, so that no name leads out of the store, and none is a file or an object that is not ours.
"""

from __future__ import annotations

import re
import zlib
from typing import Annotated

from msgspec import Meta

from .base import Part
from .errors import InvalidInput

__all__ = ["BLOB_DIGEST", "BLOB_NAME", "Blob", "check_blob", "digest_of"]

BLOB_NAME = r"^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{32}$"
"""When it was written (UTC), and 128 random bits: `20260131T235959Z-0123456789abcdef0123456789abcdef`."""

BLOB_DIGEST = r"^crc32:[0-9a-f]{8}$"
"""The CRC-32 of its bytes (that of zip and gzip), hexadecimal: `crc32:cbf43926` for the nine bytes "123456789"."""

_NAME = re.compile(BLOB_NAME)
_DIGEST = re.compile(BLOB_DIGEST)


class Blob(Part, frozen=True, kw_only=True):
    """Where the bytes of a tensor are, and what they must be.

    Attributes:
        name: of the blob in the store.
        bytes: how many there are.
        digest: of them, to notice a blob that is cut off or another's: "crc32:" and eight hexadecimal digits.
    """

    name: Annotated[str, Meta(extra_json_schema={"pattern": BLOB_NAME})]
    bytes: Annotated[int, Meta(extra_json_schema={"minimum": 1})]
    digest: Annotated[str, Meta(extra_json_schema={"pattern": BLOB_DIGEST})]


def check_blob(blob: Blob) -> None:
    """Whether a reference has the form of one.

    Raises:
        InvalidInput: it has not.
    """
    if not _NAME.fullmatch(blob.name):
        raise InvalidInput(f"the blob name {blob.name!r:.60} is none: it must match {BLOB_NAME}")
    if not _DIGEST.fullmatch(blob.digest):
        raise InvalidInput(f"the blob digest {blob.digest!r:.60} is none: it must match {BLOB_DIGEST}")


def digest_of(data: memoryview | bytes) -> str:
    """The digest of a blob's bytes."""
    return f"crc32:{zlib.crc32(data):08x}"
