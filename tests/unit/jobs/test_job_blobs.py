"""Large tensors of a job: which of them lie in the blob store, and when they go."""

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rankmq.engine.blobs import BlobStore
from rankmq.engine.client_blobs import ClientBlobs
from rankmq.engine.jobs import desk as desk_module
from rankmq.engine.jobs.assembly import Record
from rankmq.engine.jobs.desk import Desk
from rankmq.engine.jobs.job import Job
from rankmq.engine.jobs.job_blobs import JobBlobs
from rankmq.engine.jobs.manifest import Key
from rankmq.engine.jobs.step import Answer, Asking, Room
from rankmq.schemas import codec
from rankmq.schemas.errors import JobStopped
from rankmq.schemas.messages import Reply
from rankmq.schemas.tensors import Tensor, from_array, to_array

LIMIT = 8192
MESSAGE = 32 * 1024
SMALL, LARGE = 64, 40_000  # numbers of a row, of 4 bytes each


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "_PAUSES", (0.0,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> BlobStore:
    return BlobStore(f"file://{folder}")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A job over a folder of three arrays, the second of which is large."""
    rows = tmp_path / "rows"
    rows.mkdir()
    for number, size in enumerate((SMALL, LARGE, SMALL)):
        np.save(rows / f"{number}.npy", np.arange(size, dtype=np.float32) + number)
    return Job.create(rows, tmp_path / "out", "s", "m", columns=["x"], results="results/", rows_per_request=1).folder


def a_desk(out: Path, store: BlobStore, patience: float = 0.0) -> Desk:
    return Desk(out, max_message=MESSAGE, blobs=JobBlobs(ClientBlobs(store, LIMIT), patience))


def asked(desk: Desk) -> list[Asking]:
    found: list[Asking] = []
    while (step := desk.step([], Room(1))).asking:
        found += step.asking
    return found


def x_of(asking: Asking) -> list[Tensor]:
    return [it["x"] for it in codec.decode_request(asking.body).instances if isinstance(it["x"], Tensor)]


def doubled(asking: Asking, store: BlobStore) -> Answer:
    """What is large comes back by reference; the inputs are gone then, as an engine sees to it."""
    outputs = []
    for x in x_of(asking):
        y = from_array(2 * to_array(x if x.blob is None else store.get(x)))
        outputs.append({"y": y if x.blob is None else store.put(y)})
        if x.blob is not None:
            store.delete((x.blob.name,))
    return Answer(asking.key, codec.encode_reply(Reply(outputs=outputs)))


def names(folder: Path) -> list[str]:
    return sorted(it.name for it in folder.glob("*"))


def emptied(folder: Path) -> bool:
    """They are deleted on a thread."""
    until = time.monotonic() + 20
    while names(folder):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def results(out: Path) -> Iterator[Any]:
    with closing(Record(out)) as record:
        for it in record.results():
            yield to_array(it.outputs["y"])


def check_results(out: Path) -> None:
    for number, (size, y) in enumerate(zip((SMALL, LARGE, SMALL), results(out), strict=True)):
        np.testing.assert_array_equal(y, 2 * (np.arange(size, dtype=np.float32) + number))


def test_what_is_large_goes_by_reference_and_is_whole_on_record(out: Path, store: BlobStore, folder: Path) -> None:
    with closing(a_desk(out, store)) as desk:
        asking = asked(desk)
        (large,) = [it for it in asking if any(x.blob is not None for x in x_of(it))]
        assert len(names(folder)) == 1
        assert max(len(it.body) for it in asking) < MESSAGE
        assert large.nbytes == len(large.body) + 4 * LARGE
        assert all(it.nbytes == len(it.body) for it in asking if it is not large)
        assert desk.step([doubled(it, store) for it in asking], Room(1)).over
    assert emptied(folder)
    check_results(out)


def test_without_a_store_the_row_fails_and_says_what_would_help(out: Path) -> None:
    with closing(Desk(out, max_message=MESSAGE)) as desk:
        asked(desk)
    with closing(Record(out)) as record:
        (failure,) = record.manifest.failures()
    assert (failure.row, failure.code) == (1, "limit_exceeded")
    assert "with a blob store" in failure.message


def test_a_step_that_does_not_come_on_record_leaves_nothing(
    out: Path, store: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(a_desk(out, store)) as desk:
        monkeypatch.setattr(desk._manifest, "save", lambda _: (_ for _ in ()).throw(JobStopped("no space left")))
        with pytest.raises(JobStopped):
            desk.step([], Room(9))
    assert emptied(folder)
    with closing(a_desk(out, store)) as desk:
        asking = asked(desk)
        assert desk.step([doubled(it, store) for it in asking], Room(1)).over
    check_results(out)


def test_outputs_stay_until_they_are_on_record(
    out: Path, store: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, the same reply comes again."""
    with closing(a_desk(out, store)) as desk:
        answers = [doubled(it, store) for it in asked(desk)]
        there = names(folder)
        assert len(there) == 1
        monkeypatch.setattr(desk._spool, "sync", lambda: (_ for _ in ()).throw(JobStopped("no space left")))
        with pytest.raises(JobStopped):
            desk.step(answers, Room(1))
        assert names(folder) == there
    with closing(a_desk(out, store)) as desk:
        assert desk.step(answers, Room(9)).over
    assert emptied(folder)
    check_results(out)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"\0" * path.stat().st_size)])
