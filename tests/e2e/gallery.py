"""The servables of the shared engine."""

from pathlib import Path

import numpy as np

from tests.e2e.graphs import WORDS, Graph, negated_matmul, op, spec, write_servable
from tests.e2e.layouts import write_layouts

# The configuration in "Scheduling Multi-Graph Based on the Pipeline" of MindSpore Serving r1.3, word for word.
R13 = '''
import numpy as np
from mindspore_serving.server import distributed
from mindspore_serving.server import register
from mindspore_serving.server.register import PipelineServable

distributed.declare_servable(rank_size=8, stage_size=1, with_batch_dim=False)

def add_preprocess(x):
    """define preprocess, this example has one input and one output"""
    x = np.add(x, x)
    return x

@register.register_method(output_names=["y"])
def fun1(x):
    x = register.call_preprocess(add_preprocess, x)
    y = register.call_servable(x, subgraph=0)
    return y

@register.register_method(output_names=["y"])
def fun2(x):
    y = register.call_servable(x, subgraph=1)
    return y

servable1 = PipelineServable(servable_name="matmul", method="fun1", version_number=0)
servable2 = PipelineServable(servable_name="matmul", method="fun2", version_number=0)

@register.register_pipeline(output_names=["x", "z"])
def predict(x, y):
    x = servable1.run(x)
    for i in range(10):
        print(i)
        z = servable2.run(y)
    return x, z
'''
ORIGINAL = R13.replace("from mindspore_serving.server", "from rankmq.engine")

# In the words of r1.5 and later: a model of one rank, called from within a Python stage and as a stage.
LATER = (
    WORDS.replace("import distributed, ", "import ")
    + """
model = register.declare_model(model_file=["matmul_0.npz", "matmul_1.npz"], model_format="MindIR", with_batch_dim=False)

def process(x, y):
    z1 = model.call(x, subgraph=0)
    z2 = model.call(y, subgraph=1)
    return z1 + z2, z1 - z2

@register.register_method(output_names=["sum", "difference"])
def predict(x, y):
    total, difference = register.add_stage(process, x, y, outputs_count=2)
    return total, difference

def halve(instances):
    for (y,) in instances:
        yield y / 2

@register.register_method(output_names=["y"])
def chain(x):
    y = register.add_stage(model, x, subgraph=0)
    return register.add_stage(halve, y, batch_size=4)
"""
)
LATER_WEIGHTS = [np.random.default_rng(seed).standard_normal((12, 5)).astype(np.float32) for seed in (1, 2)]

# No model of its own: it calls methods of others, and does what its own Python does.
CALLER = (
    WORDS
    + """
import pathlib
fun1 = PipelineServable(servable_name="matmul", method="fun1")
fun2 = PipelineServable(servable_name="matmul", method="fun2")
columns = PipelineServable(servable_name="layouts2", method="shard_columns")
old = PipelineServable(servable_name="versioned", method="scale", version_number=1)
new = PipelineServable(servable_name="versioned", method="scale")

@register.register_pipeline(output_names=["x", "z"])
def both(x, y):
    return fun1.run(x), fun2.run(y)

@register.register_pipeline(output_names=["old", "new", "chained"])
def versions(x):
    return old.run(x), new.run(x), new.run(old.run(x))

@register.register_pipeline(output_names=["y", "turns"])
def until_small(x):
    turns = 0
    while np.abs(x).max() > 1:
        x, turns = old.run(x) / 4, turns + 1
    return x, turns

@register.register_pipeline(output_names=["y"])
def slow(x):
    time.sleep(4)
    return columns.run(x)

@register.register_pipeline(output_names=["y"])
def held(x, door):
    door = pathlib.Path(str(door))
    until = time.monotonic() + 100
    while not door.exists() and time.monotonic() < until:
        time.sleep(0.02)
    return columns.run(x)

def shout(text, times):
    return np.strings.upper(np.strings.multiply(text, times)), len(str(text).encode())

@register.register_method(output_names=["text", "bytes"])
def text(text, times):
    loud, size = register.call_preprocess(shout, text, times)
    return loud, size

@register.register_pipeline(output_names=["y"])
def same(x):
    return x
"""
)

