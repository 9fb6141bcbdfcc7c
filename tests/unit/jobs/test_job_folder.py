"""The folder of a job: who may have it, what is in it when something went wrong, and where it is by now."""

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rankmq.engine.jobs.desk import Desk
from rankmq.engine.jobs.job import Job
from rankmq.engine.jobs.lock import JobLock
from rankmq.engine.jobs.manifest import Manifest
from rankmq.engine.jobs.registry import known_jobs, remember_job
from rankmq.engine.jobs.spec import State
from rankmq.engine.jobs.step import Asking, Room
from rankmq.schemas.errors import ConfigurationError, InvalidInput, JobStopped

from tests.unit.jobs.desks import answer, make, write


@pytest.mark.parametrize("state", ["completed", "cancelled"])
def test_a_folder_of_a_job_that_has_ended_is_not_resumed(tmp_path: Path, state: State) -> None:
    make(tmp_path, ['{"x": 1}'])
    with closing(Manifest(tmp_path / "out" / "job.sqlite")) as manifest:
        manifest.set_state(state)
    with pytest.raises(ConfigurationError, match="name another folder") as error:
        make(tmp_path, ['{"x": 1}'])
    assert "resume" not in error.value.message


def test_a_folder_is_free_again_where_no_row_could_be_asked(tmp_path: Path) -> None:
    first = make(tmp_path, ['{"x": 1}'])
    with closing(Manifest(tmp_path / "out" / "job.sqlite")) as manifest:
        manifest.set_state("failed", "no such method", "again")
    with JobLock(tmp_path / "out" / "job.lock"), pytest.raises(ConfigurationError, match="is the folder of"):
        make(tmp_path, ['{"x": 1}'])
    with pytest.raises(ConfigurationError, match="no such file"):
        Job.create(tmp_path / "none.jsonl", tmp_path / "out", "s", "m")
    assert Job(tmp_path / "out").id == first.id, "it is there until there is another one"
    second = make(tmp_path, ['{"x": 1}', '{"x": 2}'])
    assert second.id != first.id
    assert (second.status().state, second.status().reason) == ("in_progress", "")
    state = tmp_path / "state"
    remember_job(state, first.id, tmp_path / "out")
    remember_job(state, second.id, tmp_path / "out")
    assert [it for it, _ in known_jobs(state)] == [second.id]


def test_a_cancel_that_fails_is_none(begun: tuple[Path, Desk, Asking]) -> None:
    out, desk, asking = begun
    desk.step([answer(asking, {})], Room(1))
    desk.close()
    (out / "results.jsonl.part").mkdir()
    job = Job(out)
    with pytest.raises(JobStopped, match=r"results\.jsonl cannot be written"):
        job.cancel()
    assert (job.status().word, job.status().way) == ("failed", "resume")
    assert "cannot be written" in job.status().reason
    with closing(Desk(out)) as again:
        assert not again.step([], Room()).cancel_asked
    (out / "results.jsonl.part").rmdir()
    assert job.cancel().state == "cancelled"
    assert job.untold == "no broker was named"
    assert len((out / "results.jsonl").read_text().splitlines()) == 5


def test_what_cannot_be_put_together_has_a_reason(begun: tuple[Path, Desk, Asking]) -> None:
    out, desk, asking = begun
    desk.step([answer(asking, {})], Room(1))
    desk.close()
    os.truncate(out / "job.replies", 20)
    job = Job(out)
    with pytest.raises(JobStopped, match="it was cut off"):
        job.cancel()
    with pytest.raises(JobStopped, match="it was cut off"):
        job.run("amqp://guest:guest@127.0.0.1:1/")
    assert (job.status().state, job.status().way) == ("failed", "new")
    assert "it was cut off" in job.status().reason


def test_a_folder_that_was_moved(tmp_path: Path) -> None:
    """What lay in it is found in it; what did not is where it was."""
    inside = Job.create(write(tmp_path / "a" / "input.jsonl", 4), tmp_path / "a", "s", "m")
    outside = Job.create(write(tmp_path / "in.jsonl", 4), tmp_path / "b", "s", "m")
    for name, job in (("a", inside), ("b", outside)):
        with closing(Desk(job.folder)) as desk:
            (asking,) = desk.step([], Room(1)).asking
            desk.step([answer(asking, {})], Room())
        (tmp_path / "new").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "new" / name)
        there = tmp_path / "new" / name
        again = Job(there)
        assert again.status().spec.results == str(there / "results.jsonl")
        assert again.status().spec.errors == str(there / "errors.jsonl")
        assert again.status().spec.summary == str(there / "summary.json")
        with closing(Desk(there)) as desk:
            assert desk.step([], Room()).over
        assert again.cancel().state == "cancelled"
        assert len((there / "results.jsonl").read_text().splitlines()) == 4
        assert not (tmp_path / name).exists()
    assert Job(tmp_path / "new" / "a").status().spec.source == str(tmp_path / "new" / "a" / "input.jsonl")
    assert Job(tmp_path / "new" / "b").status().spec.source == str(tmp_path / "in.jsonl")


def test_a_manifest_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, _: Path) -> None:
        assert folder.is_file()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(JobStopped, match=r"job\.sqlite cannot be written: No space left on device"):
            make(tmp_path, ['{"x": 1}'])
    assert [it.name for it in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"output": "taken"}, "is the folder of job-"),
        ({"output": "full"}, "results.jsonl is there already"),
        ({"output": "in.jsonl"}, "is a file: name a folder"),
        ({"results": "out.csv"}, "what kind of file is it"),
        ({"results": "errors.jsonl"}, "the job has a file of that name itself"),
        ({"results": "job.sqlite"}, "the job has a file of that name itself"),
        *(
            ({"results": it}, "the name of a file in the job's folder")
            for it in ("", "/", "/r.npz", "../r.npz", "a//r.npz")
        ),
        ({"output": "memory://somewhere"}, "is not on this machine"),
        ({"output": "nonsense://somewhere", "manifest": "m"}, "no place that fsspec opens"),
        ({"columns": ["=x"]}, "write it as"),
        ({"source": "none.jsonl"}, "there is no such file"),
    ],
)
def test_a_job_that_cannot_be_is_told_before_it_begins(
    options: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"x": 1}\n')
    Job.create("in.jsonl", "taken", "s", "m")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "results.jsonl").touch()
    before = sorted(tmp_path.rglob("*"))
    given = {"source": "in.jsonl", "output": "out", **options}
    with pytest.raises(ConfigurationError, match=said):
        Job.create(given.pop("source"), given.pop("output"), "s", "m", **given)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("servable", "method", "options"), [("", "m", {}), ("s", "", {}), ("s", "m", {"rows_per_request": 0})]
)
def test_what_no_job_can_ask_for_is_told(servable: str, method: str, options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"x": 1}\n')
    with pytest.raises(InvalidInput):
        Job.create(tmp_path / "in.jsonl", tmp_path / "out", servable, method, **options)
    assert not (tmp_path / "out").exists()


def test_what_is_no_job_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no job in this folder"):
        Job(tmp_path)
    (tmp_path / "job.sqlite").write_bytes(b"hello" * 1000)
    with pytest.raises(ConfigurationError, match="no manifest of a job"):
        Job(tmp_path)
