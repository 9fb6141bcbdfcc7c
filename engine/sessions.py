"""The sessions of one instance of a request, one per group: taken with its first call of a graph that keeps state, and
held until it ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .life import Life
from .slots import Session

if TYPE_CHECKING:
    from .driver import GroupDriver

__all__ = ["InstanceSessions"]


class InstanceSessions:
    """What one instance holds on the ranks while it runs."""

    def __init__(self) -> None:
        self._sessions: dict[GroupDriver, Session] = {}
        self._released = False

    @property
    def suspect(self) -> bool:
        """Whether a step with a call of it was under way when an epoch ended: it may be what ended it."""
        return any(session.suspect for session in self._sessions.values())

    def held(self, driver: GroupDriver) -> Session | None:
        """The instance's session on a group, if it has one."""
        return self._sessions.get(driver)

    def use(self, driver: GroupDriver, then: Callable[[Session | None], None], life: Life) -> None:
        """Calls `then` with the instance's session on a group, once there is one.

        Args:
            driver: the group's.
            then: called with the session, or with None if there will never be one, or the request is over.
            life: of the request.
        """
        session = self._sessions.get(driver)
        if session is not None:
            then(session)
            return

        def given(session: Session | None) -> None:
            if session is not None and self._released:
                driver.slots.release(session)
            elif session is not None:
                self._sessions[driver] = session
            then(session)

        driver.slots.acquire(given, life)

    def release(self) -> None:
        """Gives everything back: the instance has ended."""
        self._released = True
        for driver, session in self._sessions.items():
            driver.slots.release(session)
        self._sessions.clear()
