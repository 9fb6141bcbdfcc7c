"""Given a servable's Python, good or bad, when it runs, then each instance gets its outputs or a typed error."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from rankmq.engine.runs import RunContext, ThreadCaller
from rankmq.engine.waits import Waits
from rankmq.schemas.errors import ConnectionLost, InternalError

from tests.unit.engine.edge import MODEL, Edge, error_of, errors_of, outputs_of
from tests.unit.engine.servable_files import WORDS
from tests.unit.engine.simulation import BAD, ready_world

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


def one_stage(body, *, outputs=1, names=("y",)):
    """A method `m` of one function stage `f` with this body."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f"""
def f(x):
{lines}

@register.register_method(output_names={list(names)!r})
def m(x):
    return register.add_stage(f, x, outputs_count={outputs})
"""


# --------------------------------------------------------------------------------------------------------- methods


CHAIN = """
def double(x):
    return x + x

def both(x, y):
    return x - y, np.stack([x, y])

@register.register_method(output_names=["d", "s", "x", "c"])
def chain(x):
    a = register.call_preprocess(double, x)
    b = register.call_servable(a, subgraph=0)
    d, s = register.call_postprocess(both, b, a)
    return d, s, x, 7
"""


def test_a_chain_of_stages(make):
    edge = make(CHAIN)
    fate = edge.ask("chain", {"x": ROW}, {"x": ROW * 2})
    edge.run()
    assert outputs_of(fate) == [
        {"d": [3, 5, 7], "s": [[5, 9, 13], [2, 4, 6]], "x": [1, 2, 3], "c": 7},
        {"d": [5, 9, 13], "s": [[9, 17, 25], [4, 8, 12]], "x": [2, 4, 6], "c": 7},
    ]
    assert fate.acked == 1


def test_a_method_that_only_passes_on(make):
    edge = make("@register.register_method(output_names=['b', 'a'])\ndef swap(a, b):\n    return b, a\n")
    fate = edge.ask("swap", {"a": np.array("text"), "b": np.array([True])})
    edge.run()
    assert outputs_of(fate) == [{"b": [True], "a": "text"}]


def test_a_row_that_fails_in_one_stage_is_not_in_the_next(make):
    edge = make(
        """
def positive(x):
    if x[0] < 0:
        raise ValueError("negative:  \\n no")
    return x

def tell(xs):
    return [np.float32(len(xs)) for _ in xs]

@register.register_method(output_names=["y", "n"])
def m(x):
    x = register.add_stage(positive, x)
    n = register.add_stage(tell, x, batch_size=0)
    y = register.call_servable(x, subgraph=0)
    return y, n
