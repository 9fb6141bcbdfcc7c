"""The producer library against a real broker, with an orchestrator that only answers."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from rankmq.engine import client_line, topology
from rankmq.engine.client import Client
from rankmq.schemas.errors import (
    BrokerRefused,
    BrokerUnavailable,
    ClientClosed,
    ConnectionLost,
    InstancesFailed,
    InvalidInput,
    LimitExceeded,
    ProducerError,
    RankmqError,
    ReplyTimeout,
    StageFailed,
)
from rankmq.schemas.messages import ErrorInfo, InstanceError, Reply, Request
from rankmq.schemas.tensors import from_array
from rankmq.workers.rendezvous import free_port

from tests.integration.client_engine import PATIENCE, Answering, answering, doubled, proxied, x


def took(began: float) -> float:
    return time.monotonic() - began


# ------------------------------------------------------------------------------------------------------------ answers


def test_every_answer_belongs_to_its_question(broker_url):
    with answering(broker_url) as it, Client(broker_url, it.servable, "m") as client:

        def ask(thread: int) -> None:
            for number in range(50):
                (row,) = client.infer(x(thread, number))
                assert row["x"].tolist() == [2 * thread, 2 * number]

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(4)))


def test_a_call_without_an_answer_ends_in_time(broker_url):
    with answering(broker_url, lambda _: None) as it, Client(broker_url, it.servable, "m") as client:
        futures = [client.infer_async(x(number), timeout=0.5) for number in range(3)]
        it.waits_for(3)
        assert not any(future.done() for future in futures)
        assert wait(futures, PATIENCE).not_done == set()
        for future in futures:
            with pytest.raises(ReplyTimeout, match="within 0"):
                future.result()


def test_outputs_outlive_the_message_and_can_be_written(broker_url):
    with answering(broker_url) as it, Client(broker_url, it.servable, "m") as client:
        (row,) = client.infer(x(1, 2))
    row["x"] += 1
    assert row["x"].tolist() == [3, 5]


def test_a_huge_reply(broker_url):
    big = np.arange(15 * 1024 * 1024 // 4, dtype=np.float32)  # a broker of version 4 takes 16 MiB
    with (
        answering(broker_url, lambda _: Reply(id="", outputs=[{"y": from_array(big)}])) as it,
        Client(broker_url, it.servable, "m") as client,
    ):
        (row,) = client.infer(x(1))
    assert np.array_equal(row["y"], big)


def test_errors_are_typed(broker_url):
    info = ErrorInfo(code="stage_failed", message="it raised", side="engine")
    some = Reply(id="", outputs=[{"y": from_array(np.float32(1))}, None], errors=[InstanceError(index=1, error=info)])
    with (
        answering(broker_url, lambda _: Reply(id="", error=info)) as it,
        Client(broker_url, it.servable, "m") as client,
    ):
        with pytest.raises(StageFailed, match="it raised"):
            client.infer(x(1))

        it.answer = lambda _: some
        with pytest.raises(InstancesFailed, match="1 of 2") as caught:
            client.infer([x(1), x(2)])
        assert caught.value.results[0]["y"] == 1
        assert isinstance(caught.value.results[1], StageFailed)
        assert client.request([x(1), x(2)]) == some

        it.answer = lambda _: b"\xc1 no reply"
        with pytest.raises(ProducerError, match="cannot be read"):
            client.infer(x(1))

        it.answer = doubled
        assert client.infer(x(1))[0]["x"] == 2


@pytest.mark.parametrize("instances", [[], "x", [1], {"x": object()}, {"x": [object()]}, {"x": 1 << 70}])
def test_what_cannot_be_sent_is_refused_at_once(broker_url, instances):
    with Client(broker_url, "any", "m") as client, pytest.raises(RankmqError) as caught:
        client.infer(instances)
    assert isinstance(caught.value, InvalidInput)


def test_a_name_that_amqp_cannot_carry_is_refused_at_once(broker_url):
    began = time.monotonic()
    with Client(broker_url, "s" * 300, "m") as client, pytest.raises(LimitExceeded):
        client.infer(x(1))
    assert took(began) < PATIENCE / 2


# ------------------------------------------------------------------------------------------------------------- places


def test_a_call_that_timed_out_or_was_cancelled_gives_its_place_back(broker_url, caplog):
    with (
        answering(broker_url, lambda _: None) as it,
        Client(broker_url, it.servable, "m", max_in_flight=1) as client,
    ):
        for _ in range(3):
            with pytest.raises(ReplyTimeout, match="no reply within"):
                client.infer(x(1), timeout=0.05)
        for _ in range(3):
            future = client.infer_async(x(1))
            assert future.cancel()
            with pytest.raises(CancelledError):
                future.result()
            assert wait([future], PATIENCE).done == {future}
        it.waits_for(6)
        it.answer = doubled
        with caplog.at_level(logging.DEBUG, "concurrent.futures"):
            assert client.infer(x(1))[0]["x"] == 2
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_reply_to_a_cancelled_call_is_nobodys(broker_url, caplog):
    go = threading.Event()

    def slow(request: Request) -> Reply:
        assert go.wait(PATIENCE)
        return doubled(request)

    with answering(broker_url, slow) as it, Client(broker_url, it.servable, "m") as client:
        first, second = client.infer_async(x(1)), client.infer_async(x(2))
        assert first.cancel()
        go.set()
        assert second.result(PATIENCE)[0]["x"] == 4
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_one_call_too_many_waits_for_its_turn_and_not_for_ever(broker_url):
    with (
        answering(broker_url, lambda _: None) as it,
        Client(broker_url, it.servable, "m", max_in_flight=2) as client,
    ):
        held = [client.infer_async(x(1)), client.infer_async(x(1))]
        began = time.monotonic()
        with pytest.raises(ReplyTimeout, match="too many"):
            client.infer(x(1), timeout=0.2)
        assert 0.2 <= took(began) < PATIENCE / 2
        it.answer = doubled
        for future in held:
            future.cancel()
        assert client.infer(x(1))[0]["x"] == 2


def test_callbacks_may_ask_and_must_not_wait(broker_url):
    found: list[object] = []
    ended = threading.Event()

    with answering(broker_url) as it, Client(broker_url, it.servable, "m", max_in_flight=1) as client:

        def further(_: object) -> None:
            try:
                client.infer(x(1))
            except ProducerError as error:
                found.append(error)
            client.infer_async(x(3)).add_done_callback(lambda done: (found.append(done.result()), ended.set()))

        client.infer_async(x(1)).add_done_callback(further)
        assert ended.wait(PATIENCE)
    assert "wait for itself" in str(found[0])
    assert found[1][0]["x"] == 6


# ------------------------------------------------------------------------------------------------------ the broker goes


def test_what_was_not_answered_is_asked_again(broker_url):
    with (
        answering(broker_url, lambda _: None) as it,
        proxied(broker_url) as (proxy, url),
        Client(url, it.servable, "m") as client,
    ):
        futures = [client.infer_async(x(number)) for number in range(8)]
        it.waits_for(8)
        it.answer = doubled
        assert proxy.cut() == 1
        for number, future in enumerate(futures):
            assert future.result(PATIENCE)[0]["x"] == 2 * number


def test_cut_again_and_again_nothing_is_lost(broker_url):
    with answering(broker_url) as it, proxied(broker_url) as (proxy, url), Client(url, it.servable, "m") as client:
        stop = threading.Event()

        def cut() -> None:
            while not stop.wait(0.15):
                proxy.cut()

        cutter = threading.Thread(target=cut)
        cutter.start()
        try:
            until = time.monotonic() + 2
            number = 0
            while time.monotonic() < until:
                number += 1
                assert client.infer(x(number), timeout=PATIENCE)[0]["x"] == 2 * number
        finally:
            stop.set()
            cutter.join()


def test_the_broker_stays_away_and_the_next_call_tries_anew(broker_url, monkeypatch):
    async def away(*_: object, **__: object) -> None:
        raise BrokerUnavailable("away")

    monkeypatch.setattr(client_line, "_AWAY_SECONDS", 0.3)
    with (
        answering(broker_url, lambda _: None) as it,
        proxied(broker_url) as (proxy, url),
        Client(url, it.servable, "m", connect_timeout=0.3) as client,
    ):
        future = client.infer_async(x(1))
        it.waits_for()
        with monkeypatch.context() as patch:
            patch.setattr(client_line.Connection, "open", away)
            proxy.cut()
            with pytest.raises(ConnectionLost, match="did not come back"):
                future.result(PATIENCE)
            with pytest.raises(BrokerUnavailable):  # and not ClientClosed: nobody closed it
                client.infer(x(1))
        it.answer = doubled
        assert client.infer(x(1), timeout=PATIENCE)[0]["x"] == 2


def test_a_broker_that_refuses_while_it_comes_back_is_tried_again(broker_url, monkeypatch):
    open_once = client_line.Connection.open
    refusals = [BrokerRefused("cut in the handshake"), BrokerUnavailable("away"), BrokerRefused("cut again")]

    async def refusing(*args: Any, **options: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return await open_once(*args, **options)

    with (
        answering(broker_url, lambda _: None) as it,
        proxied(broker_url) as (proxy, url),
        Client(url, it.servable, "m") as client,
    ):
        future = client.infer_async(x(1))
        it.waits_for()
        it.answer = doubled
        monkeypatch.setattr(client_line.Connection, "open", refusing)
        proxy.cut()
        assert future.result(PATIENCE)[0]["x"] == 2
    assert not refusals


def test_nobody_answers_again_and_again():
    with_nobody = Client(f"amqp://u:p@127.0.0.1:{free_port()}/%2F", "s", "m", connect_timeout=0.2)
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            with_nobody.infer(x(1))
    with_nobody.close()


def test_a_wrong_password_is_refused_at_once(broker_url):
    wrong = broker_url.replace(urlsplit(broker_url).password, "wrong")
    began = time.monotonic()
    with pytest.raises(BrokerRefused, match="user or password"), Client(wrong, "s", "m"):
        pass
    assert took(began) < PATIENCE / 2


def test_no_exchange_no_orchestrator(broker_url, monkeypatch):
    monkeypatch.setattr(topology, "REQUESTS", "rankmq.nowhere")
    with Client(broker_url, "s", "m") as client:
        for _ in range(2):
            with pytest.raises(ProducerError, match="orchestrator"):
                client.infer(x(1))


def test_a_full_queue_is_tried_again(broker_url):
    it = Answering(broker_url, **{"x-max-length": 1, "x-overflow": "reject-publish"})
    try:
        with Client(broker_url, it.servable, "m") as client:
            futures = [client.infer_async(x(number)) for number in range(3)]
            time.sleep(0.3)  # nothing tells that the broker has refused some
            assert not any(future.done() for future in futures)
            it.start()
            assert sorted(float(future.result(PATIENCE)[0]["x"][0]) for future in futures) == [0, 2, 4]
    finally:
        it.close()


# --------------------------------------------------------------------------------------------------------------- ends


def test_close_ends_the_calls_that_wait(broker_url):
    with answering(broker_url, lambda _: None) as it:
        client = Client(broker_url, it.servable, "m")
        futures = [client.infer_async(x(1)) for _ in range(3)]
        client.close()
        for future in futures:
            with pytest.raises(ClientClosed):
                future.result(PATIENCE)
        client.close()
        with pytest.raises(ClientClosed):
            client.infer(x(1))


def test_close_from_a_callback(broker_url):
    with answering(broker_url) as it:
        client = Client(broker_url, it.servable, "m")
        closed = threading.Event()
        client.infer_async(x(1)).add_done_callback(lambda _: (client.close(), closed.set()))
        assert closed.wait(PATIENCE)
        with pytest.raises(ClientClosed):
            client.infer(x(1))


@pytest.mark.parametrize("attempt", range(5))
def test_close_while_others_ask_leaves_nobody_waiting(broker_url, attempt):
    with answering(broker_url) as it:
        client = Client(broker_url, it.servable, "m")
        client.connect()

        def ask(_: int) -> int:
            for number in itertools.count():
                try:
                    client.infer(x(1), timeout=PATIENCE)
                except ClientClosed:
                    return number
            raise AssertionError

        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            asking = pool.map(ask, range(8))
            time.sleep(0.02 * attempt)  # at no moment of its own
            client.close()
            list(asking)
        assert took(began) < PATIENCE


def test_close_while_it_connects(broker_url):
    with proxied(broker_url) as (proxy, url):
        proxy.silence()
        client = Client(url, "s", "m")
        with ThreadPoolExecutor(1) as pool:
            connecting = pool.submit(client.connect)
            time.sleep(0.2)  # until it is at it
            began = time.monotonic()
            client.close()
            assert took(began) < 5  # half of the time to connect
            with pytest.raises(ClientClosed):
                connecting.result(PATIENCE)


def test_a_defect_is_an_error_and_no_hang(broker_url, monkeypatch):
    async def broken(*_: object, **__: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(client_line.Connection, "open", broken)
    client = Client(broker_url, "s", "m")
    with pytest.raises(ProducerError, match="a defect of the client: ValueError: broken"):
        client.infer(x(1))
    client.close()


def _ask_in_child(client: Client, answers: Any) -> None:
    try:
        answers.put(client.infer(x(21), timeout=PATIENCE)[0]["x"].tolist())
    except Exception as error:  # noqa: BLE001  # for the parent to see
        answers.put(repr(error))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_has_a_line_of_its_own(broker_url):
    context = multiprocessing.get_context("fork")
    with answering(broker_url) as it, Client(broker_url, it.servable, "m", max_in_flight=2) as client:
        assert client.infer(x(1))[0]["x"] == 2
        answers = context.Queue()
        child = context.Process(target=_ask_in_child, args=(client, answers))
        child.start()
        assert answers.get(timeout=PATIENCE) == [42]
        child.join(PATIENCE)
        assert child.exitcode == 0
        assert client.infer(x(3))[0]["x"] == 6
