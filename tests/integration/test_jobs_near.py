"""A job and an engine on one host: bodies go past the broker, and whatever is lost of them is asked for again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rankmq.engine import Job
from rankmq.engine.claims import CLAIM_HEADER, CLAIMS_HEADER, ClaimFolder, Claims
from rankmq.engine.delivery import Delivery
from rankmq.engine.jobs import desk, runner
from rankmq.engine.shared_file import FOLDER
from rankmq.schemas.messages import Reply, Request
from rankmq.schemas.tensors import to_array

from tests.integration.client_engine import PATIENCE, Answering, answering, doubled

COUNT, WIDTH = 200, 512


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "_PAUSES", (0.02,))
    monkeypatch.setattr(runner, "_TICK_SECONDS", 0.1)


@pytest.fixture
def x(tmp_path: Path) -> np.ndarray[Any, Any]:
    rows = np.random.default_rng(5).normal(size=(COUNT, WIDTH)).astype(np.float32)
    np.save(tmp_path / "x.npy", rows)
    return rows


def make(folder: Path, it: Answering) -> Job:
    return Job.create(folder / "x.npy", folder / "out", it.servable, "m", columns=["x"], rows_per_request=4)


def check(folder: Path, x: np.ndarray[Any, Any]) -> None:
    np.testing.assert_array_equal(np.load(folder / "out" / "results.npy"), 2 * x)


def folders() -> list[str]:
    return [str(it) for it in FOLDER.glob("rankmq-claims-*/*")]


def test_bodies_go_past_the_broker_once_it_is_known_that_they_can(
    broker_url: str, tmp_path: Path, x: np.ndarray[Any, Any]
) -> None:
    before = folders()
    with answering(broker_url, doubled, claims=Claims(1 << 20)) as it:
        job = make(tmp_path, it)
        status = job.run(broker_url)
        claimed = [CLAIM_HEADER in properties.headers for _, properties in it.requests]
        assert [len(body) > WIDTH for body in it.bodies] == [not claim for claim in claimed]
    assert (status.counts.completed, status.counts.retries) == (COUNT, 0)
    assert claimed.index(True) <= 20  # the first ones, of which nothing was known yet
    assert claimed == sorted(claimed)
    assert {properties.headers[CLAIMS_HEADER] for _, properties in it.requests} == {job._spec.claims}
    check(tmp_path, x)
    assert folders() == before


def test_an_engine_elsewhere_gets_all_of_it_in_messages(
    broker_url: str, tmp_path: Path, x: np.ndarray[Any, Any]
) -> None:
    with answering(broker_url, doubled, claims=Claims(1 << 20, None)) as it:
        assert make(tmp_path, it).run(broker_url).counts.retries == 0
        assert all(it.bodies)
    check(tmp_path, x)


class _Losing(Claims):
    """Loses some bodies before they are read, and some after they are written."""

    def __init__(self, requests: bool, replies: bool) -> None:
        super().__init__(1 << 20)
        self._requests, self._replies = requests, replies
        self.lost = 0

    def _is_lost(self, wanted: bool, headers: Any) -> bool:
        if not wanted or CLAIM_HEADER not in headers or self.lost >= 5:
            return False
        self.lost += 1
        return True

    def taken(self, delivery: Delivery) -> Delivery:
        if self._is_lost(self._requests, delivery.headers):
            self._in_folder(delivery.headers[CLAIMS_HEADER], lambda it: it.drop(delivery.headers[CLAIM_HEADER]))
        return super().taken(delivery)

    def given(self, asked: Any, body: bytes) -> tuple[dict[str, Any] | None, bytes]:
        headers, rest = super().given(asked, body)
        if headers is not None and self._is_lost(self._replies, headers):
            self._in_folder(asked[CLAIMS_HEADER], lambda it: it.drop(headers[CLAIM_HEADER]))
        return headers, rest


@pytest.mark.parametrize(("requests", "replies"), [(True, False), (False, True)])
def test_rows_whose_bodies_are_lost_are_asked_for_again(
    requests: bool, replies: bool, broker_url: str, tmp_path: Path, x: np.ndarray[Any, Any]
) -> None:
    claims = _Losing(requests, replies)
    with answering(broker_url, doubled, claims=claims) as it:
        counts = make(tmp_path, it).run(broker_url).counts
    assert claims.lost > 0
    assert (counts.completed, counts.failed, counts.retries) == (COUNT, 0, claims.lost)
    check(tmp_path, x)


def test_an_engine_with_another_folder_of_the_same_name(
    broker_url: str, tmp_path: Path, x: np.ndarray[Any, Any]
) -> None:
    """As when a job was begun on the engine's host, and goes on elsewhere: neither end finds what the other has put."""

    (tmp_path / "shm").mkdir()
    with answering(broker_url, doubled, claims=Claims(1 << 20, tmp_path / "shm")) as it:
        job = make(tmp_path, it)
        ClaimFolder.make(job._spec.claims, tmp_path / "shm").close()
        counts = job.run(broker_url).counts
        assert it.bodies[-1]
    assert (counts.completed, counts.failed) == (COUNT, 0)
    assert 0 < counts.retries <= 40  # those that were under way when it was noticed
    check(tmp_path, x)


