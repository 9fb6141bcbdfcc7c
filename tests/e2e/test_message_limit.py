"""A broker that takes smaller messages than is usual: it says so only by closing the channel over a larger one."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rankmq.schemas.errors import InstancesFailed, LimitExceeded, RankmqError
from rankmq.workers.broker import PrivateBroker

from tests.e2e.graphs import WORDS, Graph, op, spec, write_servable
from tests.e2e.systems import System, running

LIMIT = 256 * 1024

CONFIGURATION = (
    WORDS
    + """
distributed.declare_servable(rank_size=2, stage_size=1, with_batch_dim=False, subgraphs=["minus.npz"])

def grow(y, times):
    return np.tile(y, int(times))

@register.register_method(output_names=["y"])
def minus(x, times):
    y = register.call_servable(x, subgraph=0)
    return register.add_stage(grow, y, times, outputs_count=1)

def wide(n):
    return np.broadcast_to(np.float32(1), (int(n),))

@register.register_method(output_names=["y"])
def wide_out(n):
    return register.add_stage(wide, n, outputs_count=1)

@register.register_method(output_names=["y"])
def wide_in(n):
    return register.call_servable(register.add_stage(wide, n, outputs_count=1), subgraph=0)

@register.register_pipeline(output_names=["y"])
def wide_pipeline(n):
    return wide(n)
"""
)


@pytest.fixture(scope="module", params=[67108864, 0], ids=["shared memory", "messages"])
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder: Path = tmp_path_factory.mktemp("limit")
    (folder / "logs").mkdir()
    graph = Graph([op("negative", "x", "y")], [spec("x", -1)], [spec("y", -1)])
    write_servable(folder / "servables", "small", CONFIGURATION, {"minus": lambda _: graph}, ranks=2)
    with (
        PrivateBroker(folder / "broker", extra_conf={"max_message_size": str(LIMIT)}) as broker,
        running(
            System(broker.url, folder / "servables", ["small"], folder / "logs", plane_bytes=request.param)
        ) as system,
    ):
        yield system


def row(size: int, times: int) -> dict[str, np.ndarray]:
    return {"x": np.arange(size, dtype=np.float32), "times": np.array(times)}


def check(result: list[dict[str, np.ndarray]], size: int, times: int) -> None:
    np.testing.assert_array_equal(result[0]["y"], np.tile(-np.arange(size, dtype=np.float32), times))


def test_what_is_too_large_fails_alone(system: System) -> None:
    """Whether it is a request or a reply, and again when it is known."""
    wrong: list[RankmqError | AssertionError] = []
    over = threading.Event()

    def go_on(number: int) -> None:
        try:
            with system.client("small", "minus") as client:
                while not over.is_set():
                    check(client.infer(row(100 + number, 2)), 100 + number, 2)
        except (RankmqError, AssertionError) as error:
            wrong.append(error)

    threads = [threading.Thread(target=go_on, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    with system.client("small", "minus") as client:
        for _ in range(2):
            beside = client.infer_async(row(10, 3))
            with pytest.raises(LimitExceeded, match=f"the broker takes {LIMIT}"):
                client.infer(row(LIMIT, 1))
            check(beside.result(30), 10, 3)
            with pytest.raises(
                (LimitExceeded, InstancesFailed), match=f"the broker takes {LIMIT}|more than {2 * LIMIT}:"
            ):
                client.infer(row(1000, 1000))
            check(client.infer(row(1000, 10)), 1000, 10)
    over.set()
    for thread in threads:
        thread.join(30)
    assert not wrong
    assert system.log.count("larger than configured max size") <= 2  # one connection over a reply, if not over a task


@pytest.mark.parametrize("method", ["wide_out", "wide_in", "wide_pipeline"])
@pytest.mark.parametrize("n", [1 << 40, 1 << 31], ids=["4 TB", "8 GB"])
def test_what_no_memory_holds_fails_alone(system: System, method: str, n: int) -> None:
    """An array that was broadcast takes no memory, until it is written out."""
    epoch = system.group("small").epoch
    with system.client("small", "minus") as client, system.client("small", method) as wide:
        beside = client.infer_async(row(10, 3))
        with pytest.raises(LimitExceeded, match=f"{4 * n} bytes for a row, and no reply or step can carry more than"):
            wide.infer({"n": np.array(n)})
        check(beside.result(30), 10, 3)
        check(client.infer(row(100, 2)), 100, 2)
        np.testing.assert_array_equal(np.abs(wide.infer({"n": np.array(3)})[0]["y"]), [1, 1, 1])
    assert system.group("small").epoch == epoch
    assert "a defect" not in system.log
