"""Graphs in numpy, and what all executors share: descriptions, batches, checked inputs, outputs of their own."""

import hashlib
import os
import re
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rankmq.schemas.errors import GraphFailed, GroupError, ModelError
from rankmq.schemas.messages import GraphPlan, TensorSpec
from rankmq.schemas.tensors import BFLOAT16, float32_to_bfloat16, numpy_dtype
from rankmq.workers.numpy_executor import OPERATIONS, NumpyExecutor, Operation, write_graph


def spec(name, *shape, dtype="float32"):
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def loaded(path, *plans):
    executor = NumpyExecutor()
    executor.load([path], plans)
    executor.warm_up()
    return executor


@pytest.fixture
def matmul(tmp_path):
    """-(x @ w), x of (4, 3)."""
    path = tmp_path / "matmul.npz"
    weight = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    operations = [Operation("matmul", ("x", "w"), "p"), Operation("negative", ("p",), "y")]
    write_graph(path, operations, {"w": weight}, [spec("x", 4, 3)], [spec("y", 4, 2)])
    return path, weight


def one(tmp_path, operation, inputs, outputs, weights=None):
    """A graph of one operation."""
    path = tmp_path / "one.npz"
    write_graph(path, [operation], weights or {}, inputs, outputs)
    return loaded(path)


# ------------------------------------------------------------------------------------------------------ descriptions


def test_a_graph_is_described_without_being_run(matmul):
    path, _ = matmul
    (info,) = NumpyExecutor().inspect([path])
    assert info.file == "matmul.npz"
    assert info.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert info.inputs == (spec("x", 4, 3),)
    assert info.outputs == (spec("y", 4, 2),)
    assert not info.collectives


def test_graphs_are_numbered_in_the_order_of_the_files(tmp_path):
    paths = [tmp_path / "b.npz", tmp_path / "a.npz"]
    for path, kind in zip(paths, ("negative", "identity"), strict=True):
        write_graph(path, [Operation(kind, ("x",), "y")], {}, [spec("x", 2)], [spec("y", 2)])
    executor = NumpyExecutor()
    executor.load(paths, ())
    x = np.array([1, 2], np.float32)
    assert [executor.run(number, [x])[0].tolist() for number in (0, 1)] == [[-1, -2], [1, 2]]


def test_warming_up_says_what_a_graph_takes_under_its_plan(matmul):
    path, _ = matmul
    executor = NumpyExecutor()
    executor.load([path], [GraphPlan(stacked=True)])
    (info,) = executor.warm_up()
    assert info.inputs == (spec("x", -1, 3),)


# ------------------------------------------------------------------------------------------------------------ running


def test_it_computes(matmul):
    path, weight = matmul
    x = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    (y,) = loaded(path).run(0, [x])
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, -(x @ weight), rtol=1e-6)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_stacked_graph_takes_any_number_of_rows(matmul, rows):
    path, weight = matmul
    x = np.ones((rows, 3), np.float32)
    (y,) = loaded(path, GraphPlan(stacked=True)).run(0, [x])
    np.testing.assert_allclose(y, -(x @ weight), rtol=1e-6)


def test_an_input_without_a_batch_axis_keeps_its_shape(tmp_path):
    path = tmp_path / "add.npz"
    write_graph(path, [Operation("add", ("x", "b"), "y")], {}, [spec("x", 1, 2), spec("b", 2)], [spec("y", 1, 2)])
    executor = loaded(path, GraphPlan(stacked=True, unstacked_inputs=(1,)))
    (y,) = executor.run(0, [np.ones((3, 2), np.float32), np.array([1, 2], np.float32)])
    assert y.tolist() == [[2, 3]] * 3
    with pytest.raises(GraphFailed, match=re.escape("input b must be float32 [2], not float32 [3]")):
        executor.run(0, [np.ones((3, 2), np.float32), np.ones(3, np.float32)])


def test_a_scalar_cannot_be_stacked(tmp_path):
    path = tmp_path / "id.npz"
    write_graph(path, [Operation("identity", ("x",), "y")], {}, [spec("x")], [spec("y")])
    with pytest.raises(ModelError, match="input x is a scalar"):
        NumpyExecutor().load([path], [GraphPlan(stacked=True)])


def test_the_rank_is_what_the_group_says(tmp_path):
    executor = one(tmp_path, Operation("rank", (), "r"), [], [spec("r", dtype="int64")])
    assert executor.run(0, []) == [0]
    executor.open_group("none", 5, 8)
    assert executor.run(0, []) == [5]


