"""Given a servable's Python that calls models and methods, when it runs, then it gets their outputs or their errors."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.engine.edge import MODEL, Edge, error_of, errors_of, outputs_of
from tests.unit.engine.servable_files import WORDS

ROW = np.array([1, 2, 3], np.float32)


@pytest.fixture(params=["inline", "threads"])
def make(request, tmp_path):
    edges = []

    def make(text="", *, model=MODEL, **given):
        edge = Edge(tmp_path, {"matmul": model + text}, **{"pool": request.param, **given})
        edges.append(edge)
        return edge

    yield make
    for edge in edges:
        edge.close()


CALLS = """
model = distributed.declare_servable(rank_size=3, stage_size=1, with_batch_dim=True)

def call(x):
    return model.call(x, subgraph=0)

def call_two(x):
    a, b = model.call(np.arange(2), np.arange(6), subgraph=1)
    return x + model.call(x, subgraph=0), b

def call_many(x):
    results = model.call([[x], [x + 1]], subgraph=0)
    return np.stack([y for y, in results])

def call_wrong(x):
    return model.call(x[:1], subgraph=0)

def call_caught(x):
    try:
        model.call(np.full(3, 13, np.float32), subgraph=0)
    except Exception as error:
        return type(error).__name__

def call_nonsense(x):
    return model.call([1, [2, 3]], object())

def call_nothing(x):
    return model.call(x, subgraph=17)

@register.register_method(output_names=["y"])
def m_call(x):
    return register.add_stage(call, x)

@register.register_method(output_names=["y", "z"])
def m_call_two(x):
    return register.add_stage(call_two, x, outputs_count=2)

@register.register_method(output_names=["y"])
def m_call_many(x):
    return register.add_stage(call_many, x)

@register.register_method(output_names=["y"])
def m_call_wrong(x):
    return register.add_stage(call_wrong, x)

@register.register_method(output_names=["y"])
def m_call_caught(x):
    return register.add_stage(call_caught, x)

@register.register_method(output_names=["y"])
def m_call_nonsense(x):
    return register.add_stage(call_nonsense, x)

@register.register_method(output_names=["y"])
def m_call_nothing(x):
    return register.add_stage(call_nothing, x)
"""


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("m_call", {"y": [3, 5, 7]}),
        ("m_call_two", {"y": [4, 7, 10], "z": [0, 10, 20, 30, 40, 50]}),
        ("m_call_many", {"y": [[3, 5, 7], [5, 7, 9]]}),
        ("m_call_wrong", ("invalid_input", "takes float32 (3,), got float32 (1,)")),
        ("m_call_caught", {"y": "GraphFailed"}),
        ("m_call_nonsense", ("stage_failed", "inhomogeneous")),
        ("m_call_nothing", ("invalid_model", "the ranks hold 3 graphs")),
    ],
)
def test_a_function_stage_that_calls_a_model(tmp_path, method, expected):
    edge = Edge(tmp_path, {"matmul": WORDS + CALLS}, pool="threads")
    fate = edge.ask(method, {"x": ROW})
    edge.run()
    if isinstance(expected, dict):
        assert outputs_of(fate) == [expected]
    else:
        code, message = error_of(fate)
        assert code == expected[0]
        assert expected[1] in message
    edge.close()


PIPELINES = """
def double(x):
    return x + x

def fail(x):
    raise ValueError("no")

@register.register_method(output_names=["y"])
def scale(x):
    x = register.call_preprocess(double, x)
    return register.call_servable(x, subgraph=0)

@register.register_method(output_names=["s", "c"])
def parts(a, b):
    s, c = register.call_servable(a, b, subgraph=1)
    return s, c

@register.register_method(output_names=["y"])
def failing(x):
    return register.call_preprocess(fail, x)

scale_ = PipelineServable("matmul", "scale")
parts_ = PipelineServable("matmul", "parts", version_number=1)
failing_ = PipelineServable("matmul", "failing")

@register.register_pipeline(output_names=["y"])
def loop(x):
    for _ in range(3):
        x = scale_.run(x)
    return x

@register.register_pipeline(output_names=["s", "c"])
def branch(a, b):
    s, c = parts_.run(a, b)
    if int(s) > 10:
        return s, c
    return parts_.run(a, b + 10)

@register.register_pipeline(output_names=["y"])
def many(x):
    return np.stack([y for y, in scale_.run([x, x + 1, x + 2])])

@register.register_pipeline(output_names=["y"])
def uncaught(x):
    return failing_.run(x)

@register.register_pipeline(output_names=["y"])
def caught(x):
    try:
        failing_.run(x)
    except Exception as error:
        y = scale_.run(x)
        return f"{type(error).__name__}: {error}; {y.tolist()}"

@register.register_pipeline(output_names=["y"])
def wrong_count(x):
    return scale_.run(x, x)

@register.register_pipeline(output_names=["y"])
def nonsense(x):
    return scale_.run(object())

@register.register_pipeline(output_names=["y"])
def own_error(x):
    return {}[x[0]]

@register.register_pipeline(output_names=["y", "z"])
def too_few(x):
    return x

@register.register_pipeline(output_names=["y"])
def ends(x):
    raise SystemExit(3)

@register.register_pipeline(output_names=["y"])
def unsendable(x):
    return x * 1j

@register.register_pipeline(output_names=["y"])
def nothing(x):
    scale_.run(x)

@register.register_pipeline(output_names=["y"])
def on_another_thread(x):
    import threading
    found = []
    def run():
        try:
            scale_.run(x)
        except Exception as error:
            found.append(type(error).__name__)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]