VERSIONED = (
    WORDS
    + """
model = register.declare_model("scale.npz", with_batch_dim=False)

@register.register_method(output_names=["y"])
def scale(x):
    return register.add_stage(model, x)
"""
)

# What can go wrong while a request is served. A row whose first element is 13 makes the graph raise.
TROUBLE = (
    WORDS
    + """
rows = distributed.declare_servable(2, 1, with_batch_dim=True, batch_size=48, subgraphs=[subgraph("stacked.npz")])
single = distributed.declare_servable(2, 1, with_batch_dim=False, subgraphs=[subgraph("single.npz")])
whole = distributed.declare_servable(2, 1, with_batch_dim=False, subgraphs=[subgraph("whole.npz")])

@register.register_method(output_names=["y"])
def stacked(x):
    return register.add_stage(rows, x)

@register.register_method(output_names=["y"])
def one(x):
    return register.add_stage(single, x)

@register.register_method(output_names=["y"])
def ints(x):
    return register.add_stage(whole, x)

def refuse_negative(x):
    if x.min() < 0:
        raise ValueError("negative:\\n" + str(x.min()))
    return x

@register.register_method(output_names=["y"])
def checked(x):
    return register.call_servable(register.call_preprocess(refuse_negative, x), subgraph=1)

def two_values(x):
    return x, x

@register.register_method(output_names=["y"])
def miscounted(x):
    y = register.add_stage(two_values, x, outputs_count=1)
    return y

@register.register_pipeline(output_names=["y"])
def exits(x):
    raise SystemExit(3)

call_checked = PipelineServable("trouble", "checked")

@register.register_pipeline(output_names=["y"])
def caught(x):
    try:
        return call_checked.run(x)
    except Exception as error:
        return len(str(error))
"""
)


def write_gallery(directory: Path) -> list[str | tuple[str, int]]:
    """Write them all; gives what is served."""
    write_matmul(directory)
    layouts = [write_layouts(directory, size) for size in (1, 2, 8)]
    later = {f"matmul_{i}": (lambda _, i=i: negated_matmul(LATER_WEIGHTS[i], rows=4)) for i in range(2)}
    write_servable(directory, "later", LATER, later)
    write_servable(directory, "caller", CALLER)
    for version, factor in ((1, 2.0), (2, 3.0)):
        graphs = {"scale": lambda _, factor=factor: _scaled(factor)}
        write_servable(directory, "versioned", VERSIONED, graphs, version=version)
    trouble = {
        "stacked": lambda _: _failing_rows(),
        "single": lambda _: Graph(
            [op("fail_if", "x", "c", value=13.0), op("negative", "c", "y")], [spec("x", 4)], [spec("y", 4)]
        ),
        "whole": lambda _: Graph(
            [op("negative", "x", "y")], [spec("x", 4, dtype="int32")], [spec("y", 4, dtype="int32")]
        ),
    }
    write_servable(directory, "trouble", TROUBLE, trouble, ranks=2)
    return ["matmul", *layouts, "later", "caller", ("versioned", 1), ("versioned", 2), "trouble"]


def _failing_rows(most: int = 48) -> Graph:
    """A graph with a batch dimension that raises whichever row has 13 as its first element."""
    looks = [
        it
        for row in range(most)
        for it in (
            op("slice", "x", f"row{row}", axis=0, start=row, stop=row + 1),
            op("fail_if", f"row{row}", f"seen{row}", value=13.0),
        )
    ]
    return Graph([*looks, op("negative", "x", "y")], [spec("x", -1, 4)], [spec("y", -1, 4)])


def write_matmul(directory: Path, first: float = 0.5, second: float = 1.5, configuration: str = ORIGINAL) -> None:
    """The original's servable: eight ranks that hold the same two graphs."""
    weights = [np.full((96, 16), value, np.float32) for value in (first, second)]
    graphs = {f"matmul_{i}": (lambda _, weight=weight: negated_matmul(weight)) for i, weight in enumerate(weights)}
    write_servable(directory, "matmul", configuration, graphs, ranks=8)


def _scaled(factor: float) -> Graph:
    return Graph([op("multiply", "x f", "y")], [spec("x", -1)], [spec("y", -1)], {"f": np.array(factor, np.float32)})