"""
    )
    rows = [np.full(3, value, np.float32) for value in (1, -1, BAD, 2, -5)]
    fate = edge.ask("m", *({"x": row} for row in rows))
    edge.run()
    assert errors_of(fate) == {1: "stage_failed", 2: "graph_failed", 4: "stage_failed"}
    assert outputs_of(fate)[0] == {"y": [3, 3, 3], "n": 3}
    message = fate.replies[0][0].reply.errors[0].error.message
    assert message == "stage positive raised ValueError: negative: no"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("return None", "NoneType"),
        ("pass", "NoneType"),
        ("return object()", "object"),
        ("return {'y': x}", "dict"),
        ("return lambda: 0", "function"),
        ("return ValueError('as a value')", "ValueError"),
        ("return np.array([1, None], object)", "NoneType, int"),
        ("return x.astype(complex)", "complex128"),
        ("return np.datetime64('2020-01-01')", "datetime64"),
        ("return np.zeros(2, [('a', int)])", "cannot be sent"),
        ("return np.array(['a', b'b'], object)", "bytes, str"),
        ("return np.array([[1], [1, 2]], object)", "list"),
        ("return [[1], [1, 2]],", "inhomogeneous"),
        ("return 2**70", "int"),
    ],
)
def test_what_cannot_be_sent_fails_where_it_was_returned(make, body, found):
    edge = make(one_stage(body))
    fate = edge.ask("m", {"x": ROW})
    edge.run()
    code, message = error_of(fate)
    assert code == "stage_failed"
    assert message.startswith("stage f")
    assert found in message


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ("return 3", 3),
        ("return 2.5", 2.5),
        ("return True", True),
        ("return 'text'", "text"),
        ("return b'bytes'", b"bytes"),
        ("return np.array([b'a', b'bc'], object)", [b"a", b"bc"]),
        ("return np.array(['a', 'bc'])", ["a", "bc"]),
        ("return x", [1, 2, 3]),
        ("return x[::-1]", [3, 2, 1]),
        ("return x[:0]", []),
        ("return np.ma.masked_array([1, 2])", [1, 2]),
        ("return x.astype('>f8')", [1, 2, 3]),
        ("return [[1, 2]]", [1, 2]),
    ],
)
def test_what_can_be_sent(make, body, value):
    edge = make(one_stage(body))
    fate = edge.ask("m", {"x": ROW})
    edge.run()
    assert outputs_of(fate) == [{"y": value}]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1, 2", "stage f returned 2 value(s) where 1 are declared"),
        ("return ()", "stage f returned 0 value(s) where 1 are declared"),
        ("raise KeyError('k')", "stage f raised KeyError: 'k'"),
        ("x += 1", "stage f raised ValueError: output array is read-only"),
        ("raise ValueError('x' * 10000)", "stage f raised ValueError: xxx"),
        ("return f(x)", "stage f raised RecursionError"),
        (
            "class Mute(Exception):\n    def __str__(self): raise RuntimeError\nraise Mute",
            "stage f raised Mute: (without words)",
        ),
    ],
)
def test_a_function_that_fails(make, body, message):
    edge = make(one_stage(body))
    fate = edge.ask("m", {"x": ROW}, {"x": ROW})
    edge.run()
    code, found = error_of(fate)
    assert code == "stage_failed"
    assert found.startswith(message)
    assert len(found) <= 500


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
def test_a_function_that_would_end_the_process(make, name):
    edge = make(one_stage(f"raise {name}"))
    fate = edge.ask("m", {"x": ROW})
    edge.run()
    assert error_of(fate) == ("internal", f"stage f ended with {name}")
    again = edge.ask("m", {"x": ROW})
    edge.run()
    assert error_of(again)[0] == "internal"


def test_a_function_may_raise_our_own_errors(make):
    edge = make("from rankmq.schemas.errors import InvalidInput\n" + one_stage("raise InvalidInput('no such word')"))
    fate = edge.ask("m", {"x": ROW})
    edge.run()
    assert error_of(fate) == ("invalid_input", "no such word")


@pytest.mark.parametrize(("size", "sizes"), [(0, [5]), (2, [2, 2, 1]), (99, [5])])
@pytest.mark.parametrize("how", ["return", "yield"])
def test_a_stage_that_takes_many_instances(make, size, sizes, how):
    result = "[row[0] * len(rows) for row in rows]"
    edge = make(
        f"""
seen = []
def f(rows):
    seen.append(len(rows))
    {f"return {result}" if how == "return" else f"yield from {result}"}

def g(x):
    return np.array(seen)

@register.register_method(output_names=["y", "seen"])
def m(x):
    y = register.add_stage(f, x, batch_size={size})
    return y, register.add_stage(g, y)
"""
    )
    fate = edge.ask("m", *({"x": ROW + number} for number in range(5)))
    edge.run()
    expected = [count for count in sizes for _ in range(count)]
    assert [row["y"] for row in outputs_of(fate)] == [
        ((ROW + number) * count).tolist() for number, count in enumerate(expected)
    ]
    assert outputs_of(fate)[0]["seen"] == sizes


@pytest.mark.parametrize(
    ("result", "errors", "message"),
    [
        ("rows[:-1]", {0, 1, 2}, "stage f returned 2 results for 3 instances"),
        ("None", {0, 1, 2}, "stage f raised TypeError"),
        ("[x for x, in rows[:2]] + [None]", {2}, "stage f returned NoneType"),
        ("[(1, 2)] + [1, 1]", {0}, "stage f returned 2 value(s) where 1"),
        ("[1 / (x[0] - 2) if False else 1 // int(x[0] - 2) for x, in rows]", {0, 1, 2}, "ZeroDivisionError"),
    ],
)
def test_one_bad_result_of_many_harms_only_its_instance(make, result, errors, message):
    edge = make(
        f"""
