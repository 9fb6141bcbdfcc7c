"""Where a job's files are: a path on this machine, or anything else that fsspec opens."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, cast

from ...schemas.errors import ConfigurationError, JobStopped, RankmqError

__all__ = ["Place", "cannot"]


def cannot(what: str, error: BaseException) -> str:
    """What could not be done, and why, in one line."""
    why = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(f"{what}: {why}".split())


@dataclass(frozen=True)
class Place:
    """A file or folder, by its path or URL.

    Attributes:
        name: the path, also where it was given as file:// or local://; or the URL (memory://, s3:// and so on).
    """

    name: str

    def __post_init__(self) -> None:
        for scheme in ("file://", "local://"):
            object.__setattr__(self, "name", self.name.removeprefix(scheme))

    @classmethod
    def of(cls, given: str | os.PathLike[str]) -> Place:
        """A place as a person names it; a path becomes absolute, so that it is the same from everywhere."""
        text = cls(os.fspath(given)).name
        return cls(text if "://" in text else str(Path(text).expanduser().absolute()))

    def __str__(self) -> str:
        """As it is named."""
        return self.name

    @property
    def local(self) -> Path | None:
        """The path, if it is on this machine."""
        return None if "://" in self.name else Path(self.name)

    @property
    def suffix(self) -> str:
        """What its name ends with, as ".jsonl"; "/" for a folder."""
        return "/" if self.name.endswith("/") else Path(self.name).suffix.lower()

    def within(self, name: str) -> Place:
        """A place in this folder."""
        return Place(f"{self.name.rstrip('/')}/{name}")

    @cached_property
    def _remote(self) -> tuple[Any, str]:
        import fsspec

        try:
            found, path = fsspec.core.url_to_fs(self.name)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(cannot(f"{self.name} is no place that fsspec opens", error)) from None
        except Exception as error:
            raise ConfigurationError(cannot(f"{self.name} cannot be reached", error)) from error
        return found, path

    def exists(self) -> bool:
        """Whether there is something."""
        return self.local.exists() if self.local is not None else bool(self._ask("exists"))

    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.local.is_dir() if self.local is not None else bool(self._ask("isdir"))

    def size(self) -> int:
        """How many bytes a file has."""
        try:
            return self.local.stat().st_size if self.local is not None else int(self._ask("size") or 0)
        except OSError as error:
            raise JobStopped(cannot(f"{self.name} cannot be read", error)) from None

    def files(self, suffix: str) -> list[tuple[str, int]]:
        """Names and sizes of what has this suffix in a folder, sorted by name; the size of what is no file is -1.

        Raises:
            ConfigurationError: it may not be read.
            JobStopped: it cannot be read.
        """
        if self.local is not None:
            try:
                with os.scandir(self.local) as entries:
                    return sorted((it.name, _size_of(it)) for it in entries if it.name.endswith(suffix))
            except OSError as error:
                raise _unreadable(self.name, error) from None
        found = self._ask("ls", detail=True)
        named = (
            (
                str(it["name"]).rstrip("/").rpartition("/")[2],
                -1 if it.get("type") == "directory" else it.get("size") or 0,
            )
            for it in found
        )
        return sorted(it for it in named if it[0].endswith(suffix))

    def make_folder(self) -> None:
        """Makes sure that it is a folder, on this machine; elsewhere folders come with their files.

        Raises:
            JobStopped: it cannot be made.
        """
        if self.local is not None:
            try:
                self.local.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise JobStopped(cannot(f"{self.name} cannot be made", error)) from None

    def open(self) -> IO[bytes]:
        """Opens a file to be read; the file can seek.

        Raises:
            ConfigurationError: it may not be read.
            JobStopped: it cannot be opened.
        """
        try:
            return self.local.open("rb") if self.local is not None else cast(IO[bytes], self._ask("open", "rb"))
        except OSError as error:
            raise _unreadable(self.name, error) from None

    @contextlib.contextmanager
    def writing(self) -> Iterator[IO[bytes]]:
        """Writes a file, which is there when all of it is: on this machine under another name until then.

        Raises:
            JobStopped: it cannot be written.
        """
        try:
            if self.local is None:
                with self._ask("open", "wb") as file:
                    yield file
                return
            self.local.parent.mkdir(parents=True, exist_ok=True)
            draft = self.local.with_name(self.local.name + ".part")
            with draft.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.local)
            folder = os.open(self.local.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise JobStopped(cannot(f"{self.name} cannot be written", error)) from None

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """What the file system says; each has errors of its own."""
        found, path = self._remote
        try:
            return getattr(found, method)(path, *args, **kwargs)
        except Exception as error:
            raise JobStopped(cannot(f"{self.name} cannot be used", error)) from error


def _size_of(entry: os.DirEntry[str]) -> int:
    """The size of a file; -1 for what is none: a folder, a pipe, a link to nothing."""
    try:
        return entry.stat().st_size if entry.is_file() else -1
    except OSError:
        return -1


def _unreadable(name: str, error: OSError) -> RankmqError:
    """What is not there may be put back; what may not be read was never an input."""
    kind = ConfigurationError if isinstance(error, PermissionError) else JobStopped
    return kind(cannot(f"{name} cannot be read", error))
