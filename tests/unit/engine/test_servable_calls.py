"""Model.call and PipelineServable.run: the way from the servable's own Python back into the engine."""

import threading

import numpy as np
import pytest
from rankmq.engine.caller import current_caller, use_caller
from rankmq.engine.servable import Model, Subgraph, outputs_of
from rankmq.schemas.errors import ServableError, StageFailed

from tests.unit.engine.servable_files import MODEL, load


class Recorder:
    """Answers with one output per input, each plus one."""

    def __init__(self):
        self.calls = []

    def call_method(self, servable, version, method, args):
        self.calls.append((servable, version, method, args))
        return tuple(np.add(value, 1) for value in args)

    def call_subgraph(self, subgraph, args):
        self.calls.append((subgraph, args))
        return tuple(np.add(value, 1) for value in args)


@pytest.fixture
def caller():
    recorder = Recorder()
    with use_caller(recorder):
        yield recorder


@pytest.fixture
def model():
    return Model("m", 8, 1, subgraphs=(Subgraph("a"), Subgraph("b")), first_subgraph=3)


def test_one_output_comes_as_itself_and_several_as_a_tuple(model, caller):
    assert model.call(1) == 2
    assert model.call(1, 5, subgraph=1) == (2, 6)
    assert caller.calls == [(3, (1,)), (4, (1, 5))]


def test_a_list_of_instances_gives_a_tuple_per_instance(model, caller):
    assert model.call([[1, 2], (3, 4)], subgraph=1) == ((2, 3), (4, 5))
    assert model.call([(1,)]) == ((2,),)
    assert model.call([]) == ()
    assert caller.calls == [(4, (1, 2)), (4, (3, 4)), (3, (1,))]


def test_a_list_of_something_else_is_refused(model, caller):
    with pytest.raises(ServableError, match="a list of instances"):
        model.call([1, 2])
    assert caller.calls == []


@pytest.mark.parametrize("subgraph", [-1, 2])
def test_a_subgraph_that_the_model_does_not_have(model, caller, subgraph):
    with pytest.raises(ServableError, match="no such subgraph"):
        model.call(1, subgraph=subgraph)


def test_a_method_of_a_servable(tmp_path, caller):
    text = """\
@register.register_method("y")
def m(x):
    return register.add_stage(model, x)
one = PipelineServable("matmul", "m")
two = register.PipelineServable(servable_name="other", method="n", version_number=3)
@register.register_pipeline(["a", "b"])
def p(x, y):
    return one.run(x), two.run(x, y), one.run([x, y])
"""
    single, pair, many = load(tmp_path, MODEL + text).pipelines["p"].function(1, 10)
    assert (single, pair, many) == (2, (2, 11), [(2,), (11,)])
    assert caller.calls == [
        ("matmul", 0, "m", (1,)),
        ("other", 3, "n", (1, 10)),
        ("matmul", 0, "m", (1,)),
        ("matmul", 0, "m", (10,)),
    ]


def test_without_a_request_a_call_says_so(model):
    with pytest.raises(ServableError, match=r"Model\.call works only while a request is served"):
        model.call(1)


def test_callers_nest_and_end_with_their_block(model):
    outer, inner = Recorder(), Recorder()
    with use_caller(outer):
        with use_caller(inner):
            model.call(1)
        model.call(2)
    assert ([args for _, args in inner.calls], [args for _, args in outer.calls]) == ([(1,)], [(2,)])
    with pytest.raises(ServableError):
        current_caller("x")


def test_each_thread_has_its_own_caller(model):
    recorders = [Recorder() for _ in range(8)]
    start = threading.Barrier(8)

    def serve(number):
        with use_caller(recorders[number]):
            start.wait(10)
            for value in range(50):
                model.call(100 * number + value)

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for number, recorder in enumerate(recorders):
        assert [args[0] for _, args in recorder.calls] == [100 * number + value for value in range(50)]


@pytest.mark.parametrize(
    ("value", "count", "outputs"),
    [
        (5, 1, (5,)),
        ((5,), 1, (5,)),
        ([5, 6], 2, (5, 6)),
        ((5, [6]), 2, (5, [6])),
        ("ab", 1, ("ab",)),
        (None, 1, (None,)),
    ],
)
def test_outputs_of_a_function(value, count, outputs):
    assert outputs_of(value, count, "f") == outputs


@pytest.mark.parametrize(("value", "count"), [(5, 2), ((), 1), ([1, 2], 1), ("ab", 2), (np.zeros(2), 2)])
def test_a_wrong_number_of_outputs(value, count):
    with pytest.raises(StageFailed, match="f returned"):
        outputs_of(value, count, "f")
