"""How a job is shown: as a line, as a bar, as a page, as a table."""

import dataclasses
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from rankmq.engine.jobs.lock import Holder
from rankmq.engine.jobs.spec import Counts, Spec
from rankmq.engine.jobs.status import JobStatus
from rankmq.schemas.errors import Way
from rankmq.scripts import job_progress
from rankmq.scripts.job_page import job_page, jobs_table, way_on
from rankmq.scripts.job_progress import JobProgress, progress_line, span
from rankmq.scripts.show import console


def counts(**given: object) -> Counts:
    known = {"total": 2000, "planned": 600, "completed": 490, "failed": 10, "rate": 50.0, "requests": 40, "retries": 2}
    return Counts(**{**known, **given})  # type: ignore[arg-type]


def test_a_line_has_what_a_person_wants_to_know() -> None:
    assert progress_line(counts(), 100) == "500 of 2,000 rows, 50.0 rows/s, 100 under way, 10 failed, 30 s left"
    assert progress_line(counts(rate=1234.5), 0).split(", ")[1] == "1,234 rows/s"
    assert progress_line(counts(rate=0.0), 0) == "500 of 2,000 rows, 0 under way, 10 failed"
    assert progress_line(counts(), None) == "500 of 2,000 rows, 50.0 rows/s, 10 failed"


def test_a_narrow_line_leaves_out_what_matters_least() -> None:
    whole = "500 of 2,000 rows, 50.0 rows/s, 100 under way, 10 failed, 30 s left"
    assert progress_line(counts(), 100, width=len(whole)) == whole
    for width in range(80):
        assert len(progress_line(counts(), 100, width=width)) <= max(width, len("500 of 2,000 rows"))
    assert progress_line(counts(), 100, width=60) == "500 of 2,000 rows, 50.0 rows/s, 10 failed, 30 s left"
    assert progress_line(counts(), 100, width=50) == "500 of 2,000 rows, 10 failed, 30 s left"
    assert progress_line(counts(), 100, width=30) == "500 of 2,000 rows, 30 s left"
    assert progress_line(counts(), 100, width=5) == "500 of 2,000 rows"


def test_how_many_rows_there_are_is_told_from_what_was_read() -> None:
    found = counts(total=None, position=100, size=400)
    assert found.expected == 2400
    assert "500 of about 2,400 rows" in progress_line(found, 0)
    assert counts(total=None, position=400, size=400).expected == 600
    assert counts(total=None).expected is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (7320, "2 h 2 min")]
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_without_a_terminal_there_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(job_progress.time, "monotonic", lambda: now[0])
    with JobProgress() as progress:
        for second in range(12):
            now[0] = float(second)
            progress.show(counts(completed=second), 1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0.0", "5.0", "10.0"]
    assert lines[1].startswith("   5.0 s  15 of 2,000 rows")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [160, 100, 80, 60, 40])
def test_on_a_terminal_there_is_a_bar_where_there_is_room(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "stdout", terminal)
    with JobProgress() as progress:
        progress.show(counts(), 100)
        progress._bar.refresh()
    shown = terminal.getvalue()
    assert f" 25 % {progress_line(counts(), 100, width=width - 6)}" in shown
    assert ("\u2501" in shown) == (width == 160)
    assert "\u2026" not in shown


@pytest.mark.parametrize("kind", [job_page, lambda it: jobs_table([it])])
def test_on_a_terminal_no_path_is_broken(kind: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stdout", terminal)
    folder = Path("/" + "long/" * 30)
    console(broken=False).print(kind(dataclasses.replace(status("failed"), folder=folder)))
    assert str(folder) in terminal.getvalue()


def status(state: str = "in_progress", runner: Holder | None = None, reason: str = "") -> JobStatus:
    spec = Spec(
        id="job-1", source="/in.jsonl", fingerprint="", servable="s", method="m", results="/out/results.jsonl",
        errors="/out/errors.jsonl", summary="/out/summary.json",
    )  # fmt: skip
    return JobStatus(Path("/out"), spec, state, reason, counts(seconds=70.0, runs=2), None, runner)  # type: ignore[arg-type]


def page(found: JobStatus) -> str:
    out = console()
    with out.capture() as shown:
        out.print(job_page(found))
    return str(shown.get())


def test_a_job_that_runs() -> None:
    text = page(status(runner=Holder(42, "here", 0.0)))
    assert "in_progress, by process 42 on here" in text
    assert "500 of 2,000 rows, 50.0 rows/s, 100 under way, 10 failed, 30 s left" in text
    assert "1 min 10 s in 2 runs" in text
    assert "go on" not in text


@pytest.mark.parametrize(("state", "word"), [("in_progress", "interrupted"), ("failed", "failed")])
def test_a_job_that_nobody_runs_says_how_to_go_on(state: str, word: str) -> None:
    text = page(status(state, reason="no space left"))
    assert word in text
    assert "no space left" in text
    assert "rankmq job resume /out" in text


def test_what_can_be_done_about_it_is_one_command_at_most() -> None:
    def way(kind: Way, **given: object) -> str:
        return way_on(dataclasses.replace(status("failed"), way=kind, counts=counts(**given)))

    assert way("resume") == "500 rows are on record, go on with: rankmq job resume /out"
    assert way("results").endswith("go on with: rankmq job resume /out --results results.jsonl")
    assert "run it again, into /out if you like" in way("again")
    assert way("cancel").endswith("the 490 results that are on record are written by: rankmq job cancel /out")
    for kind in get_args(Way):
        assert way(kind).count("rankmq job") == (kind in ("resume", "results", "cancel"))
        assert way(kind, completed=0).count("rankmq job") == (kind in ("resume", "results"))


def test_what_a_program_reads() -> None:
    told = status(runner=Holder(42, "here", 0.0)).as_json()
    assert told["counts"] == {"total": 2000, "completed": 490, "failed": 10}
    assert (told["state"], told["runner"], told["seconds_left"]) == ("in_progress", {"pid": 42, "host": "here"}, 30.0)
    assert status().as_json()["state"] == "interrupted"
    assert status().as_json()["seconds_left"] is None


def test_a_table() -> None:
    out = console()
    with out.capture() as shown:
        out.print(jobs_table([status(), status("completed")]))
    head, first, second = shown.get().splitlines()
    assert head.split() == ["job", "state", "rows", "of", "failed", "begun", "folder"]
    assert first.split()[:5] == ["job-1", "interrupted", "500", "2,000", "10"]
    assert second.split()[1] == "completed"