def test_a_reply_that_names_what_is_not_its_own_harms_nobody(
    broker_url: str, tmp_path: Path, x: np.ndarray[Any, Any]
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"x")

    class Lying(Claims):
        def given(self, asked: Any, body: bytes) -> tuple[dict[str, Any] | None, bytes]:
            self.lies = getattr(self, "lies", 0) + 1
            if self.lies > 4:
                return super().given(asked, body)
            return {CLAIM_HEADER: (f"{victim}:1:00000000", "a\0b:1:00000000")[self.lies % 2]}, b""

    with answering(broker_url, doubled, claims=Lying(1 << 20)) as it:
        counts = make(tmp_path, it).run(broker_url).counts
    assert (counts.completed, counts.failed) == (COUNT, 0)
    assert victim.exists()
    check(tmp_path, x)


def test_a_job_that_is_given_up_after_its_runner_was_killed_leaves_nothing(
    broker_url: str, tmp_path: Path, x: np.ndarray[Any, Any]
) -> None:
    before = folders()
    with answering(broker_url, doubled) as it:
        job = make(tmp_path, it)
    ClaimFolder.make(job._spec.claims).put(b"x" * 10)
    assert len(folders()) == len(before) + 1
    assert job.cancel().state == "cancelled"
    assert folders() == before


def test_an_engine_that_takes_over_elsewhere(broker_url: str, tmp_path: Path, x: np.ndarray[Any, Any]) -> None:
    """It cannot read what was meant for the one before it, says so, and gets it again with the message."""
    near, far = Claims(1 << 20), Claims(1 << 20, None)

    def answer(request: Request) -> Reply:
        it.claims = far if len(it.requests) > 25 else near
        return doubled(request)

    with answering(broker_url, answer, claims=near) as it:
        counts = make(tmp_path, it).run(broker_url).counts
        assert it.bodies[-1]
    assert (counts.completed, counts.failed) == (COUNT, 0)
    assert counts.retries > 0
    check(tmp_path, x)


def test_a_runner_that_is_back_finds_what_was_put_there_meanwhile(
    broker_url: str, tmp_path: Path, x: np.ndarray[Any, Any]
) -> None:
    go = threading.Event()
    late: list[Request] = []

    def answer(request: Request) -> Reply:
        if to_array(request.instances[0]["x"])[0] not in x[: COUNT // 2, 0]:
            late.append(request)
            assert go.wait(PATIENCE)
        return doubled(request)

    with answering(broker_url, answer, claims=Claims(1 << 20)) as it:
        job = make(tmp_path, it)
        thread = threading.Thread(target=lambda: job.run(broker_url))
        thread.start()
        wait_for(lambda: job.status().counts.completed >= COUNT // 2 and bool(late))
        job.stop()
        thread.join(PATIENCE)
        asked = len(it.requests)
        go.set()
        again = Job(tmp_path / "out").run(broker_url)
        assert len({properties.message_id for _, properties in it.requests}) == COUNT // 4
    assert (again.counts.completed, again.counts.retries) == (COUNT, 0)
    assert asked >= COUNT // 8
    check(tmp_path, x)


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)
