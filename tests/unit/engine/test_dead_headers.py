"""How large headers are, so that those of a dead letter and of any other message fit into a frame."""

from __future__ import annotations

import decimal
from datetime import datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pika import data
from rankmq.engine.amqp_headers import size_of
from rankmq.engine.dead_headers import headers_of
from rankmq.schemas.errors import InvalidInput

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text()
    | st.binary()
    | st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1))
    | st.decimals(-1000, 1000, places=2).map(decimal.Decimal)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=30), inner, max_size=4)
)
TABLES = st.dictionaries(st.text(max_size=30), VALUES, max_size=6)


@given(TABLES)
def test_it_is_never_more_than_thought(table: dict[str, Any]) -> None:
    pieces: list[bytes] = []
    encoded = data.encode_table(pieces, table)
    assert encoded == len(b"".join(pieces))
    assert encoded <= size_of(table) <= 10 * encoded + 10


def test_deep_nesting_does_not_matter() -> None:
    value: Any = 1
    for _ in range(50_000):
        value = [value]
    assert size_of({"deep": value}) == 5 + 4 + 5 + 50_000 * 5 + 9
    headers = headers_of(
        InvalidInput("odd"),
        request="1",
        attempts=1,
        exchange="rankmq.requests",
        routing_key="matmul",
        headers={"deep": value, "kept": 1},
        now=1.0,
    )
    assert headers["kept"] == 1
    assert headers["rankmq-headers-dropped"] == "deep"
