"""Tensors by reference in requests and replies: their names, which there are, which should be made. Pure."""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..schemas.blobs import BLOB_NAME
from ..schemas.errors import RankmqError
from ..schemas.messages import Reply
from ..schemas.plain import tensor_from_json
from ..schemas.tensors import Tensor, blob_of, nbytes

__all__ = [
    "BLOBS_HEADER",
    "LEAST_BYTES",
    "chosen",
    "inputs_of",
    "names_in",
    "names_of",
    "new_name",
    "outputs_of",
    "refers",
    "speaks",
    "unnamed",
    "written_at",
]

BLOBS_HEADER = "rankmq-blobs"
"""On a request: its producer reads and writes the blob store."""

LEAST_BYTES = 4096
"""What is smaller is not worth an object of its own."""
_NAME = re.compile(BLOB_NAME)
_NAME_IN_BODY = re.compile(BLOB_NAME.strip("^$").encode())
_DATE = "%Y%m%dT%H%M%SZ"


def new_name(now: float, token: bytes) -> str:
    """A name for a blob: those of later blobs sort behind those of earlier ones.

    Args:
        now: seconds since 1970.
        token: 16 random bytes.
    """
    return f"{time.strftime(_DATE, time.gmtime(now))}-{token.hex()}"


def written_at(name: str) -> float | None:
    """When a blob was written by what its name says, in seconds since 1970; None for a name that is none of ours."""
    if not _NAME.fullmatch(name):
        return None
    try:
        return float(calendar.timegm(time.strptime(name.partition("-")[0], _DATE)))
    except (ValueError, OverflowError):
        return None


def speaks(headers: Mapping[str, Any]) -> bool:
    """Whether the headers of a request say that its producer reads and writes the blob store."""
    return headers.get(BLOBS_HEADER) in (True, "true")


def unnamed(body: bytes) -> bytes:
    """The body of a request without the names of blobs.

    Who asks once more under the same id has written the inputs again, under other names; the digests tell whether they
    are the same.
    """
    return _NAME_IN_BODY.sub(b"", body)


def names_in(body: bytes) -> tuple[str, ...]:
    """Whatever looks like the name of a blob in the body of a request that cannot be read, or was not."""
    if b"crc32:" not in body:  # by far the most, and much faster
        return ()
    return tuple(dict.fromkeys(name.decode("ascii") for name in _NAME_IN_BODY.findall(body)))


def refers(value: object) -> bool:
    """Whether an input is a tensor by reference; in JSON it is a map still."""
    return (type(value) is Tensor and value.blob is not None) or (type(value) is dict and "blob" in value)


def inputs_of(instances: Iterable[Mapping[str, Any]]) -> list[Tensor | RankmqError]:
    """The tensors by reference among the inputs of a request, checked; an error for one that cannot be one."""
    found: list[Tensor | RankmqError] = []
    for value in (value for row in instances for value in row.values() if refers(value)):
        try:
            tensor = value if isinstance(value, Tensor) else tensor_from_json(value)
            blob_of(tensor)
            found.append(tensor)
        except RankmqError as error:
            found.append(error)
    return found


def outputs_of(reply: Reply) -> list[Tensor]:
    """The tensors by reference among the outputs of a reply."""
    return [it for row in reply.outputs if row for it in row.values() if it.blob is not None]


def names_of(tensors: Iterable[Tensor | RankmqError]) -> tuple[str, ...]:
    """The names of the blobs that tensors refer to, each once."""
    return tuple(dict.fromkeys(it.blob.name for it in tensors if isinstance(it, Tensor) and it.blob is not None))


def chosen(tensors: Sequence[Tensor], each: int, together: int) -> set[int]:
    """Which tensors go by reference: those that are large, and of the others the largest until the rest has room.

    Args:
        tensors: all those of a message.
        each: how many bytes one of them may have within the message.
        together: how many all of them may have there.

    Returns:
        Their indexes. Text is not among them, nor what is small: there may be more left than there is room for.
    """
    sizes = [it.data.nbytes if isinstance(it.data, memoryview) else 0 for it in tensors]
    out = {index for index, size in enumerate(sizes) if size > max(each, LEAST_BYTES)}
    left = sum(nbytes(it) for index, it in enumerate(tensors) if index not in out)
    for index in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        if left <= together or sizes[index] < LEAST_BYTES:
            break
        if index not in out:
            out.add(index)
            left -= sizes[index]
    return out
