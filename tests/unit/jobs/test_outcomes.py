"""What a reply means for the rows of its request."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.jobs.outcomes import Again, outcome_of
from rankmq.schemas.errors import error_codes
from rankmq.schemas.messages import ErrorInfo, InstanceError, Reply
from rankmq.schemas.tensors import Tensor

ROW = {"y": Tensor("bool", (), memoryview(b"\1"))}
CODES = sorted(error_codes())


def error(code: str) -> ErrorInfo:
    return ErrorInfo(code=code, message=f"it was {code}", side="engine")


def reply(*rows: str | None) -> Reply:
    """A row that has a result is None, one that failed the code of its error."""
    outputs = [ROW if row is None else None for row in rows]
    return Reply(
        outputs=outputs, errors=[InstanceError(index=i, error=error(row)) for i, row in enumerate(rows) if row]
    )


@given(st.lists(st.sampled_from([None, *CODES]), min_size=1, max_size=20), st.integers(0, 5), st.booleans())
def test_every_row_has_one_outcome(rows: list[str | None], attempt: int, cancelling: bool) -> None:
    found = outcome_of(reply(*rows), len(rows), attempt, cancelling=cancelling)
    again = [it.first for it in found.again]
    assert all(it.count == 1 for it in found.again)
    assert found.done == rows.count(None)
    assert len({*again, *found.failed}) == len(again) + len(found.failed)
    assert found.done + found.open + len(again) + len(found.failed) == len(rows)
    assert not (cancelling and again)
    for index, met in found.failed.items():
        assert met == error(rows[index] or "")


@given(st.sampled_from(CODES), st.integers(1, 20), st.integers(0, 5), st.booleans())
def test_so_it_has_where_the_request_failed_as_a_whole(code: str, count: int, attempt: int, cancelling: bool) -> None:
    found = outcome_of(Reply(error=error(code)), count, attempt, cancelling=cancelling)
    rows = [row for it in found.again for row in range(it.first, it.first + it.count)]
    assert found.done == 0
    assert sorted([*rows, *found.failed]) == ([] if found.open else list(range(count)))
    assert found.open in (0, count)


@given(st.sampled_from(CODES), st.integers(1, 20), st.booleans())
def test_nothing_is_sent_again_for_ever(code: str, count: int, bounded: bool) -> None:
    """But for what stops the job, which a person starts again."""
    pending, attempt = [count], 0
    while pending and attempt < 50:
        outcomes = [outcome_of(Reply(error=error(code)), it, attempt, bounded=bounded) for it in pending]
        if any(it.fatal for it in outcomes):
            return
        pending = [again.count for it in outcomes for again in it.again]
        attempt += 1
    assert attempt <= 5


def test_what_may_pass_is_sent_again_some_times_and_then_fails() -> None:
    for attempt in range(3):
        assert outcome_of(reply(None, "temporary_failure"), 2, attempt).again == [Again(1, 1)]
    assert list(outcome_of(reply(None, "temporary_failure"), 2, 3).failed) == [1]


def test_a_request_that_failed_over_one_row_is_taken_apart() -> None:
    whole = outcome_of(Reply(error=error("limit_exceeded")), 3, 0)
    assert whole.again == [Again(0, 1), Again(1, 1), Again(2, 1)]
    assert list(outcome_of(Reply(error=error("limit_exceeded")), 1, 1).failed) == [0]


@pytest.mark.parametrize("code", ["invalid_input", "graph_failed", "turns_exhausted"])
def test_a_request_whose_rows_all_failed_alike_is_not(code: str) -> None:
    found = outcome_of(Reply(error=error(code)), 3, 0)
    assert sorted(found.failed) == [0, 1, 2]
    assert not found.again


def test_a_group_that_was_away_gets_the_request_again_as_it_was() -> None:
    assert outcome_of(Reply(error=error("group_unavailable")), 3, 0).again == [Again(0, 3)]


def test_rows_that_took_too_long_are_sent_one_by_one_and_then_fail() -> None:
    late = Reply(error=error("deadline_exceeded"))
    for attempt in (0, 1, 3):
        assert outcome_of(late, 3, attempt, bounded=True).again == [Again(0, 1), Again(1, 1), Again(2, 1)]
    assert list(outcome_of(late, 1, 1, bounded=True).failed) == [0]
    assert outcome_of(late, 1, 0, bounded=True).again == [Again(0, 1)]
    assert outcome_of(late, 3, 2).again == [Again(0, 3)], "of its queue: it may pass"


def test_what_no_row_would_survive_stops_the_job() -> None:
    found = outcome_of(Reply(error=error("unknown_method")), 3, 0)
    assert found.fatal == error("unknown_method")
    assert found.again == [Again(0, 3)]


def test_a_reply_of_another_length_is_not_taken_for_one() -> None:
    found = outcome_of(reply(None, None), 3, 0)
    assert found.done == 0
    assert len(found.again) == 3