def f(rows):
    return {result}

@register.register_method(output_names=["y"])
def m(x):
    return register.add_stage(f, x, batch_size=0)
"""
    )
    fate = edge.ask("m", *({"x": ROW + number} for number in range(3)))
    edge.run()
    if len(errors) == 3:
        assert message in error_of(fate)[1]
    else:
        assert errors_of(fate) == dict.fromkeys(errors, "stage_failed")
        assert message in fate.replies[0][0].reply.errors[0].error.message


# ------------------------------------------------------------------------------------------------- calls from Python


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


# ---------------------------------------------------------------------------------------------------------- waiting


class Loop:
    """Ports whose loop does not turn unless it is told to."""

    def __init__(self):
        self.works = []
        self.came = threading.Event()

    def on_loop(self, work):
        self.works.append(work)
        self.came.set()

    def call_subgraph(self, context, subgraph, rows, done):
        raise ZeroDivisionError("a defect")


@pytest.fixture
def thread():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def context():
    return RunContext(servable=None, request="r", lenient=False)


def test_when_the_engine_ends_who_waits_for_it_is_told(thread):
    """Also if the loop turns no more: threads that wait would keep the process from ending."""
    loop, its = Loop(), context()
    future = thread.submit(ThreadCaller(loop, its).call_subgraph, 0, (1,))
    assert loop.came.wait(10)
    assert len(its.waits) == 1
    its.waits.close(ConnectionLost("gone"))
    assert isinstance(future.exception(10), ConnectionLost)
    assert len(its.waits) == 0
    again = thread.submit(ThreadCaller(loop, its).call_subgraph, 0, (1,))
    assert isinstance(again.exception(10), ConnectionLost)
    assert len(loop.works) == 1


def test_a_defect_does_not_leave_the_thread_waiting(thread):
    loop, its = Loop(), context()
    future = thread.submit(ThreadCaller(loop, its).call_subgraph, 0, (1,))
    assert loop.came.wait(10)
    with pytest.raises(ZeroDivisionError):
        loop.works[0]()
    assert isinstance(future.exception(10), InternalError)


def test_the_first_end_of_a_wait_counts():
    waits = Waits()
    with waits.one() as wait:
        wait.end((np.array(1),))
        waits.close(ConnectionLost("gone"))
        waits.close(ConnectionLost("again"))
        assert wait.result()[0] == 1
    with pytest.raises(ConnectionLost, match="gone"), waits.one():
        pass


def test_a_thread_that_waits_helps_out():
    ran = []
    with Waits().one() as wait:
        wait.help_out(lambda: ran.append(threading.get_ident()))
        wait.help_out(lambda: wait.end((np.array(1),)))
        wait.result()
    assert ran == [threading.get_ident()]


def test_requests_under_way_when_the_service_ends_end_too(tmp_path):
    """The ranks are gone and nothing answers: pipelines that wait, also those that try again, come to their end."""
    world = ready_world()
    text = """
import threading
stopped = threading.Event()

@register.register_method(output_names=["y"])
def scale(x):
    return register.call_servable(x, subgraph=0)

scale_ = PipelineServable("matmul", "scale")

@register.register_pipeline(output_names=["y"])
def stubborn(x):
    for _ in range(5):
        try:
            return scale_.run(x)
        except Exception as error:
            last = error
    stopped.set()
    raise last
"""
    edge = Edge(tmp_path, {"matmul": MODEL + text}, world)
    fate = edge.ask("stubborn", {"x": ROW})
    edge.news.get(timeout=10)()
    for agent in world.agents.values():
        agent.frozen = True
    edge.service.close(ConnectionLost("gone"))
    world.driver.fail_all(ConnectionLost("gone"))
    edge.run()
    assert error_of(fate) == ("connection_lost", "gone")
    edge.close()
