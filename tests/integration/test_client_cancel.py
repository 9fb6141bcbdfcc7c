"""Requests that somebody no longer wants, against a real broker: what the engine is told, and what it says."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import CancelledError

import pytest
from pydantic import SecretStr
from rankmq.engine import topology
from rankmq.engine.client import Client
from rankmq.engine.client_book import Pending
from rankmq.engine.client_cancel import collect_cancels
from rankmq.engine.settings import Settings
from rankmq.schemas import codec
from rankmq.schemas.errors import (
    BrokerUnavailable,
    Cancelled,
    ClientClosed,
    InvalidInput,
    ProducerError,
    RankmqError,
    ReplyTimeout,
)
from rankmq.schemas.messages import ErrorInfo, Reply
from rankmq.scripts.app import app
from typer.testing import CliRunner

from tests.integration.client_engine import PATIENCE, Answering, answering, doubled, proxied, x


def told(it: Answering, count: int = 1) -> list[str]:
    """The ids that the engine was told of, once there are so many."""
    it.hears_of(count)
    return [properties.correlation_id for properties in it.cancels]


# ------------------------------------------------------------------------------------------------------ nobody waits


def test_who_cancels_a_call_tells_the_engine(broker_url):
    with answering(broker_url, lambda _: None) as it, Client(broker_url, it.servable, "m") as client:
        pending = [client.infer_async(x(number)) for number in range(5)]
        it.waits_for(5)
        for future in pending[:4]:
            assert future.cancel()
            assert future.cancel()
        assert sorted(told(it, 4)) == sorted(future.request_id for future in pending[:4])
        assert not any(properties.reply_to for properties in it.cancels)
        with pytest.raises(CancelledError):
            pending[0].result(0)
        assert not pending[4].done()


def test_an_answered_call_is_not_cancelled(broker_url):
    with answering(broker_url) as it, Client(broker_url, it.servable, "m") as client:
        pending = client.infer_async(x(1))
        pending.result(PATIENCE)
        assert not pending.cancel()
        it.answer = lambda _: None
        last = client.infer_async(x(3))
        it.waits_for(2)
        assert last.cancel()
        assert told(it) == [last.request_id]


def test_the_engine_is_told_when_the_last_one_gives_up(broker_url):
    with answering(broker_url, lambda _: None) as it, Client(broker_url, it.servable, "m") as client:
        first, second = (client.infer_async(x(1), request_id="shared") for _ in range(2))
        other = client.infer_async(x(2))
        it.waits_for(2)
        assert first.cancel()
        assert other.cancel()
        assert told(it) == [other.request_id]
        assert not second.done()
        assert second.cancel()
        assert told(it) == [other.request_id, "shared"]


def test_ctrl_c_tells_the_engine(broker_url, monkeypatch):
    with answering(broker_url, lambda _: None) as it:

        def interrupted(self: object, timeout: float) -> None:
            it.waits_for()
            raise KeyboardInterrupt

        monkeypatch.setattr(Pending, "result", interrupted)
        with pytest.raises(KeyboardInterrupt), Client(broker_url, it.servable, "m") as client:
            client.infer(x(1), request_id="interrupted")
        assert told(it) == ["interrupted"]  # although the client was closed at once


def test_what_was_cancelled_while_the_broker_was_away_is_told_afterwards(broker_url):
    with (
        answering(broker_url, lambda _: None) as it,
        proxied(broker_url) as (proxy, url),
        Client(url, it.servable, "m") as client,
    ):
        sent = client.infer_async(x(1))
        it.waits_for()
        proxy.silence()  # connections can be made, and nothing comes through
        proxy.cut()
        line = client._line
        assert line is not None
        end = time.monotonic() + PATIENCE
        while line._channel is not None:
            assert time.monotonic() < end
            time.sleep(0.01)
        unsent = client.infer_async(x(2))
        assert sent.cancel()
        assert unsent.cancel()
        proxy.resume()
        assert told(it) == [sent.request_id]  # of the other the engine never heard
        it.answer = doubled
        assert client.infer(x(3))[0]["x"] == 6
        assert len(it.requests) == 2


@pytest.mark.parametrize("exchange", ["rankmq.nowhere", "amq.rabbitmq.log"])  # not there; not for us to write to
def test_an_engine_that_cannot_be_told_harms_nobody(broker_url, monkeypatch, exchange):
    go = threading.Event()

    def slow(request):
        assert go.wait(PATIENCE)
        return doubled(request)

    with answering(broker_url, slow, deaf=True) as it, Client(broker_url, it.servable, "m") as client:
        monkeypatch.setattr(topology, "CANCEL", exchange)
        first, second = client.infer_async(x(1)), client.infer_async(x(2))
        first.cancel()
        with pytest.raises(RankmqError, match=r"no orchestrator runs|refuses a permission"):
            client.cancel(second.request_id, timeout=PATIENCE)
        go.set()
        assert second.result(PATIENCE)[0]["x"] == 4


# ------------------------------------------------------------------------------------------------ what becomes of it


@pytest.mark.parametrize(
    ("states", "best"),
    [
        (["cancelled"], "cancelled"),
        (["answered"], "answered"),
        (["noted"], "noted"),
        (["noted", "noted", "cancelled"], "cancelled"),
        (["noted", "answered"], "answered"),
    ],
)
def test_the_best_word_of_several_orchestrators_counts(broker_url, states, best):
    with answering(broker_url, cancelled=lambda _: states) as it, Client(broker_url, it.servable, "m") as client:
        began = time.monotonic()
        assert client.cancel("Auftrag-ä", timeout=PATIENCE) == best
        assert time.monotonic() - began < PATIENCE / 2
        assert told(it) == ["Auftrag-ä"]


def test_a_call_that_somebody_else_cancels_raises(broker_url):
    gone = Reply(id="", error=ErrorInfo(code="cancelled", message="given up", side="sender"))
    cancelled = threading.Event()

    def answer(_):
        assert cancelled.wait(PATIENCE)
        return gone

    with (
        answering(broker_url, answer) as it,
        answering(broker_url, cancelled=lambda _: (cancelled.set(), ["cancelled"])[1]),
        Client(broker_url, it.servable, "m") as asking,
        Client(broker_url, "any", "m") as other,
    ):
        pending = asking.infer_async(x(1))
        assert other.cancel(pending.request_id) == "cancelled"
        with pytest.raises(Cancelled, match="given up"):
            pending.result(PATIENCE)


def test_nobody_runs(broker_url):
    Answering(broker_url).close()  # somebody was there once
    with Client(broker_url, "s", "m") as client, pytest.raises(ProducerError, match="no orchestrator runs") as caught:
        client.cancel("a", timeout=PATIENCE)
    assert not isinstance(caught.value, ReplyTimeout)


def test_nobody_answers(broker_url):
    with answering(broker_url) as it, Client(broker_url, it.servable, "m") as client:
        began = time.monotonic()
        with pytest.raises(ReplyTimeout, match=r"no orchestrator answered a cancel within 0\.3 s"):
            client.cancel("a", timeout=0.3)
        assert 0.3 <= time.monotonic() - began < PATIENCE / 2
        assert client.infer(x(1))[0]["x"] == 2


def test_answers_that_cannot_be_read_are_passed_over(broker_url, monkeypatch, caplog):
    encode, broken = codec.encode_cancel_reply, [b"\xc1 no answer", b""]
    monkeypatch.setattr(codec, "encode_cancel_reply", lambda reply: broken.pop() if broken else encode(reply))
    with (
        answering(broker_url, cancelled=lambda _: ["noted", "noted", "cancelled"]) as it,
        Client(broker_url, it.servable, "m") as client,
    ):
        assert client.cancel("a", timeout=PATIENCE) == "cancelled"
    assert [record.levelno for record in caplog.records if "cannot be read" in record.message] == [logging.WARNING] * 2


def test_a_cancel_waits_for_nothing_it_must_not(broker_url):
    found: list[object] = []
    ended = threading.Event()

    with answering(broker_url) as it, Client(broker_url, it.servable, "m") as client:

        def further(_: object) -> None:
            try:
                client.cancel("a")
            except ProducerError as error:
                found.append(error)
            ended.set()

        client.infer_async(x(1)).add_done_callback(further)
        assert ended.wait(PATIENCE)
        with pytest.raises(InvalidInput):
            client.cancel("x" * 256)
    assert "wait for itself" in str(found[0])
    with pytest.raises(ClientClosed):
        client.cancel("a")


def test_a_client_that_is_closed_ends_the_wait_for_a_word(broker_url):
    with answering(broker_url) as it:
        client = Client(broker_url, it.servable, "m")
        client.connect()
        threading.Timer(0.3, client.close).start()
        began = time.monotonic()
        with pytest.raises(ClientClosed):
            client.cancel("a", timeout=PATIENCE)
        assert time.monotonic() - began < PATIENCE / 2


# --------------------------------------------------------------------------------------------------- without a client


def settings(url: str) -> Settings:
    return Settings(broker_url=SecretStr(url), connect_timeout=5)


def test_several_at_once(broker_url):
    states = {"a": ["cancelled"], "b": ["noted", "answered"], "c": []}
    with answering(broker_url, cancelled=lambda it: states[it]):
        began = time.monotonic()
        found = collect_cancels(settings(broker_url), ["a", "b", "c", "a"], name="test", timeout=1.0)
        assert found == {"a": "cancelled", "b": "answered"}
        assert time.monotonic() - began < PATIENCE / 2
        many = [f"many-{number}" for number in range(2000)]
        states.update({it: ["cancelled"] for it in many})
        assert set(collect_cancels(settings(broker_url), many, name="test", timeout=PATIENCE).values()) == {"cancelled"}


def test_no_broker():
    with pytest.raises(BrokerUnavailable):
        collect_cancels(
            Settings(broker_url=SecretStr("amqp://u:p@127.0.0.1:1/%2F"), connect_timeout=0), ["a"], name="test"
        )


def test_the_command(broker_url, monkeypatch):
    monkeypatch.setenv("RANKMQ_BROKER_URL", broker_url)
    monkeypatch.setenv("RANKMQ_CONFIG", "")
    states = {"a": ["noted", "cancelled"], "b": ["noted"], "c": ["answered"]}
    with answering(broker_url, cancelled=lambda it: states[it]):
        result = CliRunner().invoke(app, ["cancel", "a", "b"])
        assert result.exit_code == 0
        assert result.output.splitlines() == [
            "a: cancelled",
            "b: not known to any orchestrator: noted, it will not be served should it come",
        ]
        assert CliRunner().invoke(app, ["cancel", "c"]).exit_code == 8
    result = CliRunner().invoke(app, ["cancel", "a"])
    assert result.output == "a: no orchestrator answers: not cancelled\n"
    assert result.exit_code == 9
