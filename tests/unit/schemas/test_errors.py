from __future__ import annotations

import pickle
import re

import pytest
from rankmq.schemas import codec, errors
from rankmq.schemas.errors import (
    ConfigurationError,
    InstancesFailed,
    OperatorError,
    RankmqError,
    error_codes,
    from_wire,
)
from rankmq.schemas.messages import ErrorInfo, Reply

SIDES = {"RequestError": "sender", "ServingError": "engine", "ProducerError": "producer", "OperatorError": "operator"}


def tree(root: type[RankmqError]) -> list[type[RankmqError]]:
    """The tree of this module alone: a test elsewhere may have classes of its own."""
    below = [kind for kind in root.__subclasses__() if kind.__module__ == errors.__name__]
    return [root, *(leaf for kind in below for leaf in tree(kind))]


EVERY = tree(RankmqError)
every_error = pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)


def test_the_tree_in_the_docstring_is_the_real_one():
    drawn = [line for line in errors.__doc__.splitlines() if re.match(r"    [ │├└─]*[A-Z]\w+", line)]
    shown: set[tuple[str, str]] = set()
    above: list[str] = []
    for line in drawn:
        branch, name = re.match(r"    ([ │├└─]*)(\w+)", line).groups()
        del above[len(branch) // 4 :]
        shown.add((name, above[-1] if above else "Exception"))
        above.append(name)
    assert shown == {(kind.__name__, kind.__base__.__name__) for kind in EVERY}
    assert len(drawn) == len(EVERY)


def test_every_code_is_its_own():
    codes = [kind.code for kind in EVERY]
    assert sorted(codes) == sorted(set(codes))
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)
    assert {code: kind for code, kind in error_codes().items() if kind in EVERY} == {kind.code: kind for kind in EVERY}


@every_error
def test_every_class_says_itself_what_it_means(kind):
    assert kind.__doc__
    assert kind.__doc__ != kind.__base__.__doc__
    assert "code" in vars(kind), "a code that is inherited is not its own"
    assert kind.__name__ in errors.__all__


@every_error
def test_every_class_has_the_side_of_its_branch(kind):
    branches = [SIDES[base.__name__] for base in kind.__mro__ if base.__name__ in SIDES]
    assert kind.side == (branches[0] if branches else "engine")


@every_error
def test_every_error_crosses_the_wire(kind):
    info = ErrorInfo(code=kind.code, message="what is wrong: ä", side=kind.side)
    found = codec.decode_reply(codec.encode_reply(Reply(error=info))).error
    error = from_wire(found.code, found.message)
    assert type(error) is kind
    assert error.message == str(error) == "what is wrong: ä"
    assert (error.code, error.side) == (kind.code, kind.side)
    assert isinstance(error, Exception)


def test_what_a_class_carries_beside_its_message_is_there_after_the_wire():
    assert from_wire("invalid_servable", "a.py:3: wrong").line is None
    assert from_wire("invalid_configuration", "a.py:3: wrong").file is None
    assert from_wire("instances_failed", "2 of 3").results == []


def test_an_unknown_code_is_kept_in_the_message():
    error = from_wire("no_such_code", "text")
    assert type(error) is RankmqError
    assert str(error) == "no_such_code: text"


def test_exit_codes_are_not_zero_and_not_those_of_the_shell():
    kinds = [kind for kind in EVERY if issubclass(kind, OperatorError)]
    assert len(kinds) == 10
    assert all(kind.exit_code == 1 or 3 <= kind.exit_code < 64 for kind in kinds)  # 2 is a wrong command line


@pytest.mark.parametrize(
    ("where", "text"),
    [({}, "wrong"), ({"file": "a.py"}, "a.py: wrong"), ({"file": "a.py", "line": 3}, "a.py:3: wrong")],
)
def test_a_configuration_error_says_where(where, text):
    error = ConfigurationError("wrong", **where)
    assert str(error) == error.message == text
    assert (error.file, error.line) == (where.get("file"), where.get("line"))


def test_failed_instances_come_with_the_others_outputs():
    error = InstancesFailed("1 of 2", [{"x": 1}, RankmqError("no")])
    assert error.results[0] == {"x": 1}


@every_error
def test_every_error_can_be_handed_to_another_process(kind):
    error = from_wire(kind.code, "a: b")
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is kind
    assert str(found) == found.message == "a: b"
    assert vars(found) == vars(error)
