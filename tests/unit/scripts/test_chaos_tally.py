"""What became of every request, from what the producers have written down."""

import json

import numpy as np
import pytest
from rankmq.schemas import codec
from rankmq.schemas.messages import ErrorInfo, InstanceError, Reply
from rankmq.schemas.tensors import from_array
from rankmq.scripts.chaos.journal import Journal, Tail, read
from rankmq.scripts.chaos.questions import Questions
from rankmq.scripts.chaos.raw_producer import verdict_of
from rankmq.scripts.chaos.tally import Book, Tally, longest_gap


def tally(*events, name="raw"):
    book = Book(name)
    for event in events:
        book.hear(event)
    return Tally.of([book])


def reply(at, number, message_id="m", redelivered=False, verdict="right", text=""):
    return ["reply", at, number, message_id, redelivered, verdict, text]


def test_a_request_that_is_answered():
    found = tally(["opened", 0.5], ["sent", 1.0, 0], ["accepted", 1.1, 0], reply(1.3, 0))
    assert (found.sent, found.accepted, found.answered, found.right) == (1, 1, 1, 1)
    assert found.good
    assert (found.wrong, found.lost, found.duplicated, found.errors, found.again) == ((), (), (), {}, 0)


def test_an_answer_shows_that_the_request_was_accepted():
    assert tally(["sent", 1, 0], reply(2, 0)).accepted == 1


def test_what_was_accepted_and_never_answered_is_lost():
    found = tally(["sent", 1, 0], ["accepted", 2, 0], ["sent", 3, 1], reply(4, 1))
    assert found.lost == ("raw-0",)
    assert not found.good


def test_what_was_not_accepted_is_not_lost():
    found = tally(["sent", 1, 0], ["refused", 2, 0])
    assert (found.sent, found.accepted, found.lost, found.good) == (1, 0, (), True)


def test_what_a_client_has_given_up_is_lost():
    found = tally(["sent", 1, 0], ["gave-up", 9, 0, "reply_timeout", "no reply within 8 s"], name="client")
    assert found.lost == ("client-0: reply_timeout: no reply within 8 s",)


def test_a_second_reply_is_a_duplicate_and_is_kept_with_its_moment():
    found = tally(["sent", 1.0, 7], reply(2.0, 7, "a"), reply(2.5, 7, "b"))
    (one,) = found.duplicated
    assert (one.id, one.sent) == ("raw-7", 1.0)
    assert [(it.at, it.message_id) for it in one.replies] == [(2.0, "a"), (2.5, "b")]
    assert found.answered == 1
    assert not found.good


@pytest.mark.parametrize(
    ("second", "duplicated", "repeated", "again"),
    [
        (reply(3, 0, "a", redelivered=True), 0, 0, 1),  # the producer was killed before it had acknowledged the first
        (reply(3, 0, "a"), 0, 1, 0),
        (reply(3, 0, "b"), 1, 1, 0),
        (reply(3, 0, "b", redelivered=True), 1, 1, 0),
        (reply(3, 0, "a", verdict="group_unavailable"), 1, 1, 0),  # it says something else: the check hides nothing
        (reply(3, 0, "a", redelivered=True, verdict="group_unavailable"), 1, 1, 0),
    ],
)
def test_a_producer_drops_a_reply_that_it_has_had(second, duplicated, repeated, again):
    found = tally(["sent", 1, 0], reply(2, 0, "a"), second)
    assert len(found.duplicated) == duplicated
    assert found.repeated_replies == repeated
    assert found.again == again
    assert found.good is not bool(duplicated)


def test_replies_without_an_id_cannot_be_told_apart():
    found = tally(["sent", 1, 0], reply(2, 0, ""), reply(3, 0, ""))
    assert (len(found.duplicated), found.repeated_replies) == (1, 1)


