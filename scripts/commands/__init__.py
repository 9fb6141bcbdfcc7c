"""One command per module; each has `add_to(app)`. What is heavy they import when they run, so that --help is quick."""

from __future__ import annotations

__all__: list[str] = []
