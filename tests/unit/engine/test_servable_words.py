"""Configurations as MindSpore Serving users have them: both generations of words make the same data."""

import numpy as np
import pytest
from rankmq.engine.caller import use_caller
from rankmq.engine.loader import load_servable
from rankmq.engine.servable import FunctionStage, InputRef, StageRef, Subgraph, SubgraphStage

from tests.unit.engine.servable_files import (
    LATER,
    MODEL,
    ORIGINAL,
    WORDS,
    load,
    run_method,
    touch,
    write_config,
    write_devices,
)

WEIGHTS = [np.full((96, 16), 0.5, np.float32), np.full((96, 16), 1.5, np.float32)]
GRAPHS = {0: lambda x: -(x @ WEIGHTS[0]), 1: lambda x: -(x @ WEIGHTS[1])}


class NumpyCaller:
    """Runs methods and subgraphs where it stands."""

    def __init__(self, servable):
        self.servable = servable
        self.calls = []

    def call_method(self, servable, version, method, args):
        self.calls.append((servable, version, method))
        return run_method(self.servable.methods[method], args, GRAPHS)

    def call_subgraph(self, subgraph, args):
        self.calls.append(subgraph)
        return (GRAPHS[subgraph](*args),)


def test_the_original_listing(tmp_path, capsys):
    write_config(tmp_path, ORIGINAL)
    write_devices(tmp_path, ranks=8, graphs=2)
    servable = load_servable(tmp_path, "matmul")

    assert (servable.name, servable.version) == ("matmul", 1)
    assert (servable.rank_size, servable.stage_size) == (8, 1)
    assert not servable.models[0].with_batch_dim
    assert servable.subgraph_count == 2
    assert [len(of_rank) for of_rank in servable.model_files] == [2] * 8
    assert servable.model_files[3][1] == tmp_path / "model/device3/matmul_1.mindir"
    fun1 = servable.methods["fun1"]
    assert (fun1.input_names, fun1.output_names, fun1.where.line) == (("x",), ("y",), 14)
    preprocess, graph = fun1.stages
    assert isinstance(preprocess, FunctionStage)
    assert (preprocess.name, preprocess.inputs, preprocess.outputs_count) == ("add_preprocess", (InputRef(0),), 1)
    assert (preprocess.batch_size, preprocess.where.line) == (None, 16)
    assert (graph.subgraph, graph.inputs, graph.outputs_count) == (0, (StageRef(0, 0),), 1)
    assert fun1.outputs == (StageRef(1, 0),)
    assert [stage.subgraph for stage in servable.methods["fun2"].stages] == [1]
    assert [(call.servable, call.version, call.method) for call in servable.calls] == [
        ("matmul", 0, "fun1"),
        ("matmul", 0, "fun2"),
    ]

    predict = servable.pipelines["predict"]
    assert (predict.input_names, predict.output_names) == (("x", "y"), ("x", "z"))
    caller = NumpyCaller(servable)
    with use_caller(caller):
        x, z = predict.function(np.ones((128, 96), np.float32), np.ones((128, 96), np.float32))
    np.testing.assert_array_equal(x, np.full((128, 16), -96, np.float32))
    np.testing.assert_array_equal(z, np.full((128, 16), -144, np.float32))
    assert caller.calls == [("matmul", 0, "fun1")] + [("matmul", 0, "fun2")] * 10
    assert capsys.readouterr().out.split() == [str(i) for i in range(10)]


def test_the_later_words(tmp_path):
    write_config(tmp_path, LATER)
    touch(tmp_path / "matmul/1/matmul_0.mindir", tmp_path / "matmul/1/matmul_1.mindir")
    servable = load_servable(tmp_path, "matmul")

    assert (servable.rank_size, servable.stage_size, servable.subgraph_count) == (1, 1, 2)
    assert [path.name for path in servable.model_files[0]] == ["matmul_0.mindir", "matmul_1.mindir"]
    predict = servable.methods["predict"]
    x, y = np.random.default_rng(0).standard_normal((2, 128, 96), np.float32)
    caller = NumpyCaller(servable)
    with use_caller(caller):
        (z,) = run_method(predict, (x, y), GRAPHS)
    np.testing.assert_allclose(z, GRAPHS[0](x) + GRAPHS[1](y))
    assert caller.calls == [0, 1]


