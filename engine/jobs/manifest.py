"""What is on record of a job: a SQLite file. Every change is one transaction, and on disk when it ends."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import msgspec

from ...schemas.errors import ConfigurationError, JobStopped, Way
from .places import cannot
from .spec import Counts, Spec, State
from .spool import Span

__all__ = ["Chunk", "Failure", "Key", "Manifest"]

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE chunks (first INTEGER PRIMARY KEY, count INTEGER NOT NULL, position INTEGER NOT NULL, bad TEXT, ids TEXT);
CREATE TABLE requests (first INTEGER NOT NULL, attempt INTEGER NOT NULL, count INTEGER NOT NULL, "offset" INTEGER,
    length INTEGER, "check" INTEGER, PRIMARY KEY (first, attempt)) WITHOUT ROWID;
CREATE INDEX pending ON requests (first, attempt) WHERE "offset" IS NULL;
CREATE TABLE errors ("row" INTEGER PRIMARY KEY, custom_id TEXT, code TEXT NOT NULL, message TEXT NOT NULL);
CREATE TABLE ids (custom_id TEXT PRIMARY KEY, "row" INTEGER NOT NULL) WITHOUT ROWID;
"""
_VERSION = 1
_WAIT_SECONDS = 10.0
_MOST_CACHE_KIB = 8192


