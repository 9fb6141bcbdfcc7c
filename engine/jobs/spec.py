"""What a job is to do, as it is kept in its manifest; and what it has done so far."""

from __future__ import annotations

import time
import uuid
from typing import Literal

import msgspec

__all__ = ["Counts", "Spec", "State"]

State = Literal["in_progress", "finalizing", "completed", "failed", "cancelling", "cancelled"]
"""As in the OpenAI Batch API: rows are sent and answered; results are put together; done; ended before its time, and
can be resumed; given up, and about to end; given up."""


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What a job is to do; it does not change.

    Attributes:
        id: the job's id.
        created: seconds since 1970.
        source: the input's place.
        fingerprint: what tells the input from another.
        servable: the servable's name.
        method: a method or pipeline of it.
        version: the servable's version; 0 is the newest.
        lane: of its requests.
        columns: where each input comes from, as written.
        results: the place of the results.
        errors: the place of the errors.
        summary: the place of the summary.
        base64: tensors in JSON lines have dtype, shape and base64, and are no nested lists.
        rows_per_request: a fixed number; None adapts.
        most_bytes: of the rows of a request.
        most_row_bytes: of a line of JSON.
        claims: the token of its folder of bodies; "": it has none.
        deadline: seconds that a request may take once it has begun; None: as long as it takes.
        folder: where the manifest was when this was written; "": unknown.
    """

    id: str = msgspec.field(default_factory=lambda: f"job-{uuid.uuid4().hex[:16]}")
    created: float = msgspec.field(default_factory=time.time)
    source: str
    fingerprint: str
    servable: str
    method: str
    version: int = 0
    lane: str = "low"
    columns: tuple[str, ...] = ()
    results: str
    errors: str
    summary: str
    base64: bool = False
    rows_per_request: int | None = None
    most_bytes: int = 1 << 20
    most_row_bytes: int = 16 << 20
    claims: str = ""
    deadline: float | None = None
    folder: str = ""

    def moved(self, folder: str) -> Spec:
        """The same where the manifest is in another folder by now: what was in the old one is in the new one."""
        if not self.folder or self.folder == folder:
            return self
        before = self.folder.rstrip("/") + "/"

        def there(name: str) -> str:
            return f"{folder.rstrip('/')}/{name.removeprefix(before)}" if name.startswith(before) else name

        return msgspec.structs.replace(
            self,
            folder=folder,
            source=there(self.source),
            results=there(self.results),
            errors=there(self.errors),
            summary=there(self.summary),
        )


class Counts(msgspec.Struct, kw_only=True):
    """How far a job is; written with everything that it counts.

    Attributes:
        total: rows of the input, where that is known.
        planned: rows that were read and put into requests.
        completed: rows with results.
        failed: rows with errors.
        requests: how many were made.
        retries: how many of them were sent again, for rows that had failed for a reason that may pass.
        position: how far the input was read, out of `size`.
        size: see `position`.
        seconds: for how long it has run, in all.
        rate: rows a second, lately.
        runs: how often it was started.
        end: how many bytes of replies are on record.
        updated: seconds since 1970.
    """

    total: int | None = None
    planned: int = 0
    completed: int = 0
    failed: int = 0
    requests: int = 0
    retries: int = 0
    position: int = 0
    size: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    runs: int = 0
    end: int = 0
    updated: float = 0.0

    @property
    def ended(self) -> int:
        """Rows that need nothing more."""
        return self.completed + self.failed

    @property
    def expected(self) -> int | None:
        """How many rows there are, by what was read so far where it is not known."""
        if self.total is not None:
            return self.total
        if not self.position or not self.planned:
            return None
        return self.planned if self.position >= self.size else round(self.planned * self.size / self.position)

    @property
    def seconds_left(self) -> float | None:
        """How long it will take, at the rate that it has."""
        if self.expected is None or self.rate <= 0:
            return None
        return max(0.0, (self.expected - self.ended) / self.rate)
