"""Collectives through shared memory, for the ranks of one host on CPU.

A small C++ library, compiled on first use, that MindSpore runs as custom operators in the place of its own AllReduce,
AllGather, Broadcast and ReduceScatter: several times faster there, and when a rank dies the others see it at once and
go on in the same processes, in a new group. `library` compiles it, `rewrite` changes a graph so that it uses it, and
`SharedGroup` is a process's place in a group.
"""

from __future__ import annotations

from ...schemas.errors import CollectivesUnavailable
from .binding import Fault
from .build import library
from .group import SharedGroup
from .rewrite import rewrite
from .segment import segment_name, sweep
from .self_test import self_test

__all__ = [
    "CollectivesUnavailable",
    "Fault",
    "SharedGroup",
    "library",
    "rewrite",
    "segment_name",
    "self_test",
    "sweep",
]
