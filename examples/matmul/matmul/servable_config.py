"""The servable of "Scheduling Multi-Graph Based on the Pipeline" (MindSpore Serving r1.3), its import lines changed."""

import numpy as np
from rankmq.engine import distributed, register
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
    z = servable2.run(y)
    return x, z
