"""What the queues of a group bring that is not for it, or from nobody it wants: refused, and named in one line."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from rankmq.engine.delivery import Delivery
from rankmq.engine.group import GroupRules
from rankmq.engine.link import GroupLink
from rankmq.engine.topology import control_queue
from rankmq.schemas import codec
from rankmq.schemas.messages import Form, Message, RankReply, Refused, Restart, StatusQuery, Welcome

from tests.unit.engine.graphs_in_memory import infos, servable
from tests.unit.engine.group_life import FOREIGN, GROUP, exited, graph, heartbeat, ready, register


class Owner:
    """Whoever is told what becomes of the group; and the channel, which keeps what is said."""

    def __init__(self) -> None:
        self.said: list[Message] = []

    def guarded(self) -> nullcontext[None]:
        return nullcontext()

    def group_changed(self) -> None:
        pass

    def publish(self, exchange: str, tag: str, body: bytes, properties: object, *, then: object) -> None:
        self.said.append(codec.decode_to_agent(body))


def link_of(owner: Owner) -> GroupLink:
    rules = GroupRules(size=3, window=4)
    given = {"max_attempts": 3, "max_message": 1 << 20, "step_timeout": 60.0, "plane_bytes": 0}
    return GroupLink(servable(3, stacked=True), GROUP, rules, owner, **given)  # type: ignore[arg-type]


def after(does: Callable[[GroupLink, Callable[[Message | bytes], None], Owner], Any]) -> Any:
    async def run() -> Any:
        owner = Owner()
        link = link_of(owner)
        link._channel = owner  # type: ignore[assignment]

        def hears(message: Message | bytes) -> None:
            body = message if isinstance(message, bytes) else codec.encode(message)
            link._on_message(Delivery(body, 0, "rankmq.control", "", False, None))

        for rank in range(3):
            hears(register(rank, graphs=infos(3, stacked=True)))
        for rank in range(3):
            hears(ready(rank, 1))
        assert link.ready
        owner.said.clear()
        return does(link, hears, owner)

    return asyncio.run(run())


NOT_FOR_IT = {
    "register": register(0, group=FOREIGN),
    "heartbeat": heartbeat(0, group=FOREIGN),
    "reply": RankReply(group=FOREIGN, epoch=1, step=0, rank=0),
    "status query": StatusQuery(),
    "a word to an agent": Restart(group=GROUP, agent="a0"),
    "garbage": b"\xc1 what is this",
    "nothing": b"",
}


@pytest.mark.parametrize("what", NOT_FOR_IT)
def test_what_is_not_for_it_is_refused_with_one_line(what: str, caplog: pytest.LogCaptureFixture) -> None:
    message = NOT_FOR_IT[what]

    def does(link: GroupLink, hears: Callable[[Message | bytes], None], owner: Owner) -> None:
        caplog.clear()
        hears(message)
        (line,) = [it.message for it in caplog.records if it.levelname == "WARNING"]
        assert line.startswith("refused a ")
        if getattr(message, "group", GROUP) != GROUP:
            assert f"refused a {type(message).__name__} of other.v1.g0 on the queues of matmul.v1.g0" in line
        assert link.ready
        assert owner.said == []

    after(does)


@pytest.mark.parametrize(
    ("reply", "says", "restarts"),
    [
        (RankReply(group=GROUP, epoch=2, step=0, rank=0), "rank 0 answered step 0 of epoch 2: this is epoch 1", []),
        (RankReply(group=GROUP, epoch=1, step=0, rank=7), "rank 7 answered step 0 of epoch 1, but is not in", []),
        (
            RankReply(group=GROUP, epoch=1, step=5, rank=1),
            "rank 1 answered step 5 of epoch 1, which was not sent",
            ["a1"],
        ),
    ],
)
def test_a_result_that_cannot_be_is_refused_with_one_line(
    reply: RankReply, says: str, restarts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def does(link: GroupLink, hears: Callable[[Message | bytes], None], owner: Owner) -> None:
        caplog.clear()
        hears(reply)
        (line,) = [it.message for it in caplog.records if it.message.startswith("refused")]
        assert says in line
        assert [it.agent for it in owner.said if isinstance(it, Restart)] == restarts
        assert link.ready == (restarts == [])

    after(does)


def test_a_result_of_an_epoch_that_is_over_is_dropped_and_told_to_who_asks(caplog: pytest.LogCaptureFixture) -> None:
    def does(link: GroupLink, hears: Callable[[Message | bytes], None], owner: Owner) -> None:
        caplog.clear()
        hears(RankReply(group=GROUP, epoch=0, step=3, rank=2))
        (line,) = [it.message for it in caplog.records]
        assert line == "late: a reply of rank 2 of matmul.v1.g0 to step 3"
        assert link.ready

    caplog.set_level(logging.DEBUG, "rankmq.engine.driver")
    after(does)


OTHER_FILES = (graph(digest="e"),)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([register(7)], "agent a7, which asks for rank 7, of matmul.v1.g0: rank 7 is not one of the 3 ranks"),
        ([exited(1), register(1, "new", graphs=OTHER_FILES)], "rank 1 of matmul.v1.g0 comes with other model files"),
    ],
)
def test_an_agent_that_cannot_be_had_is_refused_with_one_line(
    messages: list[Message], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    def does(link: GroupLink, hears: Callable[[Message | bytes], None], owner: Owner) -> None:
        caplog.clear()
        for message in messages:
            hears(message)
        (line,) = [it.message for it in caplog.records if it.message.startswith("refused")]
        assert says in line
        assert [it.agent for it in owner.said if isinstance(it, Refused)] == [messages[-1].agent]

    after(does)


def test_an_agent_that_registers_twice_ends_the_epoch_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    def does(link: GroupLink, hears: Callable[[Message | bytes], None], owner: Owner) -> None:
        caplog.clear()
        hears(register(1, graphs=infos(3, stacked=True)))
        (line,) = [it.message for it in caplog.records if it.levelname == "WARNING"]
        assert "matmul.v1.g0: epoch 1 ended" in line
        assert line.endswith("rank 1 registered anew")
        assert {it.epoch for it in owner.said if isinstance(it, Form)} == {2}

    after(does)


class Connected(Owner):
    """A connection and its channel, on whose queue the registrations of agents wait."""

    def __init__(self) -> None:
        super().__init__()
        self.closed: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def channel(self) -> Connected:
        return self

    async def declare(self, topology: object) -> None:
        pass

    def publish(self, exchange: str, tag: str, body: bytes, properties: object = None, **_: object) -> None:
        self.said.append(codec.decode_to_agent(body))

    async def consume(self, queue: str, heard: Callable[[Delivery], None], **_: object) -> None:
        if queue == control_queue(GROUP):
            for rank in range(3):
                body = codec.encode(register(rank, graphs=infos(3, stacked=True)))
                heard(Delivery(body, 0, "rankmq.control", "", False, None))
        await asyncio.sleep(0)


def test_who_registered_before_it_was_taken_up_hears_the_welcome_before_its_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the other order it would forget the epoch that it was asked to form."""

    class Held:
        def __init__(self, *_: object) -> None: ...

        async def acquire(self) -> None: ...

    async def run() -> None:
        connected = Connected()
        await link_of(connected).serve(connected, "o")  # type: ignore[arg-type]
        assert [type(it) for it in connected.said] == [Welcome, Form, Form, Form]

    monkeypatch.setattr("rankmq.engine.link.Lease", Held)
    asyncio.run(run())


def test_a_second_holder_is_refused_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    def does(link: GroupLink, hears: Callable[[Message | bytes], None], owner: Owner) -> None:
        clock = asyncio.get_running_loop().time() + 10.0
        hears(register(1, "usurper", graphs=infos(3, stacked=True)))
        caplog.clear()
        link.driver._clock = lambda: clock
        hears(heartbeat(1))
        (line,) = [it.message for it in caplog.records]
        assert "refused agent usurper, which asks for rank 1," in line
        assert "held by pid 1001 on here" in line
        assert link.ready

    after(does)
