"""Graphs that users export, rewritten, and run by MindSpore in several processes."""

import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rankmq.schemas.tensors import BFLOAT16
from rankmq.workers.collectives import CollectivesUnavailable, rewrite, self_test
from rankmq.workers.collectives import library as compiled
from rankmq.workers.collectives.build import find_compiler

from .collective_ranks import Rank, Ranks, new_name, reduced, values

pytest.importorskip("mindspore")
pytestmark = [
    pytest.mark.mindspore,
    pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler"),
]

SIZE = 4


@pytest.fixture(scope="session")
def library():
    return compiled()  # in this user's cache, as for everybody: it takes seconds


@pytest.fixture(scope="module")
def pool(library):
    ranks = Ranks(library, SIZE)
    yield ranks
    ranks.close()


@pytest.fixture
def ranks(pool):
    pool.open()
    return pool


@pytest.fixture
def graph(tmp_path, library):
    """Exports a cell, and rewrites it."""
    from . import collective_cells as cells

    def make(name: str, *inputs: Any, found: int | None = None, **options: Any) -> Path:
        file = cells.export(getattr(cells, name)(SIZE, **options), tmp_path / f"{name}.mindir", *inputs)
        model = cells.parse(file.read_bytes())
        count = rewrite(model, library, SIZE)
        assert count == found or found is None
        out = tmp_path / f"{name}_rewritten.mindir"
        out.write_bytes(model.SerializeToString())
        return out

    return make


# -------------------------------------------------------------------------------- what happens in the ranks' processes


def run(rank: Rank, file: Path, calls: list[tuple[np.ndarray, ...]], shape: tuple[Any, ...] = ()) -> list[Any]:
    """The outputs of a graph, for each of its calls; the graph stays for calls to come."""
    import mindspore as ms

    graphs = rank.__dict__.setdefault("graphs", {})
    if file not in graphs:
        ms.set_context(mode=ms.GRAPH_MODE)
        graphs[file] = ms.nn.GraphCell(ms.load(str(file)))
        if shape:
            graphs[file].set_inputs(ms.Tensor(shape=list(shape), dtype=ms.Tensor(calls[0][0]).dtype))
    out = []
    for arrays in calls:
        outputs = graphs[file](*(tensor(it) for it in arrays))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        out.append([array(it) for it in outputs])
    return out


def tensor(given: np.ndarray) -> Any:
    import mindspore as ms

    if given.dtype == BFLOAT16:
        return ms.Tensor.convert_bytes_to_tensor(given.tobytes(), given.shape, ms.bfloat16)
    return ms.Tensor(given)


def array(given: Any) -> np.ndarray:
    import mindspore as ms

    if not isinstance(given, ms.Tensor):  # a graph whose only output is a scalar
        return np.asarray(given)
    if given.dtype == ms.bfloat16:
        return np.frombuffer(given.get_bytes(), BFLOAT16).reshape(given.shape)
    return given.asnumpy()


# ------------------------------------------------------------------------------------------------------ right results


def test_every_collective_with_any_number_of_rows(ranks, graph):
    """One compile serves every size: larger than a slot, and none at all."""
    file = graph("Every", ("float32", (None, 5)), found=5)
    given = [[values("float32", rank, seed, (rows, 5)) for rank in range(SIZE)] for seed, rows in enumerate(ROWS)]
    calls = [[(arrays[rank],) for arrays in given] for rank in range(SIZE)]
    results = ranks.all("do", [run] * SIZE, [file] * SIZE, calls, [(None, 5)] * SIZE)
    for rank, outputs in enumerate(results):
        for arrays, (summed, gathered, first, second, share) in zip(given, outputs, strict=True):
            assert (summed == reduced(arrays, "sum")).all()
            assert (gathered == -np.concatenate(arrays)).all()
            assert (first == arrays[1]).all()
            assert (second == -arrays[1]).all()
            assert (share == np.split(reduced(arrays, "sum"), SIZE)[rank]).all()
    assert ranks.all("fault") == [None] * SIZE


