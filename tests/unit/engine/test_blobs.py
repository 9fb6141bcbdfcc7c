"""The blob store, over a folder and over fsspec's memory: written, read, refused, swept; what cannot be is typed."""

import os
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rankmq.engine.blobs import BlobStore
from rankmq.engine.references import new_name
from rankmq.schemas.blobs import Blob, digest_of
from rankmq.schemas.errors import BlobMissing, BlobUnavailable, ConfigurationError, InvalidInput
from rankmq.schemas.tensors import Tensor, from_array, to_array

HOUR = 3600.0


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/a/store" if request.param == "file" else f"memory://{uuid.uuid4().hex}/store"


@pytest.fixture
def store(url: str) -> BlobStore:
    return BlobStore(url)


def listed(url: str) -> list[str]:
    files, root = fsspec.url_to_fs(url)
    return sorted(path.rpartition("/")[2] for path in files.find(root)) if files.exists(root) else []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(arrays.arrays(st.sampled_from(["f4", "<i8", ">u2", "?"]), arrays.array_shapes(max_dims=3)))
def test_an_array_comes_back(store, array):
    referred = store.put(from_array(array))
    assert referred.blob.bytes == array.nbytes
    found = to_array(store.get(referred))
    assert found.shape == array.shape
    np.testing.assert_array_equal(found, array)
    store.delete([referred.blob.name])
    with pytest.raises(BlobMissing):
        store.get(referred)


def test_the_object_is_the_array_as_it_lies_in_memory(store, url):
    array = np.arange(6, dtype=">f4").reshape(2, 3).T
    blob = store.put(from_array(array)).blob
    files, root = fsspec.url_to_fs(url)
    assert files.cat_file(f"{root}/{blob.name}") == array.astype("<f4").tobytes()
    assert listed(url) == [blob.name]


def test_deleted_twice_and_never_written(store, url):
    blob = store.write(b"abc")
    store.delete([blob.name, blob.name, new_name(0, bytes(16)), "../../etc/passwd", ""])
    assert listed(url) == []
    with pytest.raises(BlobMissing, match=blob.name):
        store.read(blob)


def test_a_blob_that_is_not_what_the_reference_says(store, url):
    blob = store.write(b"0123456789")
    with pytest.raises(InvalidInput, match="should have 11 bytes, and has only 10"):
        store.read(Blob(name=blob.name, bytes=11, digest=blob.digest))
    with pytest.raises(InvalidInput, match="should have 9 bytes, and has more"):
        store.read(Blob(name=blob.name, bytes=9, digest=blob.digest))
    with pytest.raises(InvalidInput, match="digest is not crc32:00000000"):
        store.read(Blob(name=blob.name, bytes=10, digest="crc32:00000000"))
    assert store.read(blob) == b"0123456789"


def test_no_name_leads_out_of_the_store(tmp_path):
    (tmp_path / "secret").write_bytes(b"abc")
    store = BlobStore(f"file://{tmp_path}/store")
    store.write(b"x")
    for name in ("../secret", str(tmp_path / "secret"), "..", "", "secret"):
        with pytest.raises(InvalidInput, match="blob name"):
            store.read(Blob(name=name, bytes=3, digest=digest_of(b"abc")))
        store.delete([name])
    assert (tmp_path / "secret").read_bytes() == b"abc"


def test_text_and_empty_tensors_are_not_written(store, url):
    for tensor in (Tensor("string", (1,), ("a",)), from_array(np.empty(0, np.float32))):
        with pytest.raises(InvalidInput):
            store.put(tensor)
    assert listed(url) == []


