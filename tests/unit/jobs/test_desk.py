"""What is on record of a job: whatever happens in whatever order, each row ends once."""

import json
import os
import random
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rankmq.engine.jobs import desk as desk_module
from rankmq.engine.jobs import spool as spool_module
from rankmq.engine.jobs.assembly import Record
from rankmq.engine.jobs.desk import Desk
from rankmq.engine.jobs.job import Job
from rankmq.engine.jobs.lock import JobLock
from rankmq.engine.jobs.manifest import Key
from rankmq.engine.jobs.step import Answer, Asking, Room
from rankmq.schemas import codec
from rankmq.schemas.errors import AlreadyRunning, JobStopped
from rankmq.schemas.messages import ErrorInfo, Reply

from tests.unit.jobs.desks import answer, failures, make, results, rows_of


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "_PAUSES", (0.0,))


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(["good", "good", "good", "unreadable", "refused", "passes"]), min_size=1, max_size=40),
    st.integers(0, 2**32),
    st.sampled_from([None, 1, 3]),
)
def test_each_row_ends_once_whatever_happens(kinds: list[str], seed: int, packed: int | None) -> None:
    chance = random.Random(seed)
    lines = [f'{{"x": {number}}}' if kind != "unreadable" else '{"x": ' for number, kind in enumerate(kinds)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, lines, rows_per_request=packed)
        out = folder / "out"
        desk = Desk(out)
        broker: list[Answer] = []  # replies that nobody has acknowledged
        recorded: set[Key] = set()
        met: dict[int, int] = {}
        for _ in range(2000):
            if chance.random() < 0.15:  # killed, and started again
                desk.close()
                desk = Desk(out)
            taken = [it for it in broker if chance.random() < 0.7]
            step = desk.step(taken, Room(chance.randrange(4), 0.0))
            if chance.random() < 0.1:  # killed before it could acknowledge: they come again
                desk.close()
                desk = Desk(out)
            else:
                broker = [it for it in broker if it not in taken]
            recorded.update(step.settled)
            for asking in step.asking:
                assert asking.key not in recorded
                codes = {}
                for row in rows_of(asking):
                    met[row] = met.get(row, 0) + 1
                    if kinds[row] == "refused":
                        codes[row] = "invalid_input"
                    elif kinds[row] == "passes" and met[row] < 2:
                        codes[row] = "temporary_failure"
                broker.append(answer(asking, codes))
                if chance.random() < 0.1:
                    broker.append(broker[-1])  # it comes twice
            if step.over and not broker:
                break
        else:
            pytest.fail("it does not end")
        desk.close()
        wanted = {row: 2 * row for row, kind in enumerate(kinds) if kind in ("good", "passes")}
        assert results(out) == wanted
        assert sorted([*wanted, *failures(out)]) == list(range(len(kinds)))
        counts = Job(out).status().counts
        assert (counts.completed, counts.failed) == (len(wanted), len(kinds) - len(wanted))
        assert counts.total == counts.planned == len(kinds)


def test_a_request_is_the_same_each_time_that_it_is_made(begun: tuple[Path, Desk, Asking]) -> None:
    out, _, asking = begun
    with closing(Desk(out)) as other:
        assert other.step([], Room(1)).asking == [asking]


def test_a_reply_counts_once(begun: tuple[Path, Desk, Asking]) -> None:
    out, desk, asking = begun
    desk.step([answer(asking, {}), answer(asking, {})], Room())
    desk.step([answer(asking, {})], Room())
    assert desk.counts.completed == 5
    assert results(out) == {row: 2 * row for row in range(5)}


def test_a_reply_that_cannot_be_read_fails_nobody_at_once(begun: tuple[Path, Desk, Asking]) -> None:
    _, desk, asking = begun
    step = desk.step([Answer(asking.key, b"\xc1")], Room(9))
    assert not desk.counts.failed
    assert [it.key.attempt for it in step.asking if it.key.attempt] == [1] * 5


def test_what_is_taken_apart_is_sent_row_by_row(begun: tuple[Path, Desk, Asking]) -> None:
    out, desk, asking = begun
    assert desk.take_apart() == [asking.key]
    assert desk.take_apart() == []
    assert not desk.step([answer(asking, {})], Room()).over
    assert desk.counts.completed == 0, "its answer counts no more"
    desk.close()
    with closing(Desk(out)) as again:
        alone = again.step([], Room(5)).asking
        assert [(it.key, it.rows) for it in alone] == [(Key(row, 1), 1) for row in range(5)]
        (rest,) = again.step([], Room(5)).asking
        assert rest.rows == 5
        again.step([answer(it, {}) for it in (*alone, rest)], Room())
    assert results(out) == {row: 2 * row for row in range(10)}


