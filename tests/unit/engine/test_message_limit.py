"""How large a message may be is learned when the broker refuses one, and from nothing else."""

import pytest
from rankmq.engine.message_limit import MessageLimit
from rankmq.schemas.errors import ConnectionLost, LimitExceeded

MIB = 1 << 20


@pytest.mark.parametrize(("version", "most"), [((3, 10, 8), 128 * MIB), ((4, 0, 5), 16 * MIB), ((), 128 * MIB)])
def test_what_is_usual_for_the_version_until_something_else_is_said(version, most):
    assert MessageLimit().of(version) == most


@pytest.mark.parametrize(
    "said",
    [
        "PRECONDITION_FAILED - message size 24000100 is larger than configured max size 1048576",
        "message size 24000100 is larger than max size 1048576",
    ],
)
def test_what_the_broker_says_counts_from_then_on(said):
    limit = MessageLimit()
    limit.learn(LimitExceeded(said))
    assert limit.of((3, 13)) == limit.of((4, 1)) == MIB
    limit.learn(LimitExceeded(said.replace("1048576", "2097152")))
    assert limit.of((3, 13)) == MIB


@pytest.mark.parametrize("error", [LimitExceeded("headers larger than a frame"), ConnectionLost("max size 3")])
def test_nothing_else_is_taken_for_it(error):
    limit = MessageLimit()
    limit.learn(error)
    assert limit.of((4,)) == 16 * MIB
