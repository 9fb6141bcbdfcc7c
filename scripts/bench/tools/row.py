"""One figure of a bench: a row of its table, its JSON and its plot."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

__all__ = ["Row", "alone", "compared", "percentile", "to_json"]


@dataclass(frozen=True, slots=True)
class Row:
    """A figure and what it is held against.

    Attributes:
        name: the benchmark's name.
        case: what was measured, in words.
        value: the median over the rounds.
        unit: of value and ceiling.
        ceiling: the median of what it is held against, taken in the same rounds; None where there is nothing.
        ratio: the median of the rounds' own ratios, value / ceiling.
        ratio_min: the least of them.
        ratio_max: the greatest.
        rounds: how many there were.
    """

    name: str
    case: str
    value: float
    unit: str
    ceiling: float | None = None
    ratio: float | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None
    rounds: int = 1


def compared(name: str, case: str, unit: str, pairs: Sequence[tuple[float, float]]) -> Row:
    """A row of rounds in which both sides were measured.

    Args:
        name: the benchmark's name.
        case: what was measured.
        unit: of both sides.
        pairs: of each round, the figure and its ceiling, both above 0.
    """
    ratios = [value / ceiling for value, ceiling in pairs]
    return Row(
        name,
        case,
        float(np.median([value for value, _ in pairs])),
        unit,
        float(np.median([ceiling for _, ceiling in pairs])),
        float(np.median(ratios)),
        min(ratios),
        max(ratios),
        len(pairs),
    )


def alone(name: str, case: str, unit: str, values: Sequence[float]) -> Row:
    """A row without anything to hold it against."""
    return Row(name, case, float(np.median(values)), unit, rounds=len(values))


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which so many of them are, between two of them if need be."""
    return float(np.percentile(values, percent))


def to_json(rows: Iterable[Row]) -> str:
    """A list with an object for each row; numbers to six digits."""
    return json.dumps([{key: _rounded(it) for key, it in asdict(row).items()} for row in rows], indent=2) + "\n"


def _rounded(value: object) -> object:
    return float(f"{value:.6g}") if isinstance(value, float) else value
