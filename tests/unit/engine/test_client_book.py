"""The book of requests that are under way, and how their calls are settled."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import pytest
from rankmq.engine.client_book import Asked, Book, Call, Pending
from rankmq.schemas.errors import ClientClosed, ReplyTimeout, RequestIdReused
from rankmq.schemas.messages import Reply

REPLY = Reply(id="a")


def call(read=lambda reply: reply) -> Call:
    return Call(Pending("a"), read, until=time.monotonic() + 60, seconds=60)


def asked(request_id: str = "a", body: bytes = b"body") -> Asked:
    return Asked(request_id, "s", body, expires=0)


def entered(book: Book, request: Asked, one: Call) -> Asked:
    found: list[Asked] = []
    book.enter(request, one, found.append)
    return found[0]


# ---------------------------------------------------------------------------------------------------------- settling


def test_whatever_reading_raises_reaches_who_waits():
    one = call(read=lambda reply: 1 / 0)
    one.settle(REPLY)
    with pytest.raises(ZeroDivisionError):
        one.future.result(0)


def test_a_cancelled_call_is_settled_without_a_word():
    one = call()
    assert one.future.cancel()
    one.settle(REPLY)
    assert one.future.cancelled()


def test_only_one_of_cancel_and_settle_wins():
    for _ in range(200):
        one = call()
        outcomes: list[bool] = []
        cancelling = threading.Thread(target=lambda one=one, out=outcomes: out.append(one.future.cancel()))
        cancelling.start()
        one.settle(REPLY)
        cancelling.join()
        assert one.future.cancelled() is outcomes[0]


def test_every_call_of_a_request_has_its_own_error():
    request = asked()
    request.calls += [call(), call()]
    request.settle(ReplyTimeout("late"))
    first, second = (it.future.exception(0) for it in request.calls)
    assert type(first) is type(second) is ReplyTimeout
    assert first is not second
    assert first.message == second.message == "late"


# ------------------------------------------------------------------------------------------------------ under one id


def test_the_same_request_under_one_id_is_one_request():
    book, first, second = Book(), call(), call()
    request = asked()
    assert entered(book, request, first) is request
    assert entered(book, asked(), second) is request
    assert len(book) == 1
    assert book.take("a") is request
    request.settle(REPLY)
    assert first.future.result(0) is second.future.result(0) is REPLY


def test_another_request_under_one_id_is_refused_and_harms_nobody():
    book, first = Book(), call()
    request = asked()
    entered(book, request, first)
    with pytest.raises(RequestIdReused, match="a is under way with other inputs"):
        book.enter(asked(body=b"another"), call(), lambda _: pytest.fail("it was taken"))
    assert book.find("a") is request
    assert request.calls == [first]


def test_an_id_is_free_again_once_it_is_answered():
    book = Book()
    entered(book, asked(), call())
    book.take("a")
    request = asked(body=b"another")
    assert entered(book, request, call()) is request


def test_the_last_call_that_leaves_takes_its_request_along():
    book, first, second = Book(), call(), call()
    request = asked()
    entered(book, request, first)
    entered(book, request, second)
    assert not book.leave(request, first)
    assert not book.leave(request, first)
    assert not book.holds(request, first)
    assert book.holds(request, second)
    assert book.leave(request, second)
    assert len(book) == 0
    assert not book.leave(request, second)


def test_who_left_a_request_has_no_part_in_its_heir():
    book, first, second = Book(), call(), call()
    old, new = asked(), asked()
    entered(book, old, first)
    book.take("a")
    entered(book, new, second)
    assert not book.leave(old, first)
    assert not book.holds(old, first)
    assert book.find("a") is new


def test_every_question_is_another_one_and_finds_its_request():
    book, first = Book(), call()
    old, new = asked(), asked()
    entered(book, old, first)
    assert book.find_question(old.question) is old
    book.take("a")
    entered(book, new, first)
    assert old.question != new.question
    assert book.find_question(old.question) is None
    assert book.find_question(new.question) is new
    book.leave(new, first)
    assert book.find_question(new.question) is None


@pytest.mark.parametrize("nothing", [None, 3, b"a", [], "a"])
def test_questions_that_are_none(nothing):
    book = Book()
    entered(book, asked(), call())
    assert book.find_question(nothing) is None


def test_only_what_the_line_knows_of_is_sent_again():
    book = Book()
    first, second = asked("a"), asked("b")
    for request in (first, second):
        entered(book, request, call())
    second.begun = True
    assert book.begun() == [second]


# ---------------------------------------------------------------------------------------------------------- the end


def test_a_closed_book_gives_what_it_had_and_takes_nothing():
    book = Book()
    requests = [asked("a"), asked("b")]
    for request in requests:
        entered(book, request, call())
    assert book.unless_over(lambda: None)
    assert book.close(ClientClosed("closed")) == requests
    assert len(book) == 0
    errors = []
    for _ in range(2):
        with pytest.raises(ClientClosed, match="closed") as caught:
            book.enter(asked("c"), call(), lambda _: pytest.fail("it was taken"))
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    assert not book.unless_over(lambda: pytest.fail("it was done"))


def test_whoever_entered_before_the_end_is_handed_out():
    for _ in range(50):
        book = Book()
        taken: list[Asked] = []
        refused: list[str] = []
        start = threading.Barrier(3)

        def enter(name: str, book: Book = book, start=start, taken=taken, refused=refused) -> None:
            start.wait()
            for number in range(20):
                try:
                    book.enter(asked(f"{name}{number}"), call(), taken.append)
                except ClientClosed:
                    refused.append(f"{name}{number}")

        threads = [threading.Thread(target=enter, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        start.wait()
        left = book.close(ClientClosed("closed"))
        for thread in threads:
            thread.join()
        assert {it.id for it in left} == {it.id for it in taken}
        assert len(taken) + len(refused) == 40


def test_calls_that_come_while_it_is_answered_are_not_lost():
    """A call enters the request that is being answered, or one of its own: in either case somebody settles it."""
    for _ in range(200):
        book, late = Book(), call()
        entered(book, asked(), call())
        entering = threading.Thread(target=lambda book=book, late=late: entered(book, asked(), late))
        entering.start()
        answered = book.take("a")
        assert answered is not None
        answered.settle(REPLY)
        entering.join()
        if not late.future.done():
            again = book.take("a")
            assert again is not None
            assert again is not answered
            assert again.calls == [late]


def test_a_pending_request_is_a_future_with_an_id():
    pending: Pending[int] = Pending("a")
    assert isinstance(pending, Future)
    assert pending.request_id == "a"
