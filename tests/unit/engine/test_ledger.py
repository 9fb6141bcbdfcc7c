from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rankmq.engine.ledger import StepLedger
from rankmq.schemas.errors import LockstepError
from rankmq.schemas.messages import ErrorInfo, GroupId, RankReply

GROUP = GroupId(servable="s", version=1)


def reply(rank, step, epoch=3, **fields):
    return RankReply(group=GROUP, epoch=epoch, step=step, rank=rank, **fields)


def ledger_of(*ranks, window=4):
    return StepLedger[str](3, ranks or (0, 1, 2), window)


def test_a_step_is_finished_when_every_rank_has_answered():
    ledger = ledger_of()
    assert ledger.issue("a", now=0.0) == 0
    answers = [reply(rank, 0, error=ErrorInfo(code="x", message="y") if rank == 1 else None) for rank in (2, 0, 1)]

    assert ledger.reply(answers[0], 1.0) is None
    assert ledger.reply(answers[1], 1.0) is None
    assert ledger.progress == {0: 0, 1: -1, 2: 0}
    assert ledger.outstanding == 1
    finished = ledger.reply(answers[2], 1.0)

    assert (finished.step, finished.item) == (0, "a")
    assert finished.replies == {2: answers[0], 0: answers[1], 1: answers[2]}
    assert ledger.outstanding == 0
    assert ledger.progress == {0: 0, 1: 0, 2: 0}


def test_the_slowest_rank_holds_the_window():
    ledger = ledger_of(0, 1, window=2)
    for step in range(2):
        assert ledger.can_issue()
        assert ledger.issue("x", 0.0) == step
    assert not ledger.can_issue()
    ledger.reply(reply(0, 0), 0.0)
    ledger.reply(reply(0, 1), 0.0)
    assert not ledger.can_issue()
    with pytest.raises(ValueError, match="window of 2"):
        ledger.issue("x", 0.0)

    ledger.reply(reply(1, 0), 0.0)

    assert ledger.can_issue()
    assert ledger.issue("x", 0.0) == 2
    assert not ledger.can_issue()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (reply(1, 1, epoch=2), "rank 1 answered step 1 of epoch 2: this is epoch 3"),
        (reply(1, 1, epoch=4), "of epoch 4: this is epoch 3"),
        (reply(9, 1), r"rank 9 answered step 1 of epoch 3, but is not in the group: \[0, 1, 2\]"),
        (reply(1, 0), "rank 1 answered step 0 of epoch 3 again"),
        (reply(1, 2), "rank 1 answered step 2 of epoch 3 before step 1: a gap"),
        (reply(1, 3), "rank 1 answered step 3 of epoch 3, which was not sent to it: 3 comes next"),
        (reply(2, 2), "before step 0: a gap"),
    ],
)
def test_an_answer_out_of_order_is_refused_and_books_nothing(bad, message):
    ledger = ledger_of()
    for item in "abc":
        ledger.issue(item, 0.0)
    ledger.reply(reply(1, 0), 0.0)
    before = ledger.progress

    with pytest.raises(LockstepError, match=message) as caught:
        ledger.reply(bad, 0.0)

    assert "\n" not in str(caught.value)
    assert ledger.progress == before
    assert ledger.outstanding == 3
    assert ledger.reply(reply(1, 1), 0.0) is None


def test_void_gives_back_what_is_unfinished_and_ends_the_epoch():
    ledger = ledger_of(0, 1)
    for item in "abc":
        ledger.issue(item, 0.0)
    ledger.reply(reply(0, 0), 0.0)
    ledger.reply(reply(0, 1), 0.0)
    ledger.reply(reply(1, 0), 0.0)

    assert ledger.void() == ["b", "c"]

    assert ledger.void() == []
    assert (ledger.outstanding, ledger.can_issue()) == (0, False)
    assert ledger.progress == {0: 1, 1: 0}
    assert ledger.overdue(1e9, 0.0) == ()
    with pytest.raises(ValueError, match="epoch 3 is over"):
        ledger.issue("d", 0.0)
    with pytest.raises(LockstepError, match="rank 1 answered step 1 of epoch 3, which is over"):
        ledger.reply(reply(1, 1), 0.0)


class TestOverdue:
    def test_names_the_ranks_that_have_not_answered(self):
        ledger = ledger_of()
        ledger.issue("a", now=10.0)
        ledger.reply(reply(1, 0), 11.0)

        assert ledger.overdue(15.0, 5.0) == ()
        assert ledger.overdue(15.1, 5.0) == ((0, (0, 2)),)

    def test_a_step_is_not_late_while_the_rank_is_at_an_earlier_one(self):
        ledger = ledger_of(0)
        ledger.issue("a", now=0.0)
        ledger.issue("b", now=0.0)
        ledger.reply(reply(0, 0), 4.0)

        assert ledger.overdue(8.0, 5.0) == ()
        assert ledger.overdue(9.1, 5.0) == ((1, (0,)),)

    def test_idle_time_is_not_counted(self):
        ledger = ledger_of(0)
        ledger.issue("a", now=0.0)
        ledger.reply(reply(0, 0), 1.0)
        assert ledger.overdue(100.0, 5.0) == ()
        ledger.issue("b", now=100.0)

        assert ledger.overdue(104.0, 5.0) == ()
        assert ledger.overdue(106.0, 5.0) == ((1, (0,)),)

    def test_ranks_at_different_steps_are_told_apart(self):
        ledger = ledger_of()
        for item in "ab":
            ledger.issue(item, 0.0)
        ledger.reply(reply(2, 0), 1.0)

        assert ledger.overdue(100.0, 5.0) == ((0, (0, 1)), (1, (2,)))