ROWS = [4, 8, 0, 400, 120_000, 4, 12]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "int16", "int32", "int64"])
@pytest.mark.parametrize("reduction", ["sum", "max", "min"])
def test_reductions_of_other_types(ranks, graph, dtype, reduction):
    file = graph("Reduced", (dtype, (3, 2)), reduction=reduction)
    given = [values(dtype, rank, 0, (3, 2)) for rank in range(SIZE)]
    for [[out]] in ranks.all("do", [run] * SIZE, [file] * SIZE, [[(it,)] for it in given]):
        assert out.tobytes() == reduced(given, reduction).tobytes()


@pytest.mark.parametrize("dtype", ["bool", "int8", "int64", "float16", "bfloat16"])
def test_other_types_can_be_gathered(ranks, graph, dtype):
    file = graph("Gathered", (dtype, (2, 3)), found=2)
    given = [values(dtype, rank, 0, (2, 3)) for rank in range(SIZE)]
    for [[gathered, sent]] in ranks.all("do", [run] * SIZE, [file] * SIZE, [[(it,)] for it in given]):
        assert gathered.tobytes() == np.concatenate(given).tobytes()
        assert sent.tobytes() == given[0].tobytes()


def test_a_scalar(ranks, graph):
    file = graph("Reduced", np.array(1.0, np.float32))
    calls = [[(np.array(rank, np.float32),)] for rank in range(SIZE)]
    for [[out]] in ranks.all("do", [run] * SIZE, [file] * SIZE, calls):
        assert out.shape == ()
        assert float(out) == 6.0


def test_collectives_that_could_run_in_any_order_run_in_the_same(ranks, graph):
    """They are alike, so that nobody would notice if two were taken for each other, but for the result."""
    file = graph("Independent", ("float32", (3, 64)), found=12)
    given = [[values("float32", rank, seed, (3, 64)) for rank in range(SIZE)] for seed in range(40)]
    calls = [[(arrays[rank],) for arrays in given] for rank in range(SIZE)]
    for outputs in ranks.all("do", [run] * SIZE, [file] * SIZE, calls):
        for arrays, [out] in zip(given, outputs, strict=True):
            expected = [reduced([it * (index + 1) for it in arrays], "sum") for index in range(12)]
            np.testing.assert_allclose(out, np.concatenate(expected, axis=1), rtol=1e-5, atol=1e-3)
    assert ranks.all("fault") == [None] * SIZE


def test_collectives_of_one_tensor_are_not_taken_for_the_same(ranks, graph):
    file = graph("Twice", ("int32", (5,)))
    given = [values("int32", rank, 0, (5,)) for rank in range(SIZE)]
    for [[first, second]] in ranks.all("do", [run] * SIZE, [file] * SIZE, [[(it,)] for it in given]):
        assert (first == given[0]).all()
        assert (second == given[1]).all()


@pytest.mark.parametrize("turns", [0, 1, 5])
def test_collectives_in_branches_and_loops(ranks, graph, turns):
    file = graph("Branching", np.ones(3, np.float32), np.array(turns, np.int32), found=3)
    given = [values("int8", rank, turns, (3,)).astype(np.float32) for rank in range(SIZE)]
    expected = reduced(given, "sum")
    for _ in range(turns):
        expected = SIZE * expected + reduced(given, "sum")
    calls = [[(it, np.array(turns, np.int32))] for it in given]
    for [[out]] in ranks.all("do", [run] * SIZE, [file] * SIZE, calls):
        assert (out == expected).all()


# ------------------------------------------------------------------------------------------------------------- faults


def test_a_graph_outlives_the_ranks(ranks, graph):
    """Given a killed rank, the outputs of the others are void, and the same graphs go on in the next group."""
    file = graph("Every", ("float32", (None, 5)))
    ones = np.ones((4, 5), np.float32)
    call = ("do", run, file, [(ones,)], (None, 5))
    ranks.all(*call)
    ranks.begin(0, *call)
    ranks.begin(1, *call)
    ranks.begin(3, *call)
    time.sleep(0.2)
    killed_at = ranks.signal(2, signal.SIGKILL)
    for rank in (0, 1, 3):
        [outputs] = ranks.result(rank)
        assert all(np.isnan(output).all() for output in outputs[:1] + outputs[2:])
    assert time.monotonic() - killed_at < 10.0  # of 20
    assert {fault.kind for fault in ranks.all("fault", but=[2])} == {"dead"}
    ranks.replace(2)
    ranks.open()
    assert ranks.all("fault") == [None] * SIZE
    for [[summed, *_]] in ranks.all(*call):
        assert (summed == SIZE).all()