class Key(NamedTuple):
    """Which request of a job it is.

    Attributes:
        first: the number of its first row, from 0.
        attempt: how often its rows had been sent before.
    """

    first: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that were read together and first sent together.

    Attributes:
        first: the number of the first one, from 0.
        count: how many rows, those included that are not sent.
        position: where the first one is in the input.
        bad: those that cannot be sent, by their place in the chunk.
        ids: the ids that the rows brought; nothing if none did.
    """

    first: int
    count: int
    position: int
    bad: tuple[int, ...] = ()
    ids: tuple[str | None, ...] = ()

    def rows(self, first: int, count: int) -> list[int]:
        """The numbers of the rows that a request for so many of its rows has."""
        bad = {self.first + it for it in self.bad}
        return [row for row in range(first, first + count) if row not in bad]

    def id_of(self, row: int) -> str:
        """The id of a row, made if it brought none."""
        given = self.ids[row - self.first] if self.ids else None
        return made_id(row) if given is None else given


def made_id(row: object) -> str:
    """The id that is made for a row of this number."""
    return f"row-{row}"


class Failure(NamedTuple):
    """A row that failed for good."""

    row: int
    custom_id: str | None
    code: str
    message: str


class Manifest:
    """The manifest of a job. Belongs to one thread.

    Args:
        path: the file.
        reading: it is only looked at, maybe while somebody else writes.

    Raises:
        ConfigurationError: it is not there, or no manifest.
        JobStopped: it cannot be used.
    """

    def __init__(self, path: Path, *, reading: bool = False) -> None:
        self._path = path
        if not path.is_file():
            raise ConfigurationError(f"{path.parent}: there is no job in this folder")
        self._db = self._connect(path)
        try:
            with self._told():
                if not reading:
                    self._db.execute("PRAGMA synchronous=FULL")
                    self._db.execute(f"PRAGMA cache_size=-{_MOST_CACHE_KIB}")
                version = self._get("version")
                if version != str(_VERSION):
                    raise ConfigurationError(f"{path} is of another version of rankmq: {version}")
                self.spec: Spec = msgspec.json.decode(self._get("spec"), type=Spec).moved(str(path.parent.absolute()))
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise ConfigurationError(cannot(f"{path} is no manifest of a job", error)) from None
        except BaseException:
            self._db.close()
            raise

    @staticmethod
    def _connect(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False)

    @classmethod
    def create(cls, path: Path, spec: Spec, counts: Counts) -> Manifest:
        """Makes the manifest of a new job; it is there as a whole or not at all.

        Raises:
            JobStopped: it cannot be written.
        """
        draft = path.with_name(path.name + ".part")
        try:
            draft.unlink(missing_ok=True)
            db = cls._connect(draft)
            with contextlib.closing(db):
                db.executescript(_SCHEMA)
                known = {"version": str(_VERSION), "spec": _json(spec), "counts": _json(counts), "state": "in_progress"}
                db.executemany("INSERT INTO meta VALUES (?, ?)", known.items())
                db.execute("PRAGMA journal_mode=WAL")
            draft.replace(path)
        except (OSError, sqlite3.Error) as error:
            for name in ("", "-journal", "-wal", "-shm"):
                with contextlib.suppress(OSError):
                    draft.with_name(draft.name + name).unlink(missing_ok=True)
            raise JobStopped(cannot(f"{path} cannot be written", error)) from None
        return cls(path)

    def close(self) -> None:
        """Closes it."""
        self._db.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise JobStopped(cannot(f"{self._path} cannot be used", error)) from None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing of what is done within; it is on disk at the end.

        Raises:
            JobStopped: no space left, or the file cannot be written.
        """
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    # ------------------------------------------------------------------------------------------------------- how far

    def _get(self, key: str, default: str = "") -> str:
        found = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if found is None else str(found[0])

    def _set(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    @property
    def state(self) -> State:
        """What the job is at."""
        with self._told():
            state = self._get("state")
        return cast(State, state if state in get_args(State) else "failed")

    def set_state(self, state: State, reason: str = "", way: Way = "resume") -> None:
        """Writes down what the job is at, why, and what can be done about it."""
        with self.transaction():
            self._set("state", state)
            self._set("reason", reason)
            self._set("way", way)
            if state in ("completed", "cancelled"):
                self._set("ended", repr(time.time()))

    def set_spec(self, spec: Spec) -> None:
        """Changes what the job is to do: where its results go, or how long a request may take; nothing else."""
        with self.transaction():
            self._set("spec", _json(spec))
        self.spec = spec

    @property
    def reason(self) -> str:
        """Why it failed."""
        with self._told():
            return self._get("reason")

    @property
    def way(self) -> Way:
        """What can be done about that."""
        with self._told():
            way = self._get("way", "resume")
        return cast(Way, way if way in get_args(Way) else "resume")

    @property
    def ended(self) -> float | None:
        """When it ended, in seconds since 1970."""
        with self._told():
            found = self._get("ended")
        return float(found) if found else None

    @property
    def counts(self) -> Counts:
        """How far it is."""
        with self._told():
            return msgspec.json.decode(self._get("counts"), type=Counts)

    def save(self, counts: Counts) -> None:
        """Writes down how far it is; within a transaction."""
        counts.updated = time.time()
        self._set("counts", _json(counts))

    def ask_cancel(self, *, asked: bool = True) -> None:
        """The job is to be given up, or not any more; whoever runs it looks now and then."""
        with self.transaction():
            self._set("cancel", "1" if asked else "")

    @property
    def cancel_asked(self) -> bool:
        """Whether it is to be given up."""
        with self._told():
            return self._get("cancel") == "1"

    # ------------------------------------------------------------------------------------------------ rows and requests

    def claim(self, custom_id: str, row: int) -> int | None:
        """Takes down whose an id is; gives the row that has it already, if another does. Within a transaction."""
        self._db.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (custom_id, row))
        found: int = self._db.execute('SELECT "row" FROM ids WHERE custom_id = ?', (custom_id,)).fetchone()[0]
        return None if found == row else found

    def has_ids_like(self, pattern: str) -> bool:
        """Whether an id was taken down that is like this, in SQL's way."""
        with self._told():
            found = self._db.execute("SELECT 1 FROM ids WHERE custom_id LIKE ? LIMIT 1", (pattern,)).fetchone()
        return found is not None

    def add_chunk(self, chunk: Chunk) -> None:
        """Takes down rows that were read. Within a transaction."""
        bad = json.dumps(chunk.bad) if chunk.bad else None
        ids = json.dumps(chunk.ids, ensure_ascii=False) if any(chunk.ids) else None
        self._db.execute(
            "INSERT INTO chunks VALUES (?, ?, ?, ?, ?)", (chunk.first, chunk.count, chunk.position, bad, ids)
        )

    def add_request(self, key: Key, count: int) -> None:
        """Takes down a request, not answered yet. Within a transaction."""
        self._db.execute("INSERT OR IGNORE INTO requests (first, attempt, count) VALUES (?, ?, ?)", (*key, count))

    def count_of(self, key: Key) -> int | None:
        """How many rows a request that is not answered yet asks for; None if there is no such one, or it is."""
        found = self._db.execute(
            'SELECT count FROM requests WHERE first = ? AND attempt = ? AND "offset" IS NULL', key
        ).fetchone()
        return None if found is None else int(found[0])

    def answered(self, key: Key, span: Span) -> None:
        """Takes down where the reply to a request is. Within a transaction."""
        self._db.execute(
            'UPDATE requests SET "offset" = ?, length = ?, "check" = ? WHERE first = ? AND attempt = ?', (*span, *key)
        )

    def add_failures(self, failures: Sequence[Failure]) -> None:
        """Takes down rows that failed for good. Within a transaction."""
        self._db.executemany("INSERT OR REPLACE INTO errors VALUES (?, ?, ?, ?)", failures)

    def pending(self) -> list[Key]:
        """The requests that are not answered yet, in the order of their rows."""
        with self._told():
            found = self._db.execute('SELECT first, attempt FROM requests WHERE "offset" IS NULL ORDER BY 1, 2')
            return [Key(*it) for it in found]

    def chunk_of(self, row: int) -> Chunk:
        """The rows that a row was read with."""
        with self._told():
            found = self._db.execute("SELECT * FROM chunks WHERE first <= ? ORDER BY first DESC LIMIT 1", (row,))
            return _chunk(found.fetchone())

    # ------------------------------------------------------------------------------------------------------ in the end

    def chunks(self) -> Iterator[Chunk]:
        """All rows that were read, in their order."""
        with self._told():
            for found in self._db.execute("SELECT * FROM chunks ORDER BY first"):
                yield _chunk(found)

    def replies(self, chunk: Chunk) -> list[tuple[Key, int, Span]]:
        """The replies with results of a chunk: key, number of rows and place of each, the first attempt first."""
        with self._told():
            found = self._db.execute(
                'SELECT first, attempt, count, "offset", length, "check" FROM requests '
                "WHERE first >= ? AND first < ? AND length > 0 ORDER BY attempt, first",
                (chunk.first, chunk.first + chunk.count),
            )
            return [(Key(*it[:2]), it[2], Span(*it[3:])) for it in found]

    def failure_that_begins(self, words: Sequence[str]) -> Failure | None:
        """The first row whose message begins with one of some words; None if there is none."""
        with self._told():
            where = " OR ".join(f"substr(message, 1, length(?{it})) = ?{it}" for it in range(1, len(words) + 1))
            found = self._db.execute(f"SELECT * FROM errors WHERE {where} ORDER BY 1 LIMIT 1", tuple(words)).fetchone()
        return None if found is None else Failure(*found)

    def failures(self) -> Iterator[Failure]:
        """The rows that failed for good, in their order."""
        with self._told():
            for found in self._db.execute("SELECT * FROM errors ORDER BY 1"):
                yield Failure(*found)


def _chunk(found: Any) -> Chunk:
    first, count, position, bad, ids = found
    return Chunk(first, count, position, *(tuple(json.loads(it)) if it else () for it in (bad, ids)))


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
