"""What a configuration says of a loop on the ranks, as a value: `register.repeat`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..schemas.errors import ServableError

__all__ = ["Loop", "Name", "loop_of"]

Name: TypeAlias = int | str
"""An input or output of a graph: its name, or its place from 0; an input's is that among the arguments of the stage."""


@dataclass(frozen=True, slots=True)
class Loop:
    """What a subgraph's turns have to do with each other.

    Attributes:
        feed: pairs of an input and the output that it is given from the second turn on.
        until: the output that is not zero for a row that is done.
        collect: the outputs that are kept of every turn.
        last: the outputs that are kept of the last turn.
        slice_seconds: about how long a slice may take; None: as long as it takes.
    """

    feed: tuple[tuple[Name, Name], ...]
    until: Name | None
    collect: tuple[Name, ...]
    last: tuple[Name, ...]
    slice_seconds: float | None = None


def loop_of(
    error: Callable[[str], ServableError],
    *,
    arguments: int,
    feed: Any,
    until: Any,
    collect: Any,
    last: Any,
    slice_seconds: Any = None,
) -> Loop:
    """The loop that a configuration asks for, as far as it can be checked without the graph.

    Args:
        error: makes the error for a message, with its line.
        arguments: how many the stage has.
        feed: a mapping of inputs to outputs.
        until: an output, or None.
        collect: an output, or a list of them.
        last: likewise.
        slice_seconds: a number, or None.

    Raises:
        ServableError: something that is no name, an argument that is not there, or nothing that is kept.
    """
    if not isinstance(feed, Mapping):
        raise error(f"feed must be a dict of inputs to the outputs that they are fed from, not {feed!r}")
    for name in (*feed, *feed.values()):
        _check(error, "feed", name)
    for name in feed:
        if isinstance(name, int) and name >= arguments:
            raise error(f"feed names argument {name}, and there are {arguments}, from 0")
    if until is not None:
        _check(error, "until", until)
    collected, lasting = _names(error, "collect", collect), _names(error, "last", last)
    if not collected and not lasting:
        raise error("it gives nothing: name outputs to collect of every turn (collect=), or of the last one (last=)")
    if slice_seconds is not None and (
        not isinstance(slice_seconds, int | float) or isinstance(slice_seconds, bool) or not 0 < slice_seconds <= 60
    ):
        raise error(f"slice_seconds must be a number above 0, and up to 60, not {slice_seconds!r}")
    return Loop(tuple(feed.items()), until, collected, lasting, slice_seconds)


def _names(error: Callable[[str], ServableError], word: str, given: Any) -> tuple[Name, ...]:
    names = (given,) if isinstance(given, str | int) else given
    if not isinstance(names, list | tuple):
        raise error(f"{word} must be an output or a list of them, not {given!r}")
    for name in names:
        _check(error, word, name)
    if len(set(names)) != len(names):
        raise error(f"{word} names an output twice: {given!r}")
    return tuple(names)


def _check(error: Callable[[str], ServableError], word: str, name: Any) -> None:
    is_place = isinstance(name, int) and not isinstance(name, bool) and name >= 0
    if not is_place and not (isinstance(name, str) and name):
        raise error(f"{word}: an input or output is named by its name or its place from 0, not by {name!r}")
