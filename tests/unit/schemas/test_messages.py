from __future__ import annotations

import copy
import json
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect, structs
from rankmq.schemas import codec, messages
from rankmq.schemas.errors import InvalidInput, LimitExceeded, Undecodable, UnsupportedSchema
from rankmq.schemas.messages import (
    Answered,
    AnswersSent,
    CancelReply,
    ErrorInfo,
    GroupId,
    Heartbeat,
    Placed,
    Repeat,
    Reply,
    Request,
    StatusQuery,
    Task,
)

from .builders import EVERY_MESSAGE, TOLERANT, any_of, decoder_of, least, most, parts_of, wire_form

every_message = pytest.mark.parametrize("kind", EVERY_MESSAGE, ids=lambda kind: kind.__name__)
UNREADABLE = msgpack.ExtType(5, b"x")


def packed(plain: Any) -> bytes:
    return msgpack.packb(plain, use_bin_type=True)


def at(plain: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        plain = plain[step]
    return plain


def types_of(part: msgspec.Struct) -> dict[str, inspect.Type]:
    info = inspect.type_info(type(part))
    assert isinstance(info, inspect.StructType)
    return {field.name: field.type for field in info.fields}


@every_message
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_message_round_trips_and_reads_the_same_with_another_msgpack(kind, data):
    message = data.draw(any_of(kind))
    body = codec.encode(message)
    decode = decoder_of(kind)
    assert decode(body) == message
    assert type(decode(body)) is kind
    assert msgpack.unpackb(body) == wire_form(message)
    assert decode(packed(wire_form(message))) == message


@every_message
def test_what_is_not_required_may_be_left_out(kind):
    plain = wire_form(least(kind))
    required = {field.name for field in inspect.type_info(kind).fields if field.required} | {"type"}
    assert decoder_of(kind)(packed({name: plain[name] for name in plain if name in required})) == least(kind)


@every_message
def test_a_missing_field_is_refused_wherever_it_stands(kind):
    message = most(kind)
    for path, part in parts_of(message):
        info = inspect.type_info(type(part))
        for field in info.fields:
            if not field.required:
                continue
            plain = wire_form(message)
            del at(plain, path)[field.name]
            with pytest.raises(Undecodable, match=field.name):
                decoder_of(kind)(packed(plain))


@every_message
def test_an_unknown_field_is_refused_wherever_it_stands(kind):
    message = most(kind)
    for path, part in parts_of(message):
        plain = wire_form(message)
        at(plain, path)["colour"] = "green"
        if type(part) in TOLERANT:
            assert decoder_of(kind)(packed(plain)) == message
            continue
        with pytest.raises(Undecodable, match="colour"):
            decoder_of(kind)(packed(plain))


@every_message
def test_a_value_of_another_type_is_refused_wherever_it_stands(kind):
    message = most(kind)
    for path, part in parts_of(message):
        for name, info in types_of(part).items():
            wrongs: list[Any] = [UNREADABLE]
            if isinstance(info, inspect.IntType):
                wrongs += [True, 1.0, "1", None]
            if isinstance(info, inspect.StrType):
                wrongs += [b"a", 1, None]
            for wrong in wrongs:
                plain = wire_form(message)
                at(plain, path)[name] = wrong
                with pytest.raises(Undecodable):
                    decoder_of(kind)(packed(plain))


@every_message
def test_counts_are_not_negative(kind):
    message = most(kind)
    for path, part in parts_of(message):
        for name, info in types_of(part).items():
            if isinstance(info, inspect.IntType) and info.ge is not None:
                plain = wire_form(message)
                at(plain, path)[name] = info.ge - 1
                with pytest.raises(Undecodable, match=f">= {info.ge}"):
                    decoder_of(kind)(packed(plain))


@every_message
@pytest.mark.parametrize("version", [0, 2, 2**40])
def test_another_schema_version_is_told_apart(kind, version):
    plain = wire_form(most(kind)) | {"v": version}
    with pytest.raises(UnsupportedSchema, match=str(version)):
        decoder_of(kind)(packed(plain))
    with pytest.raises(UnsupportedSchema, match=str(version)):  # even where its fields are not ours
        decoder_of(kind)(packed(plain | {"of": "a later version"}))


@every_message
def test_a_version_that_is_no_number_is_undecodable(kind):
    for wrong in (None, "1", True, 1.0, [1], {}):
        with pytest.raises(Undecodable):
            decoder_of(kind)(packed(wire_form(most(kind)) | {"v": wrong}))


@pytest.mark.parametrize("tag", ["no_such_message", "", None, 3])
def test_an_unknown_kind_of_message_is_refused(tag):
    plain = wire_form(most(Heartbeat)) | {"type": tag}
    with pytest.raises(Undecodable):
        codec.decode_to_orchestrator(packed(plain))


def test_messages_for_one_side_are_refused_by_the_other():
    with pytest.raises(Undecodable):
        codec.decode_to_agent(codec.encode(most(Heartbeat)))
    with pytest.raises(Undecodable):
        codec.decode_to_orchestrator(codec.encode(most(messages.Task)))
    with pytest.raises(Undecodable):
        codec.decode_request(codec.encode(most(Reply)))


def test_every_kind_of_message_has_its_own_tag():
    for union in (messages.ToAgent, messages.ToOrchestrator):
        tags = [kind.__struct_config__.tag for kind in union.__args__]
        assert None not in tags
        assert len(set(tags)) == len(tags)


def test_the_kinds_in_the_unions_are_all_there_are():
    others = {Request, Reply, messages.ReplyPart, messages.Status, CancelReply, AnswersSent}
    assert set(EVERY_MESSAGE) == others | set(messages.ToAgent.__args__) | set(messages.ToOrchestrator.__args__)


@pytest.mark.parametrize("name", ["", "1st", "a b", "a.b", "ä", "a\n", "a/b", "a" * 65, "-a"])
def test_a_name_that_could_not_be_part_of_a_queue_name_is_refused(name):
    plain = wire_form(most(Request)) | {"servable": name}
    with pytest.raises(Undecodable, match="servable"):
        codec.decode_request(packed(plain))


@pytest.mark.parametrize("name", ["a", "_", "Matmul_2-x", "a" * 64])
def test_a_name_that_is_one_is_taken(name):
    assert codec.decode_request(packed(wire_form(most(Request)) | {"servable": name})).servable == name


def test_messages_are_frozen_and_compare_by_value():
    message = most(Heartbeat)
    assert message == copy.deepcopy(message)
    with pytest.raises(AttributeError):
        message.rank = 3


def test_a_group_is_named_in_one_word():
    assert str(GroupId(servable="matmul", version=3, group="g1")) == "matmul.v3.g1"


def test_no_error_is_too_odd_to_be_reported():
    odd = ErrorInfo(code="internal", message="file \udcff" + "x" * 10_000)
    assert len(odd.message) == messages.MAX_ERROR_MESSAGE
    assert odd.message.startswith("file ?xxx")
    assert odd.message.endswith("...")
    assert codec.decode_reply(codec.encode_reply(Reply(error=odd))).error == odd
    assert ErrorInfo(code="internal", message="Übergröße 😀").message == "Übergröße 😀"


@pytest.mark.parametrize(
    "value", [2**64, -(2**63) - 1, "\ud800", object()], ids=["over", "under", "surrogate", "object"]
)
def test_what_cannot_be_encoded_is_a_typed_error(value):
    request = Request(servable="m", method="p", instances=[{"x": [value]}])
    with pytest.raises(InvalidInput, match="cannot be sent"):
        codec.encode(request)
    with pytest.raises(InvalidInput, match="cannot be sent"):
        codec.encode_request(request)


def test_a_list_nested_without_end_is_a_typed_error():
    endless: list[Any] = []
    endless.append(endless)
    request = Request(servable="m", method="p", instances=[{"x": endless}])
    with pytest.raises(InvalidInput):
        codec.encode_request(request)
    with pytest.raises(LimitExceeded):
        codec.encode_request(request, codec.JSON)


def test_the_smallest_message_is_a_map_with_a_version_and_a_type():
    assert msgpack.unpackb(codec.encode(StatusQuery())) == {"type": "status_query", "v": 1}


# ------------------------------------------------------------------------------------ what became of a cancel; the log

SAID = CancelReply(orchestrator="host-4711", id="42", state="cancelled")


@given(any_of(CancelReply))
@settings(max_examples=40, deadline=None)
def test_what_became_of_a_cancel_reads_the_same_in_both_formats(said):
    plain = {"v": 1, "orchestrator": said.orchestrator, "id": said.id, "state": said.state}
    assert msgpack.unpackb(codec.encode_cancel_reply(said)) == plain
    assert json.loads(codec.encode_cancel_reply(said, codec.JSON)) == plain
    for content_type in (codec.MSGPACK, codec.JSON):
        assert codec.decode_cancel_reply(codec.encode_cancel_reply(said, content_type), content_type) == said


def test_what_became_of_a_cancel_in_json_is_taken_with_more_and_refused_with_less():
    plain = {"orchestrator": "host-4711", "id": "42", "state": "cancelled"}

    def read(**changes):
        whole = {name: it for name, it in (plain | changes).items() if it is not ...}
        return codec.decode_cancel_reply(json.dumps(whole).encode(), codec.JSON)

    assert read() == read(v=1) == read(since="a later version") == SAID
    for state in ("answered", "noted"):
        assert read(state=state).state == state
    for wrong in ({"state": "gone"}, {"state": None}, {"id": 42}, {"orchestrator": ...}, {"state": ...}):
        with pytest.raises(Undecodable):
            read(**wrong)
    with pytest.raises(UnsupportedSchema):
        read(v=2)
    for body in (b"", b"{", b"[]", b"\xc1"):
        with pytest.raises(Undecodable):
            codec.decode_cancel_reply(body, codec.JSON)


def test_a_state_that_no_orchestrator_says_is_refused():
    with pytest.raises(Undecodable, match="state"):
        codec.decode_cancel_reply(packed(wire_form(SAID) | {"state": "gone"}))


def test_an_answer_is_in_the_log_byte_by_byte():
    body = bytes(range(256))
    entry = AnswersSent(orchestrator="a", session="s", at_ms=1, answers=(Answered(id="42", check=7, body=body),))
    read = codec.decode_answers_sent(codec.encode(entry))
    assert read == entry
    assert type(read.answers[0].body) is bytes  # it is kept for longer than the message that it came in
    assert codec.decode_answers_sent(codec.encode(AnswersSent(orchestrator="a", session="s", at_ms=1))).answers == ()


def test_an_entry_of_the_log_is_for_orchestrators_alone():
    body = codec.encode(AnswersSent(orchestrator="a", session="s", at_ms=1))
    for decode in (codec.decode_to_agent, codec.decode_to_orchestrator, codec.decode_request):
        with pytest.raises(Undecodable):
            decode(body)
    with pytest.raises(Undecodable):
        codec.decode_answers_sent(codec.encode(most(Heartbeat)))


# -------------------------------------------------------------------------------------- a step's work and its columns


@pytest.mark.parametrize("op", ["called", "", None, 3, ...])
def test_work_of_an_unknown_kind_is_refused(op):
    plain = wire_form(most(Task))
    if op is ...:
        del plain["work"]["op"]
    else:
        plain["work"]["op"] = op
    with pytest.raises(Undecodable):
        codec.decode_to_agent(packed(plain))


def test_work_is_told_apart_by_its_kind():
    task = most(Task)
    repeated = structs.replace(task, work=Repeat(subgraph=1, rows=2, turns=(3, 4), feed=((0, 1),)))
    assert codec.decode_to_agent(codec.encode(repeated)) == repeated
    assert wire_form(repeated)["work"]["op"] == "repeat"
    assert wire_form(task)["work"]["op"] == "call"
    plain = wire_form(repeated)
    for pair in ([0], [0, 1, 2], [0, -1], 0):
        plain["work"]["feed"] = [pair]
        with pytest.raises(Undecodable):
            codec.decode_to_agent(packed(plain))


@pytest.mark.parametrize("field", [it for it in Placed.__struct_fields__ if it != "count"])  # one, if it is not said
def test_a_tensor_that_is_elsewhere_says_all_of_where(field):
    column = messages.Column(index=0, placed=(Placed(dtype="float32", shape=(2,), offset=64, length=8),))
    task = structs.replace(most(Task), inputs=(column,))
    assert codec.decode_to_agent(codec.encode(task)) == task
    plain = wire_form(task)
    del plain["inputs"][0]["placed"][0][field]
    with pytest.raises(Undecodable, match=field):
        codec.decode_to_agent(packed(plain))