def test_both_generations_of_words_make_the_same_stages(tmp_path):
    functions = "def f(x): return x, x\ndef g(x, y): return x\n"
    older = """\
@register.register_method("z")
def m(x):
    a, b = register.call_preprocess(f, x)
    c = register.call_servable(a, b, subgraph=1)
    return register.call_postprocess(g, c, x)
"""
    later = """\
@register.register_method(output_names=["z"])
def m(x):
    a, b = register.add_stage(f, x, outputs_count=2, tag="Preprocess")
    c = register.add_stage(model, a, b, subgraph=1, outputs_count=1)
    return register.add_stage(g, c, x, outputs_count=1, tag="Postprocess")
"""

    def data(method):
        stages = [
            (
                stage.subgraph if isinstance(stage, SubgraphStage) else (stage.name, stage.batch_size),
                stage.inputs,
                stage.outputs_count,
                stage.where.line,
                stage.tag,
            )
            for stage in method.stages
        ]
        return method.input_names, method.output_names, stages, method.outputs

    first = load(tmp_path / "older", MODEL + functions + older).methods["m"]
    second = load(tmp_path / "later", MODEL + functions + later).methods["m"]
    assert data(first) == data(second)


@pytest.mark.parametrize(
    ("stage", "batch_size"),
    [
        ("register.call_preprocess_pipeline(f, x)", 0),
        ("register.call_postprocess_pipeline(f, x)", 0),
        ("register.add_stage(f, x, batch_size=0)", 0),
        ("register.add_stage(f, x, outputs_count=1, batch_size=32)", 32),
    ],
)
def test_functions_of_many_instances(tmp_path, stage, batch_size):
    text = f"""\
def f(instances):
    for instance in instances:
        yield instance[0] + 1

@register.register_method(output_names=["y"])
def m(x):
    y = {stage}
    return y
"""
    method = load(tmp_path, WORDS + text).methods["m"]
    assert method.stages[0].batch_size == batch_size
    assert run_method(method, (1,), {}) == (2,)


def test_several_models_are_numbered_over_the_servable(tmp_path):
    text = """\
from rankmq.engine import register
add = register.declare_model(model_file="add.mindir", model_format="MindIR")
sub = register.declare_model(model_file=["sub_0.mindir", "sub_1.mindir"], model_format="mindir",
                             without_batch_dim_inputs=1, batch_size=4)

@register.register_method(output_names=["y"])
def predict(x1, x2, x3):
    y = register.add_stage(add, x1, x2, outputs_count=1)
    y = register.add_stage(sub, y, x3, subgraph=1, outputs_count=1)
    return register.call_servable(y, x3, subgraph=1)
"""
    servable = load(tmp_path, text)
    assert [model.first_subgraph for model in servable.models] == [0, 1]
    assert [stage.subgraph for stage in servable.methods["predict"].stages] == [0, 2, 1]
    assert servable.subgraph_count == 3
    assert [servable.model_of(i).name for i in range(3)] == ["add.mindir", *["sub_0.mindir;sub_1.mindir"] * 2]
    assert servable.subgraph(2) == Subgraph("sub_1.mindir")
    assert (servable.models[1].without_batch_dim_inputs, servable.models[1].batch_size) == ((1,), 4)


def test_a_method_may_use_another_methods_function(tmp_path):
    text = """\
@register.register_method(output_names=["y"])
def once(x):
    return register.add_stage(model, x)

@register.register_method(output_names=["y"])
def twice(x):
    for _ in range(2):
        x = once(x)
    return x
"""
    twice = load(tmp_path, MODEL + text).methods["twice"]
    assert [stage.inputs for stage in twice.stages] == [(InputRef(0),), (StageRef(0, 0),)]


def test_a_model_may_be_declared_after_the_method_that_calls_it(tmp_path):
    text = """\
@register.register_method("y")
def m(x):
    return register.call_servable(x)
distributed.declare_servable(2, 1)
"""
    assert load(tmp_path, WORDS + text).methods["m"].stages[0].subgraph == 0


def test_older_parameters_without_effect_are_named_in_the_log(tmp_path, caplog):
    text = """\
model = register.declare_model("a.mindir", "MindIR", options=object(), config_file="x.cfg")
@register.register_method("y")
def m(x):
    return register.add_stage(model, x)
"""
    load(tmp_path, WORDS + text)
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "options of a model has no effect here",
        "config_file of a model has no effect here",
    ]
