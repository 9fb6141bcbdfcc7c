"""Given many who ask for the status, when it is made, then it is made for all of them at once, and breaks nothing."""

from __future__ import annotations

import asyncio
import logging
from contextlib import nullcontext

import pytest
from rankmq.engine.connection import Properties
from rankmq.engine.delivery import Delivery
from rankmq.engine.questions import MOST_QUESTIONS, Questions
from rankmq.schemas import codec
from rankmq.schemas.errors import BrokerUnavailable, ConnectionLost
from rankmq.schemas.messages import Status


class Desk:
    """Makes a status when the test lets it; remembers who was told what."""

    def __init__(self) -> None:
        self.made: list[asyncio.Future[Status]] = []
        self.told: list[tuple[str, object, int]] = []
        self.questions = Questions(self.make, self.tell, nullcontext)

    async def make(self) -> Status:
        self.made.append(asyncio.get_running_loop().create_future())
        return await self.made[-1]

    def tell(self, reply_to, body, properties):
        self.told.append((reply_to, properties.correlation_id, codec.decode_status(body).served))

    def ask(self, reply_to="q", correlation_id=None):
        properties = Properties(reply_to=reply_to, correlation_id=correlation_id)
        self.questions.ask(Delivery(b"", 1, "rankmq.status", "", False, properties))

    async def turn(self):
        """Until nothing happens any more."""
        before = None
        while before != (before := (len(self.made), len(self.told))) or before is None:
            for _ in range(3):
                await asyncio.sleep(0)

    async def is_made(self, served):
        await self.turn()
        self.made[-1].set_result(status(served))
        await self.turn()


def status(served):
    return Status(
        orchestrator="o",
        host="h",
        pid=1,
        uptime_seconds=0.0,
        in_flight=0,
        waiting=0,
        max_in_flight=1,
        served=served,
        failed=0,
        groups=(),
        queues=(),
    )


def with_desk(test):
    def run():
        async def inside():
            await test(Desk())

        asyncio.run(inside())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@with_desk
async def test_who_asks_is_told(desk):
    desk.ask("q", "c1")
    await desk.is_made(7)
    assert desk.told == [("q", "c1", 7)]


@with_desk
async def test_one_is_made_for_all_who_ask_meanwhile(desk):
    desk.ask("first")
    await desk.turn()
    for number in range(500):
        desk.ask(f"q{number}")
    await desk.turn()
    assert len(desk.made) == 1
    await desk.is_made(1)
    assert desk.told == [("first", None, 1)]
    await desk.is_made(2)  # not the one that was begun before they asked
    assert len(desk.made) == 2
    assert desk.told[1:] == [(f"q{number}", None, 2) for number in range(500)]


@with_desk
async def test_of_too_many_the_oldest_are_dropped(desk):
    desk.ask("first")
    await desk.turn()
    for number in range(MOST_QUESTIONS + 10):
        desk.ask(f"q{number}")
    await desk.is_made(1)
    await desk.is_made(2)
    assert [it[0] for it in desk.told] == ["first", *(f"q{number}" for number in range(10, MOST_QUESTIONS + 10))]


@with_desk
async def test_who_cannot_be_told_is_not_worth_a_status(desk):
    for reply_to in (None, "", b"\xff"):
        desk.ask(reply_to)
    await desk.turn()
    assert desk.made == []


@pytest.mark.parametrize(("error", "level"), [(ConnectionLost, logging.DEBUG), (BrokerUnavailable, logging.WARNING)])
def test_what_cannot_be_made_is_one_line_and_the_next_is_made(caplog, error, level):
    @with_desk
    async def run(desk):
        for number in range(100):
            desk.ask(f"q{number}")
        await desk.turn()
        desk.made[-1].set_exception(error("gone"))
        await desk.turn()
        assert desk.told == []
        desk.ask("later")
        await desk.is_made(3)
        assert desk.told == [("later", None, 3)]

    with caplog.at_level(logging.DEBUG, logger="rankmq.engine.questions"):
        run()
    assert [(it.levelno, it.getMessage()) for it in caplog.records] == [(level, "there is no status to tell: gone")]


@with_desk
async def test_after_the_end_nobody_is_told(desk):
    desk.ask("q")
    await desk.turn()
    desk.questions.close()
    await desk.turn()
    assert desk.made[0].cancelled()
    assert desk.told == []