def test_integers_are_void_as_zeros(ranks, graph):
    file = graph("Reduced", ("int32", (3,)))
    call = ("do", run, file, [(np.ones(3, np.int32),)])
    ranks.all(*call)
    ranks.all("abort")
    for [[out]] in ranks.all(*call):
        assert (out == 0).all()
    assert {fault.kind for fault in ranks.all("fault")} == {"aborted"}


def test_graphs_of_the_ranks_that_disagree(ranks, graph):
    """A rank with another file: all are told what each does, and no graph raises."""
    one, other = graph("Reduced", ("float32", (3,))), graph("Gathered", ("float32", (3,)))
    ranks.all(
        "do", [run] * SIZE, [other if rank == 1 else one for rank in range(SIZE)], [[(np.ones(3, np.float32),)]] * SIZE
    )
    messages = {fault.message for fault in ranks.all("fault")}
    assert len(messages) == 1
    assert "rank 0 is at AllReduce(sum) of 3 float32" in (message := messages.pop())
    assert "rank 1 at AllGather of 3 float32" in message


def test_a_group_of_another_size_than_the_graph_was_compiled_for(ranks, graph):
    file = graph("Gathered", ("float32", (3,)))
    call = ("do", run, file, [(np.ones(3, np.float32),)])
    ranks.all(*call)
    name = new_name()
    for rank in range(SIZE - 1):
        ranks.begin(rank, "open", name, rank, SIZE - 1)
    for rank in range(SIZE - 1):
        ranks.result(rank)
    ranks.all(*call, but=[SIZE - 1])
    for fault in ranks.all("fault", but=[SIZE - 1]):
        assert fault.kind == "unsupported"
    assert "gives 9 elements in this group, the graph expects 12" in fault.message


# ---------------------------------------------------------------------------------------------------------- self-test


@pytest.fixture
def mindspore():
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    return ms


def parse(content):
    from .collective_cells import parse as parsed

    return parsed(content)


def test_this_mindspore_runs_them_and_that_is_remembered(mindspore, tmp_path_factory):
    mine = compiled(tmp_path_factory.mktemp("own"))
    self_test(mindspore, mine, parse=parse)

    def not_again(content):
        raise AssertionError("it was run again")

    self_test(mindspore, mine, parse=not_again)
    other_version = SimpleNamespace(**{**vars(mindspore), "__version__": "0.0"})
    with pytest.raises(AssertionError, match="run again"):
        self_test(other_version, mine, parse=not_again)
    with pytest.raises(AssertionError, match="run again"):
        self_test(mindspore, mine, parse=not_again, again=True)


def test_files_of_another_kind_are_noticed(mindspore, library):
    def without_names(content):
        model = parse(content)
        for primitive in model.primitives:
            primitive.name += "?"
        return model

    with pytest.raises(CollectivesUnavailable, match="0 of 4 collectives were found"):
        self_test(mindspore, library, parse=without_names, again=True)


def test_graphs_that_do_not_load_are_noticed(mindspore, library):
    class Broken(type(mindspore)):
        def __getattr__(self, name):
            return getattr(mindspore, name)

        def load(self, file):
            raise RuntimeError("this file is not of my kind\nsecond line")

    with pytest.raises(CollectivesUnavailable, match="this MindSpore does not run them: this file is not of my kind"):
        self_test(Broken("broken"), library, parse=parse, again=True)


def test_wrong_results_are_noticed(mindspore, library):
    def with_max_for_negate(content):
        model = parse(content)
        for primitive in model.primitives:
            if primitive.op_type == "Neg":
                primitive.op_type = "Abs"
        return model

    with pytest.raises(CollectivesUnavailable, match="a graph gave a wrong result"):
        self_test(mindspore, library, parse=with_max_for_negate, again=True)
