"""Rows out of a folder of arrays: what is none fails alone."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rankmq.engine.jobs.inputs import fingerprint, open_rows
from rankmq.engine.jobs.places import Place
from rankmq.engine.jobs.rows import Row
from rankmq.schemas.errors import ConfigurationError, InvalidInput, RankmqError

X = np.arange(60, dtype=np.float32).reshape(10, 2, 3)
NAMES = [f"n{it}" for it in range(10)]


def as_folder(folder: Path) -> Path:
    home = folder / "rows"
    home.mkdir()
    for name, x in zip(NAMES, X, strict=True):
        np.save(home / f"{name}.npy", x)
    return home


def opened(path: Path, **options: Any) -> Any:
    return open_rows(Place.of(path), **{"most_bytes": 1 << 20, **options})


def array_in(row: Row) -> np.ndarray:
    assert not isinstance(row.values, RankmqError)
    (value,) = row.values.values()
    return np.asarray(value, np.float32).reshape(2, 3)


def test_what_is_no_file_in_a_folder_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = as_folder(tmp_path)
    (home / "o0.npy").symlink_to("nowhere")
    (home / "o1.npy").symlink_to("o1.npy")
    (home / "o2.npy").mkdir()
    os.mkfifo(home / "o3.npy")
    np.save(home / "o4.npy", X[0])
    os.rename(home / "o4.npy", os.fsencode(home) + b"/o4\xff.npy")
    np.save(home / "o5.npy", X[0])
    plain = Path.open

    def closed(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == "o5.npy":
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", closed)
    rows = list(opened(home).read(0))
    assert np.array_equal([array_in(row) for row in rows[:10]], X)
    assert all(isinstance(row.values, InvalidInput) for row in rows[10:])
    assert [row.custom_id for row in rows[10:]] == ["o0", "o1", "o2", "o3", "o4\\xff", "o5"]
    said = [str(row.values) for row in rows[10:]]
    assert all(it.startswith(f"o{number}") and "\n" not in it for number, it in enumerate(said))
    assert "is no file" in said[2]
    assert "no UTF-8" in said[4]
    assert "Permission denied" in said[5]
    before = fingerprint(Place.of(home))
    np.save(home / "o2.npy" / "more.npy", X)
    assert fingerprint(Place.of(home)) == before, "what is in a folder that is no row does not count"


def test_nor_is_a_folder_in_a_folder_elsewhere() -> None:
    import fsspec

    url = f"memory://folder-{os.getpid()}"
    for name in ("a.npy", "b.npy/c.npy"):
        with fsspec.open(f"{url}/{name}", "wb") as file:
            np.save(file, X[0])
    good, bad = open_rows(Place.of(url), most_bytes=1 << 20).read(0)
    assert np.array_equal(array_in(good), X[0])
    assert isinstance(bad.values, InvalidInput)
    assert (bad.custom_id, bad.values.message) == ("b", "b.npy is no file")


def test_a_folder_without_files_and_one_with_a_bad_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ConfigurationError, match=r"no \.npy files"):
        opened(tmp_path / "a")
    np.save(tmp_path / "a" / "0.npy", X[0])
    (tmp_path / "a" / "1.npy").write_bytes(b"hello")
    good, bad = opened(tmp_path / "a").read(0)
    assert np.array_equal(array_in(good), X[0])
    assert isinstance(bad.values, RankmqError)
    assert bad.custom_id == "1"
