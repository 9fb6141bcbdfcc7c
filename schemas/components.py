"""The JSON Schemas of all messages, generated from the types, with the descriptions of their docstrings.

Three things are put in by hand, since they live in values and not in types: in JSON, a tensor's data may be nested
lists as well as base64; it has data or a blob; and an input may be a bare value.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import msgspec.json

from . import blobs, messages, tensors
from .messages import AnswersSent, CancelReply, Reply, ReplyPart, Request, Status, ToAgent, ToOrchestrator
from .tensors import DTYPES, MAX_DIMENSIONS, Tensor

__all__ = ["components"]

_NESTED = {"Booleans": "boolean", "Integers": "integer", "Numbers": "number", "Texts": "string"}
_FIELD = re.compile(r"^    (\w+): ")


def components(prefix: str) -> dict[str, dict[str, Any]]:
    """A JSON Schema for each message and each part of one, by name.

    Args:
        prefix: where references find them, such as "#/$defs/".
    """
    kinds: list[Any] = [Request, Reply, ReplyPart, CancelReply, ToAgent, ToOrchestrator, Status, AnswersSent, Tensor]
    _, found = msgspec.json.schema_components(kinds, ref_template=prefix + "{name}")
    for name, schema in found.items():
        _describe(schema, next(getattr(it, name) for it in (messages, tensors, blobs) if hasattr(it, name)))
    for name, kind in _NESTED.items():
        again = {"$ref": f"{prefix}Nested{name}"}
        found[f"Nested{name}"] = {
            "title": f"Nested{name}",
            "description": f"A {kind}, or lists of equal length, nested up to {MAX_DIMENSIONS} deep, of {kind}s.",
            "anyOf": [{"type": kind}, {"type": "array", "items": again}],
        }
    found["Tensor"] = _tensor(found["Tensor"], prefix)
    found["Value"] = _value(prefix)
    rows = found["Request"]["properties"]["instances"]
    rows["items"] = {"type": "object", "additionalProperties": {"$ref": f"{prefix}Value"}}
    plain: dict[str, dict[str, Any]] = msgspec.json.decode(
        msgspec.json.encode(dict(sorted(found.items())))
    )  # no tuples
    return plain


def _value(prefix: str) -> dict[str, Any]:
    choices = ["Tensor", "NestedNumbers", "NestedTexts", "NestedBooleans"]
    return {
        "title": "Value",
        "description": "An input: a tensor, or a bare value. Bare whole numbers become int32 (int64, uint64 where they "
        "do not fit), other numbers float32, text string, true and false bool.",
        "anyOf": [{"$ref": prefix + name} for name in choices],
    }


def _tensor(schema: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Base64 with a shape, or nested lists of what the dtype can hold, or a reference."""
    base64 = {"type": "string", "contentEncoding": "base64"}
    lists = {
        "bool": ("Booleans", ["bool"]),
        "integers": ("Integers", [name for name in DTYPES if "int" in name]),
        "floats": ("Numbers", [name for name in DTYPES if "float" in name]),
    }
    rules: list[dict[str, Any]] = [
        {
            "if": {"properties": {"dtype": {"enum": names}}},
            "then": {"properties": {"data": {"anyOf": [base64, {"$ref": f"{prefix}Nested{nested}"}]}}},
        }
        for nested, names in lists.values()
    ]
    texts = {"enum": ["string", "bytes"]}
    rules.append(
        {
            "if": {"properties": {"dtype": texts}},
            "then": {"properties": {"data": {"$ref": f"{prefix}NestedTexts"}}},
            "else": {
                "if": {"properties": {"data": {"type": "string"}}, "required": ["data"]},
                "then": {"required": ["dtype", "shape", "data"]},
            },
        }
    )
    properties = dict(schema["properties"])
    properties["data"] = {
        "description": "In MessagePack: one binary string, the elements little-endian and in C order; for string and "
        "bytes a flat array of the elements. In JSON: that binary string in base64 (then shape is needed), or nested "
        "lists; for string nested lists of text, for bytes nested lists of base64 text."
    }
    properties["blob"] = {
        "allOf": [{"$ref": f"{prefix}Blob"}],
        "description": "In place of data: where the bytes are. They are as the binary string would be.",
    }
    rules.append({"if": {"required": ["blob"]}, "then": {"properties": {"dtype": {"not": texts}}}})
    either = [{"required": ["data"]}, {"required": ["shape", "blob"]}]
    return {**schema, "properties": properties, "required": ["dtype"], "oneOf": either, "allOf": rules}


def _describe(schema: dict[str, Any], kind: type) -> None:
    """The docstring's text as description, and what it says under `Attributes:` as the descriptions of the fields."""
    text, _, attributes = inspect.cleandoc(kind.__doc__ or "").partition("\nAttributes:\n")
    schema["description"] = " ".join(text.split())
    fields: dict[str, str] = {}
    name = ""
    for line in attributes.splitlines():
        if start := _FIELD.match(line):
            name = start[1]
            fields[name] = line[start.end() :]
        elif line.strip():
            fields[name] += " " + line.strip()
    for name, text in fields.items():
        described = schema["properties"][name]
        if "$ref" in described:  # in older drafts, what stands beside a reference is not read
            described = schema["properties"][name] = {"allOf": [described]}
        described["description"] = text
    if "v" in schema["properties"]:
        schema["properties"]["v"].update(const=messages.SCHEMA_VERSION, description="The schema version.")
