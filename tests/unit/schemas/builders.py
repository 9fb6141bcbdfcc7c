"""Messages for the tests, made of the declared types: any one (hypothesis), the least, one with all fields set."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from hypothesis import strategies as st
from msgspec import inspect
from rankmq.schemas import codec, messages
from rankmq.schemas.blobs import Blob
from rankmq.schemas.tensors import Tensor, from_array

U64, I64 = 2**64 - 1, -(2**63)

TOLERANT = (messages.Reply, messages.ReplyPart, messages.Stats, messages.CancelReply)
"""A producer goes on reading what has learned to say more."""

EVERY_MESSAGE: list[type[messages.Message]] = sorted(
    (
        kind
        for kind in vars(messages).values()
        if isinstance(kind, type) and issubclass(kind, messages.Message) and kind is not messages.Message
    ),
    key=lambda kind: kind.__name__,
)


def decoder_of(kind: type[messages.Message]) -> Callable[[bytes], Any]:
    """The function of the codec that reads this message."""
    if kind is messages.Request:
        return codec.decode_request
    if kind is messages.Reply:
        return codec.decode_reply
    if kind is messages.ReplyPart:
        return codec.decode_part
    if kind is messages.Status:
        return codec.decode_status
    if kind is messages.CancelReply:
        return codec.decode_cancel_reply
    if kind is messages.AnswersSent:
        return codec.decode_answers_sent
    if kind in messages.ToAgent.__args__:
        return codec.decode_to_agent
    assert kind in messages.ToOrchestrator.__args__, f"nobody decodes {kind.__name__}"
    return codec.decode_to_orchestrator


def wire_form(value: object) -> Any:
    """What a message looks like as plain maps, lists and scalars, said independently of msgspec's encoder."""
    if isinstance(value, Tensor):  # with its data, or with a blob
        last = "data" if value.blob is None else "blob"
        return {name: wire_form(getattr(value, name)) for name in ("dtype", "shape", last)}
    if isinstance(value, msgspec.Struct):
        out = {name: wire_form(getattr(value, name)) for name in value.__struct_fields__}
        config = value.__struct_config__
        return {config.tag_field: config.tag, **out} if config.tag is not None else out
    if isinstance(value, dict):
        return {name: wire_form(element) for name, element in value.items()}
    if isinstance(value, list | tuple):
        return [wire_form(element) for element in value]
    return bytes(value) if isinstance(value, memoryview) else value


# ------------------------------------------------------------------------------------------------------- hypothesis

_scalars = st.none() | st.booleans() | st.integers(I64, U64) | st.floats(allow_nan=False) | st.text(max_size=8)
_plain = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


def tensors() -> st.SearchStrategy[Tensor]:
    """Small tensors of numbers and of text, and some by reference."""
    numbers = st.lists(st.integers(-100, 100), max_size=5).map(lambda row: from_array(np.array(row, np.int16)))
    texts = st.lists(st.text(max_size=5), max_size=3).map(lambda row: Tensor("string", (len(row),), tuple(row)))
    return numbers | texts | references()


def references() -> st.SearchStrategy[Tensor]:
    """Tensors by reference."""
    names = st.builds("20260131T{:06d}Z-{:032x}".format, st.integers(0, 235959), st.integers(0, 2**128 - 1))
    digests = st.integers(0, 2**32 - 1).map("crc32:{:08x}".format)

    def refer(size: int, name: str, digest: str) -> Tensor:
        return Tensor("int16", (size,), blob=Blob(name=name, bytes=2 * size, digest=digest))

    return st.builds(refer, st.integers(1, 2**40), names, digests)


def any_of(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Any instance of a declared type."""
    return _strategy(inspect.type_info(kind))


def _strategy(info: inspect.Type) -> st.SearchStrategy[Any]:
    match info:
        case inspect.Metadata():
            return _strategy(info.type)
        case inspect.StructType(cls=cls):
            if cls is Tensor:
                return tensors()
            return st.builds(cls, **{field.name: _strategy(field.type) for field in info.fields if field.name != "v"})
        case inspect.IntType(ge=low):
            return st.integers(I64 if low is None else low, U64)
        case inspect.FloatType():
            return st.floats(allow_nan=False)
        case inspect.StrType(pattern=None):
            return st.text(min_size=info.min_length or 0, max_size=12)
        case inspect.StrType():
            letters = string.ascii_letters + "_"
            return st.builds(str.__add__, st.sampled_from(letters), st.text(letters + string.digits + "-", max_size=63))
        case inspect.BytesType():
            return st.binary(max_size=12)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.AnyType():
            return _plain
        case inspect.ListType() | inspect.VarTupleType():
            rows = st.lists(_strategy(info.item_type), min_size=info.min_length or 0, max_size=3)
            return rows if isinstance(info, inspect.ListType) else rows.map(tuple)
        case inspect.TupleType():
            return st.tuples(*map(_strategy, info.item_types))
        case inspect.DictType():
            return st.dictionaries(st.text(max_size=8), _strategy(info.value_type), max_size=3)
        case inspect.UnionType():
            return st.one_of(*map(_strategy, info.types))
        case inspect.LiteralType():
            return st.sampled_from(info.values)
    raise AssertionError(f"no strategy for {info}")


# ----------------------------------------------------------------------------------------------- the least, the most


def least(kind: type[msgspec.Struct]) -> Any:
    """An instance with nothing but what is required."""
    return _example(inspect.type_info(kind), full=False)


def most(kind: type[msgspec.Struct]) -> Any:
    """An instance with every field set and one element in every list, so that all parts occur."""
    return _example(inspect.type_info(kind), full=True)


def _example(info: inspect.Type, *, full: bool) -> Any:
    match info:
        case inspect.Metadata():
            return _example(info.type, full=full)
        case inspect.StructType(cls=cls):
            if cls is Tensor:
                return from_array(np.arange(3, dtype=np.float32))
            wanted = [field for field in info.fields if field.name != "v" and (full or field.required)]
            return cls(**{field.name: _example(field.type, full=full) for field in wanted})
        case inspect.IntType(ge=low):
            return low or 0
        case inspect.FloatType():
            return 0.5
        case inspect.StrType():
            return "a"
        case inspect.BytesType():
            return b"a"
        case inspect.BoolType():
            return True
        case inspect.AnyType():
            return "anything"
        case inspect.ListType() | inspect.VarTupleType():
            rows = [_example(info.item_type, full=full)] if full or info.min_length else []
            return rows if isinstance(info, inspect.ListType) else tuple(rows)
        case inspect.TupleType():
            return tuple(_example(item, full=full) for item in info.item_types)
        case inspect.DictType():
            return {"a": _example(info.value_type, full=full)} if full else {}
        case inspect.UnionType():
            structs_first = sorted(info.types, key=lambda kind: not isinstance(kind, inspect.StructType))
            kinds = [kind for kind in structs_first if not isinstance(kind, inspect.NoneType)]
            return _example(kinds[0], full=full)
        case inspect.LiteralType():
            return info.values[0]
    raise AssertionError(f"no example for {info}")


def parts_of(value: object, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], msgspec.Struct]]:
    """Every declared type inside a message and the path to it, the message itself first."""
    found: list[tuple[tuple[Any, ...], msgspec.Struct]] = []
    if isinstance(value, msgspec.Struct):
        found.append((path, value))
        for name in value.__struct_fields__:
            found += parts_of(getattr(value, name), (*path, name))
    elif isinstance(value, dict):
        for name, element in value.items():
            found += parts_of(element, (*path, name))
    elif isinstance(value, list | tuple):
        for index, element in enumerate(value):
            found += parts_of(element, (*path, index))
    return found
