"""A producer that uses the library: threads of one `Client`, each of which asks again as soon as it has an answer."""

from __future__ import annotations

import itertools
import logging
import signal
import threading
from pathlib import Path

from ...engine.client import Client
from ...schemas.errors import ProducerError, RankmqError
from .journal import Journal
from .questions import METHOD, SERVABLE
from .raw_producer import Order

__all__ = ["ClientProducer"]

_PATIENCE_SECONDS = 180.0


class ClientProducer:
    """Asks until SIGTERM.

    Args:
        order: see `Order`.
        url: the broker's.
    """

    def __init__(self, order: Order, url: str) -> None:
        self._order = order
        self._url = url
        self._questions = order.questions()
        self._journal = Journal(Path(order.journal))
        self._numbers = itertools.count()
        self._stop = threading.Event()

    def run(self) -> None:
        """Asks, and returns when the last answer is there."""
        signal.signal(signal.SIGTERM, lambda *_: self._stop.set())
        with (
            _Unwanted(self._journal),
            Client(self._url, SERVABLE, METHOD, timeout=_PATIENCE_SECONDS, connect_timeout=_PATIENCE_SECONDS) as client,
        ):
            self._journal.say("opened")
            threads = [threading.Thread(target=self._ask, args=(client,)) for _ in range(self._order.in_flight)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(0.1)  # in pieces, since a signal is only seen between two

    def _ask(self, client: Client) -> None:
        while not self._stop.is_set():
            number = next(self._numbers)
            self._journal.say("sent", number)
            try:
                (row,) = client.infer(self._questions.inputs(number))
            except ProducerError as error:
                self._journal.say("gave-up", number, error.code, error.message)
                self._stop.wait(1.0)
            except RankmqError as error:
                self._journal.say("reply", number, "", False, error.code, error.message)
            else:
                self._journal.say("reply", number, "", False, *self._questions.verdict(number, row))


class _Unwanted(logging.Handler):
    """Writes down the replies that the library got and nobody waited for: it hides those that come twice."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.DEBUG)
        self._journal = journal
        self._logger = logging.getLogger("rankmq.engine.client_line")

    def __enter__(self) -> _Unwanted:
        self._logger.setLevel(logging.DEBUG)
        self._logger.addHandler(self)
        self._logger.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Hears the library say it."""
        if "nobody waits" in record.getMessage():
            self._journal.say("unwanted", str(getattr(record, "request", "")))
