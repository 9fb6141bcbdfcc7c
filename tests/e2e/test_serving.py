"""Requests answered: right, by the method that was asked for, over every layout."""

import os
import threading
from pathlib import Path

import numpy as np
import psutil

from tests.e2e.conftest import Start
from tests.e2e.gallery import LATER_WEIGHTS, R13, write_matmul
from tests.e2e.layouts import PLAIN, random
from tests.e2e.systems import System, wait_until

ONES = np.ones((128, 96), np.float32)
W0, W1 = (np.full((96, 16), value, np.float32) for value in (0.5, 1.5))


# ------------------------------------------------------------------------------------------------------ the original


def test_the_numbers_of_the_original(gallery: System) -> None:
    with gallery.client("matmul", "predict") as client:
        [got] = client.infer({"x": ONES, "y": ONES})
    for name, value in (("x", -96), ("z", -144)):
        assert got[name].shape == (128, 16)
        assert got[name].dtype == np.float32
        assert (got[name] == value).all()


def test_the_original_with_both_graphs_of_the_listing(start: Start, tmp_path) -> None:
    """The listing builds its second model of the first network, so that both have weights of 0.5."""
    write_matmul(tmp_path, 0.5, 0.5)
    system = start("matmul")
    with system.client("matmul", "predict") as client:
        [got] = client.infer({"x": ONES, "y": ONES})
    assert (got["x"] == -96).all()
    assert (got["z"] == -48).all()


def test_only_import_lines_of_the_original_are_changed(gallery: System) -> None:
    served = (gallery.directory / "matmul/servable_config.py").read_text().splitlines()
    changed = [(one, two) for one, two in zip(R13.splitlines(), served, strict=True) if one != two]
    assert len(changed) == 3
    assert all("import" in one and "import" in two for one, two in changed)


