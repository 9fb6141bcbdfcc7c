"""Servables on disk, and a reference that runs a method's stages one after the other, in numpy."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent

import pytest
from rankmq.engine.loader import load_servable
from rankmq.engine.servable import Constant, FunctionStage, InputRef, Method, Ref, Servable, outputs_of
from rankmq.schemas.errors import ServableError

# The original listing; only its import lines are changed.
ORIGINAL = '''
import numpy as np
from rankmq.engine import distributed
from rankmq.engine import register
from rankmq.engine.register import PipelineServable

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

LATER = """
from rankmq.engine import distributed
from rankmq.engine import register

model = register.declare_model(model_file=["matmul_0.mindir", "matmul_1.mindir"], model_format="MindIR",
                               with_batch_dim=False)

def process(x, y):
    z1 = model.call(x, subgraph=0)
    z2 = model.call(y, subgraph=1)
    return z1 + z2


@register.register_method(output_names=["z"])
def predict(x, y):
    z = register.add_stage(process, x, y, outputs_count=1)
    return z
"""

WORDS = """\
import numpy as np
from rankmq.engine import distributed, register
from rankmq.engine.register import PipelineServable
"""
MODEL = WORDS + 'model = register.declare_model(["a.mindir", "b.mindir"], "MindIR", with_batch_dim=False)\n'


def write_config(directory: Path, text: str, name: str = "matmul") -> Path:
    home = directory / name
    home.mkdir(parents=True, exist_ok=True)
    file = home / "servable_config.py"
    file.write_text(dedent(text))
    return file


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_devices(directory: Path, ranks: int, graphs: int) -> None:
    """The original's layout: model/device<r>/matmul_<i>.mindir beside the servable's folder."""
    touch(*(directory / f"model/device{r}/matmul_{i}.mindir" for r in range(ranks) for i in range(graphs)))


def load(directory: Path, text: str, name: str = "matmul", version: int = 0) -> Servable:
    """Load a configuration whose model files do not matter."""
    write_config(directory, text, name)
    return load_servable(directory, name, version, require_models=False)


def refused(directory: Path, text: str, match: str, at: str | int = "HERE", name: str = "matmul") -> ServableError:
    """Assert that loading is refused in one line, at the line that carries the comment `# HERE` (or at a number)."""
    file = write_config(directory, text, name)
    lines = file.read_text().splitlines()
    line = next(i for i, code in enumerate(lines, 1) if f"# {at}" in code) if isinstance(at, str) else at
    with pytest.raises(ServableError, match=match) as caught:
        load_servable(directory, name, require_models=False)
    assert caught.value.file == str(file)
    assert caught.value.line == line, caught.value.message
    assert re.match(rf"{re.escape(str(file))}:{line}: [^\n]+$", caught.value.message)
    return caught.value


def run_method(method: Method, args: tuple, graphs: Mapping[int, Callable[..., object]]) -> tuple:
    """What the method gives for one instance."""
    results: list[tuple] = []

    def value(ref: Ref) -> object:
        if isinstance(ref, InputRef):
            return args[ref.index]
        return ref.value if isinstance(ref, Constant) else results[ref.stage][ref.output]

    for stage in method.stages:
        given = tuple(value(ref) for ref in stage.inputs)
        if not isinstance(stage, FunctionStage):
            returned = graphs[stage.subgraph](*given)
        elif stage.batch_size is None:
            returned = stage.function(*given)
        else:
            (returned,) = stage.function([given])
        results.append(outputs_of(returned, stage.outputs_count, str(stage.where)))
    return tuple(value(ref) for ref in method.outputs)
