"""The rank side: agents, their launcher, the executors, the private broker, and everything on one machine.

Nothing is imported here: a rank that runs numpy graphs must not pay for MindSpore, nor a launcher for the broker.
"""

from __future__ import annotations

__all__: list[str] = []
