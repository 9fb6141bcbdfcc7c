"""What a model file says, and what MindSpore says when one does not run."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rankmq.schemas.errors import ModelError
from rankmq.schemas.messages import GraphInfo, GraphPlan, TensorSpec
from rankmq.workers.mindir import read_graph
from rankmq.workers.mindspore_errors import first_line, model_errors
from rankmq.workers.shared_parameters import share
from rankmq.workers.warming import warm_inputs, with_outputs

FILE = Path("/models/g.mindir")


def spec(name, *shape, dtype="float32"):
    return TensorSpec(name=name, dtype=dtype, shape=shape)


# ---------------------------------------------------------------------------------------------------------- the file


@pytest.fixture
def model(schema):
    """A graph of one input and one output, each a tensor [2, 3] of float32."""
    made = schema.ModelProto()
    for value, name in ((made.graph.input.add(), "1_2:x"), (made.graph.output.add(), "y")):
        value.name = name
        value.tensor.add(data_type=1, dims=[2, 3])
    return made


def make_scalar(schema, value, data_type):
    """As MindSpore writes a number of the graph's own language."""
    del value.tensor[:]
    value.attr_info.type = schema.AttributeProto.SCALAR
    value.attr_info.tensors.add(data_type=data_type, dims=[0])


def test_a_tensor(model):
    facts = read_graph(model, "g")
    assert (facts.inputs, facts.outputs) == ((spec("x", 2, 3),), (spec("output0", 2, 3),))


@pytest.mark.parametrize(("number", "dtype"), [(1, "float32"), (11, "float64"), (7, "int64"), (9, "bool")])
def test_a_scalar_has_a_dtype_and_no_size(schema, model, number, dtype):
    make_scalar(schema, model.graph.output[0], number)
    assert read_graph(model, "g").outputs == (spec("output0", dtype=dtype),)


def test_an_empty_tensor_is_no_scalar(schema, model):
    value = model.graph.output[0]
    del value.tensor[:]
    value.attr_info.type = schema.AttributeProto.TENSORS
    value.attr_info.tensors.add(data_type=1, dims=[0])
    assert read_graph(model, "g").outputs == (spec("output0", 0),)


def test_a_scalar_cannot_be_given(schema, model):
    make_scalar(schema, model.graph.input[0], 1)
    with pytest.raises(ModelError, match="input x is not one tensor"):
        read_graph(model, "g")


# ------------------------------------------------------------------------------------------------------ the first call


def test_what_the_first_call_shows():
    info = GraphInfo(file="g", digest="d", inputs=(spec("x", -1, 3), spec("n", dtype="int64")), outputs=(spec("y", 0),))
    x, n = warm_inputs(info)
    assert (x.dtype, x.shape, n.dtype, n.shape) == (np.float32, (3, 3), np.int64, ())
    found = with_outputs(info, GraphPlan(stacked=True), [np.zeros((3, 2), np.float16), np.zeros(())]).outputs
    assert found == (spec("output0", -1, 2, dtype="float16"), spec("output1", dtype="float64"))


def test_what_the_file_says_is_of_any_size_stays_so():
    info = GraphInfo(file="g", digest="d", inputs=(), outputs=(spec("y", 4, -1),))
    assert with_outputs(info, GraphPlan(), [np.zeros((3, 2), np.float32)]).outputs == (spec("output0", 3, -1),)


# ---------------------------------------------------------------------------------------------------------- parameters


class Parameter(SimpleNamespace):
    def assign_value(self, other):
        self.value = other.value


def parameter(name, value, shape=(2,), dtype="float32"):
    return Parameter(name=name, value=value, shape=shape, dtype=dtype)


def test_what_matches_is_shared_and_nothing_else():
    mine = [parameter("block.cache_k", "mine"), parameter("weight", "mine"), parameter("cache_v", "mine")]
    owners = [parameter("block.cache_k", "theirs"), parameter("weight", "theirs"), parameter("cache_q", "theirs")]
    share(["*cache*"], mine, owners, FILE)
    assert [it.value for it in mine] == ["theirs", "mine", "mine"]


@pytest.mark.parametrize("other", [{"shape": (3,)}, {"dtype": "float16"}])
def test_what_is_shared_must_be_alike(other):
    with pytest.raises(ModelError, match=r"g\.mindir: parameter cache is float32 \[2\], to be shared with"):
        share(["cache"], [parameter("cache", 0)], [parameter("cache", 0, **other)], FILE)


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("For 'MatMul', the shapes do not fit.", "For 'MatMul', the shapes do not fit."),
        ("\n----------\n- C++ Call Stack\n----------\nit broke\nmindspore/core/ops.cc:12", "it broke"),
        ("Exec graph failed. # kernel exception: no room", "no room"),
        ("", "RuntimeError"),
        ("x" * 1000, "x" * 300),
    ],
)
def test_of_what_mindspore_says_one_line_is_passed_on(said, line):
    with pytest.raises(ModelError) as caught, model_errors(FILE):
        raise RuntimeError(said)
    assert caught.value.message == f"the model file {FILE} does not run: {line}"
    assert first_line(RuntimeError(said)) == line