"""


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        ("loop", {"y": [85, 149, 213]}),
        ("many", {"y": [[5, 9, 13], [9, 13, 17], [13, 17, 21]]}),
        ("caught", {"y": "StageFailed: stage fail raised ValueError: no; [5.0, 9.0, 13.0]"}),
        ("uncaught", ("stage_failed", "stage fail raised ValueError: no")),
        ("wrong_count", ("invalid_input", "matmul.scale takes x: got 2 values")),
        ("nonsense", ("stage_failed", "raised TypeError")),
        ("own_error", ("stage_failed", "pipeline own_error raised KeyError")),
        ("too_few", ("stage_failed", "pipeline too_few returned 1 value(s) where 2 are declared")),
        ("ends", ("internal", "pipeline ends ended with SystemExit")),
        ("unsendable", ("stage_failed", "pipeline unsendable returned ndarray")),
        ("nothing", ("stage_failed", "pipeline nothing returned NoneType")),
        ("on_another_thread", {"y": "ServableError"}),
    ],
)
def test_pipelines(make, pipeline, expected):
    edge = make(PIPELINES)
    fate = edge.ask(pipeline, {"x": ROW})
    edge.run()
    if isinstance(expected, dict):
        assert outputs_of(fate) == [expected]
    else:
        code, message = error_of(fate)
        assert code == expected[0]
        assert expected[1] in message


def test_a_pipeline_with_several_inputs_outputs_and_instances(make):
    edge = make(PIPELINES)
    a, b = np.array([1, 2]), np.arange(6)
    fate = edge.ask("branch", {"a": a, "b": b}, {"a": a, "b": b - 3}, {"a": a, "b": b[:5]})
    edge.run()
    assert outputs_of(fate) == [
        {"s": 15, "c": [1, 11, 21, 31, 41, 51]},
        {"s": 57, "c": [71, 81, 91, 101, 111, 121]},
        None,
    ]
    assert errors_of(fate) == {2: "invalid_input"}
    stats = fate.replies[0][0].reply.stats
    assert stats.steps == 4


def test_a_slow_pipeline_does_not_hold_up_another(make):
    edge = make(
        """
import threading
go_on = threading.Event()

@register.register_pipeline(output_names=["y"])
def slow(x):
    assert go_on.wait(20)
    return x

@register.register_pipeline(output_names=["y"])
def quick(x):
    go_on.set()
    return x + 1
"""
    )
    slow, quick = edge.ask("slow", {"x": ROW}), edge.ask("quick", {"x": ROW})
    edge.run()
    assert outputs_of(slow) == [{"y": [1, 2, 3]}]
    assert outputs_of(quick) == [{"y": [2, 3, 4]}]


NESTED = """
def double(x):
    return x + x

@register.register_method(output_names=["y"])
def inner(x):
    x = register.add_stage(double, x)
    y = register.call_servable(x, subgraph=0)
    return register.add_stage(double, y)

inner_ = PipelineServable("matmul", "inner")

def outer(x):
    return inner_.run(x) + inner_.run(x)

@register.register_method(output_names=["y"])
def middle(x):
    return register.add_stage(outer, x)

middle_ = PipelineServable("matmul", "middle")

def outermost(x):
    return middle_.run(x)

@register.register_method(output_names=["y"])
def deep(x):
    return register.add_stage(outermost, x)

deep_ = PipelineServable("matmul", "deep")

@register.register_pipeline(output_names=["y"])
def deepest(x):
    return deep_.run(x)
"""


@pytest.mark.parametrize("method", ["middle", "deep", "deepest"])
def test_functions_that_call_methods_with_functions_do_not_wait_for_each_others_threads(tmp_path, method):
    """Each holds a thread of the pool while what it calls needs one: with as many requests as threads, none is left."""
    edge = Edge(tmp_path, {"matmul": MODEL + NESTED}, pool="threads", stage_threads=2)
    fates = [edge.ask(method, {"x": ROW}) for _ in range(8)]
    edge.run()
    assert [outputs_of(fate) for fate in fates] == [[{"y": [20, 36, 52]}]] * 8
    edge.close()


def test_a_method_that_calls_itself_without_end_fails(tmp_path):
    edge = Edge(
        tmp_path,
        {
            "matmul": MODEL
            + """
def again(x):
    return again_.run(x)

@register.register_method(output_names=["y"])
def m(x):
    return register.add_stage(again, x)

again_ = PipelineServable("matmul", "m")
"""
        },
        pool="threads",
    )
    fate = edge.ask("m", {"x": ROW})
    edge.run()
    assert error_of(fate)[0] == "stage_failed"
    edge.close()


def test_a_method_of_another_servable_and_one_without_ranks(tmp_path):
    other = """
def shout(text):
    return str(text).upper()

@register.register_method(output_names=["y"])
def loud(text):
    return register.add_stage(shout, text)

scale_ = PipelineServable("matmul", "scale")
loud_ = PipelineServable("other", "loud")

@register.register_pipeline(output_names=["y"])
def both(x, text):
    return f"{loud_.run(text)} {scale_.run(x).tolist()}"
"""
    edge = Edge(tmp_path, {"matmul": MODEL + PIPELINES, "other": WORDS + other}, pool="threads")
    both = edge.ask("both", {"x": ROW, "text": np.array("hey")}, servable="other")
    loud = edge.ask("loud", {"text": "hey"}, servable="other")
    edge.run()
    assert outputs_of(both) == [{"y": "HEY [5.0, 9.0, 13.0]"}]
    assert outputs_of(loud) == [{"y": "HEY"}]
    edge.close()
