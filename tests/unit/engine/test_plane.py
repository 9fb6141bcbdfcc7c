"""What is put into shared memory is read there, byte for byte; what does not fit goes with the message."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rankmq.engine.plane import PLACED_BYTES, PlaneReader, PlaneWriter, ResultWriter
from rankmq.schemas.errors import InternalError
from rankmq.schemas.messages import Column, Placed
from rankmq.schemas.tensors import from_array, to_array


@st.composite
def arrays(draw):
    """Small and large ones of any kind; their bytes are drawn once, not each by itself."""
    dtype = np.dtype(draw(st.sampled_from(["float32", "int64", "uint8"])))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=24))
    return np.random.default_rng(draw(st.integers(0, 99))).integers(0, 99, shape).astype(dtype)


columns = st.lists(st.lists(arrays(), min_size=1, max_size=4), max_size=3)


def made(found):
    return tuple(Column(index=i, tensors=tuple(map(from_array, rows))) for i, rows in enumerate(found))


def values(read):
    return [[to_array(tensor) for tensor in column.tensors] for column in read]


@given(st.lists(columns, min_size=1, max_size=3))
def test_what_is_put_there_is_found_there(parts):
    memory = memoryview(bytearray(1 << 21))
    writer, reader = PlaneWriter(memory), PlaneReader(memory)
    found = writer.put([made(part) for part in parts])
    large = any(array.nbytes >= PLACED_BYTES for part in parts for rows in part for array in rows)
    assert (found is not None) == large == writer.needs([made(part) for part in parts])
    if found is None:
        return
    out, span = found
    for part, sent in zip(parts, out, strict=True):
        got = values(reader.columns(sent, copy=False))
        for rows, column, others in zip(part, sent, got, strict=True):
            assert bool(column.placed) == (max(array.nbytes for array in rows) >= PLACED_BYTES) != bool(column.tensors)
            for array, other in zip(rows, others, strict=True):
                assert (array.dtype, array.shape) == (other.dtype, other.shape)
                assert np.array_equal(array, other)
    writer.give_back(span)
    assert writer.used == 0


def test_alike_tensors_share_a_place():
    writer = PlaneWriter(memoryview(bytearray(1 << 20)))
    rows = [np.full((3, 300), number, np.float32) for number in range(5)]
    (sent,), _ = writer.put([made([rows])])
    assert [(it.count, it.length, it.shape) for it in sent[0].placed] == [(5, 3600, (3, 300))]
    (sent,), _ = writer.put([made([[*rows[:2], np.zeros((3, 301), np.float32), *rows[2:]]])])
    assert [it.count for it in sent[0].placed] == [2, 1, 3]


def test_a_copy_outlives_the_memory():
    memory = memoryview(bytearray(1 << 16))
    array = np.arange(2000, dtype=np.float32)
    (sent,), span = PlaneWriter(memory).put([made([[array]])])
    got = PlaneReader(memory).columns(sent, copy=True)
    memory[:] = bytes(len(memory))
    assert np.array_equal(values(got)[0][0], array)
    assert span.length >= array.nbytes


def test_a_view_cannot_be_written():
    memory = memoryview(bytearray(1 << 16))
    (sent,), _ = PlaneWriter(memory).put([made([[np.zeros(2000, np.float32)]])])
    [[array]] = values(PlaneReader(memory).columns(sent, copy=False))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_text_goes_with_the_message():
    writer = PlaneWriter(memoryview(bytearray(1 << 16)))
    assert writer.put([made([[np.array(["word" * 1000] * 3, dtype=np.dtypes.StringDType())]])]) is None


def test_without_room_it_goes_with_the_message():
    writer = PlaneWriter(memoryview(bytearray(10_000)))
    large, huge = made([[np.zeros(8000, np.uint8)]]), made([[np.zeros(20_000, np.uint8)]])
    _, span = writer.put([large])
    assert writer.put([large]) is None
    assert writer.needs([large])  # later
    assert writer.put([huge]) is None
    assert not writer.needs([huge])  # never
    writer.give_back(span)
    assert writer.put([large]) is not None


@pytest.mark.parametrize(
    ("offset", "length", "count"), [(0, 101, 1), (100, 1, 1), (1 << 40, 4, 1), (0, 40, 3), (0, 1, 1 << 60)]
)
def test_a_place_outside_is_refused(offset, length, count):
    place = Placed(dtype="uint8", shape=(length,), offset=offset, length=length, count=count)
    column = Column(index=0, placed=(place,))
    with pytest.raises(InternalError, match="of 100 shared bytes"):
        PlaneReader(memoryview(bytearray(100))).columns([column], copy=False)


@given(st.integers(1, 5), st.lists(st.integers(1, 3), min_size=1, max_size=30))
def test_results_stay_until_the_orchestrator_has_read_them(window, sizes):
    """It reads the answer to a step before it sends one a window later; a result is never written over until then."""
    memory = memoryview(bytearray(64 * 1024))
    writer, reader = ResultWriter(memory, window), PlaneReader(memory)
    unread = []
    for step, size in enumerate(sizes):
        while unread and unread[0][0] <= step - window:
            number, sent = unread.pop(0)
            for column in values(reader.columns(sent, copy=False)):
                assert (column[0] == number).all()
        sent = writer.put(step, made([[np.full(size * 1000, step, np.int32)]]))
        unread.append((step, sent))
    for number, sent in unread:
        for column in values(reader.columns(sent, copy=False)):
            assert (column[0] == number).all()
