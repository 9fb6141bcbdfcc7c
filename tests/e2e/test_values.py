"""What producers may send: arrays of every kind, text, bytes, plain numbers."""

import time

import numpy as np
import pytest
from rankmq.schemas.errors import DeadlineExceeded, InstancesFailed, ReplyTimeout

from tests.e2e.layouts import RANDOM, random
from tests.e2e.systems import System


def test_text_bytes_and_numbers(gallery: System) -> None:
    with gallery.client("caller", "text") as client:
        [got] = client.infer({"text": "ärger ", "times": 2})
        assert got["text"].item() == "ÄRGER ÄRGER "
        assert got["bytes"].item() == len("ärger ".encode())


@pytest.mark.parametrize(
    "value",
    [
        *(np.arange(6).reshape(2, 3).astype(kind) for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")),
        *(np.array([[0.5, -np.inf], [np.nan, 3]], kind) for kind in ("f2", "f4", "f8", ">f4")),
        np.array([True, False]),
        np.zeros((0, 4), np.float32),
        np.float64(2.5),
        np.arange(24, dtype=np.int32).reshape(4, 6)[::2, ::3],
        np.array(["", "ü", "long " * 100], np.dtypes.StringDType()),
        b"\x00\xff\x00",
    ],
    ids=lambda value: str(getattr(value, "dtype", type(value).__name__)),
)
def test_every_kind_of_value_comes_back_as_it_went(gallery: System, value: object) -> None:
    with gallery.client("caller", "same") as client:
        got = client.infer({"x": value})[0]["y"]
    if isinstance(value, bytes):
        assert got.item() == value
    else:
        assert got.shape == value.shape
        assert got.dtype == np.dtype(value.dtype.type) or got.dtype == value.dtype
        np.testing.assert_array_equal(got, value)


def test_plain_numbers_take_the_dtype_of_the_graph(gallery: System) -> None:
    with gallery.client("trouble", "one") as client:
        assert client.infer({"x": [1, 2, 3, 4]})[0]["y"].tolist() == [-1, -2, -3, -4]
        assert client.infer({"x": [1.5, 2, 3, 4]})[0]["y"].dtype == np.float32


def test_a_large_tensor(gallery: System) -> None:
    """As large as a broker of any version takes."""
    value = RANDOM.integers(0, 255, (15, 1024, 1024), dtype=np.uint8)
    with gallery.client("caller", "same") as client:
        assert (client.infer({"x": value})[0]["y"] == value).all()


def test_some_instances_fail_and_the_others_are_answered(gallery: System) -> None:
    rows = [np.full(4, value, np.float32) for value in (1, 13, 3)]
    with gallery.client("trouble", "one") as client, pytest.raises(InstancesFailed) as caught:
        client.infer([{"x": x} for x in rows])
    first, failed, last = caught.value.results
    assert first["y"].tolist() == [-1] * 4
    assert failed.code == "graph_failed"
    assert last["y"].tolist() == [-3] * 4


def test_a_call_gives_up_after_its_timeout(gallery: System) -> None:
    with gallery.client("caller", "slow") as client:
        began = time.monotonic()
        with pytest.raises((ReplyTimeout, DeadlineExceeded)):  # whichever clock is first, ours or the engine's
            client.infer({"x": random(24, 16)}, timeout=0.3)
        assert time.monotonic() - began < 3
        assert client.infer({"x": random(24, 16)})  # and the client goes on
