"""A job that nobody answers, whose rows take too long, or that is given up."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rankmq.engine import Job
from rankmq.engine.jobs import desk, runner, withdraw
from rankmq.schemas.errors import (
    ConfigurationError,
    InvalidInput,
    JobStopped,
)
from rankmq.schemas.messages import ErrorInfo, Reply, Request
from rankmq.workers.rendezvous import free_port

from tests.integration.client_engine import PATIENCE, answering
from tests.integration.job_runs import COUNT, doubled, lines, make, numbers, queue_of, running, values, wait_for


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "_PAUSES", (0.02,))
    monkeypatch.setattr(runner, "_TICK_SECONDS", 0.1)
    monkeypatch.setattr(runner, "_CANCEL_SECONDS", 1.0)


def test_nobody_answers(broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(broker_url, lambda _: None) as it:
        job = make(tmp_path, it)
        began = time.monotonic()
        with pytest.raises(JobStopped, match=r"nothing was answered for .* does an orchestrator serve"):
            job.run(broker_url, patience=1.0)
        assert time.monotonic() - began < 20
        assert job.status().state == "failed"
        assert "does an orchestrator serve" in job.status().reason
        it.answer = doubled
        assert job.run(broker_url).counts.completed == COUNT


def test_where_nobody_is_there_to_give_it_up_it_stays_as_it_was(broker_url: str, tmp_path: Path) -> None:
    """What waits in the queue is answered when an engine comes, and is not computed twice."""
    with answering(broker_url, lambda _: None) as it:
        job = make(tmp_path, it)
        with pytest.raises(JobStopped, match="nothing was answered"):
            job.run(broker_url, patience=1.0)
        assert job.status().counts.retries == 0


def test_what_was_under_way_then_is_sent_row_by_row(broker_url: str, tmp_path: Path) -> None:
    """So that a row that never ends keeps itself waiting alone."""

    def answer(request: Request) -> Reply | None:
        return None if 17 in numbers(request) else doubled(request)

    with answering(broker_url, answer, cancelled=lambda _: ["noted"]) as it:
        job = make(tmp_path, it)
        with pytest.raises(JobStopped, match="nothing was answered"):
            job.run(broker_url, patience=1.0)
        assert job.status().counts.completed == COUNT - 5
        it.hears_of(2)  # the first asks whether anybody is there
        assert [p.correlation_id for p in it.cancels][1:] == [f"{job.id}.15.0"]
        with pytest.raises(JobStopped, match="nothing was answered"):
            job.run(broker_url, patience=1.0)
        assert job.status().counts.completed == COUNT - 1
        it.answer = doubled
        assert job.run(broker_url).counts.completed == COUNT
    assert values(tmp_path) == list(range(0, 2 * COUNT, 2))


def test_a_row_that_takes_too_long_fails_alone(broker_url: str, tmp_path: Path) -> None:
    late = Reply(error=ErrorInfo(code="deadline_exceeded", message="it took too long", side="sender"))
    with answering(broker_url, lambda request: late if 17 in numbers(request) else doubled(request)) as it:
        job = make(tmp_path, it, deadline=60)
        status = job.run(broker_url, deadline=1.5)
        asked = [p for _, p in it.requests]
    assert (status.counts.completed, status.counts.failed) == (COUNT - 1, 1)
    assert {p.headers["rankmq-run-ms"] for p in asked} == {1500}
    assert sorted(p.message_id for p in asked if not p.message_id.endswith(".0")) == [
        f"{job.id}.{row}.1" for row in range(15, 20)
    ]
    (error,) = lines(tmp_path, "errors.jsonl")
    assert (error["row"], error["code"], error["message"]) == (17, "deadline_exceeded", "it took too long")


def test_a_deadline_that_comes_later_counts_for_what_is_under_way(broker_url: str, tmp_path: Path) -> None:
    """Under its old id a row that never ends would be known, and waited for."""
    late = Reply(error=ErrorInfo(code="deadline_exceeded", message="it took too long", side="sender"))
    with answering(broker_url, lambda request: None if 17 in numbers(request) else doubled(request)) as it:
        job = make(tmp_path, it)
        with running(job, broker_url):
            wait_for(lambda: job.status().counts.completed == COUNT - 5)
            job.stop()
        before = len(it.requests)
        it.answer = lambda request: late if 17 in numbers(request) else doubled(request)
        status = Job(tmp_path / "out").run(broker_url, deadline=1.5)
        asked = [p for _, p in it.requests[before:]]
        it.hears_of(1)
    assert (status.counts.completed, status.counts.failed) == (COUNT - 1, 1)
    assert [p.correlation_id for p in it.cancels] == [f"{job.id}.15.0"]
    assert asked[0].message_id == f"{job.id}.15.1"
    assert {p.headers["rankmq-run-ms"] for p in asked} == {1500}
    assert values(tmp_path) == [2 * number for number in range(COUNT) if number != 17]


@pytest.mark.parametrize("deadline", [0, -1.0, True, float("nan"), "3"])
def test_a_deadline_that_cannot_be(tmp_path: Path, deadline: Any) -> None:
    (tmp_path / "in.jsonl").write_text('{"x": 1}\n')
    with pytest.raises(InvalidInput, match="deadline is a number of seconds"):
        Job.create(tmp_path / "in.jsonl", tmp_path / "out", "s", "m", deadline=deadline)
    assert not (tmp_path / "out").exists()


def test_the_engine_is_told_where_nobody_runs_it(
    broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(withdraw, "_SETTLE_SECONDS", 0.1)
    with answering(broker_url, lambda request: doubled(request) if 0 in numbers(request) else None) as it:
        job = make(tmp_path, it)
        with running(job, broker_url):
            wait_for(lambda: job.status().counts.completed == 5 and job.status().counts.requests == COUNT // 5)
            job.stop()
        status = Job(tmp_path / "out").cancel(broker_url)
        assert (status.state, job.untold) == ("cancelled", "")
        it.hears_of(COUNT // 5 - 1)
        assert {p.correlation_id for p in it.cancels} == {f"{job.id}.{first}.0" for first in range(5, COUNT, 5)}
    assert values(tmp_path) == [0, 2, 4, 6, 8]


def test_the_queue_goes_once_the_engine_has_given_up_all_of_it(broker_url: str, tmp_path: Path) -> None:
    go = threading.Event()

    def answer(request: Request) -> Reply:
        assert go.wait(PATIENCE)
        return Reply(error=ErrorInfo(code="cancelled", message="given up", side="sender"))

    with answering(broker_url, answer) as it:
        job = make(tmp_path, it, count=20)
        with running(job, broker_url):
            wait_for(lambda: job.status().counts.requests == 4)
            job.stop()
        go.set()
        wait_for(lambda: queue_of(broker_url, job) == 4)
        assert job.cancel(broker_url).state == "cancelled"
    assert job.untold == ""
    assert queue_of(broker_url, job) is None


def test_a_job_is_cancelled_without_a_broker_as_well(broker_url: str, tmp_path: Path) -> None:
    with answering(broker_url, lambda _: None) as it:
        job = make(tmp_path, it)
        with running(job, broker_url):
            wait_for(lambda: job.status().counts.requests > 1)
            job.stop()
    with pytest.raises(ConfigurationError):
        job.cancel("nonsense")
    nobody = f"amqp://guest:guest@127.0.0.1:{free_port('127.0.0.1')}"
    assert job.cancel(nobody, connect_timeout=0.2).state == "cancelled"
    assert "127.0.0.1" in job.untold
    assert "guest:guest" not in job.untold


def test_where_no_row_can_be_asked_the_folder_is_free(broker_url: str, tmp_path: Path) -> None:
    unknown = Reply(error=ErrorInfo(code="unknown_method", message="there is no method m", side="sender"))
    with answering(broker_url, lambda _: unknown) as it:
        job = make(tmp_path, it)
        with pytest.raises(JobStopped, match="every row would fail: there is no method m") as error:
            job.run(broker_url)
        assert error.value.way == job.status().way == "again"
        it.answer = doubled
        assert make(tmp_path, it).run(broker_url).counts.completed == COUNT
        assert values(tmp_path) == list(range(0, 2 * COUNT, 2))
