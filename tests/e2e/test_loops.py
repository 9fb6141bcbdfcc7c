"""Loops on ranks of real processes: whoever joins or leaves the batch, every row gives what it gives alone."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from rankmq.schemas.errors import InstancesFailed, RankmqError, TurnsExhausted

from tests.e2e.conftest import Start
from tests.e2e.graphs import WORDS, Graph, op, spec, write_servable
from tests.e2e.systems import System, Vhosts, running

RANKS, WIDTH = 4, 8

CONFIGURATION = (
    WORDS
    + f"""
from rankmq.schemas.errors import TurnsExhausted

distributed.declare_servable(
    rank_size={RANKS},
    stage_size=1,
    with_batch_dim=True,
    batch_size=6,
    subgraphs=[
        subgraph("count.npz", outputs=[all_equal(), all_equal(), from_rank(2)]),
        subgraph("divided.npz", inputs=[shard(1), replicate()], outputs=[concat(1)]),
    ],
)

@register.register_method(output_names=["all", "total"])
def count(total, step, limit, times):
    return register.repeat(
        total, step, limit, times=times, at_most=40, feed={{"total": "after"}}, until="reached", collect="after",
        last=0, slice_turns=4,
    )

@register.register_method(output_names=["total"])
def settle(total, step, limit):
    return register.repeat(total, step, limit, at_most=40, feed={{"total": "after"}}, until="reached", last="after")

settling = PipelineServable("loops", "settle")

@register.register_pipeline(output_names=["total"])
def settled_or_not(total, step, limit):
    try:
        return settling.run(total, step, limit)
    except TurnsExhausted:
        return -total

@register.register_method(output_names=["all", "x"])
def divided(x, factor):
    return register.repeat(x, factor, subgraph=1, times=6, feed={{"x": "y"}}, collect=[0], last=[0], slice_turns=4)
"""
)


def counting(rank: int) -> Graph:
    """total + step, and whether its first element is above the limit's."""
    return Graph(
        [
            op("add", "total step", "after"),
            op("negative", "limit", "minus"),
            op("add", "after minus", "above"),
            op("relu", "above", "left"),
            op("slice", "left", "first", axis=1, start=0, stop=1),
            op("cast", "first", "reached", dtype="bool"),
        ],
        [spec("total", -1, WIDTH), spec("step", -1, WIDTH), spec("limit", -1, WIDTH)],
        [spec("after", -1, WIDTH), spec("reached", -1, 1, dtype="bool"), spec("left", -1, WIDTH)],
    )


def dividing(rank: int) -> Graph:
    """Each rank has some columns of x, and multiplies them: by its own weights, and by the factor."""
    part = WIDTH // RANKS
    return Graph(
        [op("multiply", "x w", "p"), op("multiply", "p factor", "y")],
        [spec("x", -1, part), spec("factor", -1, 1)],
        [spec("y", -1, part)],
        {"w": WEIGHTS[rank * part : (rank + 1) * part]},
    )


WEIGHTS = np.linspace(0.5, 1.5, WIDTH, dtype=np.float32)


def counted(total: np.ndarray, step: np.ndarray, limit: np.ndarray, times: int) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    while len(found) < times:
        total = total + step
        found.append(total)
        if total[0] > limit[0]:
            break
    return found


@pytest.fixture(scope="module")
def system(vhosts: Vhosts, tmp_path_factory: pytest.TempPathFactory) -> System:
    directory, logs = tmp_path_factory.mktemp("loops"), tmp_path_factory.mktemp("logs")
    write_servable(directory, "loops", CONFIGURATION, {"count": counting, "divided": dividing}, ranks=RANKS)
    with running(System(vhosts.url(), directory, ["loops"], logs)) as system:
        yield system


def a_row(random: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "total": random.integers(0, 9, WIDTH).astype(np.float32),
        "step": random.integers(1, 5, WIDTH).astype(np.float32),
        "limit": random.integers(5, 90, WIDTH).astype(np.float32),
        "times": np.int32(random.integers(1, 41)),
    }


def check(answer: dict[str, np.ndarray], row: dict[str, np.ndarray]) -> None:
    wanted = counted(row["total"], row["step"], row["limit"], int(row["times"]))
    np.testing.assert_array_equal(answer["all"], wanted)
    np.testing.assert_array_equal(answer["total"], wanted[-1])


def test_rows_that_come_at_any_time_give_what_they_give_alone(system: System) -> None:
    wrong: list[str] = []
    steps = sum(rank.step + 1 for rank in system.group("loops").ranks) // RANKS
    turns = [0]
    with system.client("loops", "count") as client:

        def ask(seed: int) -> None:
            random = np.random.default_rng(seed)
            for _ in range(6):
                time.sleep(float(random.uniform(0, 0.03)))
                rows = [a_row(random) for _ in range(random.integers(1, 4))]
                for row, answer in zip(rows, client.infer(rows), strict=True):
                    turns[0] += len(answer["all"])
                    try:
                        check(answer, row)
                    except AssertionError as error:
                        wrong.append(f"seed {seed}: {error}")

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not wrong
    ran = sum(rank.step + 1 for rank in system.group("loops").ranks) // RANKS - steps
    assert ran < turns[0] / 4, f"{ran} steps for {turns[0]} turns: not a step a turn, nor a slice for each row"


