"""Given deliveries that are acknowledged in any order, then the broker is told of each once, and of no other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.acks import Acks

STEPS = st.lists(
    st.one_of(
        st.just(("deliver", 0)),
        st.tuples(st.sampled_from(["ack", "hand back"]), st.integers(0, 30)),
        st.sampled_from([("take", 0), ("all", 0)]),
    ),
    max_size=120,
)


class Broker:
    """What RabbitMQ holds for one channel."""

    def __init__(self):
        self.last = 0
        self.unacked: list[int] = []
        self.acked: list[int] = []

    def deliver(self):
        self.last += 1
        self.unacked.append(self.last)
        return self.last

    def ack(self, tag, multiple):
        assert tag in self.unacked, "it would close the channel"
        gone = [it for it in self.unacked if it == tag or (multiple and it < tag)]
        self.unacked = [it for it in self.unacked if it not in gone]
        self.acked += gone


@given(STEPS, st.integers(0, 3))
def test_each_is_acknowledged_once_and_nothing_else_is(steps, between):
    acks, broker = Acks(), Broker()
    ours: list[int] = []  # what is neither done with nor handed back
    done: set[int] = set()

    def take():
        for tag, multiple in acks.take():
            broker.ack(tag, multiple)

    for step, which in steps:
        if step == "deliver":
            broker.last += between  # tags of consumers that acknowledge nothing
            ours.append(broker.deliver())
            acks.delivered(ours[-1])
        elif step == "take":
            take()
            assert set(broker.acked) == done
        elif step == "all" and ours:
            take()
            acks.all_to(ours[-1])
            broker.ack(ours[-1], multiple=True)
            done.update(ours)
            ours.clear()
        elif ours and step in ("ack", "hand back"):
            tag = ours.pop(which % len(ours))
            if step == "ack":
                assert acks.add(tag) == (not (done - set(broker.acked)))
                done.add(tag)
            else:
                broker.unacked.remove(tag)
                acks.handed_back(tag)
    take()
    assert sorted(broker.acked) == sorted(done)
    assert acks.take() == []


def test_those_before_which_none_is_missing_are_acknowledged_in_one():
    acks = Acks()
    for tag in range(1, 8):
        acks.delivered(tag)
    for tag in (3, 1, 2, 5, 7):
        acks.add(tag)
    assert acks.take() == [(3, True), (5, False), (7, False)]
    acks.add(4)
    acks.add(6)
    assert acks.take() == [(6, True)]


def test_what_comes_behind_a_long_one_is_not_kept():
    acks = Acks()
    acks.delivered(1)
    for tag in range(2, 1000):
        acks.delivered(tag)
        acks.add(tag)
        assert acks.take() == [(tag, False)]
    assert len(acks._open) == 1
    acks.add(1)
    assert acks.take() == [(1, False)]


def test_one_that_never_came_is_said_all_the_same():
    acks = Acks()
    acks.add(9)
    assert acks.take() == [(9, False)]
