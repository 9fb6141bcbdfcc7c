"""Reads a job's input, row by row as instances of requests; and once more where a request is made again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from ...schemas.errors import JobStopped, RankmqError
from .columns import Columns, Input, Mapped
from .inputs import fingerprint, open_rows
from .manifest import Chunk
from .places import Place
from .rows import Row
from .spec import Spec

__all__ = ["Reader", "Taken"]

_REMEMBERED_CHUNKS = 4

Taken = tuple[Row, Input | RankmqError]
"""A row, and what is made of it, or why nothing can be."""


class Reader:
    """Opens the input, and makes sure that it is what it was.

    Args:
        spec: what the job is to do.
        position: where the first row is that was not read before.

    Raises:
        JobStopped: the input is another by now.
        ConfigurationError: it cannot be read.
    """

    def __init__(self, spec: Spec, position: int) -> None:
        place = Place(spec.source)
        if not place.exists():
            raise JobStopped(f"{place} is not there any more: put it back")
        if (now := fingerprint(place)) != spec.fingerprint:
            raise JobStopped(
                f"{place} has changed since the job began: it was {spec.fingerprint}, and is {now}",
                way="cancel",
            )
        mapped = [Mapped.parse(it) for it in spec.columns]
        self._source = spec.source
        self._rows = open_rows(place, most_bytes=spec.most_row_bytes)
        self._columns = Columns(mapped, self._rows.columns)
        self._forward = self._rows.read(position)
        self._next = position
        self._held: Taken | None = None
        self._chunks: OrderedDict[int, dict[int, Input]] = OrderedDict()
        self.size = self._rows.size
        self.over = position >= self._rows.size

    @property
    def position(self) -> int:
        """Where the row begins that comes next; the size once all were read."""
        if self._held is not None:
            return self._held[0].position
        return self.size if self.over else self._next

    def take(self) -> Taken | None:
        """The next row; None at the end.

        Raises:
            JobStopped: the input cannot be read on.
        """
        if self._held is not None:
            held, self._held = self._held, None
            return held
        row = None if self.over else next(self._forward, None)
        if row is None:
            self.over = True
            return None
        self._next = row.end
        return row, self._made(row)

    def put_back(self, taken: Taken) -> None:
        """The row that was taken last comes once more."""
        self._held = taken

    @property
    def has_more(self) -> bool:
        """Whether there may be rows still."""
        return not self.over or self._held is not None

    def _made(self, row: Row) -> Input | RankmqError:
        if isinstance(row.values, RankmqError):
            return row.values
        try:
            return self._columns.input_of(row.values)
        except RankmqError as error:
            return error

    def again(self, chunk: Chunk) -> dict[int, Input]:
        """The rows of a chunk that can be sent, by their numbers.

        Raises:
            JobStopped: they are not what they were.
        """
        found = self._chunks.get(chunk.first)
        if found is not None:
            return found
        inputs: dict[int, Input] = {}
        bad = set(chunk.bad)
        rows: Iterator[Row] = self._rows.read(chunk.position)
        for index, row in zip(range(chunk.count), rows, strict=False):
            if index in bad:
                continue
            made = self._made(row)
            if isinstance(made, RankmqError):
                text = f"{self._source}: row {chunk.first + index} was good before: {made.message}"
                raise JobStopped(text, way="cancel")
            inputs[chunk.first + index] = made
        if len(inputs) + len(bad) != chunk.count:
            text = f"{self._source} ends before row {chunk.first + chunk.count}: it was cut off meanwhile"
            raise JobStopped(text, way="cancel")
        self._chunks[chunk.first] = inputs
        if len(self._chunks) > _REMEMBERED_CHUNKS:
            self._chunks.popitem(last=False)
        return inputs
