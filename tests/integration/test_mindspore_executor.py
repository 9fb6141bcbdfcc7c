"""Real graphs in MindSpore: read and run."""

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rankmq.engine.loader import load_servable
from rankmq.schemas.errors import AlreadyRunning, GraphFailed, GroupError, ModelError
from rankmq.schemas.messages import GraphPlan, TensorSpec
from rankmq.schemas.tensors import BFLOAT16, bfloat16_to_float32, float32_to_bfloat16
from rankmq.workers.rendezvous import await_server, check_free

from .executor_ranks import EXPORT, export_example, files_of

pytest.importorskip("mindspore")
pytestmark = pytest.mark.mindspore

ROOT = Path(__file__).parents[2]


def spec(name, *shape, dtype="float32"):
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def ready(executor, *paths, stacked=False, unstacked_inputs=()):
    executor.load(paths, [GraphPlan(stacked=stacked, unstacked_inputs=unstacked_inputs)] * len(paths))
    executor.open_group("none", 0, 1)
    return executor.warm_up()


X = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)


# ------------------------------------------------------------------------------------------------- reading a file


def test_the_module_imports_mindspore_and_does_nothing_else():
    code = """
import psutil, sys, threading
import rankmq.workers.mindspore_executor as backend
import numpy
assert threading.active_count() == 1
before = psutil.Process().num_threads()
import mindspore
assert not psutil.Process().net_connections()
print(before)
"""
    environment = {key: value for key, value in os.environ.items() if key != "GLOG_v"}
    environment["PYTHONPATH"] = str(ROOT / ".dev")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert int(run.stdout) <= os.cpu_count()  # numpy's own for linear algebra, no more


def test_a_file_is_described_without_being_run(executor, example):
    model, _ = example
    infos = executor.inspect(files_of(model, 1))
    assert [info.file for info in infos] == ["matmul_0.mindir", "matmul_1.mindir"]
    for info, path in zip(infos, files_of(model, 1), strict=True):
        assert info.digest == hashlib.sha256(path.read_bytes()).hexdigest()
        assert info.inputs == (spec("inputs", 128, 96),)
        assert info.outputs == (spec("output0", 128, 16),)
        assert info.collectives


def test_tuples_are_laid_flat_and_any_size_is_minus_one(executor, graphs):
    nested, any_rows, bfloat16, scalar = executor.inspect(
        [graphs / f"{name}.mindir" for name in ("nested", "any_rows", "doubled_bfloat16", "scalar")]
    )
    assert nested.inputs == (spec("x", 4, 3), spec("y", 4, 3))
    assert nested.outputs == tuple(spec(f"output{index}", 4, 3) for index in range(3))
    assert any_rows.inputs == (spec("x", -1, 3),)
    assert any_rows.outputs == (spec("output0", -1, 3),)
    assert bfloat16.outputs == (spec("output0", 4, 3, dtype="bfloat16"),)
    assert scalar.inputs == (spec("x"),)
    assert not nested.collectives


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda good: good[: len(good) // 2], "not a MINDIR file, or is cut off"),
        (lambda good: b"", "holds no graph"),
        (lambda good: b"\x07" * 100, "not a MINDIR file"),
        (lambda good: b"PK\x03\x04" + good, "not a MINDIR file"),
    ],
)
def test_an_unreadable_file_is_named(executor, graphs, tmp_path, content, says):
    path = tmp_path / "bad.mindir"
    path.write_bytes(content((graphs / "matmul.mindir").read_bytes()))
    with pytest.raises(ModelError) as caught:
        executor.inspect([path])
    assert str(path) in caught.value.message
    assert says in caught.value.message
    assert "\n" not in caught.value.message


def test_a_missing_file_is_named(executor, tmp_path):
    with pytest.raises(ModelError, match=r"none\.mindir is missing"):
        executor.load([tmp_path / "none.mindir"], [])


