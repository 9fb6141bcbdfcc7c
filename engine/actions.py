"""What a group wants done: the decisions of `group.Group`, for `driver.GroupDriver` to carry out."""

from __future__ import annotations

from dataclasses import dataclass

from ..schemas.errors import OperatorError
from ..schemas.messages import Drain, Form, Refused, Restart, Welcome

__all__ = ["Action", "Began", "Ended", "GiveUp", "Send"]


@dataclass(frozen=True, slots=True)
class Send:
    """Send a control message to the ranks that a tag reaches."""

    tag: str
    message: Welcome | Refused | Form | Drain | Restart


@dataclass(frozen=True, slots=True)
class Began:
    """An epoch began: steps may be issued."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The epoch ended: its outstanding steps are void."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The group cannot form; somebody has to put right what the error says."""

    error: OperatorError


Action = Send | Began | Ended | GiveUp
