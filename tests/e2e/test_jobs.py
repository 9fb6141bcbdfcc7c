"""Offline jobs from the command line: files in, files out, what is broken, and what a person sees of them."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rankmq.engine import Job
from rankmq.engine.jobs.status import status_of
from rankmq.workers.rendezvous import free_port

from tests.e2e.cli import DOUBLE, RANKMQ, Service, failed, rankmq
from tests.e2e.graphs import WORDS, Graph, op, spec, write_servable
from tests.e2e.systems import System, Vhosts, environment, running, wait_until

FUSSY = (
    WORDS
    + """
from rankmq.schemas.errors import TemporaryFailure
distributed.declare_servable(rank_size=2, stage_size=1, with_batch_dim=False)
met = {}

def look(x):
    number = int(x[0])
    met[number] = met.get(number, 0) + 1
    if number == -666:
        raise ValueError("no such number")
    if number < -1000 and met[number] < 5:
        raise TemporaryFailure("not now")
    return x

@register.register_method(output_names=["y"])
def double(x):
    x = register.call_preprocess(look, x)
    y = register.call_servable(x, subgraph=0)
    return y

@register.register_method(output_names=["y"])
def slow(x):
    y = register.call_servable(x, subgraph=1)
    return y

doubled = PipelineServable("fussy", "double")

@register.register_pipeline(output_names=["y"])
def grow(x):
    while x.max() < 100:
        x = doubled.run(x)
    return x
