"""Given an answer, when the broker would not take it, then it goes without its outputs, and says what helps."""

from __future__ import annotations

import numpy as np
import pytest
from rankmq.schemas import codec
from rankmq.schemas.messages import Column, GroupId, RankReply
from rankmq.schemas.tensors import from_array
from rankmq.workers.reply_size import encoded


def reply(turns=()):
    outputs = (Column(index=0, tensors=(from_array(np.zeros(1000, np.uint8)),)),)
    return RankReply(group=GroupId(servable="s", version=1), epoch=1, step=2, rank=3, outputs=outputs, turns=turns)


def test_what_fits_goes_as_it_is():
    size = len(codec.encode(reply()))
    assert encoded(reply(), size + 4096) == codec.encode(reply())
    assert encoded(reply(), size + 4095) != codec.encode(reply())


@pytest.mark.parametrize("turns", [(), (1,), (8, 3)])
def test_what_does_not_says_what_helps(turns):
    found = codec.decode_to_orchestrator(encoded(reply(turns), 5000))
    assert (found.outputs, found.step, found.rank) == ((), 2, 3)
    code, text = found.error.code, found.error.message
    assert code == "limit_exceeded"
    assert "a blob store (blob_store), or on the orchestrator's host more shared memory (plane_bytes)" in text
    assert ("of 8 turns" in text) is ("fewer turns a slice (slice_turns), a blob" in text) is (8 in turns)
