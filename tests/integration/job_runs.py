"""Jobs whose rows are numbers, and an engine that doubles them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pika
from rankmq.engine import Job, topology
from rankmq.engine.jobs.status import JobStatus
from rankmq.schemas.errors import (
    RankmqError,
)
from rankmq.schemas.limits import Limits
from rankmq.schemas.messages import Reply, Request
from rankmq.schemas.plain import array_of
from rankmq.schemas.tensors import from_array

from tests.integration.client_engine import PATIENCE, Answering

COUNT = 60


def doubled(request: Request) -> Reply:
    return Reply(outputs=[{"y": from_array(2 * array_of(it["x"], Limits()))} for it in request.instances])


def numbers(request: Request) -> list[int]:
    return [int(array_of(it["x"], Limits())) for it in request.instances]


def make(folder: Path, it: Answering, count: int = COUNT, **options: Any) -> Job:
    (folder / "in.jsonl").write_text("".join(f'{{"x": {number}}}\n' for number in range(count)))
    given = {"rows_per_request": 5, **options}
    return Job.create(folder / "in.jsonl", folder / "out", it.servable, "m", **given)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / name).read_text().splitlines()]


def values(folder: Path) -> list[int]:
    return [it["outputs"]["y"] for it in lines(folder, "results.jsonl")]


def queue_of(url: str, job: Job) -> int | None:
    """How many messages the job's queue has; None if it is not there."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        try:
            return connection.channel().queue_declare(topology.job_queue(job.id), passive=True).method.message_count
        except pika.exceptions.ChannelClosedByBroker:
            return None


@contextmanager
def running(job: Job, url: str, **options: Any) -> Iterator[list[JobStatus | RankmqError]]:
    """The job on a thread; what came of it is in the list after the block."""
    ended: list[JobStatus | RankmqError] = []

    def body() -> None:
        try:
            ended.append(job.run(url, **options))
        except RankmqError as error:
            ended.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield ended
    finally:
        thread.join(PATIENCE)
        assert ended, "the job does not end"


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