"""
)

SLOW = Graph([op("sleep", "x", "y", milliseconds=400)], [spec("x", 1)], [spec("y", 1)])


@pytest.fixture(scope="module")
def system(vhosts: Vhosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    directory, logs = tmp_path_factory.mktemp("jobs"), tmp_path_factory.mktemp("jobs-logs")
    write_servable(directory, "fussy", FUSSY, {"0_double": lambda _: DOUBLE, "1_slow": lambda _: SLOW}, ranks=2)
    with running(System(vhosts.url(), directory, ["fussy"], logs)) as system:
        yield system


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def job(system: System, state: Path, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return rankmq("job", *arguments, broker_url=system.url, state_dir=state, **options)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_lines(file: Path, count: int) -> Path:
    file.write_text("".join(json.dumps({"custom_id": f"c{it}", "x": [it, 2, 3]}) + "\n" for it in range(count)))
    return file


DOUBLED = ("--servable", "fussy", "--method", "double")

# ---------------------------------------------------------------------------------------------------------- what is bad

BROKEN: list[tuple[bytes, str, str]] = [
    # the line, the code, a word of the message
    (b'{"x": [1, 2', "undecodable", "not JSON"),
    (b"hello", "undecodable", "not JSON"),
    (b"[1, 2, 3]", "undecodable", "a list"),
    (b'"text"', "undecodable", "text"),
    (b"17", "undecodable", "a number"),
    (b"null", "undecodable", "null"),
    (b"true", "undecodable", "true or false"),
    (b'{"x": [1, 2, 3], "t": "\xff\xfe"}', "undecodable", "not JSON"),
    (b'{"x": [NaN, 1, 2]}', "undecodable", "not JSON: it has no NaN"),
    (b'{"x": [1, 2, 3]} and more', "undecodable", "not JSON"),
    (b'{"x": [1, 2, 3]} {"x": [1, 2, 3]}', "undecodable", "not JSON"),
    (b"{'x': [1, 2, 3]}", "undecodable", "not JSON"),
    (b"\x00\x01\x02", "undecodable", "not JSON"),
    (b'{"custom_id": 5.5, "x": [1, 2, 3]}', "invalid_input", "custom_id"),
    (b'{"custom_id": "", "x": [1, 2, 3]}', "invalid_input", "custom_id"),
    (b'{"custom_id": "' + 600 * b"a" + b'", "x": [1, 2, 3]}', "invalid_input", "custom_id"),
    (b'{"custom_id": "c0", "x": [1, 2, 3]}', "invalid_input", "row 0 already"),
    (b'{"y": [1, 2, 3]}', "invalid_input", "x"),
    (b"{}", "invalid_input", "x"),
    (b'{"inputs": {}}', "invalid_input", "x"),
    (b'{"x": null}', "invalid_input", "null"),
    (b'{"x": "text"}', "", ""),
    (b'{"x": {"a": 1}}', "invalid_input", "column 'x'"),
    (b'{"x": [1, 2]}', "invalid_input", "(2,)"),
    (b'{"x": [[1, 2, 3]]}', "", ""),
    (b'{"x": [[1], [2, 3]]}', "invalid_input", "same length"),
    (b'{"x": [1, "a", 3]}', "invalid_input", ""),
    (b'{"x": [{"a": 1}, 2, 3]}', "invalid_input", ""),
    (b'{"x": [1.5, 2, 3]}', "invalid_input", ""),
    (b'{"x": [1099511627776, 2, 3]}', "", ""),
    (b'{"x": [1' + 40 * b"0" + b", 2, 3]}", "invalid_input", "2**64"),
    (b'{"x": {"dtype": "float64", "data": [1, 2, 3]}}', "invalid_input", "float64"),
    (b'{"x": {"dtype": "float99", "data": [1, 2, 3]}}', "invalid_input", "float99"),
    (b'{"x": {"dtype": "int32", "shape": [3], "data": "?"}}', "invalid_input", "base64"),
    (b'{"x": [1, 2, 3], "z": 1}', "invalid_input", "z"),
    (b'{"x": "' + 5000 * b"a" + b'"}', "limit_exceeded", "a line of"),
    (b'{"x": [-666, 0, 0]}', "stage_failed", "no such number"),
]  # fmt: skip


def test_what_is_broken_fails_alone(system: System, state: Path, tmp_path: Path) -> None:
    """1,000 rows of which 37 are broken in as many ways: 963 results, and 37 lines that each say why."""
    assert len(BROKEN) == 37
    places = {27 * number + 5: number for number in range(37)}
    rows, wanted = [], []
    for number in range(1000):
        if number in places:
            rows.append(BROKEN[places[number]][0])
        else:
            rows.append(json.dumps({"custom_id": f"c{number}", "x": [number, 2, 3]}).encode())
            wanted.append({"custom_id": f"c{number}", "outputs": {"y": [2 * number, 4, 6]}})
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(rows))
    out = tmp_path / "out"

    ended = job(system, state, "run", tmp_path / "in.jsonl", *DOUBLED, "-o", out, "--line-bytes", 4096)

    assert "37 of 1,000 rows failed" in failed(ended, 8)
    assert lines(out / "results.jsonl") == wanted
    errors = lines(out / "errors.jsonl")
    assert [it["row"] for it in errors] == sorted(places)
    for error in errors:
        line, code, word = BROKEN[places[error["row"]]]
        assert error["code"] == code or not code, (line, error)
        assert word in error["message"], (line, error)
        assert error["message"]
        assert error["custom_id"]
    counts = json.loads((out / "summary.json").read_text())["counts"]
    assert counts == {"total": 1000, "completed": 963, "failed": 37}


def test_what_passes_is_sent_again(system: System, state: Path, tmp_path: Path) -> None:
    rows = [{"x": [number, 0, 0]} for number in (1, -1001, 2, -1002)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = job(system, state, "run", tmp_path / "in.jsonl", *DOUBLED, "-o", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    assert [it["outputs"]["y"][0] for it in lines(tmp_path / "out" / "results.jsonl")] == [2, -2002, 4, -2004]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["retries"] >= 2


@pytest.mark.parametrize("later", [False, True])
def test_a_row_that_never_ends_fails_alone(later: bool, system: System, state: Path, tmp_path: Path) -> None:
    """Also where the job has begun, and was stopped, without a word on how long a row may take."""
    rows = [[number, 0, 0] for number in (1, 2, 3, 0, 4, 5)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"x": row}) + "\n" for row in rows))
    out = tmp_path / "out"
    grow = ["run", tmp_path / "in.jsonl", "-s", "fussy", "-m", "grow", "-o", out]
    if later:
        with Service(tmp_path / "logs", "job", *grow, broker_url=system.url, state_dir=state) as first:
            wait_until(lambda: (out / "job.sqlite").exists() and status_of(out).counts.requests, "a request", 40)
            assert first.stop(signal.SIGINT) == 130
        grow = ["resume", out]
    assert "1 of 6 rows failed" in failed(job(system, state, *grow, "--deadline", 4), 8)
    assert [it["outputs"]["y"][0] for it in lines(out / "results.jsonl")] == [128, 128, 192, 128, 160]
    assert [(it["row"], it["code"]) for it in lines(out / "errors.jsonl")] == [(3, "deadline_exceeded")]


def test_what_can_be_done_is_said_where_it_helps(system: System, state: Path, tmp_path: Path) -> None:
    source, out = write_lines(tmp_path / "in.jsonl", 5), tmp_path / "out"
    nobody = rankmq(
        "job", "run", source, *DOUBLED, "-o", out, connect_timeout=0.2,
        broker_url=f"amqp://guest:guest@127.0.0.1:{free_port('127.0.0.1')}", state_dir=state,
    )  # fmt: skip
    assert f"go on with: rankmq job resume {out}" in failed(nobody, 4)
    write_lines(source, 6)
    said = failed(job(system, state, "resume", out), 10)
    assert "has changed since the job began" in said
    assert "start a new job" in said
    assert "resume" not in said.replace("it cannot be resumed so", "")


# ------------------------------------------------------------------------------------------------------ kinds of files


def test_a_file_of_each_kind(system: System, state: Path, tmp_path: Path) -> None:
    """Each is the input of the next: results of one kind are rows of another."""
    x = np.arange(30, dtype=np.int32).reshape(10, 3)
    np.save(tmp_path / "x.npy", x)
    chain = [
        ("x.npy", ["--map", "x"], "results.npz"),
        ("0/results.npz", ["--map", "x=y"], "results.parquet"),
        ("1/results.parquet", ["--map", "x=y"], "results/"),
        ("2/results", ["--map", "x=array"], "results.jsonl"),
        ("3/results.jsonl", None, "results.npy"),
    ]
    for number, (source, mapped, results) in enumerate(chain):
        if mapped is None:
            (tmp_path / "in.jsonl").write_text(
                "".join(json.dumps({"body": it["outputs"]}) + "\n" for it in lines(tmp_path / source))
            )
            source, mapped = "in.jsonl", ["--map", "x=y"]
        out = ["-o", tmp_path / str(number), "--results", results]
        ended = job(system, state, "run", tmp_path / source, *DOUBLED, *mapped, *out)
        assert ended.returncode == 0, ended.stderr
    assert np.load(tmp_path / "0" / "results.npz")["y"].tolist() == (2 * x).tolist()
    assert pq.read_table(tmp_path / "1" / "results.parquet")["y"].to_pylist() == (4 * x).tolist()
    assert sorted(it.name for it in (tmp_path / "2" / "results").iterdir())[:2] == ["row-0.npy", "row-1.npy"]
    assert np.load(tmp_path / "4" / "results.npy").tolist() == (32 * x).tolist()


def test_parquet_with_another_dtype(system: System, state: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"v": [[1.0, 2.0, 3.0]], "custom_id": ["one"]}), tmp_path / "x.parquet")
    wrong = job(system, state, "run", tmp_path / "x.parquet", *DOUBLED, "--map", "x=v", "-o", tmp_path / "wrong")
    assert "1 of 1 rows failed" in failed(wrong, 8)
    assert "float64" in lines(tmp_path / "wrong" / "errors.jsonl")[0]["message"]
    plain = failed(job(system, state, "run", tmp_path / "x.parquet", *DOUBLED, "-o", tmp_path / "plain"), 8)
    assert plain.endswith("the inputs are x, and the columns v: say which is which, as --map x=v")
    right = job(system, state, "run", tmp_path / "x.parquet", *DOUBLED, "--map", "x=v:int32", "-o", tmp_path / "right")
    assert right.returncode == 0, right.stderr
    assert pq.read_table(tmp_path / "right" / "results.parquet").to_pylist() == [{"custom_id": "one", "y": [2, 4, 6]}]


def test_standard_input(system: System, state: Path, tmp_path: Path) -> None:
    command = [*RANKMQ, "job", "run", "-", *DOUBLED, "-o", str(tmp_path / "out")]
    text = "".join(f'{{"x": [{it}, 0, 0]}}\n' for it in range(100))
    ended = subprocess.run(
        command, input=text, text=True, capture_output=True, timeout=60, check=False,
        env=environment(broker_url=system.url, state_dir=state),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = lines(tmp_path / "out" / "results.jsonl")
    assert [it["outputs"]["y"][0] for it in found] == list(range(0, 200, 2))
    assert (tmp_path / "out" / "input.jsonl").read_text() == text


def test_places_that_fsspec_opens(system: System, tmp_path: Path) -> None:
    import fsspec

    with fsspec.open("memory://job/in.jsonl", "wt") as file:
        file.write('{"x": [1, 2, 3]}\n')
    made = Job.create("memory://job/in.jsonl", "memory://job/out", "fussy", "double", manifest=tmp_path / "m")
    status = made.run(system.url)
    assert (status.state, status.counts.completed) == ("completed", 1)
    with fsspec.open("memory://job/out/results.jsonl", "rt") as file:
        assert json.loads(file.read()) == {"custom_id": "row-0", "outputs": {"y": [2, 4, 6]}}


# ------------------------------------------------------------------------------------------------------------ its life


def test_in_the_background(system: System, state: Path, tmp_path: Path) -> None:
    source, out = write_lines(tmp_path / "in.jsonl", 500), tmp_path / "out"
    began = job(system, state, "submit", source, *DOUBLED, "-o", out)
    assert began.returncode == 0, began.stderr
    number = began.stdout.split(":")[0]

    def status() -> dict[str, Any]:
        told = job(system, state, "status", number, "--json")
        assert told.returncode == 0, told.stderr
        return json.loads(told.stdout)

    found = wait_until(lambda: (it := status())["state"] == "completed" and it, "the job's end", 40, every=0.2)
    assert found["counts"] == {"total": 500, "completed": 500, "failed": 0}
    wait_until(lambda: status_of(out).runner is None, "the runner's end", 20)
    shown = job(system, state, "status", out).stdout
    assert number in shown
    assert "500 of 500 rows" in shown
    assert [it["custom_id"] for it in lines(out / "results.jsonl")] == [f"c{it}" for it in range(500)]
    for listed in (job(system, state, "list").stdout, job(system, state, "list", tmp_path).stdout):
        assert number in listed
        assert "completed" in listed
    assert "is completed: there is nothing to cancel" in failed(job(system, state, "cancel", number), 3)
    again = job(system, state, "resume", out)
    assert again.returncode == 0, again.stderr


def test_stopped_and_resumed(system: System, state: Path, tmp_path: Path) -> None:
    """Ctrl-C ends it in order; a second runner is refused meanwhile; what was computed is not computed again."""
    out = tmp_path / "out"
    np.save(tmp_path / "x.npy", np.arange(40, dtype=np.float32).reshape(40, 1))
    slow = [tmp_path / "x.npy", "--map", "x", "-s", "fussy", "-m", "slow", "-o", out, "--rows-per-request", "1"]
    with Service(tmp_path / "logs", "job", "run", *slow, broker_url=system.url, state_dir=state) as first:
        wait_until(lambda: (out / "job.sqlite").exists() and status_of(out).counts.completed >= 1, "a result", 40)
        assert f"process {first.process.pid} on {os.uname().nodename}" in failed(job(system, state, "resume", out), 7)
        assert "is the folder of job-" in failed(job(system, state, "run", *slow), 3)
        began = time.monotonic()
        assert first.stop(signal.SIGINT) == 130
        assert time.monotonic() - began < 10
        assert f"go on with: rankmq job resume {out}" in first.errors
    before = status_of(out)
    assert before.word == "interrupted"
    assert 1 <= before.counts.completed < 40
    ended = job(system, state, "resume", out)
    assert ended.returncode == 0, ended.stderr
    after = status_of(out)
    assert (after.counts.completed, after.counts.requests, after.counts.retries) == (40, 40, 0)
    assert np.load(out / "results.npy").tolist() == np.load(tmp_path / "x.npy").tolist()


def test_cancelled(system: System, state: Path, tmp_path: Path) -> None:
    """What is done is kept; the job's queue is gone; a job that nobody runs can be cancelled as well."""
    out = tmp_path / "out"
    np.save(tmp_path / "x.npy", np.arange(50, dtype=np.float32).reshape(50, 1))
    slow = [tmp_path / "x.npy", "--map", "x", "-s", "fussy", "-m", "slow", "--rows-per-request", "1", "-o"]
    with Service(tmp_path / "logs", "job", "run", *slow, out, broker_url=system.url, state_dir=state) as runner:
        wait_until(lambda: (out / "job.sqlite").exists() and status_of(out).counts.completed >= 1, "a result", 40)
        told = job(system, state, "cancel", out)
        assert "being cancelled by process" in told.stdout, told.stderr
        assert "was cancelled" in failed(runner, 10)
    status = status_of(out)
    done = status.counts.completed
    assert status.state == "cancelled"
    assert 1 <= done < 50
    assert np.load(out / "results.npy")[:, 0].tolist() == list(range(done))
    assert (out / "errors.jsonl").read_text() == ""
    assert json.loads((out / "summary.json").read_text())["state"] == "cancelled"
    assert "there is nothing to cancel" in failed(job(system, state, "cancel", out), 3)

    assert "was cancelled" in failed(job(system, state, "resume", out, "--background"), 10)
    taken = failed(job(system, state, "run", *slow, out), 3)
    assert "name another folder" in taken
    assert "resume" not in taken

    idle = tmp_path / "idle"
    Job.create(tmp_path / "x.npy", idle, "fussy", "slow", columns=["x"])
    told = job(system, state, "cancel", idle)
    assert "cancelled; 0 results" in told.stdout, told.stderr
    assert len(np.load(idle / "results.npy")) == 0


