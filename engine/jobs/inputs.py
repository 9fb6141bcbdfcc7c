"""A job's input, of whatever kind; and whether it is what it was."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from pathlib import Path
from typing import IO, Final

from ...schemas.errors import ConfigurationError, JobStopped
from .places import Place, cannot
from .rows import Rows
from .rows_jsonl import JsonLines, check_lines
from .rows_npy import ArrayFile, ArrayFolder, ArrayZip
from .rows_parquet import ParquetRows

__all__ = ["KINDS", "fingerprint", "kind_of", "open_rows", "spool"]

KINDS: Final = ("jsonl", "npz", "npy", "parquet", "folder")
"""What rows can be stored in."""

_SUFFIXES: Final = {".jsonl": "jsonl", ".ndjson": "jsonl", ".npz": "npz", ".npy": "npy", ".parquet": "parquet"}
_PIECE = 1 << 20


def kind_of(place: Place) -> str:
    """Which of `KINDS` a place is, by its suffix; a folder if it is one, or ends with a slash.

    Raises:
        ConfigurationError: none of them.
    """
    kind = _SUFFIXES.get(place.suffix)
    if kind is not None:
        return kind
    if place.suffix == "/" or place.is_folder():
        return "folder"
    known = ", ".join(_SUFFIXES)
    raise ConfigurationError(f"{place}: what kind of file is it? Known are {known}, and folders of .npy files")


def open_rows(place: Place, *, most_bytes: int, columns: frozenset[str] | None = None) -> Rows:
    """The rows of an input.

    Args:
        place: where it is.
        most_bytes: a longer line of JSON is refused.
        columns: those that are needed; all if None.

    Raises:
        ConfigurationError: it is not there, empty, or not what its name says.
    """
    if not place.exists():
        raise ConfigurationError(f"{place}: there is no such file")
    kind = kind_of(place)
    if kind == "folder":
        return ArrayFolder(place)
    if place.is_folder():
        raise ConfigurationError(f"{place} is a folder")
    if not place.size():
        raise ConfigurationError(f"{place} is empty: there is nothing to do")
    match kind:
        case "jsonl":
            check_lines(place, most_bytes)
            rows = JsonLines(place, most_bytes)
            if next(rows.read(0), None) is None:
                raise ConfigurationError(f"{place} has blank lines alone: there is nothing to do")
            return rows
        case "npy":
            return ArrayFile(place)
        case "npz":
            return ArrayZip(place)
        case _:
            return ParquetRows(place, columns)


def fingerprint(place: Place) -> str:
    """What tells an input from another: its size, and a digest of its head and tail; of a folder its names and sizes.

    Raises:
        JobStopped: it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    if place.is_folder():
        files = place.files(".npy")
        for name, size in files:
            digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
        return f"{len(files)} files, {digest.hexdigest()}"
    size = place.size()
    with place.open() as file:
        digest.update(file.read(_PIECE))
        if size > _PIECE:
            file.seek(max(_PIECE, size - _PIECE))
            digest.update(file.read(_PIECE))
    return f"{size} bytes, {digest.hexdigest()}"


def spool(path: Path, source: IO[bytes] | None = None) -> None:
    """Keeps standard input, all of it, so that the job can be resumed.

    Args:
        path: where.
        source: instead of standard input.

    Raises:
        JobStopped: it cannot be written.
    """
    source = source or sys.stdin.buffer
    draft = path.with_name(path.name + ".part")
    try:
        with draft.open("wb") as file:
            while piece := source.read(_PIECE):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise JobStopped(cannot(f"standard input cannot be kept in {path.parent}", error)) from None
