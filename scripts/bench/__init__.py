"""The benchmarks of `rankmq bench`: each module of this package is one, and a new one is one new module.

Such a module has a `BENCHMARK`; what several of them use is in `tools`.
"""

from __future__ import annotations

__all__: list[str] = []
