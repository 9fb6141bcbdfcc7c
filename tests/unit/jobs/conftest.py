"""A job that has begun."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from rankmq.engine.jobs.desk import Desk
from rankmq.engine.jobs.step import Asking, Room

from tests.unit.jobs.desks import make


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[tuple[Path, Desk, Asking]]:
    """A job of ten rows with one request that is sent, and not answered."""
    make(tmp_path, [f'{{"x": {it}}}' for it in range(10)], rows_per_request=5)
    with closing(Desk(tmp_path / "out")) as desk:
        (asking,) = desk.step([], Room(1)).asking
        yield tmp_path / "out", desk, asking