def test_methods_are_callable_beside_pipelines(gallery: System) -> None:
    x = random(128, 96)
    with gallery.client("matmul", "fun1") as fun1, gallery.client("matmul", "fun2") as fun2:
        np.testing.assert_allclose(fun1.infer({"x": x})[0]["y"], -(2 * x) @ W0, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(fun2.infer({"x": x})[0]["y"], -x @ W1, rtol=1e-4, atol=1e-4)


def test_the_later_words(gallery: System) -> None:
    x, y = random(4, 12), random(4, 12)
    with gallery.client("later", "predict") as predict, gallery.client("later", "chain") as chain:
        [got] = predict.infer({"x": x, "y": y})
        chained = chain.infer([{"x": x}, {"x": y}, {"x": x + y}])
    z1, z2 = -x @ LATER_WEIGHTS[0], -y @ LATER_WEIGHTS[1]
    np.testing.assert_allclose(got["sum"], z1 + z2, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got["difference"], z1 - z2, rtol=1e-4, atol=1e-4)
    for given, answer in zip((x, y, x + y), chained, strict=True):
        np.testing.assert_allclose(answer["y"], -given @ LATER_WEIGHTS[0] / 2, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------- many, and at once


def test_two_thousand_requests_from_four_threads(gallery: System) -> None:
    """64 in flight, every input different: each answer is right, and belongs to its question."""
    each, in_flight = 500, 16
    wrong: list[str] = []

    def produce(seed: int) -> None:
        rng = np.random.default_rng(seed)
        servable, method, names = [
            ("matmul", "fun1", "x"),
            ("matmul", "fun2", "x"),
            ("caller", "both", "xy"),
            ("layouts8", "shard_columns", "x"),
        ][seed]
        places = threading.Semaphore(in_flight)
        asked = []
        with gallery.client(servable, method) as client:
            for _ in range(each):
                shape = (24, 16) if servable == "layouts8" else (128, 96)
                row = {name: rng.standard_normal(shape).astype(np.float32) for name in names}
                places.acquire(timeout=60)
                future = client.infer_async(row)
                future.add_done_callback(lambda _: places.release())
                asked.append((row, future))
            for number, (row, future) in enumerate(asked):
                [answer] = future.result(60)
                if not right(method, row, answer):
                    wrong.append(f"{method} {number}")

    def right(method: str, row: dict, answer: dict) -> bool:
        x = row["x"]
        expected = {
            "fun1": lambda: {"y": -(2 * x) @ W0},
            "fun2": lambda: {"y": -x @ W1},
            "both": lambda: {"x": -(2 * x) @ W0, "z": -row["y"] @ W1},
            "shard_columns": lambda: {"y0": PLAIN["shard_columns"].expected(8, x)[0]},
        }[method]()
        same = [np.allclose(answer[name], value, rtol=1e-3, atol=1e-3) for name, value in expected.items()]
        return answer.keys() == expected.keys() and all(same)

    before = gallery.status().served
    threads = [threading.Thread(target=produce, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    wait_until(lambda: gallery.status().served - before == 4 * each, "all counted as served")


def test_one_client_serves_many_threads(gallery: System) -> None:
    answers: dict[int, float] = {}
    with gallery.client("versioned", "scale") as client:

        def ask(number: int) -> None:
            answers[number] = float(client.infer({"x": np.array([number], np.float32)})[0]["y"][0])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert answers == {number: 3.0 * number for number in range(32)}


def test_a_slow_pipeline_holds_up_nobody(gallery: System, tmp_path: Path) -> None:
    x, door = random(24, 16), tmp_path / "open"
    with gallery.client("caller", "held") as held, gallery.client("caller", "both") as both:
        # Given eight pipelines that wait for a door to open
        waiting = [held.infer_async({"x": x, "door": str(door)}) for _ in range(8)]
        # When others come after them
        quick = [both.infer_async({"x": ONES, "y": ONES}) for _ in range(20)]
        # Then those are answered while the door is shut
        assert all((future.result(60)[0]["z"] == -144).all() for future in quick)
        assert not any(future.done() for future in waiting)
        # And the eight when it opens
        door.touch()
        for future in waiting:
            np.testing.assert_allclose(
                future.result(60)[0]["y"], PLAIN["shard_columns"].expected(2, x)[0], rtol=1e-4, atol=1e-4
            )


# ----------------------------------------------------------------------------------- several servables and versions


def test_several_servables_called_in_turn(gallery: System) -> None:
    x = random(24, 16)
    with gallery.client("matmul", "fun2") as matmul, gallery.client("layouts2", "agree") as layouts:
        for turn in range(1, 4):
            assert (matmul.infer({"x": turn * ONES})[0]["y"] == -144 * turn).all()
            np.testing.assert_allclose(
                layouts.infer({"x": turn * x})[0]["y0"], PLAIN["agree"].expected(2, turn * x)[0], rtol=1e-4, atol=1e-4
            )


def test_a_pipeline_calls_methods_of_other_servables(gallery: System) -> None:
    x, y = random(128, 96), random(128, 96)
    with gallery.client("caller", "both") as client:
        got = client.infer([{"x": x, "y": y}, {"x": y, "y": x}])
    for (one, two), answer in zip(((x, y), (y, x)), got, strict=True):
        np.testing.assert_allclose(answer["x"], -(2 * one) @ W0, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(answer["z"], -two @ W1, rtol=1e-4, atol=1e-4)


def test_a_pipeline_loops_for_as_long_as_its_data_say(gallery: System) -> None:
    with gallery.client("caller", "until_small") as client:
        got = client.infer([{"x": np.array([start], np.float32)} for start in (0.5, 4.0, 1000.0)])
    assert [int(answer["turns"]) for answer in got] == [0, 2, 10]
    assert [float(answer["y"][0]) for answer in got] == [0.5, 1.0, 1000 / 1024]


def test_versions(gallery: System) -> None:
    x = np.arange(3, dtype=np.float32)
    for version, factor in ((1, 2.0), (2, 3.0), (0, 3.0)):
        with gallery.client("versioned", "scale", version) as client:
            assert (client.infer({"x": x})[0]["y"] == factor * x).all(), version
    with gallery.client("caller", "versions") as client:
        [got] = client.infer({"x": x})
    assert [got[name].tolist() for name in ("old", "new", "chained")] == [[0, 2, 4], [0, 3, 6], [0, 6, 12]]


# ------------------------------------------------------------------------------------------------------------- ranks


def test_eight_ranks_are_eight_processes_with_a_queue_each(gallery: System, broker) -> None:
    before = gallery.group("matmul")
    with gallery.client("matmul", "fun1") as client:
        for _ in range(5):
            client.infer({"x": ONES})
    after = gallery.group("matmul")
    listed = broker.ctl("list_queues", "--vhost", gallery.vhost, "--quiet", "name", "exclusive", "consumers", "pid")
    queues = {line.split("\t")[0]: line.split("\t")[1:] for line in listed.splitlines()}

    assert [rank.rank for rank in after.ranks] == list(range(8))
    assert {rank.state for rank in after.ranks} == {"ready"}
    assert len({rank.pid for rank in after.ranks}) == len({rank.queue for rank in after.ranks}) == 8
    assert {name for name in queues if name.startswith("rankmq.matmul.v1.g0.rank.")} == {r.queue for r in after.ranks}
    for rank in after.ranks:
        assert queues[rank.queue][:2] == ["true", "1"]
        assert rank.queue.startswith(f"rankmq.matmul.v1.g0.rank.{rank.rank}.")
        assert rank.host == os.uname().nodename
    family = {process.pid for process in gallery.agents.family()}
    assert {rank.pid for rank in after.ranks} <= family - {gallery.agents.pid}
    assert all(psutil.pid_exists(rank.pid) for rank in after.ranks)
    assert after.step - before.step == 5
    assert {rank.step for rank in after.ranks} == {after.step - 1}  # each executed every step


def test_nothing_is_left_over(gallery: System) -> None:
    """After all of this: no defect was logged, nothing waits, nothing is unacknowledged."""
    status = gallery.status()
    assert status.in_flight == 0
    assert all(group.in_flight == group.waiting == 0 and group.epoch == 1 for group in status.groups)
    assert {queue.messages for queue in status.queues} == {0}
    assert "defect" not in gallery.log
