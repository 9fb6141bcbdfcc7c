"""Sessions: state that a request leaves on the ranks between its calls, in one of a fixed number of slots. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from .life import Life
from .waiting_line import WaitingLine

__all__ = ["Session", "Slots"]


@dataclass(eq=False, slots=True)
class Session:
    """A slot that is held for one instance of a request while it runs.

    Attributes:
        slot: its number, from 0: the same on every rank.
        epoch: in which it was given; what the ranks held of it ends with that epoch.
        suspect: whether a step with a call of it was under way when that epoch ended.
    """

    slot: int
    epoch: int
    suspect: bool = False


class Slots:
    """The slots of a group. Who finds none waits in order.

    Args:
        count: how many there are.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._free: deque[int] = deque(range(count))
        self._held: dict[Session, None] = {}
        self._waiting: WaitingLine[Callable[[Session | None], None]] = WaitingLine()
        self._epoch: int | None = None
        self._serving = False
        self._closed = False

    @property
    def held(self) -> int:
        """How many are held."""
        return len(self._held)

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return len(self._waiting)

    def acquire(self, given: Callable[[Session | None], None], life: Life) -> None:
        """Gives a slot, at once or when one is free and an epoch has begun.

        Args:
            given: called once: with the session, which has to be released; or with None, if there will never be one, or
                nobody wants it any more.
            life: of the request that it is for; when that ends, it does not wait any longer.
        """
        if self._closed:
            given(None)
            return
        self._waiting.add(given, life, lambda: given(None))
        self._serve()

    def release(self, session: Session) -> None:
        """Gives a slot back; nothing for a session of an epoch that ended, whose slot is free already."""
        if self._held.pop(session, self) is self:
            return
        self._free.append(session.slot)
        self._serve()

    def live(self, session: Session) -> bool:
        """Whether what the ranks hold of a session can still be used."""
        return session in self._held

    def began(self, epoch: int) -> None:
        """An epoch began: the ranks hold nothing of anybody."""
        self._epoch = epoch
        self._serve()

    def ended(self) -> None:
        """The epoch ended: every session is lost, every slot free."""
        self._epoch = None
        self._held.clear()
        self._free = deque(range(self._count))

    def close(self) -> None:
        """Gives nothing any more; who waits is told so."""
        self._closed = True
        while self._waiting:
            self._waiting.take()(None)

    def _serve(self) -> None:
        """Gives what is free to who waits; what is given back meanwhile too, however many there are that do so."""
        if self._serving:
            return
        self._serving = True
        try:
            while self._epoch is not None and self._free and self._waiting:
                session = Session(self._free.popleft(), self._epoch)
                self._held[session] = None
                self._waiting.take()(session)
        finally:
            self._serving = False