def test_there_is_no_communication(tmp_path):
    with pytest.raises(GroupError, match="'none', not 'mccl'"):
        NumpyExecutor().open_group("mccl", 0, 8, "127.0.0.1:1")


X = np.array([[-1, 2, 3], [4, -5, 6]], np.float32)
REFERENCES = {
    "identity": ({}, X),
    "negative": ({}, -X),
    "relu": ({}, np.where(X > 0, X, 0)),
    "add": ({}, X + X),
    "multiply": ({}, X * X),
    "matmul": ({}, X @ X.T),
    "transpose": ({}, X.T),
    "cast": ({"dtype": "int32"}, X.astype(np.int32)),
    "slice": ({"axis": 1, "start": 1, "stop": 3}, X[:, 1:3]),
    "sleep": ({"milliseconds": 1}, X),
    "fail_if": ({"value": 7}, X),
}


@pytest.mark.parametrize("kind", OPERATIONS)
def test_every_operation(tmp_path, kind):
    parameters, expected = REFERENCES[kind]
    inputs = {"matmul": ("x", "xt"), "add": ("x", "x"), "multiply": ("x", "x")}.get(kind, ("x",))
    name = {"int32": "int32"}.get(str(expected.dtype), "float32")
    executor = one(
        tmp_path,
        Operation(kind, inputs, "y", parameters),
        [spec("x", 2, 3)],
        [spec("y", *expected.shape, dtype=name)],
        {"xt": X.T},
    )
    (y,) = executor.run(0, [X])
    assert y.dtype == expected.dtype
    assert y.flags.c_contiguous
    np.testing.assert_array_equal(y, expected)


def test_bfloat16_goes_in_and_out(tmp_path):
    path = tmp_path / "bf.npz"
    operations = [Operation("cast", ("x",), "f", {"dtype": "float32"}), Operation("add", ("f", "f"), "g")]
    operations.append(Operation("cast", ("g",), "y", {"dtype": "bfloat16"}))
    write_graph(path, operations, {}, [spec("x", 3, dtype="bfloat16")], [spec("y", 3, dtype="bfloat16")])
    x, doubled = np.array([[1.5, -2, 3e38], [3, -4, np.inf]], np.float32)  # overflow gives infinity, and no warning
    (y,) = loaded(path).run(0, [float32_to_bfloat16(x)])
    assert y.dtype == BFLOAT16
    np.testing.assert_array_equal(y, float32_to_bfloat16(doubled))


@given(
    name=st.sampled_from(["bool", "int8", "uint64", "float16", "float32", "float64", "bfloat16"]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0),
    data=st.data(),
)
@settings(max_examples=40)
def test_every_dtype_passes_through_bit_for_bit(tmp_path_factory, name, shape, data):
    dtype = numpy_dtype(name)
    size = int(np.prod(shape)) * dtype.itemsize
    content = bytes(size) if name == "bool" else data.draw(st.binary(min_size=size, max_size=size))
    x = np.frombuffer(content, dtype).reshape(shape)
    path = tmp_path_factory.mktemp("graph") / "id.npz"
    write_graph(
        path, [Operation("identity", ("x",), "y")], {}, [spec("x", *shape, dtype=name)], [spec("y", *shape, dtype=name)]
    )
    (y,) = loaded(path).run(0, [x])
    assert (y.dtype, y.shape, y.tobytes()) == (dtype, tuple(shape), content)


