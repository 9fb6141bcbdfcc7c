"""How the service reaches the world."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol

from .answering import AnswerPorts
from .calls import CallPorts
from .parts import PartPorts

__all__ = ["ServicePorts"]


class ServicePorts(AnswerPorts, PartPorts, CallPorts, Protocol):
    """How the service reaches the world. All but `on_loop` are called on the loop."""

    def request_ended(self) -> None:
        """A request has its terminal outcome, or the broker has it back."""

    def in_pipeline_pool(self, kind: Hashable, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Runs `work` where pipelines run, then `done` with its result on the loop.

        Args:
            kind: what it has in common with others that are as quick or slow.
            work: must not raise.
            done: called on the loop.
        """

    def wake_at(self, when: float) -> None:
        """Has `Service.tick` called at a time of the monotonic clock."""