def test_what_was_half_written_is_cut_off(begun: tuple[Path, Desk, Asking]) -> None:
    out, desk, asking = begun
    desk.step([answer(asking, {})], Room())
    desk.close()
    with (out / "job.replies").open("ab") as file:
        file.write(b"half of a reply")
    with closing(Desk(out)) as again:
        (following,) = again.step([], Room(1)).asking
        again.step([answer(following, {})], Room())
        assert results(out) == {row: 2 * row for row in range(10)}


def test_a_damaged_record_is_told(begun: tuple[Path, Desk, Asking]) -> None:
    out, desk, asking = begun
    desk.step([answer(asking, {})], Room())
    file = os.open(out / "job.replies", os.O_RDWR)
    os.pwrite(file, b"?", 20)
    os.close(file)
    with pytest.raises(JobStopped, match="damaged at byte 0"):
        results(out)
    os.truncate(out / "job.replies", 20)
    with pytest.raises(JobStopped, match="it was cut off"):
        Desk(out)


def test_no_space_left_loses_nothing(begun: tuple[Path, Desk, Asking], monkeypatch: pytest.MonkeyPatch) -> None:
    out, desk, asking = begun
    write = os.pwrite
    full = OSError(28, "No space left on device")

    def some(file: int, data: bytes, at: int) -> int:
        if at > 10:
            raise full
        return write(file, data[:11], at)

    with monkeypatch.context() as patched:
        patched.setattr(spool_module.os, "pwrite", some)
        with pytest.raises(JobStopped, match="No space left on device"):
            desk.step([answer(asking, {})], Room(1))
    assert (out / "job.replies").stat().st_size == 0, "so that there is room to say why"
    with closing(Desk(out)) as again:
        assert again.counts.completed == 0
        step = again.step([answer(asking, {})], Room(2))
        again.step([answer(step.asking[0], {})], Room())
    assert results(out) == {row: 2 * row for row in range(10)}


def test_an_id_that_comes_twice_fails_the_second_time(tmp_path: Path) -> None:
    make(tmp_path, [json.dumps({"custom_id": it, "x": 1}) for it in ("a", "b", "a")] + ['{"x": 1}'], rows_per_request=9)
    with closing(Desk(tmp_path / "out")) as desk:
        (asking,) = desk.step([], Room(1)).asking
        desk.step([answer(asking, {})], Room())
    record = Record(tmp_path / "out")
    with closing(record):
        assert [(it.row, it.custom_id) for it in record.results()] == [(0, "a"), (1, "b"), (3, "row-3")]
        (failed,) = record.manifest.failures()
        assert (failed.row, failed.custom_id) == (2, "a")
        assert "row 0 already" in failed.message


@settings(max_examples=60)
@given(st.lists(st.sampled_from([None, None, "a", *(f"row-{it}" for it in range(8))]), max_size=9), st.integers(1, 9))
def test_no_two_rows_share_an_id(ids: list[str | None], packed: int) -> None:
    """Ids that rows bring may look like those that are made for the others."""
    lines = [json.dumps({"x": 1} | ({} if it is None else {"custom_id": it})) for it in [*ids, None]]
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), lines, rows_per_request=packed)
        out = Path(name) / "out"
        for _ in range(2):  # as if it were killed in between
            with closing(Desk(out)) as desk:
                for asking in desk.step([], Room(1 if packed < 5 else 9)).asking:
                    desk.step([answer(asking, {})], Room())
        with closing(Desk(out)) as desk:
            while asked := desk.step([], Room(9)).asking:
                desk.step([answer(it, {}) for it in asked], Room())
        with closing(Record(out)) as record:
            done = [it.custom_id for it in record.results()]
            failed = {it.row for it in record.manifest.failures()}
    assert len(set(done)) == len(done) == len(lines) - len(failed)
    assert all(ids[row] is not None for row in failed)  # who brings none has done nothing wrong
    assert all(ids[row] in ids[:row] or str(ids[row]).startswith("row-") for row in failed)


