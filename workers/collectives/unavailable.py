"""Why collectives through shared memory cannot be used."""

from __future__ import annotations

from ...schemas.errors import OperatorError

__all__ = ["CollectivesUnavailable"]


class CollectivesUnavailable(OperatorError):
    """They cannot be used on this machine, or for this graph; MindSpore's own can."""

    code = "collectives_unavailable"
    exit_code = 6
