"""The same two matmuls with their tensors divided over the ranks: each rank gets, and gives, only its own part.

The graphs are those of `export_model.py --form sharded`.
"""

from rankmq.engine import distributed, register

distributed.declare_servable(
    rank_size=8,
    stage_size=1,
    with_batch_dim=False,
    subgraphs=[
        # Row-parallel: a rank takes its 12 of the 96 columns of x. The graph's AllReduce makes y whole on every rank.
        distributed.subgraph(inputs=[distributed.shard(1)], outputs=[distributed.from_rank(0)]),
        # Column-parallel: a rank gives its 2 of the 16 columns of y. The graph does not join them; this does.
        distributed.subgraph(inputs=[distributed.replicate()], outputs=[distributed.concat(1)]),
    ],
)


@register.register_method(output_names=["y"])
def row_parallel(x):
    y = register.call_servable(x, subgraph=0)
    return y


@register.register_method(output_names=["y"])
def column_parallel(x):
    y = register.call_servable(x, subgraph=1)
    return y