def test_repeated_replies_are_counted_each_and_kept_with_their_moments():
    found = tally(
        *(["sent", 1, number] for number in (0, 1, 2)),
        *(reply(2, 0, "a"), reply(3, 0, "a"), reply(4, 0, "a"), reply(4, 1, "b"), reply(5, 2, "c"), reply(6, 2, "d")),
        *(reply(7, 2, "d"), ["unwanted", 8, "x"]),
    )
    assert [(it.id, [reply.at for reply in it.replies]) for it in found.repeated] == [
        ("raw-0", [2, 3, 4]),
        ("raw-2", [5, 7]),
    ]
    assert [it.id for it in found.duplicated] == ["raw-2"]
    assert (found.hidden, found.repeated_replies) == (1, 5)


def test_wrong_numbers_are_told_with_what_is_wrong():
    found = tally(["sent", 1, 0], reply(2, 0, verdict="wrong", text="x[0, 0] is 1"))
    assert found.wrong == ("raw-0: x[0, 0] is 1",)
    assert (found.right, found.answered, found.errors, found.good) == (0, 1, {}, False)


def test_wrong_numbers_in_a_second_reply_count_too():
    found = tally(["sent", 1, 0], reply(2, 0, "a"), reply(3, 0, "b", verdict="wrong", text="y"))
    assert found.wrong == ("raw-0: y",)
    assert len(found.duplicated) == 1


def test_an_answer_to_what_nobody_asked_is_wrong():
    found = tally(["sent", 1, 0], reply(2, 0), reply(2, 5))
    assert found.wrong == ("raw-5: nobody asked",)


def test_typed_errors_are_answers():
    events = [["sent", 1, number] for number in range(4)]
    verdicts = ["right", "group_unavailable", "deadline_exceeded", "group_unavailable"]
    found = tally(*events, *(reply(2, number, verdict=it) for number, it in enumerate(verdicts)))
    assert found.errors == {"deadline_exceeded": 1, "group_unavailable": 2}
    assert (found.right, found.answered, found.good) == (1, 4, True)


def test_a_request_that_is_published_again_is_one_request():
    found = tally(["sent", 1, 0], ["refused", 2, 0], ["accepted", 3, 0], ["accepted", 4, 0], reply(5, 0))
    assert (found.sent, found.accepted, found.answered) == (1, 1, 1)


def test_books_are_added_up():
    one, other = Book("raw"), Book("client")
    for book in (one, other):
        for event in (["sent", 1, 0], ["accepted", 2, 0], ["unwanted", 2, "x"]):
            book.hear(event)
    one.hear(reply(3, 0))
    found = Tally.of([one, other])
    assert (found.sent, found.accepted, found.answered, found.lost, found.hidden) == (2, 2, 1, ("client-0",), 2)


def test_what_is_open_is_known_at_any_time():
    book = Book("raw")
    for event in (["sent", 1, 0], ["sent", 2, 1], ["lost", 2.5, "cut"], ["opened", 3], reply(4, 0)):
        book.hear(event)
    assert [asked.id for asked in book.unanswered.values()] == ["raw-1"]
    assert (book.answered_at, book.lost, book.opened) == ([4], [2.5], [3])


def test_the_longest_gap_is_bounded_by_both_moments():
    assert longest_gap([], 1, 4) == 3
    assert longest_gap([2, 3.5, 9], 1, 4) == 1.5
    assert longest_gap([3.5, 2], 1, 8) == 4.5


# ------------------------------------------------------------------------------------------------------- the journal


def test_a_journal_is_read_as_it_grows(tmp_path):
    path = tmp_path / "journal"
    tail = Tail(path)
    assert tail.lines() == []
    journal = Journal(path)
    journal.say("sent", 0)
    assert [json.loads(line)[0] for line in tail.lines()] == ["sent"]
    assert tail.lines() == []
    with path.open("ab") as file:
        file.write(b'["accep')
    assert tail.lines() == []
    with path.open("ab") as file:
        file.write(b'ted", 1, 0]\n')
    assert tail.lines() == [b'["accepted", 1, 0]']


