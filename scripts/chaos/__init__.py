"""`rankmq chaos`: a group under a steady load, and what becomes of its requests while it is damaged."""

from __future__ import annotations

__all__: list[str] = []
