"""A bound on what is held at once: never more than there is, in order, nobody forgotten."""

from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.room import Room


@given(st.lists(st.tuples(st.sampled_from(["enter", "leave"]), st.integers(0, 9), st.integers(0, 10)), max_size=60))
def test_never_more_than_there_is_and_in_order(acts):
    room: Room[int] = Room(10)
    asked: list[tuple[int, int]] = []
    started: list[int] = []
    gone: set[int] = set()

    for number, (act, which, amount) in enumerate(acts):
        if act == "enter":
            asked.append((number, amount))
            room.enter(number, amount, lambda number=number: started.append(number))
        elif asked:
            key = asked[which % len(asked)][0]
            room.leave(key)
            room.leave(key)
            gone.add(key)
        held = {key: amount for key, amount in asked if key in started and key not in gone}
        waiting = [(key, amount) for key, amount in asked if key not in started and key not in gone]
        assert room.used == sum(held.values()) <= 10
        assert room.waiting == len(waiting)
        if waiting:
            assert held
            assert room.used + waiting[0][1] > 10, "who waits first would have room"
    assert started == sorted(started)
    assert len(started) == len(set(started))


def test_who_leaves_lets_others_in_while_they_are_let_in():
    room: Room[str] = Room(4)
    seen: list[str] = []

    def at_once(key: str) -> None:
        seen.append(key)
        room.leave(key)

    room.enter("first", 4, lambda: seen.append("first"))
    for key in "abc":
        room.enter(key, 4, lambda key=key: at_once(key))
    assert seen == ["first"]
    room.leave("first")
    assert seen == ["first", "a", "b", "c"]
    assert (room.used, room.waiting) == (0, 0)