def test_what_is_divided_stays_on_its_ranks(system: System) -> None:
    x, factor = np.arange(WIDTH, dtype=np.float32), np.array([2], np.float32)
    with system.client("loops", "divided") as client:
        (answer,) = client.infer({"x": x, "factor": factor})
    wanted = [x]
    for _ in range(6):
        wanted.append(wanted[-1] * WEIGHTS * factor)
    np.testing.assert_array_equal(answer["all"], wanted[1:])
    np.testing.assert_array_equal(answer["x"], wanted[-1])


def test_times_that_cannot_be(system: System) -> None:
    row = a_row(np.random.default_rng(3))
    with system.client("loops", "count") as client, pytest.raises(InstancesFailed) as caught:
        client.infer([row, {**row, "times": np.int32(41)}, {**row, "times": np.float32(2)}])
    failed = caught.value
    assert "from 0 to 40, not 41" in str(failed)
    with system.client("loops", "count") as client:
        (answer,) = client.infer({**row, "times": np.int32(0)})
        assert answer["all"].shape == (0, WIDTH)
        np.testing.assert_array_equal(answer["total"], row["total"])


def test_a_row_whose_loop_does_not_end_in_time_fails_alone(system: System) -> None:
    def a_row(turns: int, step: float = 2) -> dict[str, np.ndarray]:
        total, steps = np.full(WIDTH, 3, np.float32), np.full(WIDTH, step, np.float32)
        return {"total": total, "step": steps, "limit": total + steps * (turns - 1)}

    with system.client("loops", "settle") as client:
        with pytest.raises(InstancesFailed) as caught:
            client.infer([a_row(40), a_row(41), a_row(1), a_row(9, step=0), a_row(17)])
        with pytest.raises(TurnsExhausted):
            client.infer(a_row(1000))
    with system.client("loops", "settled_or_not") as client:
        ends, goes_on = client.infer([a_row(1), a_row(1000)])
    assert (ends["total"][0], goes_on["total"][0]) == (5, -3)
    last, late, first, endless, some = caught.value.results
    for turns, answer in ((40, last), (1, first), (17, some)):
        assert not isinstance(answer, RankmqError)
        np.testing.assert_array_equal(answer["total"], np.full(WIDTH, 3 + 2 * turns))
    for error in (late, endless):
        assert isinstance(error, TurnsExhausted)
        assert "subgraph 0 did not end: its output 'reached' was not set in 40 turns" in error.message


def test_a_rank_that_dies_in_the_middle_of_loops(start: Start, tmp_path: Path) -> None:
    # Given rows in a loop that sleeps in each turn
    slow = Graph(
        [op("sleep", "total", "t", milliseconds=20), op("add", "t step", "after")],
        [spec("total", -1, WIDTH), spec("step", -1, WIDTH)],
        [spec("after", -1, WIDTH)],
    )
    method = """
distributed.declare_servable(rank_size=2, stage_size=1, with_batch_dim=True)
@register.register_method(output_names=["all"])
def count(total, step):
    return register.repeat(total, step, times=40, feed={0: 0}, collect=0, slice_turns=4)
"""
    write_servable(tmp_path, "slow", WORDS + method, {"slow": lambda rank: slow}, ranks=2)
    system = start("slow")
    rows = [{"total": np.full(WIDTH, n, np.float32), "step": np.ones(WIDTH, np.float32)} for n in range(3)]
    with system.client("slow", "count") as client:
        pending = client.infer_async(rows)
        while system.group("slow").ranks[0].step < 2:
            time.sleep(0.05)
        # When a rank dies
        os.kill(system.group("slow").ranks[1].pid, signal.SIGKILL)
        # Then they are all right in the next epoch
        for row, answer in zip(rows, pending.result(60), strict=True):
            np.testing.assert_array_equal(answer["all"], [row["total"] + turn for turn in range(1, 41)])
    assert system.group("slow").epoch >= 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            'feed={"total": "after"}|feed={"sum": "after"}',
            "no input to feed is named 'sum'; there are: total, step",
        ),
        ('until="reached"|until="left"', "one bool or whole number a row, not float32 (8,)"),
        ("outputs=[concat(1)]|outputs=[sum()]", "it can be fed only from an output with concat(1)"),
    ],
)
def test_a_loop_that_its_graph_cannot_run_is_refused(build: Start, tmp_path: Path, change: str, says: str) -> None:
    before, after = change.split("|")
    assert before in CONFIGURATION
    text = CONFIGURATION.replace(before, after)
    write_servable(tmp_path, "loops", text, {"count": counting, "divided": dividing}, ranks=RANKS)
    system = build("loops")
    with system:
        assert system.orchestrator.ended() == 5
        assert says in system.orchestrator.said
        assert "servable_config.py:" in system.orchestrator.said
        assert "Traceback" not in system.orchestrator.said
        system.destroy()