def test_the_next_life_goes_on_with_the_same_journal(tmp_path):
    Journal(tmp_path / "journal").say("sent", 0)
    Journal(tmp_path / "journal").say("lost", 'it says "why"\nin two lines')
    events = read(tmp_path / "journal")
    assert [(word, *told) for word, _, *told in events] == [("sent", 0), ("lost", 'it says "why"\nin two lines')]
    assert events[0][1] <= events[1][1]


# -------------------------------------------------------------------------------------------------------- the numbers

WEIGHTS = np.random.default_rng(1).integers(-4, 5, (2, 96, 16)).astype(np.float32)


def answer(questions, number):
    given = questions.inputs(number)
    return {"x": -(given["x"] + given["x"]) @ WEIGHTS[0], "z": -given["y"] @ WEIGHTS[1]}


@pytest.mark.parametrize("number", [0, 1, 31, 32, 4711])
def test_the_right_numbers(number):
    questions = Questions(WEIGHTS, 4, seed=3)
    assert questions.inputs(number)["x"].shape == (4, 96)
    assert questions.verdict(number, answer(questions, number)) == ("right", "")


def test_one_number_that_is_wrong_is_seen():
    questions = Questions(WEIGHTS, 4, seed=3)
    for name, place in (("x", (0, 0)), ("z", (3, 15))):
        given = answer(questions, 9)
        given[name][place] += 1
        verdict, text = questions.verdict(9, given)
        assert verdict == "wrong"
        assert text.startswith(f"{name}{list(place)} is ")
        assert text.endswith("; 1 numbers differ")


def test_every_request_under_way_has_an_answer_of_its_own():
    questions = Questions(WEIGHTS, 2, seed=3)
    for other in range(1, 3000, 7):
        assert questions.verdict(0, answer(questions, other))[0] == "wrong"


def test_weights_that_are_not_whole_allow_for_rounding():
    weights = np.random.default_rng(1).normal(size=(2, 96, 16)).astype(np.float32)
    questions = Questions(weights, 4, seed=3)
    given = questions.inputs(100)
    near = {"x": -2 * (given["x"].astype(float) @ weights[0].astype(float)), "z": -given["y"] @ weights[1]}
    near = {name: value.astype(np.float32) for name, value in near.items()}
    assert questions.verdict(100, near)[0] == "right"
    near["x"][2, 3] += 0.5
    assert questions.verdict(100, near)[0] == "wrong"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda it: it.pop("z"), "outputs ['x']"),
        (lambda it: it.update(x=it["x"][:2]), "x is float32 (2, 16)"),
        (lambda it: it.update(x=it["x"].astype(np.float64)), "x is float64 (4, 16)"),
        (lambda it: it["z"].fill(np.nan), "z[0, 0] is nan"),
    ],
)
def test_other_outputs_are_wrong(change, words):
    questions = Questions(WEIGHTS, 4, seed=3)
    given = answer(questions, 1)
    change(given)
    verdict, text = questions.verdict(1, given)
    assert verdict == "wrong"
    assert text.startswith(words)


def test_the_verdict_on_a_reply():
    questions = Questions(WEIGHTS, 4, seed=3)
    right = {name: from_array(array) for name, array in answer(questions, 1).items()}
    error = ErrorInfo(code="group_unavailable", message="no ranks", side="engine")

    def verdict(made: Reply) -> tuple[str, str]:
        return verdict_of(questions, 1, codec.encode_reply(made, codec.MSGPACK), codec.MSGPACK)

    assert verdict(Reply(id="a", outputs=[right])) == ("right", "")
    assert verdict(Reply(id="a", outputs=[right, right]))[0] == "wrong"
    assert verdict(Reply(id="a", error=error)) == ("group_unavailable", "no ranks")
    failed = Reply(id="a", outputs=[None], errors=[InstanceError(index=0, error=error)])
    assert verdict(failed) == ("group_unavailable", "no ranks")
    assert verdict(Reply(id="a"))[0] == "wrong"
    assert verdict_of(questions, 1, b"\xc1", codec.MSGPACK)[0] == "wrong"