def test_a_method_that_there_is_not_stops_the_job(system: System, state: Path, tmp_path: Path) -> None:
    source, out = write_lines(tmp_path / "in.jsonl", 50), tmp_path / "out"
    ended = job(system, state, "run", source, "-s", "fussy", "-m", "nothing", "-o", out)
    said = failed(ended, 10)
    assert "every row would fail" in said
    assert "nothing" in said
    assert "resume" not in said
    assert f"run it again, into {out} if you like" in said
    assert job(system, state, "status", out).stdout.count("every row would fail") == 1
    again = job(system, state, "run", source, *DOUBLED, "-o", out)
    assert again.returncode == 0, again.stderr
    assert len(lines(out / "results.jsonl")) == 50


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "none.jsonl", *DOUBLED, "-o", "out"], 3, "there is no such file"),
        (["run", "empty.jsonl", *DOUBLED, "-o", "out"], 3, "is empty: there is nothing to do"),
        (["run", "in.jsonl", *DOUBLED, "-o", "out", "--map", "x=y=z:nonsense", "--lane", "sideways"], 2, "no lane"),
        (["run", "in.jsonl", *DOUBLED, "-o", "out", "--results", "out.csv"], 3, "what kind of file is it"),
        (["run", "in.jsonl", *DOUBLED, "-o", "out", "--broker-url", "nonsense"], 3, "URL must look like"),
        (["status", "nowhere"], 3, "neither the folder of a job nor the id of one"),
        (["list", "nowhere"], 3, "there is no such folder"),
        (["run", "s3://nowhere/in.jsonl", *DOUBLED, "-o", "out"], 3, "s3"),
    ],
)
def test_a_command_that_cannot_be(
    system: System, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], code: int, said: str,
) -> None:  # fmt: skip
    write_lines(tmp_path / "in.jsonl", 1)
    (tmp_path / "empty.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    assert said in failed(job(system, state, *arguments), code)
    assert not (tmp_path / "out").exists()
