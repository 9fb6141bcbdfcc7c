"""The ids of a job's rows: those that they bring, and those that are made for the others. No two rows share one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...schemas.errors import InvalidInput
from .manifest import Manifest, made_id

__all__ = ["RowIds"]

_LIKE_MADE = re.compile(r"row-(\d{1,18})")


class RowIds:
    """Told of each row once, in their order, within the transaction in which it is taken down.

    Args:
        manifest: where ids are kept.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._like_made = manifest.has_ids_like(made_id("%"))

    def of(
        self, given: str | None, row: int, first: int, before: Sequence[str | None]
    ) -> tuple[str | None, InvalidInput | None]:
        """The id of a row, None where it is the one that is made of its number; and what is wrong with it.

        Args:
            given: the id that it brought.
            row: its number.
            first: the number of the first row that is taken down with it.
            before: the ids of those that stand between the two.
        """
        if given is None:
            made = made_id(row)
            while self._like_made and self._manifest.claim(made, row) is not None:
                made += "~"
            return (None if made == made_id(row) else made), None
        other = self._manifest.claim(given, row)
        found = _LIKE_MADE.fullmatch(given)
        if found is not None and given == made_id(int(found[1])):
            self._like_made = True
            if other is None and int(found[1]) < row and self._is_made(int(found[1]), first, before):
                other = int(found[1])
        error = None if other is None else InvalidInput(f"custom_id {given!r:.80} is that of row {other} already")
        return given, error

    def _is_made(self, row: int, first: int, before: Sequence[str | None]) -> bool:
        if row >= first:
            return before[row - first] is None
        chunk = self._manifest.chunk_of(row)
        return not chunk.ids or chunk.ids[row - chunk.first] is None
