"""What became of every request, from the producers' journals. Pure.

Accepted is what the broker has confirmed, or answered. A reply that the broker delivers once more because the producer
had not acknowledged it is the same reply. Any other after the first is repeated, and dropped where the producer's own
check tells it: by its message_id, if it says the same as the first. What gets past that check is a duplicate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from .journal import RIGHT, WRONG

__all__ = ["Asked", "Book", "Duplicate", "Reply", "Tally", "longest_gap"]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as a producer got it.

    Attributes:
        at: when, as `time.time()`.
        message_id: the reply's own; "" where the producer library does not tell.
        verdict: `RIGHT`, `WRONG` or the code of a typed error.
        text: what is wrong.
    """

    at: float
    message_id: str
    verdict: str
    text: str = ""


@dataclass(slots=True)
class Asked:
    """One request."""

    id: str
    sent: float
    accepted: float | None = None
    given_up: str = ""
    replies: list[Reply] = field(default_factory=list)
    dropped: list[Reply] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A request that got more than one answer."""

    id: str
    sent: float
    replies: tuple[Reply, ...]


class Book:
    """The requests of one producer.

    Args:
        producer: its name; the ids of its requests are this and their number.
    """

    def __init__(self, producer: str) -> None:
        self.producer = producer
        self.asked: dict[int, Asked] = {}
        self.unanswered: dict[int, Asked] = {}
        self.answered_at: list[float] = []
        self.opened: list[float] = []
        self.lost: list[float] = []
        self.unasked: list[str] = []
        self.again = 0
        self.unwanted = 0

    def hear(self, event: Sequence[Any]) -> None:
        """Takes an event of the journal."""
        word, at, *told = event
        match word:
            case "opened":
                self.opened.append(at)
            case "lost":
                self.lost.append(at)
            case "sent":
                number = int(told[0])
                asked = self.asked.setdefault(number, Asked(f"{self.producer}-{number}", at))
                if not asked.replies:
                    self.unanswered[number] = asked
            case "accepted":
                asked = self.asked[told[0]]
                asked.accepted = asked.accepted or at
            case "unwanted":
                self.unwanted += 1
            case "gave-up":
                self.asked[told[0]].given_up = f"{told[1]}: {told[2]}"
            case "reply":
                self._reply(at, *told)

    def _reply(self, at: float, number: int, message_id: str, redelivered: bool, verdict: str, text: str = "") -> None:
        asked = self.asked.get(number)
        if asked is None:
            self.unasked.append(f"{self.producer}-{number}")
            return
        same = next((reply for reply in asked.replies if message_id and reply.message_id == message_id), None)
        if same is not None and same.verdict == verdict:
            if redelivered:
                self.again += 1
            else:
                asked.dropped.append(Reply(at, message_id, verdict, text))
            return
        if not asked.replies:
            self.answered_at.append(at)
            self.unanswered.pop(number, None)
        asked.replies.append(Reply(at, message_id, verdict, text))


@dataclass(frozen=True, slots=True)
class Tally:
    """The sum of all books.

    Attributes:
        sent: requests that were published.
        accepted: those that the broker has confirmed, or that were answered.
        answered: those that got an answer, of whatever kind.
        right: those whose first answer has the right numbers.
        wrong: answers with other numbers than numpy's, or to what nobody asked; their ids.
        lost: accepted and never answered; their ids.
        duplicated: requests that got more than one answer, as their producer sees it after its check.
        repeated: requests of which the producer that speaks AMQP dropped a reply: one with the message_id and the
            verdict of one before.
        errors: first answers that were typed errors, by code.
        again: replies that the broker delivered a second time, since the producer had not acknowledged the first.
        hidden: replies that the producer library got and dropped, since nobody waited for them any more.
    """

    sent: int
    accepted: int
    answered: int
    right: int
    wrong: tuple[str, ...]
    lost: tuple[str, ...]
    duplicated: tuple[Duplicate, ...]
    repeated: tuple[Duplicate, ...]
    errors: dict[str, int]
    again: int
    hidden: int

    @property
    def good(self) -> bool:
        """Whether nothing is wrong, lost or duplicated."""
        return not (self.wrong or self.lost or self.duplicated)

    @property
    def repeated_replies(self) -> int:
        """Replies past the first of a request, as they came over the wire, whoever dropped them."""
        in_sight = sum(len(it.replies) - 1 for it in (*self.duplicated, *self.repeated))
        return in_sight + self.hidden

    @classmethod
    def of(cls, books: Iterable[Book]) -> Tally:
        """Adds up."""
        books = list(books)
        all_asked = [asked for book in books for asked in book.asked.values()]
        answered = [asked for asked in all_asked if asked.replies]
        verdicts = Counter(asked.replies[0].verdict for asked in answered)
        wrong = [f"{asked.id}: {reply.text}" for asked in answered for reply in asked.replies if reply.verdict == WRONG]
        return cls(
            sent=len(all_asked),
            accepted=sum(bool(asked.accepted or asked.replies) for asked in all_asked),
            answered=len(answered),
            right=verdicts.pop(RIGHT, 0),
            wrong=(*wrong, *(f"{name}: nobody asked" for book in books for name in book.unasked)),
            lost=tuple(
                f"{asked.id}: {asked.given_up}" if asked.given_up else asked.id
                for asked in all_asked
                if not asked.replies and (asked.accepted or asked.given_up)
            ),
            duplicated=tuple(
                Duplicate(asked.id, asked.sent, tuple(asked.replies)) for asked in answered if len(asked.replies) > 1
            ),
            repeated=tuple(
                Duplicate(asked.id, asked.sent, (asked.replies[0], *asked.dropped))
                for asked in answered
                if asked.dropped
            ),
            errors={code: count for code, count in sorted(verdicts.items()) if code != WRONG},
            again=sum(book.again for book in books),
            hidden=sum(book.unwanted for book in books),
        )


def longest_gap(moments: Iterable[float], since: float, until: float) -> float:
    """Seconds without an answer, at most, between two moments.

    Args:
        moments: of the answers.
        since: the first moment.
        until: the last.
    """
    within = sorted(it for it in moments if since < it < until)
    return max(later - earlier for earlier, later in pairwise([since, *within, until]))