def test_outputs_share_memory_with_nothing(tmp_path):
    path = tmp_path / "id.npz"
    weight = np.arange(3, dtype=np.float32)
    operations = [Operation("identity", ("x",), "y"), Operation("identity", ("w",), "v")]
    write_graph(path, operations, {"w": weight}, [spec("x", 3)], [spec("y", 3), spec("v", 3)])
    executor = loaded(path)
    x = np.array([1, 2, 3], np.float32)
    y, v = executor.run(0, [x])
    x[:] = 9
    v[:] = 9
    assert y.tolist() == [1, 2, 3]
    assert executor.run(0, [x])[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([], "takes 1 inputs, not 0"),
        ([np.ones((4, 3), np.float32)] * 2, "takes 1 inputs, not 2"),
        ([np.ones((4, 2), np.float32)], "input x must be float32 [4, 3], not float32 [4, 2]"),
        ([np.ones((5, 3), np.float32)], "not float32 [5, 3]"),
        ([np.ones((4, 3, 1), np.float32)], "not float32 [4, 3, 1]"),
        ([np.float32(1)], "not float32 []"),
        ([np.ones((4, 3), np.float64)], "not float64 [4, 3]"),
        ([np.ones((4, 3), ">f4")], "not >f4 [4, 3]"),
        ([np.ones((4, 3), "U1")], "not <U1"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(matmul, inputs, says):
    path, weight = matmul
    executor = loaded(path)
    with pytest.raises(GraphFailed, match=re.escape(says)):
        executor.run(0, inputs)
    np.testing.assert_allclose(executor.run(0, [np.ones((4, 3), np.float32)])[0][0], -weight.sum(0), rtol=1e-6)


def test_a_graph_that_fails_says_so_in_one_line(tmp_path):
    executor = one(tmp_path, Operation("fail_if", ("x",), "y", {"value": 7}), [spec("x", -1)], [spec("y", -1)])
    assert executor.run(0, [np.array([1, 7], np.float32)])[0].tolist() == [1, 7]
    with pytest.raises(GraphFailed, match=r"^one\.npz: fail_if: the first element is 7$"):
        executor.run(0, [np.array([7, 1], np.float32)])


@pytest.mark.parametrize(
    "operation",
    [
        Operation("add", ("x", "w"), "y"),  # shapes that do not go together
        Operation("slice", ("x",), "y", {"axis": 0}),  # parameters that are missing
        Operation("cast", ("x",), "y", {"dtype": "complex64"}),
    ],
)
def test_what_numpy_refuses_is_the_graphs_failure(tmp_path, operation):
    weights = {"w": np.ones((2, 5), np.float32)}
    executor = one(tmp_path, operation, [spec("x", 3)], [spec("y", 3)], weights)
    with pytest.raises(GraphFailed) as caught:
        executor.run(0, [np.ones(3, np.float32)])
    assert caught.value.message.startswith(f"one.npz: {operation.kind}: ")
    assert "\n" not in caught.value.message


# ---------------------------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    ("operations", "inputs", "outputs", "says"),
    [
        ([], [spec("x", 1)], [spec("y", 1)], "nothing makes the output 'y'"),
        ([Operation("explode", ("x",), "y")], [spec("x", 1)], [spec("y", 1)], "no operation 'explode'"),
        ([Operation("identity", ("z",), "y")], [spec("x", 1)], [spec("y", 1)], "reads 'z', which nothing defines"),
        ([Operation("identity", ("x",), "x")], [spec("x", 1)], [spec("x", 1)], "'x' is defined twice"),
        ([Operation("identity", ("w",), "y")], [spec("w", 1)], [spec("y", 1)], "'w' is defined twice"),
        ([], [spec("x", 1, dtype="complex64")], [], "complex64"),
    ],
)
def test_a_graph_that_does_not_hold_together_is_not_written(tmp_path, operations, inputs, outputs, says):
    path = tmp_path / "bad.npz"
    with pytest.raises(ModelError, match=re.escape(says)):
        write_graph(path, operations, {"w": np.ones(1)}, inputs, outputs)
    assert not path.exists()


def test_missing_and_unreadable_files_are_named(tmp_path, matmul):
    executor = NumpyExecutor()
    with pytest.raises(ModelError, match=r"none\.npz is missing"):
        executor.inspect([matmul[0], tmp_path / "none.npz"])
    with pytest.raises(ModelError, match="cannot be read"):
        executor.inspect([tmp_path])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_says_what_to_do(matmul):
    path, _ = matmul
    path.chmod(0)
    with pytest.raises(ModelError, match=r"chmod u\+r"):
        NumpyExecutor().inspect([path])


def test_other_npz_files_and_pickles_are_refused(tmp_path):
    pickled, other, plain = tmp_path / "p.npz", tmp_path / "o.npz", tmp_path / "a.npy"
    np.savez(pickled, graph=np.array([{"format": "rankmq-graph"}], object))
    np.savez(other, graph=np.array('{"format": "something else"}'))
    np.save(plain, np.ones(3))
    for path in (pickled, other, plain):
        with pytest.raises(ModelError, match=re.escape(path.name)):
            NumpyExecutor().inspect([path])


@given(st.data())
@settings(max_examples=150)
def test_a_damaged_file_is_a_model_error(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    path = folder / "damaged.npz"
    write_graph(path, [Operation("add", ("x", "w"), "y")], {"w": np.ones(3)}, [spec("x", 3)], [spec("y", 3)])
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    message = "ok"
    try:
        NumpyExecutor().inspect([path])
    except ModelError as error:
        message = error.message
    assert "\n" not in message


def test_a_file_holds_nothing_but_arrays_and_text(matmul):
    path, _ = matmul
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == ["graph.npy", "weight/w.npy"]
        assert "rankmq-graph" in archive.read("graph.npy").decode("utf-8", "replace").replace("\x00", "")
