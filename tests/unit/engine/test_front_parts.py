"""Given a broker that takes nothing, or is behind, when a part is to be sent, then it is dropped and not kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from rankmq.engine.claims import CLAIMED_BYTES, CLAIMS_HEADER, ClaimFolder, Claims, new_token
from rankmq.engine.confirms import Outcome
from rankmq.engine.connection import Properties
from rankmq.engine.delivery import Delivery
from rankmq.engine.front import Front
from rankmq.schemas.errors import ConnectionLost


class Channel:
    def __init__(self, *, blocked: bool = False, unconfirmed: int = 0, lost: bool = False) -> None:
        self.blocked, self.unconfirmed, self.lost = blocked, unconfirmed, lost
        self.published: list[tuple[str, str, bytes, Properties, bool]] = []
        self.confirms: list[Callable[[Outcome], None]] = []

    def publish(self, exchange, key, body, properties, *, mandatory=True, then=None):
        if self.lost:
            raise ConnectionLost("gone")
        self.published.append((exchange, key, body, properties, mandatory))
        self.confirms.append(then)


def tell(channel: Channel, **asked: object) -> None:
    async def run() -> None:
        front = Front(channel, None, None, None)
        front.part(Delivery(b"", 1, "", "", False, Properties(**asked)), b"body", "application/json")

    asyncio.run(run())


def test_a_part_is_transient_and_names_its_question():
    channel = Channel(unconfirmed=10)
    tell(channel, reply_to="q", correlation_id="c", message_id="m")
    tell(channel, reply_to="q", message_id="m")
    (exchange, key, body, properties, mandatory), (*_, second, _) = channel.published
    assert (exchange, key, body, mandatory) == ("", "q", b"body", False)
    assert (properties.type, properties.delivery_mode, properties.content_type) == ("part", 1, "application/json")
    assert (properties.correlation_id, second.correlation_id) == ("c", "m")
    assert properties.message_id is None, "the answer's id is not used up"


@pytest.mark.parametrize("state", [{"blocked": True}, {"unconfirmed": 100_000}, {"lost": True}])
def test_it_is_dropped_where_it_cannot_be_sent_at_once(state):
    channel = Channel(**state)
    tell(channel, reply_to="q")
    assert channel.published == []


@pytest.mark.parametrize("outcome", list(Outcome))
def test_what_the_broker_has_not_read_yet_is_bounded_in_bytes(outcome):
    channel, body = Channel(), bytes(1 << 20)

    async def run() -> None:
        front = Front(channel, None, None, None)

        def send(count: int) -> None:
            for _ in range(count):
                front.part(Delivery(b"", 1, "", "", False, Properties(reply_to="q")), body, "application/json")

        send(100)
        assert len(channel.published) == 16
        assert not front.takes_parts()
        for told in channel.confirms[:2]:
            told(outcome)
        assert front.takes_parts()
        send(100)
        assert len(channel.published) == 18
        channel.lost = True
        channel.confirms[2](outcome)
        send(100)
        assert front.takes_parts(), "what was never sent does not count"

    asyncio.run(run())


@pytest.mark.parametrize("reply_to", [None, b"\xff"])
def test_it_is_dropped_where_nobody_can_be_told(reply_to):
    channel = Channel()
    tell(channel, reply_to=reply_to)
    assert channel.published == []


def test_the_body_of_a_reply_that_was_never_sent_goes(tmp_path):
    """The request is answered again, by whoever has it next."""
    token, became = new_token(), []
    folder = ClaimFolder.make(token, tmp_path)
    asked = Properties(message_id="m", reply_to="q", headers={CLAIMS_HEADER: token})

    async def run() -> None:
        front = Front(Channel(lost=True), None, None, None, Claims(1 << 20, tmp_path))
        front.reply(Delivery(b"", 1, "", "", False, asked), b"x" * CLAIMED_BYTES, "application/json", became.append)

    asyncio.run(run())
    assert became == [Outcome.LOST]
    folder.leave()
    assert not list(tmp_path.iterdir())