def test_an_output_that_is_lost_is_computed_again(out: Path, store: BlobStore, folder: Path, damage: Any) -> None:
    with closing(a_desk(out, store)) as desk:
        answers = {it.key: doubled(it, store) for it in asked(desk)}
        (name,) = names(folder)
        damage(folder / name)
        desk.step(list(answers.values()), Room(0))
        (again,) = asked(desk)
        assert again.key == Key(1, 1)
        assert desk.step([doubled(again, store)], Room(1)).over
    assert emptied(folder)
    check_results(out)


def test_a_store_that_cannot_be_had_stops_the_job_and_loses_nothing(out: Path, store: BlobStore, folder: Path) -> None:
    folder.write_text("no folder")
    with closing(a_desk(out, store)) as desk, pytest.raises(JobStopped, match="the blob store cannot be written"):
        asked(desk)
    folder.unlink()
    with closing(a_desk(out, store)) as desk:
        answers = [doubled(it, store) for it in asked(desk)]
    folder.rename(folder.with_name("away"))
    folder.write_text("no folder")
    with closing(a_desk(out, store)) as desk, pytest.raises(JobStopped, match="the blob store cannot be read"):
        desk.step(answers, Room(0))
    folder.unlink()
    folder.with_name("away").rename(folder)
    with closing(a_desk(out, store)) as desk:
        assert desk.step(answers, Room(9)).over
    check_results(out)


def test_a_store_that_is_away_for_a_moment_is_waited_for(out: Path, store: BlobStore, folder: Path) -> None:
    folder.write_text("no folder")
    looked: list[int] = []

    class Passing(ClientBlobs):
        def written(self, rows: Any, together: int) -> Any:
            looked.append(1)
            if len(looked) == 2:
                folder.unlink()
            return super().written(rows, together)

    with closing(Desk(out, max_message=MESSAGE, blobs=JobBlobs(Passing(store, LIMIT), 20.0))) as desk:
        assert len(asked(desk)) == 3
    assert len(names(folder)) == 1


def test_a_row_too_large_in_text_leaves_nothing(tmp_path: Path, store: BlobStore, folder: Path) -> None:
    large = {"dtype": "float32", "shape": [LARGE // 4], "data": [0.5] * (LARGE // 4)}
    rows = [{"x": 1.0}, {"x": large, "t": "a" * MESSAGE}, {"x": 2.0}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(it) + "\n" for it in rows))
    out = Job.create(tmp_path / "in.jsonl", tmp_path / "out", "s", "m", rows_per_request=9).folder
    with closing(a_desk(out, store)) as desk:
        asked(desk)
    assert emptied(folder)
    with closing(Record(out)) as record:
        assert {it.row: it.code for it in record.manifest.failures()} == {1: "limit_exceeded"}
