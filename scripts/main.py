"""The entry point of `rankmq`.

It imports nothing before it is called: the agents' processes import the script that started them once more, and a
command line is nothing that they need.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Runs the command that the command line names, and exits with its code."""
    from .app import app

    try:
        app()
    except SystemExit as end:
        from ..engine.leaving import leave

        leave(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise
