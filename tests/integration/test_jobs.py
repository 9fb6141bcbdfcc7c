"""A job against a real broker, with an orchestrator that only answers: what the broker and the engine may do to it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pika
import pytest
from rankmq.engine import Job, topology
from rankmq.engine.jobs import desk, runner
from rankmq.engine.jobs.status import JobStatus
from rankmq.schemas.errors import (
    BrokerUnavailable,
    ConfigurationError,
    JobStopped,
    QueueFull,
)
from rankmq.schemas.messages import ErrorInfo, Reply, Request
from rankmq.schemas.tensors import from_array
from rankmq.workers.broker import PrivateBroker, User
from rankmq.workers.rendezvous import free_port

from tests.integration.client_engine import PATIENCE, Answering, answering, proxied
from tests.integration.job_runs import COUNT, doubled, lines, make, numbers, queue_of, running, values, wait_for
from tests.permissions import DOCUMENT, roles


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "_PAUSES", (0.02,))
    monkeypatch.setattr(runner, "_TICK_SECONDS", 0.1)
    monkeypatch.setattr(runner, "_CANCEL_SECONDS", 1.0)


def test_all_rows(broker_url: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with answering(broker_url, doubled) as it:
        job = make(tmp_path, it)
        status = job.run(broker_url, watch=lambda counts, under_way: seen.append((counts.ended, under_way)))
        keys = {key for key, _ in it.requests}
        ids = [properties.message_id for _, properties in it.requests]
    assert (status.state, status.counts.completed, status.word) == ("completed", COUNT, "completed")
    assert values(tmp_path) == list(range(0, 2 * COUNT, 2))
    assert keys == {f"{it.servable}.low"}
    assert sorted(ids) == sorted(f"{job.id}.{first}.0" for first in range(0, COUNT, 5))
    assert [ended for ended, _ in seen] == sorted(ended for ended, _ in seen)
    assert seen[-1] == (COUNT, 0)
    assert queue_of(broker_url, job) is None
    assert not (tmp_path / "out" / "job.replies").exists()
    assert job.run(broker_url).state == "completed"


def test_a_runner_that_was_stopped_asks_for_nothing_that_is_on_record(broker_url: str, tmp_path: Path) -> None:
    enough = threading.Event()

    def answer(request: Request) -> Reply | None:
        if 30 in numbers(request):
            enough.set()
        return doubled(request) if max(numbers(request)) < 30 or (enough.is_set() and not held) else None

    held = True
    with answering(broker_url, answer) as it:
        job = make(tmp_path, it)
        with running(job, broker_url) as first:
            assert enough.wait(PATIENCE)
            wait_for(lambda: job.status().counts.completed == 30)
            job.stop()
        assert isinstance(first[0], JobStatus)
        assert first[0].word == "interrupted"
        before = [properties.message_id for _, properties in it.requests]
        held = False
        again = Job(tmp_path / "out")
        assert again.run(broker_url).counts.completed == COUNT
        after = [properties.message_id for _, properties in it.requests[len(before) :]]
    on_record = {f"{job.id}.{first}.0" for first in range(0, 30, 5)}
    assert not on_record & set(after)
    assert values(tmp_path) == list(range(0, 2 * COUNT, 2))


def test_replies_wait_for_a_runner_that_is_away(broker_url: str, tmp_path: Path) -> None:
    """They are taken first when it is back: nothing is asked again whose answer is there."""
    go = threading.Event()

    def answer(request: Request) -> Reply:
        assert go.wait(PATIENCE)
        return doubled(request)

    with answering(broker_url, answer) as it:
        job = make(tmp_path, it, count=20)
        with running(job, broker_url):
            wait_for(lambda: job.status().counts.requests == 4)
            time.sleep(0.2)
            job.stop()
        go.set()
        wait_for(lambda: queue_of(broker_url, job) == 4)
        asked = len(it.requests)
        assert Job(tmp_path / "out").run(broker_url).counts.completed == 20
        assert len(it.requests) == asked
    assert values(tmp_path) == list(range(0, 40, 2))


def test_a_request_that_fails_as_a_whole_is_taken_apart(broker_url: str, tmp_path: Path) -> None:
    def answer(request: Request) -> Reply:
        if 17 in numbers(request):
            return Reply(error=ErrorInfo(code="limit_exceeded", message="too large", side="sender"))
        return doubled(request)

    with answering(broker_url, answer) as it:
        assert make(tmp_path, it).run(broker_url).counts.failed == 1
    (error,) = lines(tmp_path, "errors.jsonl")
    assert (error["row"], error["code"], error["message"]) == (17, "limit_exceeded", "too large")
    assert values(tmp_path) == [2 * number for number in range(COUNT) if number != 17]


def test_a_failure_that_passes_does_pass(broker_url: str, tmp_path: Path) -> None:
    met: dict[int, int] = {}

    def answer(request: Request) -> Reply:
        first = numbers(request)[0]
        met[first] = met.get(first, 0) + 1
        if met[first] <= 2:
            return Reply(error=ErrorInfo(code="group_unavailable", message="not now", side="engine"))
        return doubled(request)

    with answering(broker_url, answer) as it:
        status = make(tmp_path, it).run(broker_url)
        assert {p.message_id.rpartition(".")[2] for _, p in it.requests} == {"0", "1", "2"}
    assert (status.counts.completed, status.counts.retries) == (COUNT, 2 * COUNT // 5)


@pytest.mark.parametrize("reply", [b"\xc1", b"", Reply(outputs=[]), Reply(outputs=[None] * 5)])
def test_replies_that_make_no_sense_end_the_job_all_the_same(
    reply: Reply | bytes, broker_url: str, tmp_path: Path
) -> None:
    with answering(broker_url, lambda _: reply) as it:
        assert make(tmp_path, it, count=10).run(broker_url).counts.failed == 10
    assert {error["code"] for error in lines(tmp_path, "errors.jsonl")} == {"internal"}


def test_a_connection_that_is_cut(broker_url: str, tmp_path: Path) -> None:
    with proxied(broker_url) as (proxy, url), answering(broker_url, doubled) as it:
        job = make(tmp_path, it, count=3000)
        with running(job, url) as ended:
            for done in (100, 800, 1600):
                wait_for(lambda done=done: job.status().counts.completed >= done)
                proxy.cut()
        assert isinstance(ended[0], JobStatus), ended
        assert ended[0].counts.completed == 3000
    assert values(tmp_path) == list(range(0, 6000, 2))


def test_a_queue_that_is_full_is_tried_until_it_is_not(broker_url: str, tmp_path: Path) -> None:
    with answering(broker_url, doubled) as it:
        job = make(tmp_path, it)
    small = Answering(broker_url, doubled, **{"x-max-length": 1, "x-overflow": "reject-publish"})
    small.servable = it.servable
    for lane in topology.LANES:
        small._channel.queue_bind(small._queue, topology.REQUESTS, topology.requests_key(it.servable, lane))
    small.start()
    try:
        assert job.run(broker_url).counts.completed == COUNT
    finally:
        small.close()
    assert values(tmp_path) == list(range(0, 2 * COUNT, 2))


def test_a_queue_that_stays_full(broker_url: str, tmp_path: Path) -> None:
    full = Answering(broker_url, **{"x-max-length": 0, "x-overflow": "reject-publish"})
    try:
        with pytest.raises(QueueFull, match="the requests queue is at its limit"):
            make(tmp_path, full).run(broker_url, patience=1.0)
    finally:
        full.close()


def test_an_answer_that_was_lost_is_asked_for_again(
    broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_ASK_AGAIN_SECONDS", 0.5)
    lost = threading.Event()

    def answer(request: Request) -> Reply | None:
        if 0 in numbers(request) and not lost.is_set():
            lost.set()
            return None
        return doubled(request)

    with answering(broker_url, answer) as it:
        job = make(tmp_path, it)
        assert job.run(broker_url).counts.completed == COUNT
        questions = [p.correlation_id for _, p in it.requests if p.message_id == f"{job.id}.0.0"]
    assert len(questions) == len(set(questions)) == 2


def test_a_queue_of_replies_that_somebody_deletes(broker_url: str, tmp_path: Path) -> None:
    held = threading.Event()

    def answer(request: Request) -> Reply:
        assert held.wait(PATIENCE) or 0 in numbers(request)
        return doubled(request)

    with answering(broker_url, answer) as it:
        job = make(tmp_path, it)
        with running(job, broker_url) as ended:
            wait_for(lambda: job.status().counts.requests > 1)
            with pika.BlockingConnection(pika.URLParameters(broker_url)) as connection:
                connection.channel().queue_delete(topology.job_queue(job.id))
            wait_for(lambda: queue_of(broker_url, job) is not None)
            held.set()
        assert isinstance(ended[0], JobStatus), ended
        assert ended[0].counts.completed == COUNT
    assert values(tmp_path) == list(range(0, 2 * COUNT, 2))


def test_cancelled_requests_are_given_up_by_the_engine_too(broker_url: str, tmp_path: Path) -> None:
    with answering(broker_url, lambda request: doubled(request) if 0 in numbers(request) else None) as it:
        job = make(tmp_path, it)
        with running(job, broker_url) as ended:
            wait_for(lambda: job.status().counts.completed == 5)
            assert job.cancel().runner is not None
            it.hears_of(3)
        assert isinstance(ended[0], JobStatus)
        assert ended[0].state == "cancelled"
        assert {p.correlation_id for p in it.cancels} <= {f"{job.id}.{first}.0" for first in range(5, COUNT, 5)}
    assert values(tmp_path) == [0, 2, 4, 6, 8]
    assert lines(tmp_path, "errors.jsonl") == []


def test_results_that_cannot_be_written_wait_and_need_no_broker_any_more(broker_url: str, tmp_path: Path) -> None:
    nobody = f"amqp://guest:guest@127.0.0.1:{free_port('127.0.0.1')}"
    with answering(broker_url, doubled) as it:
        job = make(tmp_path, it)
        (tmp_path / "out" / "results.jsonl.part").mkdir()
        with pytest.raises(JobStopped, match=r"results\.jsonl cannot be written"):
            job.run(broker_url)
    assert job.status().state == "finalizing"
    assert "cannot be written" in job.status().reason
    (tmp_path / "out" / "results.jsonl.part").rmdir()
    assert job.run(nobody, connect_timeout=0.1).state == "completed"
    assert values(tmp_path) == list(range(0, 2 * COUNT, 2))


def test_results_of_different_shapes_go_into_a_file_that_can_hold_them(broker_url: str, tmp_path: Path) -> None:
    def answer(request: Request) -> Reply:
        return Reply(outputs=[{"y": from_array(np.arange(number % 3))} for number in numbers(request)])

    with answering(broker_url, answer) as it:
        job = make(tmp_path, it, results="results.npz")
        with pytest.raises(JobStopped, match=r"--results results\.jsonl"):
            job.run(broker_url)
    with pytest.raises(ConfigurationError, match="what kind of file"):
        job.run(broker_url, results="results.csv")
    assert job.run(broker_url, results="results.jsonl").state == "completed"
    assert values(tmp_path) == [list(range(number % 3)) for number in range(COUNT)]
    with pytest.raises(ConfigurationError, match="is completed"):
        job.run(broker_url, results="again.jsonl")


def test_a_broker_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"x": 1}\n')
    job = Job.create(tmp_path / "in.jsonl", tmp_path / "out", "s", "m")
    with pytest.raises(BrokerUnavailable):
        job.run(f"amqp://guest:guest@127.0.0.1:{free_port('127.0.0.1')}", connect_timeout=0.3)
    assert job.status().state == "failed"


def test_the_permissions_that_the_document_names_will_do(tmp_path: Path) -> None:
    own = r"^rankmq\.job\."
    assert f"`'{own}'` as its configure and its" in DOCUMENT.with_name("jobs.md").read_text()
    user = User("job", configure=own, write=roles()["producer"].write, read=own)
    with PrivateBroker(tmp_path / "broker", users=[user]) as broker, answering(broker.url, doubled) as it:
        job = make(tmp_path, it)
        assert job.run(broker.user_url("job")).counts.completed == COUNT
        assert queue_of(broker.url, job) is None
