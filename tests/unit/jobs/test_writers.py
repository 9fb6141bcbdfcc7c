"""Results as files: read back by numpy, pyarrow and json they are what they were, and the same each time."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rankmq.engine.jobs.assembly import Result
from rankmq.engine.jobs.manifest import Failure
from rankmq.engine.jobs.places import Place
from rankmq.engine.jobs.writers import write_errors, write_results
from rankmq.schemas.errors import JobStopped
from rankmq.schemas.plain import tensor_from_json
from rankmq.schemas.tensors import BFLOAT16, from_array, to_array

Y = np.arange(12, dtype=np.float32).reshape(2, 2, 3) / 4


def results(*rows: dict[str, Any], first: int = 0) -> list[Result]:
    return [
        Result(number, f"id-{number}", {name: from_array(np.asarray(value)) for name, value in row.items()})
        for number, row in enumerate(rows, start=first)
    ]


def written(folder: Path, name: str, found: list[Result], **options: Any) -> Path:
    place = Place.of(folder / name) if not name.endswith("/") else Place(f"{folder}/{name}")
    write_results(place, lambda: iter(found), **options)
    return folder / name


def test_lines(tmp_path: Path) -> None:
    found = results({"y": Y[0], "n": 1, "s": "ü", "b": np.True_}, {"y": np.array([np.nan, 1], np.float32)})
    one, two = map(json.loads, written(tmp_path, "r.jsonl", found).read_text().splitlines())
    assert one == {"custom_id": "id-0", "outputs": {"y": Y[0].tolist(), "n": 1, "s": "ü", "b": True}}
    back = to_array(tensor_from_json(two["outputs"]["y"]))
    assert np.array_equal(back, np.array([np.nan, 1], np.float32), equal_nan=True)


@pytest.mark.parametrize("scheme", ["", "file://", "local://"])
def test_a_place_on_this_machine_is_made_however_it_is_named(scheme: str, tmp_path: Path) -> None:
    for place in (Place(f"{scheme}{tmp_path}/a/r.jsonl"), Place.of(f"{scheme}{tmp_path}/b/r.jsonl")):
        write_results(place, lambda: iter(results({"y": 1})))
        assert Path(place.name).read_text() == '{"custom_id":"id-0","outputs":{"y":1}}\n'


def test_a_folder_of_no_results_is_there(tmp_path: Path) -> None:
    assert list(written(tmp_path, "r/", []).iterdir()) == []


def test_lines_with_base64(tmp_path: Path) -> None:
    found = results({"y": Y[0], "s": np.array(["a", "b"])})
    outputs = json.loads(written(tmp_path, "r.jsonl", found, base64=True).read_text())["outputs"]
    assert np.array_equal(to_array(tensor_from_json(outputs["y"])), Y[0])
    assert outputs["y"]["dtype"] == "float32"
    assert outputs["s"] == ["a", "b"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.int64, np.uint8, np.bool_, np.float16]),
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=3),
    )
)
def test_arrays_of_any_kind_come_back(tmp_path: Path, rows: np.ndarray) -> None:
    found = results(*({"y": row, "row": row} for row in rows), first=3)
    archive = np.load(written(tmp_path, "r.npz", found))
    assert archive.files == ["y", "row_", "row"]
    assert archive["row"].tolist() == list(range(3, 3 + len(rows)))
    for name in ("y", "row_"):
        assert archive[name].dtype == rows.dtype
        assert archive[name].tobytes() == rows.tobytes()
    alone = [Result(it.row, it.custom_id, {"y": it.outputs["y"]}) for it in found]
    array = np.load(written(tmp_path, "r.npy", alone))
    assert (array.dtype, array.shape, array.tobytes()) == (rows.dtype, rows.shape, rows.tobytes())
    if rows.dtype != np.float16:  # which pyarrow's pylists do not have
        table = pq.read_table(written(tmp_path, "r.parquet", found))
        assert np.array(table["y"].to_pylist(), rows.dtype).tobytes() == rows.tobytes()
        assert table["custom_id"].to_pylist() == [it.custom_id for it in found]


def test_text_and_rows_of_different_lengths(tmp_path: Path) -> None:
    found = results({"s": "a", "v": np.arange(1)}, {"s": "längere", "v": np.arange(3)})
    table = pq.read_table(written(tmp_path, "r.parquet", found))
    assert table["s"].to_pylist() == ["a", "längere"]
    assert table["v"].to_pylist() == [[0], [0, 1, 2]]
    texts = [Result(it.row, it.custom_id, {"s": it.outputs["s"]}) for it in found]
    assert np.load(written(tmp_path, "r.npz", texts))["s"].tolist() == ["a", "längere"]


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    found = results({"y": np.array([0x3F80, 0x4000], "<u2").view(BFLOAT16)})
    for name in ("r.npz", "r.npy"):
        loaded = np.load(written(tmp_path, name, found))
        assert (loaded["y"] if name == "r.npz" else loaded).tolist() == [[1.0, 2.0]]
    assert pq.read_table(written(tmp_path, "r.parquet", found))["y"].to_pylist() == [[1.0, 2.0]]


def test_a_file_for_each_row(tmp_path: Path) -> None:
    found = [Result(0, "a", {"y": from_array(Y[0])}), Result(1, "../../b", {"y": from_array(Y[1])})]
    written(tmp_path, "r/", found)
    assert sorted(it.name for it in (tmp_path / "r").iterdir()) == ["a.npy", "row-1~.npy"]
    assert np.array_equal(np.load(tmp_path / "r" / "row-1~.npy"), Y[1])


@pytest.mark.parametrize("name", ["r.jsonl", "r.npz", "r.npy", "r.parquet"])
def test_no_results_at_all(name: str, tmp_path: Path) -> None:
    file = written(tmp_path, name, [])
    match file.suffix:
        case ".jsonl":
            assert file.read_bytes() == b""
        case ".parquet":
            assert len(pq.read_table(file)) == 0
        case _:
            loaded = np.load(file)
            assert len(loaded["row"] if file.suffix == ".npz" else loaded) == 0


@pytest.mark.parametrize("name", ["r.jsonl", "r.npz", "r.npy", "r.parquet"])
def test_the_same_results_are_the_same_bytes(name: str, tmp_path: Path) -> None:
    found = results({"y": Y[0]}, {"y": Y[1]})
    first = written(tmp_path, name, found).read_bytes()
    if name == "r.npz":
        assert all(it.date_time[0] == 1980 for it in zipfile.ZipFile(tmp_path / name).infolist())
    assert written(tmp_path, name, found).read_bytes() == first


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        ("r.npz", [{"y": Y[0]}, {"y": Y[0][:1]}], "row 1 has y of float32 and shape"),
        ("r.npz", [{"y": Y[0]}, {"y": Y[0].astype(np.float64)}], "row 1 has y of float64"),
        ("r.npz", [{"y": Y[0]}, {"z": Y[0]}], "row 1 has the outputs z"),
        ("r.npz", [{"y": np.array([b"a"], object)}], "output y is bytes"),
        ("r.npy", [{"y": Y[0], "z": Y[0]}], "the outputs y, z, and a .npy file holds one"),
        ("r/", [{"y": np.array([b"a"], object)}], "output y is bytes"),
        ("r.parquet", [{"y": Y[0]}, {"y": Y[0][0]}], "row 1 has y of float32 with 1 axes"),
        ("r.parquet", [{"y": Y[0]}, {"z": Y[0]}], "row 1 has the outputs z"),
    ],
)
def test_results_that_a_file_cannot_hold(name: str, rows: list[dict[str, Any]], said: str, tmp_path: Path) -> None:
    with pytest.raises(JobStopped, match=said) as error:
        written(tmp_path, name, results(*rows))
    assert "--results results.jsonl" in error.value.message
    assert not (tmp_path / name).is_file()


def test_no_space_left_leaves_no_half_a_file(tmp_path: Path) -> None:
    def failing() -> Iterator[Result]:
        yield from results({"y": Y[0]})
        raise OSError(28, "No space left on device")

    with pytest.raises(JobStopped, match="No space left on device"):
        write_results(Place.of(tmp_path / "r.jsonl"), failing)
    assert not (tmp_path / "r.jsonl").exists()


def test_errors(tmp_path: Path) -> None:
    failed = [Failure(3, "a", "invalid_input", 'no "x"'), Failure(7, None, "undecodable", "not JSON")]
    write_errors(Place.of(tmp_path / "e.jsonl"), failed)
    assert [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()] == [
        {"custom_id": "a", "row": 3, "code": "invalid_input", "message": 'no "x"'},
        {"custom_id": None, "row": 7, "code": "undecodable", "message": "not JSON"},
    ]


def test_results_go_to_any_place_that_fsspec_opens(tmp_path: Path) -> None:
    import fsspec

    found = results({"y": Y[0]}, {"y": Y[1]})
    for name in ("r.jsonl", "r.npz", "r.parquet"):
        url = f"memory://written/{name}"
        write_results(Place.of(url), lambda: iter(found))
        with fsspec.open(url, "rb") as file:
            assert len(file.read()) >= written(tmp_path, name, found).stat().st_size