@pytest.mark.parametrize(("name", "says"), [("any_rank", "any number of dimensions"), ("complex", "cannot be sent")])
def test_a_graph_whose_tensors_cannot_travel_is_refused(executor, graphs, name, says):
    with pytest.raises(ModelError, match=says):
        executor.inspect([graphs / f"{name}.mindir"])


# ------------------------------------------------------------------------------------------------------------ running


def test_it_computes(executor, graphs):
    from .mindir_cells import WEIGHT

    ready(executor, graphs / "matmul.mindir", graphs / "nested.mindir")
    (product,) = executor.run(0, [X])
    np.testing.assert_allclose(product, X @ WEIGHT, rtol=1e-5, atol=1e-6)
    total, difference, same = executor.run(1, [X, 2 * X])
    np.testing.assert_array_equal(total, 3 * X)
    np.testing.assert_array_equal(difference, -X)
    np.testing.assert_array_equal(same, X)


def test_inputs_may_be_views_of_a_message(executor, graphs):
    ready(executor, graphs / "nested.mindir")
    content = X.tobytes()
    read_only = np.frombuffer(content, np.float32).reshape(4, 3)
    unaligned = np.frombuffer(b"z" + content, np.float32, offset=1).reshape(4, 3)
    assert not read_only.flags.writeable
    assert not unaligned.flags.aligned
    for x in (read_only, unaligned, np.asfortranarray(X), np.stack([X, X], axis=1)[:, 0]):
        assert [output.tolist() for output in executor.run(0, [x, x])] == [
            (2 * X).tolist(),
            (0 * X).tolist(),
            X.tolist(),
        ]
    assert content == X.tobytes()


def test_outputs_own_their_memory(executor, graphs):
    ready(executor, graphs / "identity.mindir", graphs / "counter.mindir")
    x = X.copy()
    (first,) = executor.run(0, [x])
    x[:] = 9
    executor.run(0, [x])
    np.testing.assert_array_equal(first, X)
    one = np.ones(1, np.float32)
    (count,) = executor.run(1, [one])
    (next_count,) = executor.run(1, [one])
    assert next_count[0] - count[0] == 1


@pytest.mark.parametrize(
    "kind", ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float64"]
)
def test_every_dtype_passes_through(executor, graphs, kind):
    (info,) = ready(executor, graphs / f"identity_{kind}.mindir")
    x = np.array([[0, 1], [1, 0]], kind)
    (y,) = executor.run(0, [x])
    assert (y.dtype, y.tolist()) == (x.dtype, x.tolist())
    assert info.outputs == (spec("output0", 2, 2, dtype=kind),)


def test_bfloat16_goes_in_and_out(executor, graphs):
    (info,) = ready(executor, graphs / "doubled_bfloat16.mindir")
    x = float32_to_bfloat16(X)
    (y,) = executor.run(0, [x])
    assert info.inputs[0].dtype == info.outputs[0].dtype == "bfloat16"
    assert y.dtype == BFLOAT16
    np.testing.assert_array_equal(bfloat16_to_float32(y), 2 * bfloat16_to_float32(x))


def test_a_scalar(executor, graphs):
    ready(executor, graphs / "scalar.mindir")
    (y,) = executor.run(0, [np.array(3, np.float32)])
    assert y.shape == ()
    assert y == 6


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_a_scalar_that_a_graph_gives_is_of_the_graphs_dtype(executor, graphs, kind):
    """MindSpore gives numbers of Python's for them, which are of 64 bits whatever the graph computed in."""
    path, kinds = graphs / f"scalars_{kind}.mindir", [kind, "float32", "int64", "bool", kind]
    expected = tuple(spec(f"output{index}", dtype=dtype) for index, dtype in enumerate(kinds))
    assert executor.inspect([path])[0].outputs == expected
    (info,) = ready(executor, path)
    assert info.outputs == expected
    x = X.astype(kind)
    outputs = executor.run(0, [x])
    assert [(y.dtype.name, y.shape) for y in outputs] == [(dtype, ()) for dtype in kinds]
    total, constant, rows, flag, same = outputs
    np.testing.assert_allclose([total, same], x.sum(), rtol=1e-5)
    assert (constant, rows, flag) == (2.5, 4, True)


