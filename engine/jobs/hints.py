"""What a person may have meant where rows fail for the names of their inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from ...schemas.errors import RankmqError
from .desk import MANIFEST
from .inputs import open_rows
from .manifest import Manifest
from .places import Place

__all__ = ["hint_of", "mapping_hint"]

_MISNAMED = ("missing input ", "unknown input ")
"""How the engine's message begins where the columns do not fit the inputs."""

_INPUTS = "the inputs are "
_MOST_SHOWN = 20


def hint_of(folder: Path) -> str:
    """What is to be said of a job where rows failed because its columns are not the inputs of the method; else "".

    Args:
        folder: of its manifest.
    """
    with closing(Manifest(folder / MANIFEST, reading=True)) as manifest:
        failure = manifest.failure_that_begins(_MISNAMED)
        if failure is None:
            return ""
        spec, position = manifest.spec, manifest.chunk_of(failure.row).position
    try:
        rows = open_rows(Place(spec.source), most_bytes=spec.most_row_bytes)
        columns = rows.columns
        if columns is None:  # each row has its own
            values = next((it.values for it in rows.read(position) if not isinstance(it.values, RankmqError)), {})
            columns = tuple(values)
    except RankmqError:  # the input is gone by now
        return ""
    return mapping_hint(failure.message, columns)


def mapping_hint(message: str, columns: Collection[str]) -> str:
    """How the columns become the inputs of the method. Pure.

    Args:
        message: the engine's, of a row that failed.
        columns: those that its input has.

    Returns:
        A line; "" if the message is about something else.
    """
    inputs = message.partition(_INPUTS)[2].split(", ")
    if not message.startswith(_MISNAMED) or inputs == [""]:
        return ""
    given = list(_given(inputs, columns))
    way = f": say which is which, as {' '.join(given)}" if given else ""
    return (
        f"the inputs are {', '.join(inputs)}, and the columns {', '.join(list(columns)[:_MOST_SHOWN]) or 'none'}{way}"
    )


def _given(inputs: Sequence[str], columns: Collection[str]) -> Iterator[str]:
    others = (it for it in columns if it not in inputs)
    for name in inputs:
        if name in columns:
            yield f"--map {name}"
        elif (column := next(others, None)) is not None:
            yield f"--map {name}={column}"
