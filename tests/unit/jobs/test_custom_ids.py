"""The ids that rows bring: alike in each kind of input, and kept where the row cannot be read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rankmq.engine.jobs.custom_ids import custom_id_of
from rankmq.engine.jobs.inputs import open_rows
from rankmq.engine.jobs.places import Place
from rankmq.engine.jobs.rows import Row
from rankmq.schemas.errors import InvalidInput, RankmqError


def opened(path: Path, **options: Any) -> Any:
    return open_rows(Place.of(path), **{"most_bytes": 1 << 20, **options})


def ids_of(folder: Path, kind: str, ids: list[Any]) -> list[Row]:
    file = folder / f"x.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps({"custom_id": it, "x": 1}) + "\n" for it in ids))
    elif kind == "npz":
        np.savez(file, custom_id=np.array(ids), x=np.ones(len(ids)))
    else:
        pq.write_table(pa.table({"custom_id": ids, "x": np.ones(len(ids))}), file)
    return list(opened(file).read(0))


@pytest.mark.parametrize("kind", ["jsonl", "npz", "parquet"])
def test_ids_are_text_or_integers_in_each_kind(kind: str, tmp_path: Path) -> None:
    assert [row.custom_id for row in ids_of(tmp_path, kind, [7, -(2**62), 0])] == ["7", str(-(2**62)), "0"]
    assert [row.custom_id for row in ids_of(tmp_path, kind, ["a", "ä" * 512])] == ["a", "ä" * 512]
    for wrong in (["a" * 513], [""], [1.5], [True], [[1, 2]], [[]]):
        (row,) = ids_of(tmp_path, kind, wrong)
        assert isinstance(row.values, InvalidInput), wrong
        assert row.values.message.startswith("custom_id is text of 1 to 512 characters, or an integer, not ")
        assert "np." not in row.values.message
        assert "array" not in row.values.message


def test_ids_that_are_no_text_after_all() -> None:
    assert custom_id_of(np.bytes_("ä".encode())) == "ä"
    for wrong in (b"\xff", "\ud800", 10**5000, np.float32(1.5)):
        with pytest.raises(InvalidInput, match="custom_id is text"):
            custom_id_of(wrong)


@pytest.mark.parametrize(
    ("line", "custom_id", "said"),
    [
        (b'{"custom_id": "a", "x": [NaN]}', "a", "not JSON: it has no NaN; give the tensor as dtype, shape and base64"),
        (b'{"x": -Infinity, "custom_id": "a"}', None, "it has no -Infinity"),
        (b'\xef\xbb\xbf{"custom_id": 17, "x": [1', "17", "not JSON: "),
        (b' { "custom_id" : "\\u00e4\\"b" , "x": "\xff"}', 'ä"b', "not JSON: "),
        (b'{"x": {"custom_id": "a"}, "y": [1', None, "not JSON: "),
        (b'{"custom_id": "\xff", "y": 1}', None, "not JSON: "),
        (b'{"custom_id": "", "y": ', None, "not JSON: "),
        (b'{"custom_id": "' + 5 * b"\\" + b'", "y": NaN', None, "not JSON: "),
    ],
)
def test_a_line_that_cannot_be_read_keeps_its_id(line: bytes, custom_id: str | None, said: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(line)
    (row,) = opened(tmp_path / "rows.jsonl").read(0)
    assert isinstance(row.values, RankmqError)
    assert said in row.values.message
    assert row.custom_id == custom_id


def test_a_line_too_long_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"x": 123456789}\n')
    (row,) = opened(tmp_path / "rows.jsonl", most_bytes=8).read(0)
    assert row.values.message == "a line of 17 bytes: 8 are allowed (--line-bytes)"


@pytest.mark.parametrize("first", [b"[1, 2]", b"17", b"[[]]", b'{"x": "\xff"}'])
def test_a_first_line_that_is_no_row_does_not_stop_the_others(first: bytes, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(first + b'\n{"x": 1}\n')
    bad, good = opened(tmp_path / "rows.jsonl").read(0)
    assert isinstance(bad.values, RankmqError)
    assert good.values == {"x": 1}