def test_a_graph_that_gives_one_scalar_and_nothing_else(executor, graphs):
    (info,) = ready(executor, graphs / "one_scalar.mindir")
    assert info.outputs == (spec("output0"),)
    (total,) = executor.run(0, [np.ones((4, 3), np.float32)])
    assert (total.dtype, total.shape, total) == (np.float32, (), 12)


@pytest.mark.parametrize("name", ["matmul", "any_rows"])
def test_any_number_of_rows_after_one_compilation(executor, graphs, name):
    from .mindir_cells import WEIGHT

    (info,) = ready(executor, graphs / f"{name}.mindir", stacked=name == "matmul")
    assert info.inputs == (spec("x", -1, 3),)
    assert info.outputs[0].shape[0] == -1
    slowest = 0.0
    for rows in (1, 2, 7, 64, 1000, 5):
        x = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
        began = time.perf_counter()
        (y,) = executor.run(0, [x])
        slowest = max(slowest, time.perf_counter() - began)
        expected = x @ WEIGHT if name == "matmul" else 2 * x
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert len(executor._cells[0].compile_cache) == 1, f"compiled again; slowest call {slowest:.3f} s"


def test_an_input_without_a_batch_axis_keeps_its_shape(executor, graphs):
    (info,) = ready(executor, graphs / "biased.mindir", stacked=True, unstacked_inputs=(1,))
    assert info.inputs == (spec("x", -1, 3), spec("bias", 3))
    assert info.outputs == (spec("output0", -1, 3), spec("output1"))
    bias = np.array([1, 2, 3], np.float32)
    y, total = executor.run(0, [X[:2], bias])
    np.testing.assert_array_equal(y, X[:2] + bias)
    assert total == 6


def test_a_scalar_cannot_be_stacked(executor, graphs):
    with pytest.raises(ModelError, match="without_batch_dim_inputs"):
        executor.load([graphs / "scalar.mindir"], [GraphPlan(stacked=True)])


def test_a_graph_that_cannot_take_another_batch_says_so_when_warmed_up(executor, graphs):
    executor.load([graphs / "rows.mindir"], [GraphPlan(stacked=True)])
    with pytest.raises(ModelError) as caught:
        executor.warm_up()
    assert "rows.mindir does not run: " in caught.value.message
    assert "\n" not in caught.value.message


def test_a_failing_call_harms_only_itself(executor, graphs):
    from .mindir_cells import WEIGHT

    ready(executor, graphs / "matmul.mindir")
    for wrong in (X[:3], X.astype(np.float64), X[:, :2]):
        with pytest.raises(GraphFailed, match=re.escape("matmul.mindir: input x must be float32 [4, 3]")):
            executor.run(0, [wrong])
    np.testing.assert_allclose(executor.run(0, [X])[0], X @ WEIGHT, rtol=1e-5, atol=1e-6)