class TestStages:
    def test_each_stage_has_its_own_numbers_and_window(self):
        ledger = ledger_of(0, 1, 2, 3, window=2)
        assert [ledger.issue(item, 0.0, ranks=(0, 1)) for item in "ab"] == [0, 1]
        assert not ledger.can_issue((0, 1))
        assert not ledger.can_issue()
        assert ledger.can_issue((2, 3))
        assert ledger.issue("c", 0.0, ranks=(2, 3)) == 0

        assert ledger.reply(reply(2, 0), 0.0) is None
        assert ledger.reply(reply(3, 0), 0.0).item == "c"
        assert ledger.reply(reply(0, 0), 0.0) is None
        assert ledger.reply(reply(1, 0), 0.0).item == "a"
        assert ledger.issue("d", 0.0, ranks=(2, 3)) == 1
        assert ledger.void() == ["b", "d"]

    def test_ranks_at_different_numbers_cannot_share_a_step(self):
        ledger = ledger_of()
        ledger.issue("a", 0.0, ranks=(0,))

        with pytest.raises(ValueError, match="not at the same step"):
            ledger.issue("b", 0.0, ranks=(0, 1))
        assert ledger.progress == {0: -1, 1: -1, 2: -1}
        assert ledger.issue("b", 0.0, ranks=(1, 2)) == 0

    @pytest.mark.parametrize("ranks", [(), (0, 7)])
    def test_unknown_ranks_are_refused(self, ranks):
        with pytest.raises(ValueError, match="not among the ledger's"):
            ledger_of().issue("a", 0.0, ranks=ranks)

    def test_a_rank_outside_the_stage_cannot_answer_for_it(self):
        ledger = ledger_of()
        ledger.issue("a", 0.0, ranks=(0, 1))

        with pytest.raises(LockstepError, match="rank 2 answered step 0 of epoch 3, which was not sent to it"):
            ledger.reply(reply(2, 0), 0.0)


@pytest.mark.parametrize(("ranks", "window"), [((), 1), ((0,), 0)])
def test_a_ledger_needs_ranks_and_a_window(ranks, window):
    with pytest.raises(ValueError, match="needs ranks"):
        StepLedger(0, ranks, window)


class Machine(RuleBasedStateMachine):
    """Ranks that answer in order at their own pace, with strays in between."""

    def __init__(self):
        super().__init__()
        self.ledger = StepLedger[int](3, range(3), 3)
        self.issued = 0
        self.answered = dict.fromkeys(range(3), 0)
        self.finished: list[int] = []

    @rule()
    def issue(self):
        ahead = self.issued - min(self.answered.values())
        assert self.ledger.can_issue() == (ahead < 3)
        if ahead < 3:
            assert self.ledger.issue(self.issued, 0.0) == self.issued
            self.issued += 1

    @precondition(lambda self: any(count < self.issued for count in self.answered.values()))
    @rule(data=st.data())
    def answer(self, data):
        rank = data.draw(st.sampled_from([rank for rank, count in self.answered.items() if count < self.issued]))
        step = self.answered[rank]
        self.answered[rank] += 1
        done = self.ledger.reply(reply(rank, step), 0.0)
        if min(self.answered.values()) > step:
            assert (done.step, done.item, set(done.replies)) == (step, step, {0, 1, 2})
            self.finished.append(step)
        else:
            assert done is None

    @rule(rank=st.integers(0, 4), step=st.integers(0, 12), epoch=st.integers(2, 4))
    def stray(self, rank, step, epoch):
        if epoch == 3 and self.answered.get(rank) == step and step < self.issued:
            return
        with pytest.raises(LockstepError):
            self.ledger.reply(reply(rank, step, epoch=epoch), 0.0)

    @invariant()
    def books_agree(self):
        assert self.finished == list(range(len(self.finished)))
        assert self.ledger.outstanding == self.issued - len(self.finished)
        assert self.ledger.progress == {rank: count - 1 for rank, count in self.answered.items()}

    def teardown(self):
        assert self.ledger.void() == list(range(len(self.finished), self.issued))


TestLedgerAgainstModel = Machine.TestCase


def test_what_a_step_took_counts_from_the_end_of_the_one_before_it():
    ledger = ledger_of(0, 1)
    for at in (10.0, 10.5):
        ledger.issue("x", at)
    assert ledger.reply(reply(0, 0), 11.0) is None
    assert ledger.reply(reply(0, 1), 11.5) is None
    assert ledger.reply(reply(1, 0), 13.0).took == pytest.approx(3.0)
    assert ledger.reply(reply(1, 1), 13.5).took == pytest.approx(0.5)
    ledger.issue("x", 20.0)
    ledger.reply(reply(0, 2), 20.5)
    assert ledger.reply(reply(1, 2), 21.0).took == pytest.approx(1.0)


def test_steps_of_other_ranks_do_not_count():
    ledger = ledger_of(0, 1)
    ledger.issue("x", 10.0, [0])
    ledger.issue("y", 10.0, [1])
    assert ledger.reply(reply(0, 0), 14.0).took == pytest.approx(4.0)
    assert ledger.reply(reply(1, 0), 15.0).took == pytest.approx(5.0)
