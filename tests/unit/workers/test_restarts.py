"""What ends is started again, after pauses that double, and not for ever."""

import pytest
from rankmq.schemas.errors import GroupError
from rankmq.workers.restarts import Restarts


def test_pauses_double_up_to_a_bound():
    restarts = Restarts("it", 20)
    pauses = [restarts.pause("x", now=float(second)) for second in range(10)]
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert pauses[-1] == max(pauses) == 10.0


def test_one_end_too_many_is_an_error_that_names_the_last():
    restarts = Restarts("the broker", 2)
    restarts.pause("a", now=0.0)
    restarts.pause("b", now=1.0)
    with pytest.raises(GroupError, match=r"the broker ended 3 times within ten minutes \(last: c\)"):
        restarts.pause("c", now=2.0)


def test_none_at_all_may_be_wanted():
    with pytest.raises(GroupError):
        Restarts("it", 0).pause("a", now=0.0)


def test_what_was_long_ago_does_not_count():
    restarts = Restarts("it", 2)
    for second in (0.0, 1.0, 700.0, 701.0, 1400.0):
        pause = restarts.pause("x", now=second)
    assert pause == 0.1
