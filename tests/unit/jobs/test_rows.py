"""Rows out of files of each kind: all of them, in order, and the same again from any of them on."""

import io
import itertools
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.jobs.columns import Columns, Mapped
from rankmq.engine.jobs.inputs import fingerprint, open_rows, spool
from rankmq.engine.jobs.places import Place
from rankmq.engine.jobs.rows import Row
from rankmq.engine.jobs.rows_jsonl import JsonLines, parse_line
from rankmq.schemas.errors import ConfigurationError, InvalidInput, JobStopped, RankmqError

X = np.arange(60, dtype=np.float32).reshape(10, 2, 3)
NAMES = [f"n{it}" for it in range(10)]


def as_jsonl(folder: Path) -> Path:
    lines = [json.dumps({"custom_id": name, "x": x.tolist()}) for name, x in zip(NAMES, X, strict=True)]
    (folder / "rows.jsonl").write_text("\n\n".join(lines))
    return folder / "rows.jsonl"


def as_npy(folder: Path) -> Path:
    np.save(folder / "rows.npy", X)
    return folder / "rows.npy"


def as_npz(folder: Path) -> Path:
    np.savez(folder / "rows.npz", x=X, custom_id=np.array(NAMES))
    return folder / "rows.npz"


def as_compressed_npz(folder: Path) -> Path:
    np.savez_compressed(folder / "rows.npz", x=X, custom_id=np.array(NAMES))
    return folder / "rows.npz"


def as_parquet(folder: Path) -> Path:
    table = pa.table({"custom_id": NAMES, "x": [x.reshape(-1) for x in X]})
    pq.write_table(table, folder / "rows.parquet", row_group_size=4)
    return folder / "rows.parquet"


def as_folder(folder: Path) -> Path:
    home = folder / "rows"
    home.mkdir()
    for name, x in zip(NAMES, X, strict=True):
        np.save(home / f"{name}.npy", x)
    return home


KINDS = [as_jsonl, as_npy, as_npz, as_compressed_npz, as_parquet, as_folder]


def opened(path: Path, **options: Any) -> Any:
    return open_rows(Place.of(path), **{"most_bytes": 1 << 20, **options})