def test_rows_with_a_dtype_and_rows_without_do_not_travel_together(tmp_path: Path) -> None:
    """The engine converts all rows of a request if one has no dtype: a row's result must not depend on its company."""
    typed = '{"x": {"dtype": "float32", "data": 1}}'
    make(tmp_path, [typed, typed, '{"x": 1}', typed], rows_per_request=9)
    with closing(Desk(tmp_path / "out")) as desk:
        assert [it.rows for it in desk.step([], Room(9)).asking] == [2, 1, 1]


def test_a_row_that_no_broker_takes_fails_alone(tmp_path: Path) -> None:
    make(tmp_path, ['{"x": 1}', json.dumps({"x": "a" * 9000}), '{"x": 3}'], rows_per_request=9)
    with closing(Desk(tmp_path / "out", max_message=8000)) as desk:
        assert [rows_of(it) for it in desk.step([], Room(9)).asking] == [[1], [3]]
    assert failures(tmp_path / "out") == {1: "limit_exceeded"}


def test_rows_that_are_too_large_together_travel_alone_and_the_next_are_fewer(tmp_path: Path) -> None:
    """A number of four characters has nine bytes in a request."""
    rows = [json.dumps({"x": number, "much": [0.25] * 150}) for number in range(40)]
    make(tmp_path, rows, rows_per_request=9)
    asked: list[Asking] = []
    with closing(Desk(tmp_path / "out", max_message=12_000)) as desk:
        while (step := desk.step([], Room(3))).asking or step.more:
            asked += step.asking
            assert all(len(it.body) < 12_000 for it in step.asking)
        assert desk.step([answer(it, {}) for it in asked], Room(9)).over
    assert sorted(row for it in asked for row in rows_of(it)) == list(range(40))
    assert max(it.rows for it in asked) > 1
    assert failures(tmp_path / "out") == {}
    assert len(results(tmp_path / "out")) == 40


def test_what_was_packed_before_does_not_make_requests_smaller_and_smaller(tmp_path: Path) -> None:
    """Given an engine that takes less, when all that is under way is refused, then what comes is half as large."""
    make(tmp_path, [json.dumps({"x": number, "text": "a" * 1000}) for number in range(400)], rows_per_request=20)
    error = ErrorInfo(code="limit_exceeded", message="a body of many bytes", side="sender")
    with closing(Desk(tmp_path / "out")) as desk:
        desk._packing.most_bytes = 20_000
        before = desk.step([], Room(10)).asking
        assert len(before) == 10
        refused = [Answer(it.key, codec.encode_reply(Reply(error=error))) for it in before]
        desk.step(refused, Room(0))
        assert desk._packing.most_bytes >= 10_000


def test_what_no_row_survives_is_asked_under_another_id_next_time(begun: tuple[Path, Desk, Asking]) -> None:
    out, desk, asking = begun
    error = ErrorInfo(code="unknown_method", message="no such method", side="sender")
    step = desk.step([Answer(asking.key, codec.encode_reply(Reply(error=error)))], Room(1))
    assert "no such method" in step.fatal
    with closing(Desk(out)) as again:
        (once_more, *_) = again.step([], Room(2)).asking
        assert once_more.key == Key(0, 1)
        assert once_more.body == asking.body


def test_an_input_that_changed_is_refused(begun: tuple[Path, Desk, Asking]) -> None:
    out, _, _ = begun
    (out.parent / "in.jsonl").write_text('{"x": 5}\n' * 10)
    with closing(Desk(out)) as other, pytest.raises(JobStopped, match="has changed since the job began"):
        other.step([], Room(1))


def test_a_second_runner_is_told_who_the_first_is(tmp_path: Path) -> None:
    path = tmp_path / "job.lock"
    assert JobLock.holder(path) is None
    with JobLock(path):
        holder = JobLock.holder(path)
        assert holder is not None
        assert holder.pid == os.getpid()
        with pytest.raises(AlreadyRunning, match=f"process {os.getpid()} on {os.uname().nodename}"), JobLock(path):
            pytest.fail("two have it")
        assert JobLock.holder(path) is not None
    assert JobLock.holder(path) is None


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "job.lock"
    child = os.fork()
    if not child:
        JobLock(path).__enter__()
        os._exit(0)
    os.waitpid(child, 0)
    assert path.stat().st_size
    with JobLock(path):
        holder = JobLock.holder(path)
        assert holder is not None
        assert holder.pid == os.getpid()
