"""The command line `rankmq`. Nobody imports it."""

from __future__ import annotations

__all__: list[str] = []