def array_in(row: Row) -> np.ndarray:
    assert not isinstance(row.values, RankmqError)
    (value,) = row.values.values()
    return np.asarray(value, np.float32).reshape(2, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_in_order_and_again_from_each_of_them_on(kind: Callable[[Path], Path], tmp_path: Path) -> None:
    rows = opened(kind(tmp_path))
    found = list(rows.read(0))
    assert np.array_equal([array_in(row) for row in found], X)
    assert rows.total in (None, 10)
    if kind is not as_npy:
        assert [row.custom_id for row in found] == NAMES
    for number, row in enumerate(found):
        rest = list(rows.read(row.position))
        assert [it.position for it in rest] == [it.position for it in found[number:]]
        assert np.array_equal([array_in(it) for it in rest], X[number:])
    for one, following in itertools.pairwise(found):
        assert next(rows.read(one.end)).position == following.position
    assert found[-1].end <= rows.size
    assert list(rows.read(rows.size)) == []


def test_an_archive_in_memory_is_read_alike(tmp_path: Path) -> None:
    import fsspec

    for file in (as_npz(tmp_path), as_jsonl(tmp_path), as_parquet(tmp_path)):
        url = f"memory://rows-{os.getpid()}/{file.name}"
        with fsspec.open(url, "wb") as out:
            out.write(file.read_bytes())
        there, here = open_rows(Place.of(url), most_bytes=1 << 20), opened(file)
        assert [array_in(row).tolist() for row in there.read(0)] == [array_in(row).tolist() for row in here.read(0)]
        assert fingerprint(Place.of(url)) == fingerprint(Place.of(file))


def test_more_rows_than_are_read_at_once(tmp_path: Path) -> None:
    x = np.arange(300_000, dtype=np.int64)
    np.savez(tmp_path / "x.npz", x=x, y=x.astype(np.int16))
    pq.write_table(pa.table({"x": x}), tmp_path / "x.parquet", row_group_size=10_000)
    for file in ("x.npz", "x.parquet"):
        rows = opened(tmp_path / file)
        assert [int(row.values["x"]) for row in rows.read(0)] == x.tolist()
        assert int(next(rows.read(123_456)).values["x"]) == 123_456


@given(st.lists(st.binary(max_size=40).map(lambda it: it.replace(b"\n", b"?")), min_size=1, max_size=12))
def test_lines_of_anything_lose_no_row(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    file.write_bytes(b"\n".join(lines))
    if not file.stat().st_size:
        return
    found = list(JsonLines(Place.of(file), 16).read(0))
    wanted = [it for it in lines if len(it) > 16 or it.strip()]
    assert len(found) == len(wanted)
    for row in found:
        assert isinstance(row.values, RankmqError) or row.values.keys() is not None
        assert file.read_bytes()[row.position : row.end].rstrip(b"\n") in lines


def test_a_line_may_hold_its_columns_in_three_ways(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '\ufeff{"x": 1}\n{"custom_id": "a", "inputs": {"x": 1}}\n'
        '{"custom_id": "b", "method": "POST", "url": "/v1", "body": {"x": 1}}\n'
        '{"body": {"dtype": "int8", "data": [1]}}'
    )
    rows = list(opened(file).read(0))
    assert [row.values for row in rows[:3]] == [{"x": 1}] * 3
    assert rows[3].values == {"body": {"dtype": "int8", "data": [1]}}
    assert [row.custom_id for row in rows] == [None, "a", "b", None]


def test_columns_of_parquet_keep_their_kinds(tmp_path: Path) -> None:
    table = pa.table(
        {
            "a": pa.array([1, 2], pa.int8()),
            "b": pa.array([[1.5], [2.5, 3.5]], pa.list_(pa.float32())),
            "c": pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)),
            "d": ["text", "more"],
            "e": [b"\0", b"\1\2"],
            "f": pa.array([None, 1], pa.int32()),
            "g": [[[1], [2]], [[3], [4]]],
            "h": pa.array([None, [1.0]], pa.list_(pa.float64())),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    one, two = (row.values for row in opened(tmp_path / "x.parquet").read(0))
    assert (two["a"], two["a"].dtype) == (2, np.int8)
    assert two["b"].tolist() == [2.5, 3.5]
    assert two["b"].dtype == np.float32
    assert (one["c"].tolist(), two["c"].tolist()) == ([1, 2], [3, 4])
    assert (two["d"], two["e"], one["f"], two["g"]) == ("more", b"\1\2", None, [[3], [4]])
    assert one["h"] is None
    assert two["h"].tolist() == [1.0]


# ---------------------------------------------------------------------------------------------------------- bad input


def write(name: str, data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def cut(kind: Callable[[Path], Path], part: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        file = kind(folder)
        data = file.read_bytes()
        file.write_bytes(data[: int(len(data) * part)])
        return file

    return make


def saved(name: str, **arrays: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.savez(folder / name, **arrays)
        return folder / name

    return make


def array(value: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.save(folder / "x.npy", value, allow_pickle=True)
        return folder / "x.npy"

    return make


def stored_short(folder: Path) -> Path:
    """An archive that is whole, with an array that is not."""

    buffer = io.BytesIO()
    np.save(buffer, X)
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr("x.npy", buffer.getvalue()[:-4])
    return folder / "x.npz"


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "not there": (lambda folder: folder / "none.jsonl", "there is no such file"),
    "no kind": (write("rows.csv", b"1"), "what kind of file is it"),
    "empty": (write("rows.jsonl", b""), "is empty: there is nothing to do"),
    "blank": (write("rows.jsonl", b"\n \n\t\n"), "blank lines alone"),
    "an array on lines": (write("x.jsonl", b'\n [\n{"x": 1},\n{"x": 2}\n]\n'), "is a JSON array: a row is a line"),
    "an array on a line": (write("x.jsonl", b'[{"x": 1}, {"x": 2}]'), "is a JSON array"),
    "UTF-16": (write("x.jsonl", '{"x": 1}\n'.encode("utf-16")), "is UTF-16: save it as UTF-8"),
    "no text": (write("x.jsonl", b"\1\0\2\n"), "is no text"),
    "gzip": (write("x.jsonl", b"\x1f\x8b\x08abc\n"), "packed by gzip"),
    "Parquet by another name": (write("x.jsonl", b"PAR1abc\n"), "is Parquet, not lines of JSON"),
    "empty npz": (write("x.npz", b""), "is empty"),
    "npz of text": (write("x.npz", b"hello"), "no whole .npz file"),
    "cut npz": (cut(as_npz, 0.7), "no whole .npz file"),
    "array cut within": (stored_short, "array 'x' is cut off"),
    "npz without arrays": (saved("x.npz"), "no arrays"),
    "npz of ids alone": (saved("x.npz", custom_id=np.array(["a"])), "no arrays"),
    "arrays of different lengths": (saved("x.npz", x=np.ones(3), y=np.ones(4)), "x 3, y 4"),
    "npz without rows": (saved("x.npz", x=np.ones((0, 3))), "has no rows"),
    "npz of a single value": (saved("x.npz", x=np.float32(1)), "it is a single value"),
    "cut npy": (cut(as_npy, 0.9), "is cut off"),
    "npy without a head": (cut(as_npy, 0.05), "no .npy array"),
    "objects": (array(np.array([{}, 1], object)), "Python objects"),
    "complex": (array(np.ones(2, complex)), "complex128 cannot be sent"),
    "Fortran order": (array(np.asfortranarray(np.ones((3, 2)))), "Fortran order"),
    "parquet of text": (write("x.parquet", b"hello"), "no whole Parquet file"),
    "cut parquet": (cut(as_parquet, 0.8), "no whole Parquet file"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_input_that_cannot_be_is_told_in_a_line(name: str, tmp_path: Path) -> None:
    make, said = BAD[name]
    with pytest.raises(ConfigurationError, match=said) as error:
        opened(make(tmp_path))
    assert "\n" not in error.value.message


def test_a_file_that_is_cut_off_meanwhile_stops_the_job(tmp_path: Path) -> None:
    file = as_npy(tmp_path)
    rows = opened(file)
    os.truncate(file, file.stat().st_size - 30)
    with pytest.raises(JobStopped, match="ends within row 8"):
        list(rows.read(0))


@given(lines=st.lists(st.integers(0, 40), min_size=2, max_size=12), cut=st.floats(0.0, 1.0, exclude_max=True))
def test_lines_that_are_cut_off_meanwhile_stop_the_job(
    tmp_path_factory: pytest.TempPathFactory, lines: list[int], cut: float
) -> None:
    """Wherever that is: what was whole comes, and half a line is no row."""
    file = tmp_path_factory.getbasetemp() / "cut.jsonl"
    file.write_bytes(b"".join(b"a" * it + b"\n" for it in lines))
    rows, size = JsonLines(Place.of(file), 16), file.stat().st_size
    left = int(cut * size)
    os.truncate(file, left)
    found: list[Row] = []
    with pytest.raises(JobStopped, match=f"ends at byte {left} of {size}: it was cut off"):
        found.extend(rows.read(0))
    assert all(it.end <= left for it in found)


def test_lines_that_are_added_meanwhile_are_no_rows(tmp_path: Path) -> None:
    file = as_jsonl(tmp_path)
    rows = opened(file)
    with file.open("a") as more:
        more.write('\n{"x": 1}\n')
    assert [row.custom_id for row in rows.read(0)] == NAMES


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_array_that_is_damaged_stops_the_job(save: Callable[..., None], tmp_path: Path) -> None:
    file = tmp_path / "rows.npz"
    save(file, x=np.random.default_rng(1).normal(size=(50_000, 3)))
    content = bytearray(file.read_bytes())
    content[-2000] ^= 1  # of the last rows
    file.write_bytes(content)
    with pytest.raises(JobStopped, match=r"checksum|CRC|cannot be read on"):
        list(opened(file).read(0))


def test_a_fingerprint_tells_one_input_from_another(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    seen = set()
    data = bytearray(b"a" * (3 << 20))
    for at in (None, 0, (1 << 20) - 1, (2 << 20) + 1, (3 << 20) - 1):
        changed = bytearray(data)
        if at is not None:
            changed[at] = ord("b")
        file.write_bytes(changed)
        seen.add(fingerprint(Place.of(file)))
    file.write_bytes(data + b"a")
    assert len(seen | {fingerprint(Place.of(file))}) == 6


def test_standard_input_is_kept_as_a_whole(tmp_path: Path) -> None:
    data = os.urandom(3_000_001)
    spool(tmp_path / "in.jsonl", io.BytesIO(data))
    assert (tmp_path / "in.jsonl").read_bytes() == data
    assert [it.name for it in tmp_path.iterdir()] == ["in.jsonl"]


def test_what_cannot_be_kept_leaves_nothing(tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise self.error
            return super().read(3)

    for error, wanted in (
        (OSError(28, "No space left on device"), JobStopped),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):
        source = Broken(b"hello")
        source.error = error
        with pytest.raises(wanted):
            spool(tmp_path / "in.jsonl", source)
        assert list(tmp_path.iterdir()) == []


def test_a_whole_body_is_a_column_where_that_is_asked_for() -> None:
    body = {"messages": [{"role": "user", "content": "Hellö"}], "max_tokens": 3}
    _, values = parse_line(json.dumps({"custom_id": "a", "url": "/v1", "body": body}).encode())
    assert dict(values) == body, "by itself it is none"
    made = Columns([Mapped.parse("body"), Mapped.parse("n=max_tokens")], None).input_of(values)
    assert json.loads(str(made.values["body"])) == body
    assert made.values["n"] == 3
    with pytest.raises(InvalidInput, match="no column 'inputs'"):
        Columns([Mapped.parse("inputs")], None).input_of(values)
    _, values = parse_line(json.dumps({"body": {"body": [1, 2]}}).encode())
    assert Columns([Mapped.parse("body")], None).input_of(values).values == {"body": [1, 2]}
