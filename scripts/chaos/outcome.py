"""The outcome of a chaos run, for people and for programs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .run import Suffered
from .tally import Duplicate, Tally

__all__ = ["Outcome", "line_of", "tables"]

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that is known at the end.

    Attributes:
        setting: how it was run, with the machine's load.
        faults: what was done.
        tally: of the requests.
        dead: the dead letters.
        problems: what else went wrong.
    """

    setting: Mapping[str, Any]
    faults: Sequence[Suffered]
    tally: Tally
    dead: Sequence[Mapping[str, str]]
    problems: Sequence[str]

    @property
    def good(self) -> bool:
        """Whether every request was answered once, with the right numbers or a typed error, and all faults ended."""
        return self.tally.good and not self.problems and not any(fault.problem for fault in self.faults)

    def during(self, moment: float) -> str:
        """The last fault before a moment, by its number and name."""
        before = [fault for fault in self.faults if fault.moment <= moment]
        return f"{before[-1].number} {before[-1].fault}" if before else ""

    def as_dict(self) -> dict[str, Any]:
        """The same for a program."""
        tally = asdict(self.tally)
        tally["wrong"] = len(self.tally.wrong)
        tally["lost"] = len(self.tally.lost)
        tally["duplicated"] = len(self.tally.duplicated)
        tally["repeated"] = self.tally.repeated_replies
        return {
            "good": self.good,
            "setting": dict(self.setting),
            "faults": [asdict(fault) for fault in self.faults],
            "tally": tally,
            "wrong": list(self.tally.wrong),
            "lost": list(self.tally.lost),
            "duplicated": [self._told(it) for it in self.tally.duplicated],
            "repeated": [self._told(it) for it in self.tally.repeated],
            "dead_letters": [dict(it) for it in self.dead],
            "problems": list(self.problems),
        }

    def _told(self, it: Duplicate) -> dict[str, Any]:
        return {**asdict(it), "during": self.during(it.replies[1].at)}


def line_of(fault: Suffered) -> str:
    """One fault in one line."""
    name = " ".join([fault.fault, *map(str, fault.ranks)])
    where = f" of g{fault.group}" if fault.group else ""
    noticed = "" if fault.noticed is None else f"noticed after {fault.noticed:.2f} s, "
    serving = "does not serve again" if fault.serving is None else f"serving again after {fault.serving:.2f} s"
    text = f"{fault.at:7.1f} s  {name}{where}: {noticed}{serving}, {fault.repeated} repeated inside"
    return f"{text}: {fault.problem}" if fault.problem else text


def tables(outcome: Outcome) -> Iterable[Any]:
    """Tables of the faults and of the requests."""
    yield _faults_table(outcome.faults)
    yield _tally_table(outcome)


def _faults_table(faults: Sequence[Suffered]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("fault")
    for name in (
        "times",
        "noticed after",
        "at most",
        "serving again after",
        "at most",
        "longest gap",
        "repeated inside",
    ):
        table.add_column(name, justify="right")
    for name in dict.fromkeys(fault.fault for fault in faults):
        of_kind = [fault for fault in faults if fault.fault == name]
        table.add_row(
            name,
            str(len(of_kind)),
            *_middle_and_most(fault.noticed for fault in of_kind),
            *_middle_and_most(fault.serving for fault in of_kind),
            _seconds(max(fault.gap for fault in of_kind)),
            str(sum(fault.repeated for fault in of_kind)),
        )
    return table


def _middle_and_most(values: Iterable[float | None]) -> tuple[str, str]:
    known = [value for value in values if value is not None]
    return (_seconds(statistics.median(known)), _seconds(max(known))) if known else ("-", "-")


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def _tally_table(outcome: Outcome) -> Any:
    from rich.table import Table

    tally = outcome.tally
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    errors = ", ".join(f"{code} {count}" for code, count in tally.errors.items())
    rows: list[tuple[str, int, str]] = [
        ("accepted", tally.accepted, ""),
        ("answered", tally.answered, ""),
        ("wrong", len(tally.wrong), _some(tally.wrong)),
        ("lost", len(tally.lost), _some(tally.lost)),
        ("duplicated", len(tally.duplicated), _some(_told(it, outcome) for it in tally.duplicated)),
        ("repeated replies", tally.repeated_replies, _some(_told(it, outcome) for it in tally.repeated)),
        ("typed errors", sum(tally.errors.values()), errors),
        ("dead letters", len(outcome.dead), _some(f"{it['id']}: {it['code']}" for it in outcome.dead)),
    ]
    for name, count, text in rows:
        table.add_row(name, str(count), text)
    for problem in outcome.problems:
        table.add_row("problem", "", problem)
    return table


def _told(it: Duplicate, outcome: Outcome) -> str:
    first, *others = it.replies
    later = ", ".join(f"{other.at - first.at:.3f} s" for other in others)
    clock = time.strftime("%H:%M:%S", time.localtime(first.at))
    after = outcome.during(others[0].at)
    text = f"{it.id}: answered {first.at - it.sent:.3f} s after it was sent, at {clock}, and again {later} later"
    return f"{text} (after fault {after})" if after else text


def _some(texts: Iterable[str]) -> str:
    all_of_them = list(texts)
    more = len(all_of_them) - _SHOWN
    return "; ".join(all_of_them[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
