"""The blob store: tensors that are too large for messages, in whatever fsspec opens (file://, memory://, s3://, ...).

One object holds one tensor: its bytes as they lie in memory, little-endian and in C order. So nothing has to be put
together to write one or taken apart to read one, several inputs may refer to the same, and any language can do it.

Where the store is and how to get in is the business of this process's own settings, and of fsspec's configuration and
environment; messages name blobs, by tokens, and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import fsspec

from ..schemas.blobs import Blob, check_blob, digest_of
from ..schemas.errors import BlobMissing, BlobUnavailable, ConfigurationError, InvalidInput, RankmqError
from ..schemas.tensors import Tensor, blob_of
from .references import new_name, written_at

__all__ = ["BlobStore"]

log = logging.getLogger(__name__)

_WITH_FOLDERS = {"file", "local", "memory", "sftp", "ssh", "ftp", "smb", "hdfs", "webdav"}
"""Where a folder has to be made before anything is in it. Elsewhere that would make buckets, which nobody asked for."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file system of fsspec, for the process that opened it: some have threads, which a fork leaves behind."""

    pid: int
    files: Any
    root: str
    protocol: str

    @property
    def local(self) -> bool:
        return self.protocol in ("file", "local")

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"


class BlobStore:
    """Reads and writes blobs; usable from several threads, and in forked children.

    Args:
        url: of the folder, bucket or prefix that it is in, as fsspec knows it; a path stands for file://.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._opened: _Opened | None = None

    def __repr__(self) -> str:
        return f"BlobStore({self._url.partition('://')[0]}://...)"

    def open(self) -> None:
        """Whether it can be had at all; nothing is read or written.

        Raises:
            ConfigurationError: a URL that fsspec does not know, or for which a package is missing.
        """
        self._files()

    def _files(self) -> _Opened:
        opened = self._opened
        if opened is None or opened.pid != os.getpid():
            opened = self._opened = _open(self._url)
        return opened

    def write(self, data: memoryview | bytes) -> Blob:
        """Writes a blob.

        Raises:
            BlobUnavailable: it cannot be written; nothing is left of it.
        """
        store, name = self._files(), new_name(time.time(), secrets.token_bytes(16))
        with _typed("written", name):
            try:
                self._write(store, name, data if store.local else bytes(data))
            except BaseException:
                with contextlib.suppress(Exception):
                    store.files.rm_file(store.path(name))
                raise
        return Blob(name=name, bytes=memoryview(data).nbytes, digest=digest_of(data))

    def _write(self, store: _Opened, name: str, data: memoryview | bytes) -> None:
        try:
            store.files.pipe_file(store.path(name), data)
        except FileNotFoundError as missing:  # a folder that is not there yet
            if store.protocol not in _WITH_FOLDERS:
                raise BlobUnavailable("the blob store cannot be written: there is no such place") from missing
            try:
                store.files.makedirs(store.root, exist_ok=True)
                store.files.pipe_file(store.path(name), data)
            except FileNotFoundError as error:
                raise BlobUnavailable("the blob store cannot be written: there is no such place") from error

    def try_out(self) -> None:
        """Writes a blob of a few bytes, and deletes it.

        Raises:
            BlobUnavailable: that cannot be done.
        """
        blob = self.write(b"rankmq")
        store = self._files()
        with contextlib.suppress(BlobMissing), _typed("written", blob.name):
            store.files.rm_file(store.path(blob.name))

    def read(self, blob: Blob) -> bytes:
        """The bytes of a blob; no more of them are read than the reference says.

        Raises:
            InvalidInput: the reference has not the form of one, or the blob is not what it says.
            BlobMissing: there is none of this name.
            BlobUnavailable: the store cannot be read.
        """
        check_blob(blob)
        store = self._files()
        with _typed("read", blob.name):
            data: bytes = store.files.cat_file(store.path(blob.name), start=0, end=blob.bytes + 1)
        if len(data) != blob.bytes:
            found = f"only {len(data)}" if len(data) < blob.bytes else "more"
            raise InvalidInput(f"the blob {blob.name} should have {blob.bytes} bytes, and has {found}")
        if digest_of(data) != blob.digest:
            raise InvalidInput(f"the blob {blob.name} is not what was written: its digest is not {blob.digest}")
        return data

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor of numbers by reference: its bytes are written.

        Raises:
            BlobUnavailable: they cannot be.
        """
        if not isinstance(tensor.data, memoryview) or not tensor.data.nbytes:
            raise InvalidInput("only numbers go by reference, and some of them")
        return Tensor(tensor.dtype, tensor.shape, blob=self.write(tensor.data))

    def get(self, tensor: Tensor) -> Tensor:
        """The tensor with its data, of one by reference.

        Raises:
            InvalidInput: the reference does not go together, or the blob is not what it says.
            LimitExceeded: too many dimensions.
            BlobMissing: there is no such blob.
            BlobUnavailable: the store cannot be read.
        """
        return Tensor(tensor.dtype, tensor.shape, memoryview(self.read(blob_of(tensor))))

    def put_all(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Several; if one cannot be written, none is left.

        Raises:
            BlobUnavailable: one cannot be.
        """
        written: list[Tensor] = []
        try:
            for tensor in tensors:
                written.append(self.put(tensor))
        except BaseException:
            self.delete(it.blob.name for it in written if it.blob is not None)
            raise
        return written

    def delete(self, names: Iterable[str]) -> None:
        """Deletes blobs; what is not there, or cannot be deleted, is left to the sweep."""
        for name in names:
            if written_at(name) is None:
                continue
            try:
                store = self._files()
                with _typed("written", name):
                    store.files.rm_file(store.path(name))
            except BlobMissing:
                continue
            except RankmqError as error:
                log.warning("the blob %s is left to the sweep: %s", name, error.message)

    def sweep(self, seconds: float, *, most: int = 10_000) -> int:
        """Deletes the oldest blobs, by their names; what is not named as a blob is not touched.

        Args:
            seconds: those that are older than this.
            most: how many at most.

        Returns:
            How many there were to delete.

        Raises:
            BlobUnavailable: the store cannot be read.
        """
        store = self._files()
        try:
            with _typed("read", "all of them"):
                store.files.invalidate_cache(store.root)
                paths = [str(path) for path in store.files.ls(store.root, detail=False)]
        except BlobMissing:  # nobody has written anything yet
            return 0
        before = time.time() - seconds
        names = (path.rstrip("/").rpartition("/")[2] for path in paths)
        old = sorted(name for name in names if (at := written_at(name)) is not None and at < before)[:most]
        self.delete(old)
        return len(old)


def _open(url: str) -> _Opened:
    kind = url.partition("://")[0] if "://" in url else "file"
    try:
        files, root = fsspec.url_to_fs(url)
    except ImportError as error:
        raise ConfigurationError(f"blob_store: {kind}:// needs a package more: {error}") from None
    except Exception as error:  # each file system refuses in its own way
        log.debug("the blob store cannot be opened", exc_info=True)
        raise ConfigurationError(f"blob_store: {kind}:// cannot be opened: {_short(error)}") from None
    protocol = files.protocol if isinstance(files.protocol, str) else files.protocol[0]
    return _Opened(os.getpid(), files, str(root).rstrip("/"), protocol)


@contextlib.contextmanager
def _typed(what: str, name: str) -> Iterator[None]:
    """The one place where errors of file systems become ours. They name places: those are for our log alone."""
    try:
        yield
    except RankmqError:
        raise
    except FileNotFoundError as error:
        raise BlobMissing(f"the blob {name} is not in the store: it was deleted, or is in another one") from error
    except Exception as error:
        log.warning("the blob store cannot be %s: %s", what, error, exc_info=not isinstance(error, OSError))
        raise BlobUnavailable(f"the blob store cannot be {what}: {_short(error)}") from error


def _short(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)[:200] if isinstance(error, ValueError) else type(error).__name__