def test_the_sweep_takes_what_is_old_and_ours(store, url, monkeypatch):
    files, root = fsspec.url_to_fs(url)
    assert store.sweep(HOUR) == 0  # there is no such folder yet
    old = []
    for number in range(5):
        monkeypatch.setattr("rankmq.engine.blobs.time.time", lambda number=number: 1_000_000.0 + number)
        old.append(store.write(b"old").name)
    monkeypatch.undo()
    new = store.write(b"new").name
    files.pipe_file(f"{root}/notes.txt", b"mine")

    assert store.sweep(HOUR, most=2) == 2
    assert listed(url) == sorted([*old[2:], new, "notes.txt"])
    assert store.sweep(HOUR) == 3
    assert store.sweep(HOUR) == 0
    assert listed(url) == sorted([new, "notes.txt"])


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    store = BlobStore(f"file://{tmp_path}/file/store")
    with pytest.raises(BlobUnavailable, match="cannot be written: Not a directory") as caught:
        store.write(b"abc")
    assert str(tmp_path) not in str(caught.value), "a place is told to producers"


def test_a_folder_that_cannot_be_made_since_there_is_none_above_it():
    store = BlobStore("/proc/nope/store")
    for what in (lambda: store.write(b"abc"), store.try_out):
        with pytest.raises(BlobUnavailable, match="cannot be written: there is no such place"):
            what()


def test_it_is_tried_out_and_nothing_is_left(store, url, monkeypatch):
    store.try_out()
    assert listed(url) == []
    for kind in (MemoryFileSystem, LocalFileSystem):
        monkeypatch.setattr(kind, "rm_file", _refuse)
    with pytest.raises(BlobUnavailable, match="cannot be written: Permission denied"):
        store.try_out()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("s3://key:secret@bucket")])
def test_nothing_is_left_of_what_could_not_be_written(error, monkeypatch):
    url = f"memory://{uuid.uuid4().hex}"
    store, whole = BlobStore(url), MemoryFileSystem.pipe_file
    written = []

    def half(self, path, data, **given):
        whole(self, path, data[: len(data) // 2])
        written.append(path)
        if len(written) == 3:
            raise error
        whole(self, path, data)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", half)
    with pytest.raises(BlobUnavailable) as caught:
        store.put_all([from_array(np.ones(number + 1)) for number in range(4)])
    assert len(written) == 3
    assert listed(url) == []
    assert "secret" not in str(caught.value)


def test_a_store_that_cannot_be_read(store, monkeypatch):
    blob = store.write(b"abc")
    monkeypatch.setattr("fsspec.AbstractFileSystem.cat_file", _refuse)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", _refuse)
    with pytest.raises(BlobUnavailable, match="cannot be read: Permission denied"):
        store.read(blob)


def _refuse(*_, **__):
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("url", ["nonsense://x", "s3://bucket/prefix"])
def test_a_url_that_cannot_be_had_is_one_line(url):
    if url.startswith("s3"):
        try:
            import s3fs  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("s3fs is here")
    with pytest.raises(ConfigurationError, match=r"^blob_store: ") as caught:
        BlobStore(url).open()
    assert "\n" not in str(caught.value)


def test_a_path_is_a_folder_and_a_url_is_not_shown(tmp_path):
    store = BlobStore(str(tmp_path / "store"))
    blob = store.write(b"abc")
    assert (tmp_path / "store" / blob.name).read_bytes() == b"abc"
    assert "secret" not in repr(BlobStore("ftp://user:secret@host/x"))


def test_a_forked_child_opens_it_anew(tmp_path):
    store = BlobStore(f"file://{tmp_path}")
    store.write(b"parent")
    opened = store._opened
    child = os.fork()
    if child == 0:
        code = 2
        try:
            store.write(b"child")
            code = 0 if store._opened is not opened else 1
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_no_bucket_is_made(monkeypatch):
    url = f"memory://{uuid.uuid4().hex}/store"
    monkeypatch.setattr(MemoryFileSystem, "protocol", "s3")
    monkeypatch.setattr(MemoryFileSystem, "makedirs", lambda *_, **__: pytest.fail("it makes a bucket"))
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", _missing)
    with pytest.raises(BlobUnavailable, match="no such place"):
        BlobStore(url).write(b"abc")


def _missing(*_, **__):
    raise FileNotFoundError(2, "The specified bucket does not exist")
