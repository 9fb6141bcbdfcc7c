"""Jobs whose desk is told what the engine answers."""

from pathlib import Path
from typing import Any

from rankmq.engine.jobs.assembly import Record
from rankmq.engine.jobs.job import Job
from rankmq.engine.jobs.step import Answer, Asking
from rankmq.schemas import codec
from rankmq.schemas.limits import Limits
from rankmq.schemas.messages import ErrorInfo, InstanceError, Reply
from rankmq.schemas.plain import array_of
from rankmq.schemas.tensors import from_array, to_array


def make(folder: Path, lines: list[str], **options: Any) -> Job:
    (folder / "in.jsonl").write_text("".join(line + "\n" for line in lines))
    return Job.create(folder / "in.jsonl", folder / "out", "s", "m", **options)


def write(file: Path, count: int) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(f'{{"x": {it}}}\n' for it in range(count)))
    return file


def rows_of(asking: Asking) -> list[int]:
    return [int(array_of(it["x"], Limits())) for it in codec.decode_request(asking.body).instances]


def answer(asking: Asking, codes: dict[int, str]) -> Answer:
    """Doubles each row, but for those that have a code for their number."""
    rows = rows_of(asking)
    errors = [
        InstanceError(index=i, error=ErrorInfo(code=codes[row], message="why", side="engine"))
        for i, row in enumerate(rows)
        if row in codes
    ]
    outputs = [None if row in codes else {"y": from_array(2 * array_of(row, Limits()))} for row in rows]
    return Answer(asking.key, codec.encode_reply(Reply(outputs=outputs, errors=errors)))


def results(folder: Path) -> dict[int, int]:
    record = Record(folder)
    try:
        found = [(it.row, int(to_array(it.outputs["y"]))) for it in record.results()]
    finally:
        record.close()
    assert [row for row, _ in found] == sorted({row for row, _ in found})
    return dict(found)


def failures(folder: Path) -> dict[int, str]:
    record = Record(folder)
    try:
        return {it.row: it.code for it in record.manifest.failures()}
    finally:
        record.close()