def test_a_graph_in_which_an_operator_failed_serves_again_with_its_state(executor, graphs):
    ready(executor, graphs / "nines.mindir", stacked=True)
    three, six = np.ones((3, 3), np.float32), np.ones((6, 3), np.float32)
    before = executor.run(0, [three])[1][0]
    with pytest.raises(GraphFailed, match=r"^nines\.mindir: For .*Reshape"):
        executor.run(0, [np.ones((4, 3), np.float32)])
    for x in (three, six):
        y, count = executor.run(0, [x])
        assert y.shape == (len(x) // 3, 9)
    assert count[0] >= before + 2


def test_what_mindspore_says_comes_in_one_line(executor, graphs, monkeypatch):
    ready(executor, graphs / "matmul.mindir")
    monkeypatch.setattr("rankmq.workers.mindspore_executor.check_inputs", lambda info, inputs: None)
    with pytest.raises(GraphFailed) as caught:
        executor.run(0, [X[:, :2]])
    assert caught.value.message.startswith("matmul.mindir: For 'MatMul")
    assert "\n" not in caught.value.message


def test_loading_the_same_again_keeps_the_graphs(executor, graphs):
    path = graphs / "counter.mindir"
    ready(executor, path)
    (before,) = executor.run(0, [np.ones(1, np.float32)])
    executor.load([path], [GraphPlan()])
    (after,) = executor.run(0, [np.ones(1, np.float32)])
    assert after == before + 1


# ------------------------------------------------------------------------------------------------- the example's files


@pytest.mark.parametrize("form", ["sharded", "unsharded"])
def test_the_forms_without_a_group_agree_with_numpy(executor, tmp_path, form):
    model = export_example(tmp_path, "--form", form, "--rank-size", "4", "--random", "3")
    weights = np.load(model / "weights.npz")
    x = np.random.default_rng(0).normal(size=(128, 96)).astype(np.float32)
    expected = -(x @ weights["matmul_1"])
    parts = []
    for rank in range(4):
        path = files_of(model, rank)[1]
        (info,) = ready(executor, path)
        assert info.inputs == (spec("inputs", 128, 96),)
        parts += executor.run(0, [x])
    if form == "sharded":
        np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, rtol=1e-4, atol=1e-4)
        assert executor.inspect(files_of(model, 0))[0].inputs == (spec("inputs", 128, 24),)
    else:
        for part in parts:
            np.testing.assert_allclose(part, expected, rtol=1e-4, atol=1e-4)


def test_the_examples_servables_load_with_the_files_of_their_forms(tmp_path):
    for name, folder, options in (("matmul", "", ()), ("matmul_sharded", "matmul_sharded", ("--form", "sharded"))):
        shutil.copytree(EXPORT.parent / name, tmp_path / name, ignore=shutil.ignore_patterns("model"))
        model = export_example(tmp_path / folder, *options)
        servable = load_servable(tmp_path, name)
        assert servable.model_files == tuple(files_of(model, rank) for rank in range(8))
    assert str(servable.subgraph(0).input_layout(0)) == "shard(1)"
    assert str(servable.subgraph(1).output_layout(0)) == "concat(1)"


def test_exporting_again_overwrites(tmp_path):
    options = ("--form", "unsharded", "--rank-size", "1", "--weights")
    first = files_of(export_example(tmp_path, *options, "0.5", "0.5"), 0)[1]
    before = first.read_bytes()
    assert first.stat().st_mode & 0o222 == 0
    export_example(tmp_path, *options, "0.5", "1.5")
    assert first.read_bytes() != before


# ---------------------------------------------------------------------------------------------------------- in a group


def test_graphs_that_talk_do_not_run_alone(executor, example):
    model, _ = example
    executor.load(files_of(model, 0), [])
    with pytest.raises(ModelError, match="mccl_world_group"):
        executor.open_group("none", 0, 1)


def test_a_group_of_another_platform_is_refused(executor, graphs):
    executor.load([graphs / "foreign.mindir"], [])
    with pytest.raises(ModelError, match="group='mccl_world_group'"):
        executor.open_group("mccl", 0, 1, "127.0.0.1:1")


def test_communication_that_there_is_not_is_refused(executor, graphs):
    executor.load([graphs / "matmul.mindir"], [])
    with pytest.raises(GroupError, match="not 'smoke signals'"):
        executor.open_group("smoke signals", 0, 1)
    with pytest.raises(GroupError, match="needs a rank table"):
        executor.open_group("hccl", 0, 1)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AlreadyRunning, match=f"127.0.0.1:{port}"):
            check_free("127.0.0.1", port)
        await_server("127.0.0.1", port, time.monotonic() + 5)
    check_free("127.0.0.1", port)
    with pytest.raises(GroupError, match=f"nobody answers at 127.0.0.1:{port}"):
        await_server("127.0.0.1", port, time.monotonic() + 0.05)
